"""A checkpoint is data: whatever is put into one, nothing of it runs, and what is broken is said in one error."""

import base64
import contextlib
import copyreg
import io
import json
import os
import pickle
import re
import shutil
import struct
import sys
import zlib
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
from tests.conftest import make_q_module
from tests.payloads import Payload, payloads
from tests.rllib_checkpoints import build_dqn

MODULE = "learner_group/learner/rl_module/default_policy"
CONNECTORS = "env_runner/env_to_module_connector"
FILES = {
    "module": f"{MODULE}/class_and_ctor_args.pkl",
    "weights": f"{MODULE}/module_state.pkl",
    "connectors": f"{CONNECTORS}/class_and_ctor_args.pkl",
    "filter": f"{CONNECTORS}/MeanStdFilter/state.pkl",
    "algorithm": "class_and_ctor_args.pkl",
}


@pytest.fixture(scope="module")
def saved(cluster, tmp_path_factory):
    algo = build_dqn("filter")
    path = algo.save_to_path(str(tmp_path_factory.mktemp("checkpoints") / "algo"))
    algo.stop()
    return Path(path)


@pytest.fixture
def checkpoint(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "algo"))


def read_all(path: Path) -> None:
    """Everything that this package reads of a checkpoint."""
    checkpoint = open_checkpoint(str(path))
    checkpoint.environment()
    checkpoint.normalizes_actions()
    checkpoint.load_observation_pipeline(checkpoint.load_module())


def there_and_back(value):
    return build(read_pickle(io.BytesIO(pickle.dumps(value)), "it"), "it")


# --- What is read -----------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("env", ["antigravity:CartPole-v1", "antigravity.Env"])
def test_an_environments_name_imports_nothing(checkpoint, env):
    config = {"env": env, "env_config": {}}
    (checkpoint / FILES["algorithm"]).write_bytes(pickle.dumps({"ctor_args_and_kwargs": ((config,), {})}))
    with pytest.raises(ValueError, match="names a module to import"):
        evaluate(str(checkpoint), num_episodes=1)
    assert "antigravity" not in sys.modules


# --- What is not executed ---------------------------------------------------------------------------------------------


NAMES = sorted(payloads(Path()))


@pytest.mark.parametrize(
    "which",
    [
        *("os.system", "eval", "exec", "subprocess", "in a state", "in a list", "in a space", "in an object array"),
        *("a dotted name", "a partial", "in metadata"),
    ],
)
def test_the_payloads_would_do_harm(which, tmp_path):
    mark = tmp_path / "mark"
    with contextlib.suppress(Exception):  # some fail when it is done
        pickle.loads(pickle.dumps(payloads(mark)[which]))
    assert mark.exists()


@pytest.mark.parametrize("which", NAMES)
@pytest.mark.parametrize("file", FILES)
def test_a_file_that_is_a_payload_runs_nothing(checkpoint, tmp_path, file, which):
    mark = tmp_path / "mark"
    (checkpoint / FILES[file]).write_bytes(pickle.dumps(payloads(mark)[which]))
    if file == "algorithm":  # it is asked for no more than the name of an environment
        assert open_checkpoint(str(checkpoint)).environment() == (None, {})
        with pytest.raises(ValueError, match="does not record its environment"):
            evaluate(str(checkpoint), num_episodes=1)
    else:
        with pytest.raises(CheckpointError):
            read_all(checkpoint)
        with pytest.raises(ValueError, match=checkpoint.name):
            evaluate(str(checkpoint), "CartPole-v1", num_episodes=1)
    assert not mark.exists()


@pytest.mark.parametrize("which", NAMES)
@pytest.mark.parametrize("key", ["fcnet_hiddens", "fcnet_activation", "something_new"])
def test_a_payload_in_a_valid_model_config_runs_nothing_and_is_named(checkpoint, tmp_path, key, which):
    mark, payload = tmp_path / "mark", payloads(tmp_path / "mark")[which]
    path = checkpoint / FILES["module"]
    content = pickle.loads(path.read_bytes())
    content["ctor_args_and_kwargs"][1]["model_config"][key] = payload
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError) as caught:
        read_all(checkpoint)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not mark.exists()


def test_what_is_refused_is_named_with_the_way_out(checkpoint, tmp_path):
    (checkpoint / FILES["weights"]).write_bytes(pickle.dumps(Payload(os.system, "true")))
    with pytest.raises(CheckpointError, match=r"posix\.system.*trust_checkpoint=True \(--trust-checkpoint\)"):
        read_all(checkpoint)


@pytest.mark.parametrize(
    "name",
    [("evil", "DefaultDQNTorchRLModule"), ("ray.rllib.core", "os.system"), ("os", "path.join"), ("os", "system")],
)
def test_a_class_by_another_name_is_refused(checkpoint, name):
    path = checkpoint / FILES["module"]
    content = pickle.loads(path.read_bytes())
    kwargs = content["ctor_args_and_kwargs"][1]
    head = pickle.dumps({"ctor_args_and_kwargs": ((), kwargs), "class": "CLASS"}, 3)
    text = b"X\x05\0\0\0CLASS"
    assert head.count(text) == 1
    module, attribute = (bytes(part, "ascii") for part in name)
    as_global = b"c" + module + b"\n" + attribute + b"\n"
    path.write_bytes(head.replace(text, as_global))
    with pytest.raises(CheckpointError, match=r"refused: its RLModule .* is a custom class"):
        read_all(checkpoint)


def test_the_statistics_of_a_filter_are_no_pickle(checkpoint, tmp_path):
    mark = tmp_path / "mark"
    buffer = io.BytesIO()
    np.save(buffer, np.array([Payload(os.system, f"touch {mark}")], dtype=object), allow_pickle=True)
    replace_statistics(checkpoint, buffer.getvalue())
    with pytest.raises(CheckpointError):
        read_all(checkpoint)
    assert not mark.exists()


def test_a_class_that_this_process_has_met_by_its_number(tmp_path, monkeypatch):
    mark = tmp_path / "mark"
    monkeypatch.setitem(copyreg._extension_cache, 240, os.system)
    text = f"touch {mark}".encode()
    content = b"\x80\x04\x82\xf0X" + struct.pack("<I", len(text)) + text + b"\x85R."
    with pytest.raises(CheckpointError, match="extension code 240"):
        read_pickle(io.BytesIO(content), "it")
    pickle._loads(content)
    assert mark.exists()  # otherwise it would have run


@pytest.mark.parametrize("kind", [np.matrix, np.ma.MaskedArray, np.recarray])
def test_arrays_of_other_classes_are_refused(kind):
    with pytest.raises(CheckpointError, match=kind.__name__ if kind is not np.ma.MaskedArray else "_mareconstruct"):
        there_and_back(np.arange(4.0).reshape(2, 2).view(kind))


def test_messages_are_one_line_without_control_characters():
    name = "os\x1b[2J\nAll is well.\r" + "x" * 10**6
    content = b"\x80\x04X" + struct.pack("<I", len(name)) + name.encode() + b"\x8c\x01a\x93)R."
    with pytest.raises(CheckpointError, match=r"refused: it calls 'os.\[2J All is well. x+ \.\.\. .*") as caught:
        build(read_pickle(io.BytesIO(content), "it"), "it")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1_100


def test_trusting_is_a_word_of_its_own(checkpoint, tmp_path):
    mark = tmp_path / "mark"
    (checkpoint / FILES["module"]).write_bytes(pickle.dumps(payloads(mark)["os.system"]))
    with contextlib.suppress(Exception):  # it is no module, after all
        open_checkpoint(str(checkpoint), trust_checkpoint=True).load_module()
    assert mark.exists()


# --- Bombs ------------------------------------------------------------------------------------------------------------


def test_parts_of_parts_of_parts(checkpoint):
    value: list = []
    for _ in range(10):
        value = [value, value]
    assert there_and_back(value) == value
    for _ in range(70):
        value = [value, value]  # 2**80 empty lists, to whoever looks at each of them
    with pytest.raises(CheckpointError, match="including shared ones, it has more than 200000 parts"):
        there_and_back(value)
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    data = b"\x80\x04" + b"]" * 90_000 + b"a" * 89_999 + b"."
    with pytest.raises(CheckpointError, match="too deeply"):
        build(read_pickle(io.BytesIO(data), "it"), "it")


def test_a_list_in_itself():
    value: list = []
    value.append(value)
    with pytest.raises(CheckpointError, match="too deeply"):
        there_and_back(value)


def test_a_few_bytes_take_no_gigabytes():
    far = b"\x80\x04K\x01r" + struct.pack("<I", 2**31 - 1) + b"."  # to the memo, two thousand million places on
    assert build(read_pickle(io.BytesIO(far), "it"), "it") == 1
    long = b"\x80\x04\x8e" + struct.pack("<Q", 2**50) + b"x."
    with pytest.raises(CheckpointError):
        read_pickle(io.BytesIO(long), "it")


def test_a_byte_array_takes_what_it_has():
    claims = b"\x80\x05\x96" + struct.pack("<Q", 2**36) + b"x."
    with pytest.raises(CheckpointError, match="not a whole pickle"):
        read_pickle(io.BytesIO(claims), "it")
    assert read_pickle(io.BytesIO(pickle.dumps(bytearray(b"xyz"), 5)), "it") == bytearray(b"xyz")


@pytest.mark.parametrize("end", [b"}\x94h\x00K\x01s.", b"(h\x00\x91."], ids=["a key", "in a set"])
def test_what_python_would_die_of(end):
    """Hashing a tuple in a tuple in a tuple... takes a stack frame each."""
    content = b"\x80\x04)" + b"\x85" * 2_000_000 + b"\x94" + end
    with pytest.raises(CheckpointError, match="too deeply"):
        read_pickle(io.BytesIO(content), "it")


def test_arrays_that_share_their_bytes():
    data = bytes(2**20)

    class Shared:
        def __reduce__(self):
            return np._core.numeric._frombuffer, (data, np.dtype("u1"), (2**20,), "C")

    with pytest.raises(CheckpointError, match="several arrays share the same 1048576 bytes"):
        there_and_back([Shared() for _ in range(10_000)])
    array = np.arange(100)
    first, second = there_and_back([array, array])  # one array twice is another thing
    assert first is second


@pytest.mark.parametrize("value", [{np.dtype("f4")}, {(1, 2): 3}, {b"x": 1}])
def test_keys_that_are_no_names_or_numbers(value):
    with pytest.raises(CheckpointError, match="as a key, or in a set"):
        there_and_back(value)


def test_statistics_that_unpack_to_gigabytes(checkpoint):
    replace_statistics(checkpoint, b"\x93NUMPY" + b"\0" * 2**28)
    with pytest.raises(CheckpointError, match="unpack to more than"):
        read_all(checkpoint)


def test_a_network_of_any_size_is_not_built(checkpoint):
    change_model_config(checkpoint, {"fcnet_hiddens": [10**7, 10**7]})
    with pytest.raises(CheckpointError, match=r"does not fit its model config.*expected \[10000000"):
        read_all(checkpoint)


# --- What is broken ---------------------------------------------------------------------------------------------------


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


def test_connectors_of_ones_own_need_trust(cluster, tmp_path):
    algo = build_dqn("own")
    path = algo.save_to_path(str(tmp_path / "algo"))
    running = evaluate(algo, num_episodes=3, seed=3).returns
    algo.stop()
    with pytest.raises(CheckpointError, match=r"Doubled.*trust_checkpoint=True"):
        read_all(path)
    assert evaluate(path, num_episodes=3, seed=3, trust_checkpoint=True).returns == running


@pytest.mark.parametrize("file", FILES)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


# --- Helpers ----------------------------------------------------------------------------------------------------------


def change_model_config(checkpoint: Path, changes: dict) -> None:
    path = checkpoint / FILES["module"]
    content = pickle.loads(path.read_bytes())
    content["ctor_args_and_kwargs"][1]["model_config"] |= changes
    path.write_bytes(pickle.dumps(content))


def replace_statistics(checkpoint: Path, array_file: bytes) -> None:
    path = checkpoint / FILES["filter"]
    content = pickle.loads(path.read_bytes())
    content[None]["running_stats"][0]["mean_array"] = base64.b64encode(zlib.compress(array_file)).decode()
    path.write_bytes(pickle.dumps(content))


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
        ((Images((8, 8, 3)),), (8, 8, 3)),
        ((Flatten(gym.spaces.Discrete(10**12)),), (10**12,)),  # which would not fit into memory
    ],
)
def test_each_stage_is_held_to_what_the_network_takes(stages, shape):
    pipeline = ObservationPipeline(gym.spaces.Box(-1, 1, (4,)), stages)
    teacher = Teacher(make_q_module(gym.spaces.Box(-1, 1, (7,))), pipeline=pipeline)
    with pytest.raises(ValueError, match=rf"have the shape {re.escape(str(list(shape)))}, but its inputs \[7\]"):
        teacher.checked()
