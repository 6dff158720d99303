"""A checkpoint is data: whatever is put into one, nothing of it runs, and what is broken is said in one error."""

import base64
import builtins
import contextlib
import io
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zlib
from collections import OrderedDict
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from rllib_kd.checkpoints.pickles import CheckpointError, Name, build, read_pickle
from rllib_kd.checkpoints.rllib import open_checkpoint
from rllib_kd.evaluation import evaluate
from tests.conftest import make_q_module
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


@pytest.mark.parametrize("env", ["antigravity:CartPole-v1", "antigravity.Env"])
def test_an_environments_name_imports_nothing(checkpoint, env):
    config = {"env": env, "env_config": {}}
    (checkpoint / FILES["algorithm"]).write_bytes(pickle.dumps({"ctor_args_and_kwargs": ((config,), {})}))
    with pytest.raises(ValueError, match="names a module to import"):
        evaluate(str(checkpoint), num_episodes=1)
    assert "antigravity" not in sys.modules


# --- What is not executed ---------------------------------------------------------------------------------------------


class Payload:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


class Late(Payload):
    """Calls it when its state is set."""

    def __reduce__(self):
        return (OrderedDict, (), Payload(*self.call[:1], *self.call[1]))


def payloads(mark: Path) -> dict[str, object]:
    """Each makes the file when it runs."""
    touch = f"open({str(mark)!r}, 'w').close()"
    system = Payload(os.system, f"touch {mark}")
    return {
        "os.system": system,
        "eval": Payload(builtins.eval, touch),
        "exec": Payload(builtins.exec, touch),
        "subprocess": Payload(subprocess.check_call, ["touch", str(mark)]),
        "in a state": Late(os.system, f"touch {mark}"),
        "in an object array": np.array([system], dtype=object),
        "in a list": [1, [2, {"a": system}]],
        "as a key": {(system, 1): 2},
        "in a space": Payload(gym.spaces.Dict, {"a": system}),
        "behind getattr": Payload(getattr, Payload(__import__, "os"), "sep"),
        "a chain": Payload(map, Payload(eval, f"lambda _: {touch}"), [1]),
    }


NAMES = sorted(payloads(Path()))


@pytest.mark.parametrize("which", ["os.system", "eval", "exec", "subprocess", "in a state", "in a list", "in a space"])
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
        with pytest.raises(ValueError, match="In which environment"):
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
    with pytest.raises(CheckpointError, match=r"refused: its RLModule .* is none of RLlib's own"):
        read_all(checkpoint)


def test_the_statistics_of_a_filter_are_no_pickle(checkpoint, tmp_path):
    mark = tmp_path / "mark"
    buffer = io.BytesIO()
    np.save(buffer, np.array([Payload(os.system, f"touch {mark}")], dtype=object), allow_pickle=True)
    replace_statistics(checkpoint, buffer.getvalue())
    with pytest.raises(CheckpointError):
        read_all(checkpoint)
    assert not mark.exists()


def test_trusting_is_a_word_of_its_own(checkpoint, tmp_path):
    mark = tmp_path / "mark"
    (checkpoint / FILES["module"]).write_bytes(pickle.dumps(payloads(mark)["os.system"]))
    with contextlib.suppress(Exception):  # it is no module, after all
        open_checkpoint(str(checkpoint), trust_checkpoint=True).load_module()
    assert mark.exists()


# --- Bombs ------------------------------------------------------------------------------------------------------------


def test_parts_of_parts_of_parts(checkpoint):
    value: list = []
    for _ in range(80):
        value = [value, value]  # 2**80 empty lists, if each reference were a copy
    assert there_and_back(value) is not None
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    data = b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b"."
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


def test_statistics_that_unpack_to_gigabytes(checkpoint):
    replace_statistics(checkpoint, b"\x93NUMPY" + b"\0" * 2**28)
    with pytest.raises(CheckpointError, match="unpack to more than"):
        read_all(checkpoint)


def test_a_network_of_any_size_is_not_built(checkpoint):
    change_model_config(checkpoint, fcnet_hiddens=[10**7, 10**7])
    with pytest.raises(CheckpointError, match=r"does not fit its model config.*expected \[10000000"):
        read_all(checkpoint)


# --- What is broken ---------------------------------------------------------------------------------------------------


def test_a_weight_that_does_not_fit_is_named(checkpoint):
    change_model_config(checkpoint, fcnet_hiddens=[9])
    with pytest.raises(CheckpointError, match=r"the weight '.*' is of the shape \[8, 4\], expected \[9, 4\]"):
        read_all(checkpoint)


def test_an_unknown_activation_is_refused(checkpoint):
    change_model_config(checkpoint, fcnet_activation="Module")
    with pytest.raises(CheckpointError, match="fcnet_activation 'Module' is none of"):
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


def change_model_config(checkpoint: Path, **changes) -> None:
    path = checkpoint / FILES["module"]
    content = pickle.loads(path.read_bytes())
    content["ctor_args_and_kwargs"][1]["model_config"] |= changes
    path.write_bytes(pickle.dumps(content))


def replace_statistics(checkpoint: Path, array_file: bytes) -> None:
    path = checkpoint / FILES["filter"]
    content = pickle.loads(path.read_bytes())
    content[None]["running_stats"][0]["mean_array"] = base64.b64encode(zlib.compress(array_file)).decode()
    path.write_bytes(pickle.dumps(content))
