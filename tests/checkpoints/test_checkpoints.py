"""What is read of a checkpoint, and what is broken is said in one error."""

import contextlib
import io
import json
import os
import pickle
import re
import shutil
from collections import OrderedDict
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from rllib_kd import load_teacher
from rllib_kd.checkpoints.pickles import CheckpointError, Name, read_pickle
from rllib_kd.checkpoints.rllib import open_checkpoint
from rllib_kd.checkpoints.values import build, build_entries
from rllib_kd.evaluation.comparing import evaluate
from rllib_kd.observations.pipeline import Flatten, Images, ObservationPipeline, Shown, StackFrames
from rllib_kd.teachers.base import Teacher
from tests.checkpoints.files import FILES, MODULE, change_model_config, read_all, replace_statistics, there_and_back
from tests.conftest import make_q_module
from tests.payloads import payloads


@pytest.mark.parametrize(
    "value",
    [
        np.arange(12, dtype=np.float32).reshape(3, 4),
        np.arange(12.0).reshape(3, 4).T,  # in Fortran's order
        np.arange(12)[::2],
        np.array([[True], [False]]),
        np.arange(3, dtype=">f4"),
        np.zeros((0, 4), np.int8),
        np.array(2.5),
    ],
)
@pytest.mark.parametrize("protocol", range(3, pickle.HIGHEST_PROTOCOL + 1))
def test_arrays(value, protocol):
    read = build(read_pickle(io.BytesIO(pickle.dumps(value, protocol)), "it"), "it")
    assert read.dtype == value.dtype.newbyteorder("=")
    assert np.array_equal(read, value)


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Box(np.float32([-1, 0]), np.float32([np.inf, 2])),
        gym.spaces.Box(0, 255, (2, 3, 1), np.uint8),
        gym.spaces.Discrete(5),
        gym.spaces.Discrete(3, start=-1),
        gym.spaces.MultiDiscrete([2, 3]),
        gym.spaces.MultiBinary(4),
        gym.spaces.Tuple((gym.spaces.Discrete(2), gym.spaces.Dict(b=gym.spaces.Discrete(3), a=gym.spaces.Discrete(4)))),
    ],
)
def test_spaces(space):
    assert there_and_back(space) == space
    space.seed(7)  # a random state in it changes nothing
    assert there_and_back(space) == space


def test_plain_values():
    value = {"a": [1, 2.5, None, True, "x", b"y"], "b": (np.float64(3.0), np.int64(4)), "c": OrderedDict(d=1), 5: {6}}
    assert there_and_back(value) == value
    assert there_and_back(DefaultModelConfig(fcnet_hiddens=[7]))["fcnet_hiddens"] == [7]
    assert there_and_back(OrderedDict) == Name("collections", "OrderedDict")  # by its name alone


def test_entries_are_read_one_by_one(tmp_path):
    """What is refused of one stops no other, however many there are; and one that is shared is built once."""
    mark = tmp_path / "mark"
    shared = np.arange(1_000)
    value = {f"bad {i}": [payloads(mark)["os.system"]] for i in range(200)} | {"a": shared, "b": shared, 3: {"c": [1]}}
    entries = build_entries(read_pickle(io.BytesIO(pickle.dumps(value)), "it"), "it")
    assert entries["a"] is entries["b"]
    assert entries["3"] == {"c": [1]}
    refused = [key for key, entry in entries.items() if isinstance(entry, CheckpointError)]
    assert refused == [f"bad {i}" for i in range(200)]
    assert "it calls 'posix.system'" in str(entries["bad 0"])
    assert not mark.exists()


def test_many_ordered_dicts():
    value = [OrderedDict(a=OrderedDict(b=i), c=[OrderedDict(d=-i)]) for i in range(2_000)]
    assert there_and_back(value) == value


def test_numpys_names_before_2_0():
    old = pickle.dumps(np.arange(3), 3).replace(b"numpy._core", b"numpy.core")
    assert b"numpy.core" in old
    assert build(read_pickle(io.BytesIO(old), "it"), "it").tolist() == [0, 1, 2]


def test_where_it_was_trained(saved, tmp_path):
    assert open_checkpoint(str(saved)).environment() == ("CartPole-v1", {})
    assert open_checkpoint(str(saved)).algorithm() == "DQN"
    assert open_checkpoint(str(saved / MODULE)).environment() == ("CartPole-v1", {})  # from a folder in it, too
    alone = make_q_module().save_to_path(str(tmp_path / "alone"))
    assert open_checkpoint(alone).environment() == (None, {})
    assert open_checkpoint(alone).algorithm() is None
    assert open_checkpoint(alone).load_observation_pipeline() is None


def test_what_ray_2_40_wrote():
    """A dueling DQN with an observation filter; that Ray itself said what they make of some observations."""
    path = Path(__file__).parents[1] / "checkpoints" / "ray-2.40"
    expected = json.loads((path / "expected.json").read_text())
    checkpoint = open_checkpoint(str(path))
    assert checkpoint.environment() == ("CartPole-v1", {})
    obs = np.array(expected["obs"], np.float32)
    teacher = Teacher(checkpoint.load_module())
    assert teacher.q_values(torch.from_numpy(obs)).numpy() == pytest.approx(np.array(expected["q"]), abs=1e-6)
    seen = checkpoint.load_observation_pipeline().start()(Shown(obs, first=np.ones(len(obs), dtype=bool)))
    assert seen == pytest.approx(np.array(expected["seen"]), abs=1e-5)


def test_a_weight_that_does_not_fit_is_named(checkpoint):
    change_model_config(checkpoint, {"fcnet_hiddens": [9]})
    with pytest.raises(CheckpointError, match=r"the weight '.*' is of the shape \[8, 4\], expected \[9, 4\]"):
        read_all(checkpoint)


def test_an_unknown_activation_is_refused(checkpoint):
    change_model_config(checkpoint, {"fcnet_activation": "Module"})
    with pytest.raises(CheckpointError, match="fcnet_activation is 'Module', expected one of"):
        read_all(checkpoint)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({5: 1}, "has the int 5 in its model config"),
        ({"fcnet_hiddens": [8] * 10_000}, "its fcnet_hiddens has 10000 parts"),
        ({"fcnet_hiddens": ["x"]}, "No DefaultDQNTorchRLModule can be built"),
        (
            {"conv_filters": [[10**7, 1, 1]]},
            r"are invalid \(a convolution to 10000000 channels of \[4, 1\] pixels: 40000000 numbers for",
        ),
        ({"conv_filters": [None]}, "are invalid"),
        ({"conv_filters": [[4, 3, 0]]}, "are invalid"),
        ({"num_atoms": 10**12}, "does not fit its model config"),
    ],
)
def test_model_configs_that_make_no_sense(checkpoint, changes, message):
    change_model_config(checkpoint, changes)
    with pytest.raises(CheckpointError, match=message):
        read_all(checkpoint)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((1000, 1, 1)), r"of the shape \(1000, 1, 1\) is for observations of the shape \(4,\)"),
        (np.full(4, np.nan), r"has a mean of \[nan"),
    ],
)
def test_statistics_that_make_no_sense(checkpoint, array, message):
    buffer = io.BytesIO()
    np.save(buffer, array)
    replace_statistics(checkpoint, buffer.getvalue())
    with pytest.raises(CheckpointError, match=message):
        read_all(checkpoint)


@pytest.mark.parametrize("file", [name for name in FILES if name != "algorithm"])
@pytest.mark.parametrize("kind", ["a device", "a pipe", "a loop", "a hole"])
def test_what_is_no_plain_file_is_not_read(checkpoint, file, kind):
    path = checkpoint / FILES[file]
    path.unlink()
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a hole":
        with open(path, "wb") as sparse:
            sparse.truncate(2**38)
    else:
        path.symlink_to("/dev/zero" if kind == "a device" else path.name)
    with pytest.raises(CheckpointError):
        read_all(checkpoint)


@pytest.mark.parametrize("file", [name for name in FILES if name != "algorithm"])
def test_a_file_cut_short_is_one_error(checkpoint, file):
    path = checkpoint / FILES[file]
    content = path.read_bytes()
    for length in (0, 1, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=path.name):
            read_all(checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_bits_are_read_or_refused(saved, tmp_path_factory, file, data):
    path = tmp_path_factory.getbasetemp() / f"flipped {file}"
    if not path.exists():
        shutil.copytree(saved, path)
    original = (saved / FILES[file]).read_bytes()
    content = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        # Mostly where the structure is: weights and bounds take most of the bytes, and may be any.
        place = data.draw(st.one_of(st.integers(0, min(300, len(content) - 1)), st.integers(0, len(content) - 1)))
        content[place] = data.draw(st.integers(0, 255))
    (path / FILES[file]).write_bytes(bytes(content))
    with contextlib.suppress(CheckpointError):  # anything else would fail the test
        read_all(path)
    (path / FILES[file]).write_bytes(original)


def test_connectors_that_do_not_fit_the_network(tmp_path):
    """A filter of four numbers before a network of six: a checkpoint that somebody has put together."""
    path = shutil.copytree(Path(__file__).parents[1] / "checkpoints" / "ray-2.40", tmp_path / "algo")
    shutil.rmtree(path / MODULE)
    make_q_module(gym.spaces.Box(-1, 1, (6,))).save_to_path(str(path / MODULE))
    message = r"connectors of '.*algo' do not fit its network: their outputs have the shape \[4\].* inputs \[6\]"
    for use in (load_teacher, partial(evaluate, env="CartPole-v1", num_episodes=1)):
        with pytest.raises(ValueError, match=message):
            use(str(path))


@pytest.mark.parametrize(
    ("stages", "shape"),
    [
        ((), (4,)),
        ((Flatten(gym.spaces.Discrete(5)),), (5,)),
        ((Flatten(gym.spaces.MultiDiscrete([2, 3])),), (5,)),
        ((StackFrames(3),), (3,)),
        ((Images((8, 8, 3)),), (4,)),  # which are no such images
        ((Flatten(gym.spaces.Discrete(10**12)),), (10**12,)),  # which would not fit into memory
    ],
)
def test_each_stage_is_held_to_what_the_network_takes(stages, shape):
    pipeline = ObservationPipeline(gym.spaces.Box(-1, 1, (4,)), stages)
    teacher = Teacher(make_q_module(gym.spaces.Box(-1, 1, (7,))), pipeline=pipeline)
    with pytest.raises(ValueError, match=rf"have the shape {re.escape(str(list(shape)))}, but its inputs \[7\]"):
        teacher.checked()
