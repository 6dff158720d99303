"""Small files that would take seconds, gigabytes or for ever are refused: in 2 s of processor time, and 300 MB."""

import base64
import dataclasses
import gc
import io
import json
import os
import pickle
import struct
import sys
import types
import zipfile
import zlib

import gymnasium as gym
import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch
from onnx import TensorProto, helper
from ray.rllib.algorithms.dqn import DQN
from ray.rllib.connectors.common.flatten_observations import FlattenObservations
from ray.rllib.connectors.common.frame_stacking import FrameStacking
from ray.rllib.connectors.env_to_module import EnvToModulePipeline

from rllib_kd import limits, load_teacher
from rllib_kd.checkpoints.pickles import Budget, CheckpointError, read_pickle
from rllib_kd.checkpoints.rllib import open_checkpoint
from rllib_kd.checkpoints.runs import read_curves
from rllib_kd.checkpoints.tune import find_students, resolve
from rllib_kd.checkpoints.values import build, build_entries
from rllib_kd.evaluation import measures, playing
from rllib_kd.observations.pipeline import ObservationPipeline
from rllib_kd.teachers.base import Teacher
from rllib_kd.teachers.ensemble import ensemble_of
from rllib_kd.teachers.recognition import find
from tests.conftest import CARTPOLE_OBS, make_q_module, states
from tests.formats import mlp, sb3_weights, sb3_zip, to_bytes
from tests.fuzzing.mutations import canaries
from tests.fuzzing.run import FORMATS, fuzz
from tests.fuzzing.workers import measure_apart

MODULE = "learner_group/learner/rl_module/default_policy"
CONNECTORS = "env_runner/env_to_module_connector/class_and_ctor_args.pkl"


#: Of processor time. The goal is 2 (`python tests/fuzzing/run.py`); coverage and a slow machine need a multiple of it.
_SECONDS = 10


def refused(function):
    """It is refused, at once."""
    outcome = measure_apart(function)
    assert outcome.verdict == "refused"
    assert outcome.seconds < _SECONDS
    assert outcome.megabytes < 300


def only_read(content):
    read_pickle(io.BytesIO(content), "it")


def build_pickle(content):
    build(read_pickle(io.BytesIO(content), "it"), "it")


def long(value):
    data = pickle.encode_long(value)
    return b"\x8a" + bytes([len(data)]) + data


def put(place):
    return b"r" + struct.pack("<I", place)


def get(place):
    return b"j" + struct.pack("<I", place)


# --- Pickles ----------------------------------------------------------------------------------------------------------

PRIME = 2**61 - 1  # Python's hash of its multiples is 0
PAIRS = b")" + b"2\x86" * 60  # a pair of pairs of pairs... of one empty tuple
LARGE = b"(" + b"K\x01" * 100_000 + b"t" + put(1)  # one tuple, to be used often
PICKLES = {
    "empty sets": b"\x8f" * 12_000_000 + b".",
    "classes without a name": b"(" + b"c\n\n" * 1_500_000 + b"l.",
    "many classes": b"(" + b"".join(b"c%d\nx\n" % i for i in range(100_000)) + b"l.",
    "keys of one hash": b"}(" + b"".join(long(k * PRIME) + b"K\x01" for k in range(1, 100_000)) + b"u.",
    "a set of one hash": b"\x8f(" + b"".join(long(k * PRIME) for k in range(1, 100_000)) + b"\x90.",
    "keys of one hash in a call": b"ccollections\nOrderedDict\n(]("
    + b"".join(long(k * PRIME) + b"N\x86" for k in range(1, 30_000))
    + b"etR.",
    "places of one hash": b"N" + b"".join(b"p%d\n" % (k * PRIME) for k in range(1, 100_000)) + b".",
    "tuples of one hash": b"}("
    + b"".join(long(k * PRIME) + long(-k * PRIME) + b"\x86K\x01" for k in range(1, 60_000))
    + b"u.",
    "one large integer in a tuple": b"}" + long(PRIME) + b"K\x01\x86\x85K\x01s.",
    "pairs of small numbers": b"}(" + b"".join(long(k) + b"K\x01\x86N" for k in range(300)) + b"u.",
    "pairs of pairs as a key": b"}" + PAIRS + b"K\x01s.",
    "pairs of pairs in a set": b"(" + PAIRS + b"\x91.",
    "a large tuple as a key": LARGE + b"0}(" + (get(1) + b"K\x01") * 50_000 + b"u.",
    "calls that share their arguments": LARGE + b"(" + (b"cx\nx\n" + get(1) + b"R") * 80_000 + b"l.",
    "an integer of a megabyte": b"\x8b" + struct.pack("<i", 10**6) + b"\x01" * 10**6 + b".",
    "pairs of pairs": PAIRS + b".",
    "lists of lists": b"]" + b"".join(put(i) + b"0(" + get(i) * 2 + b"l" for i in range(60)) + b".",
    "a long text, often": b"X" + struct.pack("<I", 10**6) + b"x" * 10**6 + put(1) + b"(" + get(1) * 60_000 + b"l.",
    "a shape of many lengths": b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01("
    + long(2**1_000) * 30_000
    + b"tcnumpy\ndtype\nX\x02\0\0\0f4\x89\x88\x87R\x89C\x00tb.",
    "a message of many words": b"\x80\x04X" + struct.pack("<I", 5 * 10**7) + b"a " * 25_000_000 + b"\x8c\x01a\x93)R.",
}


@pytest.mark.parametrize("kind", PICKLES)
def test_small_pickles_that_take_much(kind):
    refused(lambda: build_pickle(PICKLES[kind]))


@pytest.mark.parametrize("kind", ["one large integer in a tuple", "pairs of small numbers"])
def test_tuples_as_keys_are_refused_before_they_are_hashed(kind):
    with pytest.raises(CheckpointError, match=r"in a key|too many tuples as keys"):
        only_read(PICKLES[kind])


def test_what_real_pickles_have_is_far_from_the_limits():
    value = {
        "floats": [float(i) for i in range(100_000)],
        "by number": {i: str(i) for i in range(20_000)},
        "pairs": {f"{i}": [(i, -i)] for i in range(2_000)},
        "seed": 2**127,
    }
    assert build(read_pickle(io.BytesIO(pickle.dumps(value)), "it"), "it") == value
    points = {(i, i + 1): i for i in range(200)}  # not built, but read
    assert read_pickle(io.BytesIO(pickle.dumps(points)), "it") == points


def test_no_search_for_cycles_while_a_pickle_is_read():
    seen = []

    class Watched(io.BytesIO):
        def read(self, size=-1):
            seen.append(gc.isenabled())
            return super().read(size)

    read_pickle(Watched(pickle.dumps([1])), "it")
    assert seen
    assert not any(seen)
    assert gc.isenabled()
    with pytest.raises(CheckpointError):
        read_pickle(Watched(b"x"), "it")
    assert gc.isenabled()


@pytest.mark.parametrize("make", [build, build_entries])
def test_no_search_for_cycles_while_values_are_made(make):
    seen = []

    class Watched(dict):
        def items(self):
            seen.append(gc.isenabled())
            return super().items()

    assert make(Watched({"a": 1}), "it") == {"a": 1}
    assert seen == [False]
    assert gc.isenabled()


@pytest.mark.parametrize("content", [b"(" + b"N" * 200_000 + b"l.", b"]" + b"N0" * 100_000 + b"."])
def test_pickles_of_too_many_parts(content):
    with pytest.raises(CheckpointError, match="too many opcodes"):
        build_pickle(content)


class Recipe:
    """Pickles as a call, with a state."""

    def __init__(self, function, args, state):
        self.parts = (function, args, state)

    def __reduce__(self):
        return self.parts


def test_an_array_that_is_built_often():
    """An array of a megabyte in a thousand spaces would be copied for each."""
    array = np.zeros(2**18, np.float32)
    state = {"low": array, "high": array, "dtype": array.dtype}
    spaces = [Recipe(gym.spaces.Box, (), state) for _ in range(1_000)]
    content = pickle.dumps(spaces)
    assert len(content) < 2**22
    refused(lambda: build_pickle(content))


def test_bounds_that_grow_to_the_shape_of_others():
    """A column below and a row above make a square, of which a space has four arrays."""
    low, high = np.zeros((8_000, 1), np.float32), np.ones((1, 8_000), np.float32)
    content = pickle.dumps(Recipe(gym.spaces.Box, (), {"low": low, "high": high, "dtype": low.dtype}))
    with pytest.raises(CheckpointError, match="spaces of more than"):
        build_pickle(content)


# --- RLlib ------------------------------------------------------------------------------------------------------------


def write_rllib(path, *, space=CARTPOLE_OBS, connectors=(), module=None, model_config=None, shown=None):
    """An Algorithm's checkpoint, as far as it is read."""
    module = module or make_q_module(fcnet_hiddens=[8])
    module.save_to_path(str(path / MODULE))
    if model_config or shown:
        file = path / MODULE / "class_and_ctor_args.pkl"
        content = pickle.loads(file.read_bytes())
        content["ctor_args_and_kwargs"][1]["model_config"] |= model_config or {}
        content["ctor_args_and_kwargs"][1]["observation_space"] = shown or CARTPOLE_OBS
        file.write_bytes(pickle.dumps(content))
    (path / CONNECTORS).parent.mkdir(parents=True)
    args = ((space, module.action_space), {"connectors": list(connectors)})
    (path / CONNECTORS).write_bytes(pickle.dumps({"class": EnvToModulePipeline, "ctor_args_and_kwargs": args}))
    config = {"class": DQN, "ctor_args_and_kwargs": (({"env": "CartPole-v1"},), {})}
    (path / "class_and_ctor_args.pkl").write_bytes(pickle.dumps(config))


def read_rllib(path):
    checkpoint = open_checkpoint(str(path))
    checkpoint.load_observation_pipeline(checkpoint.load_module())


def nested(depth):
    """A Dict of two references to one Dict of two..., which gymnasium itself would copy on its way."""
    space = gym.spaces.Discrete(2)
    for _ in range(depth):
        space = Recipe(gym.spaces.Dict, (), {"spaces": {"a": space, "b": space}})
    return space


MANY = np.full(3_000, 2**60)
SPACES = {
    "a Dict of shared Dicts": nested(60),
    "a Discrete of millions of millions": gym.spaces.Discrete(10**15),
    "a MultiDiscrete of more than 64 bits": gym.spaces.MultiDiscrete(MANY),
    "a MultiDiscrete of many parts": gym.spaces.MultiDiscrete(np.ones(20_000, np.int64)),
    "a Tuple of many spaces": gym.spaces.Tuple([gym.spaces.Box(-1, 1, (1,)) for _ in range(5_000)]),
    "a MultiBinary of millions of millions": gym.spaces.MultiBinary(10**12),
}


@pytest.mark.parametrize("kind", SPACES)
def test_spaces_that_unfold_to_more_than_memory(tmp_path, kind):
    write_rllib(tmp_path, space=SPACES[kind], connectors=[(FlattenObservations, (), {})])
    refused(lambda: read_rllib(tmp_path))


def test_observations_are_flattened_once(tmp_path):
    write_rllib(tmp_path, space=gym.spaces.Discrete(2**21), connectors=[(FlattenObservations, (), {})] * 99)
    refused(lambda: read_rllib(tmp_path))


@pytest.mark.parametrize("num_frames", [10**9, -1, 65])
def test_frames_without_end(tmp_path, num_frames):
    space = gym.spaces.Box(0, 1, (8, 8, 1), np.float32)
    write_rllib(tmp_path, space=space, connectors=[(FrameStacking, (), {"num_frames": num_frames})])
    refused(lambda: read_rllib(tmp_path))


def test_fifty_thousand_connectors(tmp_path):
    write_rllib(tmp_path, connectors=[(FlattenObservations, (), {})] * 50_000)
    refused(lambda: read_rllib(tmp_path))


def test_observation_filters_of_invented_modules(tmp_path, monkeypatch):
    """All of them would read the same large state."""
    connectors = []
    for i in range(2):
        module = types.ModuleType(f"ray.rllib.connectors.x{i}")
        module.MeanStdFilter = type("MeanStdFilter", (), {"__module__": module.__name__})
        monkeypatch.setitem(sys.modules, module.__name__, module)
        connectors.append((module.MeanStdFilter, (), {}))
    write_rllib(tmp_path, connectors=connectors)
    with pytest.raises(CheckpointError, match="several observation filters"):
        read_rllib(tmp_path)


IMAGE = gym.spaces.Box(0, 1, (84, 84, 4), np.float32)
SQUARE = gym.spaces.Box(0, 1, (1_000, 1_000, 1), np.float32)


@pytest.mark.parametrize(
    ("space", "conv_filters"),
    [
        (SQUARE, [["a" * 1_000, 1, 1]]),
        (IMAGE, ["abc"] * 100),
        (IMAGE, [[32, 84, 1], [32, 84, 1]]),
        (IMAGE, [[4, 3, 1]] * 900),
        (gym.spaces.Box(0, 1, (4, 4, 4), np.float32), [[4, 1_000, 1]]),
        (IMAGE, [[4, [2**70, 1], 1]]),
        (IMAGE, [[4, 3, 1.5]]),
        (IMAGE, ((1, 1, 1),) * 200_000),
    ],
)
def test_convolutions_that_take_much(tmp_path, space, conv_filters):
    write_rllib(tmp_path, model_config={"conv_filters": conv_filters}, shown=space)
    refused(lambda: read_rllib(tmp_path))


def test_statistics_that_claim_more_than_they_have(tmp_path):
    file = io.BytesIO()
    np.save(file, np.zeros(4))
    claims = file.getvalue().replace(b"(4,), }", b"(2000000000,), }")
    header = len(claims) - len(file.getvalue())
    claims = claims.replace(b" " * header, b"", 1)
    assert np.lib.format.read_magic(io.BytesIO(claims)) == (1, 0)
    from rllib_kd.checkpoints.connectors import _unpack

    for content in (claims, b"PK\x03\x04", file.getvalue()[:-1]):
        refused(lambda content=content: _unpack(base64.b64encode(zlib.compress(content)).decode()))


# --- JSON -------------------------------------------------------------------------------------------------------------

JSONS = {
    "empty lists": "[" + "[]," * 4_000_000 + "[]]",
    "too deep": "[" * 100_000 + "]" * 100_000,
    "many keys": "{" + ",".join(f'"{i}":0' for i in range(600_000)) + "}",
    "a million digits": '{"a": ' + "9" * 10**6 + "}",
}


@pytest.mark.parametrize("kind", JSONS)
def test_json_that_takes_much(tmp_path, kind):
    (tmp_path / "a.safetensors").write_bytes(safetensors.torch.save({"w": torch.zeros(2, 4)}))
    (tmp_path / "a.json").write_text(JSONS[kind])
    refused(lambda: load_teacher(tmp_path / "a.safetensors"))
    path = sb3_zip(tmp_path / "a.zip", sb3_weights(mlp(4, 8, 2)), CARTPOLE_OBS, 2, files={"data": JSONS[kind].encode()})
    refused(lambda: load_teacher(path))


@pytest.mark.parametrize(
    "changes",
    [
        {"observation_shape": [10**400]},
        {"observation_shape": [2] * 100_000},
        {"observation_shape": [int("9" * 4_000)] * 10_000},
        {"num_actions": 10**400},
        {"no one reads it": "a" * 10**7},
        {"layers": [{"op": "dueling", "value": [{"op": "relu"}] * 100_000, "advantage": []}]},
        {"layers": [{"op": "one_hot", "lengths": [1] * 400_000}]},
        {"layers": [{"op": "expectation", "num_atoms": 10**400, "v_min": 0, "v_max": 1}]},
    ],
)
def test_descriptions_that_take_much(tmp_path, changes):
    layers = [{"op": "linear", "weight": "w", "bias": "b"}]
    tensors = {"w": torch.zeros(2, 4), "b": torch.zeros(2)}
    (tmp_path / "a.safetensors").write_bytes(safetensors.torch.save(tensors))
    (tmp_path / "a.json").write_text(json.dumps({"layers": layers, "observation_shape": [4]} | changes))
    refused(lambda: load_teacher(tmp_path / "a.safetensors"))


def test_a_thousand_times_a_thousand_pixels(tmp_path):
    """64 filters of 400 × 400 over a million pixels: 10 billions of steps a filter."""
    tensors = {"k": torch.zeros(8, 1, 400, 400), "c": torch.zeros(8), "w": torch.zeros(2, 8), "b": torch.zeros(2)}
    layers = [{"op": "conv2d", "weight": "k", "bias": "c", "stride": [1, 1]}, {"op": "flatten"}]
    (tmp_path / "a.safetensors").write_bytes(safetensors.torch.save(tensors))
    (tmp_path / "a.json").write_text(json.dumps({"layers": layers, "observation_shape": [1_000, 1_000, 1]}))
    refused(lambda: load_teacher(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("layer", ["tanh", "layer_norm"])
def test_many_layers_of_millions_of_numbers(tmp_path, layer):
    tensors = {"k": torch.zeros(1, 1, 1, 1), "c": torch.zeros(1), "w": torch.zeros(2, 4), "b": torch.zeros(2)}
    tensors |= {f"{name}{i}": torch.ones(1) for name in "vd" for i in range(100)}
    layers = [{"op": layer, "weight": f"v{i}", "bias": f"d{i}", "eps": 1e-5} for i in range(100)]
    layers += [{"op": "conv2d", "weight": "k", "bias": "c", "stride": [1_400, 1_400]}, {"op": "flatten"}]
    layers += [{"op": "linear", "weight": "w", "bias": "b"}]
    (tmp_path / "a.safetensors").write_bytes(safetensors.torch.save(tensors))
    (tmp_path / "a.json").write_text(json.dumps({"layers": layers, "observation_shape": [1_448, 1_448, 1]}))
    refused(lambda: load_teacher(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("kind", ["safetensors", "cleanrl"])
def test_weights_of_one_byte_each(tmp_path, kind):
    tensors = {"0.weight": torch.zeros(2, 4, dtype=torch.bool), "0.bias": torch.zeros(2)}
    if kind == "cleanrl":
        torch.save(tensors, tmp_path / "a")
    else:
        (tmp_path / "a").write_bytes(safetensors.torch.save(tensors))
    with pytest.raises(CheckpointError, match="has numbers of one byte"):
        load_teacher(tmp_path / "a")


@pytest.mark.parametrize("header", ["a huge length", "many tensors", "overlapping offsets", "a length of all ones"])
def test_headers_of_safetensors(tmp_path, header):
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    text = {
        "a huge length": "{" + " " * 2**25 + "}",
        "many tensors": json.dumps({str(i): entry for i in range(50_000)}),
        "overlapping offsets": json.dumps({"a": entry, "b": entry}),
        "a length of all ones": "{}",
    }[header].encode()
    length = 2**64 - 1 if header == "a length of all ones" else len(text)
    (tmp_path / "a").write_bytes(struct.pack("<Q", length) + text + bytes(4))
    refused(lambda: load_teacher(tmp_path / "a"))


# --- Files and folders ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [b"", b"PK\3\4", b"\x08\x09", b"\x80\x04", struct.pack("<Q", 100) + b"{"])
def test_files_of_gigabytes_of_nothing(tmp_path, head):
    for size in (2**31, 2**38):
        with open(tmp_path / "a", "wb") as file:
            file.write(head)
            file.truncate(size)
        refused(lambda: load_teacher(tmp_path / "a"))


def test_a_file_of_zeros_is_known_by_its_first_bytes(tmp_path):
    with open(tmp_path / "a", "wb") as file:
        file.truncate(limits.MAX_FILE - 1)
    outcome = measure_apart(lambda: load_teacher(tmp_path / "a"))
    assert outcome.verdict == "refused"
    assert outcome.megabytes < 50


def test_pickles_of_zeros_are_known_by_their_first_bytes(tmp_path):
    write_rllib(tmp_path)
    with open(tmp_path / MODULE / "module_state.pkl", "wb") as file:
        file.truncate(limits.MAX_FILE - 1)
    outcome = measure_apart(lambda: load_teacher(tmp_path))
    assert outcome.verdict == "refused"
    assert outcome.megabytes < 100


@pytest.mark.parametrize("kind", ["a pipe", "a device", "a loop"])
def test_what_is_no_file(tmp_path, kind):
    path = tmp_path / "a"
    if kind == "a pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "a device" else "a")
    refused(lambda: load_teacher(path))


def test_a_folder_with_too_much_in_it(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "MAX_ENTRIES", 100)
    for i in range(101):
        (tmp_path / f"{i}").mkdir()
    with pytest.raises(CheckpointError, match="contains more than 100 files and folders"):
        load_teacher(tmp_path)


def test_names_as_long_as_can_be(tmp_path):
    """The name of a file beside it would be too long: it is not there."""
    path = sb3_zip(tmp_path / ("a" * 250 + ".zip"), sb3_weights(mlp(4, 8, 2)), CARTPOLE_OBS, 2)
    assert load_teacher(path).action_space.n == 2
    (tmp_path / ("b" * 254)).write_bytes(safetensors.torch.save({"w": torch.zeros(2, 4)}))
    with pytest.raises(CheckpointError):
        load_teacher(tmp_path / ("b" * 254))


ESCAPE = "a\x1b[31m\nb"  # would colour a terminal


def test_warnings_of_statistics(tmp_path, caplog, monkeypatch):
    path = sb3_zip(tmp_path / f"{ESCAPE}.zip", sb3_weights(mlp(4, 8, 2)), CARTPOLE_OBS, 2)
    (tmp_path / f"{ESCAPE}_normalize.pkl").write_bytes(b"")
    (tmp_path / f"{ESCAPE}_vecnormalize.pkl").write_bytes(b"")
    found = find(resolve(path))
    found.vec_normalize()
    (message,) = caplog.messages
    assert message.isprintable()
    assert "To use another file for this zip, replace 'a" in message
    caplog.clear()
    monkeypatch.setattr(limits, "MAX_ENTRIES", 2)
    found.vec_normalize()
    assert not caplog.messages


def test_messages_about_teachers_are_one_line():
    teacher = Teacher(make_q_module(fcnet_hiddens=[8]), source=ESCAPE)
    pipeline = ObservationPipeline(gym.spaces.Box(-1, 1, (3,)), ())
    three = Teacher(make_q_module(fcnet_hiddens=[8]), pipeline=pipeline, source=ESCAPE)
    for check in (three.checked, lambda: ensemble_of([teacher, three])):
        with pytest.raises(ValueError, match=r"The connectors of|An ensemble is for one") as error:
            check()
        assert str(error.value).isprintable()


def test_a_folder_of_links_to_itself(tmp_path):
    for i in range(20):
        (tmp_path / f"{i}").symlink_to(tmp_path)
    (tmp_path / "x").symlink_to("x")
    refused(lambda: load_teacher(tmp_path))


def write_trial(path, lines):
    for i in range(2):
        make_q_module(seed=i, fcnet_hiddens=[8]).save_to_path(str(path / f"checkpoint_00000{i}"))
        state = pickle.dumps({"training_iteration": i + 1})
        (path / f"checkpoint_00000{i}" / "algorithm_state.pkl").write_bytes(state)
    (path / "result.json").write_text("\n".join(lines))


def result(iteration, value):
    return json.dumps({"training_iteration": iteration, "env_runners": {"episode_return_mean": value}})


BROKEN = [
    "[" * 2_000_000,
    '{"a": ' + "9" * 10**6,
    result(10**400, 1e9)[:-1],
    '{"training_iteration": ' + "1" * 400 + "}",
]
LARGE_LINES = [
    '{"a": [' + "[]," * 1_000_000 + "[]]}",
    "x" * 2**23,
    json.dumps(dict.fromkeys(map(str, range(60_000)), 0)),
]


def test_results_that_are_broken_are_none(tmp_path):
    write_trial(tmp_path, [result(1, 5.0), *BROKEN, result(2, 3.0), *BROKEN])
    assert load_teacher(f"{tmp_path}@best").trained_return == 5.0


@pytest.mark.parametrize("line", LARGE_LINES)
def test_results_that_take_much(tmp_path, line):
    write_trial(tmp_path, [result(1, 5.0), *[line] * 10, result(2, 3.0)])
    refused(lambda: load_teacher(tmp_path))


def test_returns_of_hundreds_of_digits_are_none(tmp_path):
    write_trial(tmp_path, [result(1, 5.0), result(2, 10**400)])
    assert load_teacher(tmp_path).trained_return == 5.0


def test_states_of_many_checkpoints_share_a_limit(tmp_path, monkeypatch):
    write_trial(tmp_path, [result(1, 5.0), result(2, 3.0)])
    monkeypatch.setattr("rllib_kd.checkpoints.tune._MAX_OPCODES", 3)
    with pytest.raises(CheckpointError, match="these states are too many or too large"):
        load_teacher(f"{tmp_path}@best")


@pytest.mark.parametrize("line", ["", "{}", "x"])
def test_millions_of_short_results(tmp_path, line):
    write_trial(tmp_path, [result(1, 5.0), *[line] * 5_000_000])
    refused(lambda: load_teacher(tmp_path))


def test_folders_of_all_trials_share_a_limit(tmp_path, monkeypatch):
    for name in ("a", "b"):
        write_trial(tmp_path / name, [result(1, 5.0), result(2, 3.0)])
    assert load_teacher(f"{tmp_path}@best").trained_return == 5.0
    monkeypatch.setattr(limits, "MAX_ENTRIES", 5)
    with pytest.raises(CheckpointError, match="together with the trials before it, it contains more than 5 files"):
        load_teacher(f"{tmp_path}@best")


def test_states_of_many_checkpoints_share_their_bytes(tmp_path, monkeypatch):
    write_trial(tmp_path, [result(1, 5.0), result(2, 3.0)])
    monkeypatch.setattr(limits, "MAX_FILE", 30)  # the first one has 38 bytes
    with pytest.raises(CheckpointError, match="these states are too many or too large"):
        load_teacher(f"{tmp_path}@best")


def test_files_of_one_checkpoint_share_their_limits(tmp_path):
    write_rllib(tmp_path)
    checkpoint = open_checkpoint(str(tmp_path))
    for budget in (Budget(opcodes=600), Budget(num_bytes=10_000)):
        few = dataclasses.replace(checkpoint, _budget=budget)
        few.environment()
        with pytest.raises(CheckpointError, match=r"has too many opcodes|together with the files read before, it has"):
            [few.load_module() for _ in range(100)]
    assert checkpoint.load_module() is not None


def test_students_on_the_command_line_share_a_limit(tmp_path, monkeypatch):
    """`rllib compare` reads what somebody else may have written, as `load_teacher()` does."""
    for name in ("a", "b"):
        write_trial(tmp_path / name, [result(1, 5.0)] * 1_000)
    assert list(find_students([tmp_path])) == ["a", "b"]
    monkeypatch.setattr(limits, "MAX_RESULTS_VALUES", 300_000)  # a line counts as 200 of them
    with pytest.raises(CheckpointError, match=r"'.*/b/result.json' was refused: it has more values than any results"):
        find_students([tmp_path])
    assert resolve(tmp_path / "a").uri.endswith("a/checkpoint_000001")
    assert set(read_curves(tmp_path)) == set()  # one's own results have no limits; these have no steps
    monkeypatch.undo()
    monkeypatch.setattr(limits, "MAX_ENTRIES", 5)
    with pytest.raises(CheckpointError, match="together with the trials before it, it contains more than 5 files"):
        find_students([tmp_path])


@pytest.mark.parametrize("kind", ["sparse", "one line", "many values"])
def test_results_of_students_that_take_much(tmp_path, kind):
    write_trial(tmp_path, [])
    with open(tmp_path / "result.json", "wb") as file:
        if kind == "sparse":
            file.truncate(8 * 10**9)
        else:
            file.write(b'{"a": [' + (b"1" * 10**8 if kind == "one line" else b"1," * 100_000 + b"1") + b"]}\n")
    refused(lambda: find_students([tmp_path]))


def test_links_to_trials_are_not_followed(tmp_path):
    write_trial(tmp_path / "a", [result(1, 5.0)])
    write_trial(tmp_path / "elsewhere" / "b", [result(1, 9.0)])
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "b")
    assert load_teacher(tmp_path).trained_return == 5.0


# --- Archives ---------------------------------------------------------------------------------------------------------


def test_archives_of_many_files(tmp_path):
    with zipfile.ZipFile(tmp_path / "a", "w") as archive:
        for i in range(limits.MAX_ARCHIVE_ENTRIES + 1):
            archive.writestr(f"{i}", b"")
    refused(lambda: load_teacher(tmp_path / "a"))


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_uncommonly_packed_archives(tmp_path, method):
    path = sb3_zip(tmp_path / "a.zip", sb3_weights(mlp(4, 8, 2)), CARTPOLE_OBS, 2)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "b", "w", method) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(CheckpointError, match="packed in an uncommon way"):
        load_teacher(tmp_path / "b")


def test_files_that_lie_over_each_other(tmp_path):
    """One packed file under many names: the directory of an archive may point to it as often as it likes."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(2**20))
    data = content.getvalue()
    directory = data.index(b"PK\1\2")
    entry, end = data[directory : data.index(b"PK\5\6")], data.index(b"PK\5\6")
    entries = b"".join(entry.replace(b"a/data.pkl", b"a/data/%03d" % i) for i in range(900)) + entry
    tail = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 901, 901, len(entries), directory, 0)
    assert end
    (tmp_path / "a").write_bytes(data[:directory] + entries + tail)
    refused(lambda: load_teacher(tmp_path / "a"))


def weights_file(path, content):
    """A file of PyTorch around a pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in (("data.pkl", b"\x80\x02" + content), ("byteorder", b"little"), ("version", b"3\n")):
            archive.writestr(f"a/{name}", part)


ORDERED = b"ccollections\nOrderedDict\n"
SHARED_PAIRS = b")" + put(0) + b"".join(get(i) + b"\x86" + put(i + 1) for i in range(60))
WEIGHTS = {
    "nested pairs in a call": ORDERED + b"(](" + SHARED_PAIRS + b"K\x01\x86etR.",
    "nested pairs in a new object": ORDERED + b"(](" + SHARED_PAIRS + b"K\x01\x86et\x81.",
    "keys of one hash in a call": ORDERED
    + b"(]("
    + b"".join(long(k * PRIME) + b"N\x86" for k in range(1, 30_000))
    + b"etR.",
    "nested pairs as the name of a storage": b"(X\x07\0\0\0storagectorch\nFloatStorage\n"
    + SHARED_PAIRS
    + b"X\x03\0\0\0cpuK\x08tQ.",
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_with_keys_that_take_much(tmp_path, kind):
    weights_file(tmp_path / "a", WEIGHTS[kind])
    refused(lambda: load_teacher(tmp_path / "a"))


def test_many_weights(tmp_path):
    (tmp_path / "a").write_bytes(to_bytes({f"network.{i}.bias": torch.zeros(1) for i in range(9_000)}))
    refused(lambda: load_teacher(tmp_path / "a"))


# --- ONNX -------------------------------------------------------------------------------------------------------------


def onnx_model(nodes, weights=(), *, shape=(4,), opset=18):
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("obs", TensorProto.FLOAT, ["n", *shape])],
        [helper.make_tensor_value_info("q", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor("w", TensorProto.FLOAT, [4, 2], np.ones(8)), *weights],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


MATMUL = helper.make_node("MatMul", ["obs", "w"], ["q"])


def in_ort_format(model, folder):
    """As onnxruntime stores a model for itself."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "model.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return (folder / "model.ort").read_bytes()


def two_models_in_one(shown, hidden):
    """Bytes that onnx reads as the one model, and onnxruntime as the other one, in its own format (a flatbuffer).

    The first bytes are protobuf's `ir_version`, and a text of four letters, `ORTM`. To onnxruntime they are the place
    of a table, and the name of its format.
    """
    head = b"\x08\x09\x12\x04ORTM"
    (root,) = struct.unpack("<I", head[:4])
    (own_root,) = struct.unpack("<I", hidden[:4])
    place = root + 64 + -root % 16  # of what is hidden, aligned
    fields = own_root - struct.unpack("<i", hidden[own_root : own_root + 4])[0]
    fields_size, size = struct.unpack("<HH", hidden[fields : fields + 4])
    table = bytearray(hidden[own_root : own_root + size])
    table[:4] = struct.pack("<i", root - (place + fields))
    for i in range(fields + 4, fields + fields_size, 2):
        (field,) = struct.unpack("<H", hidden[i : i + 2])
        if field:
            (offset,) = struct.unpack("<I", hidden[own_root + field : own_root + field + 4])
            table[field : field + 4] = struct.pack("<I", place + own_root + offset - root)
    body = shown.SerializeToString()
    assert body.startswith(b"\x08\x09")
    start = head + body[2:] + b"\xa2\x06"  # a field that is not known, with all the rest
    length = place + len(hidden) - len(start) - 5
    varint = bytes([length >> 7 * i & 127 | (128 if i < 4 else 0) for i in range(5)])
    content = start + varint
    content += bytes(root - len(content)) + bytes(table)
    return content + bytes(place - len(content)) + hidden


def test_what_runs_is_what_was_checked(tmp_path):
    hidden = onnx_model([MATMUL])
    hidden.graph.initializer[0].CopyFrom(helper.make_tensor("w", TensorProto.FLOAT, [4, 2], -np.ones(8)))
    content = two_models_in_one(onnx_model([MATMUL]), in_ort_format(hidden, tmp_path))
    ones = np.ones((1, 4), np.float32)
    for run in (onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run,):
        assert run(None, {"obs": ones})[0].tolist() == [[-4.0, -4.0]]  # or this test would show nothing
    (tmp_path / "a").write_bytes(content)
    teacher = load_teacher(tmp_path / "a")
    assert teacher.q_values(torch.ones(1, 4)).tolist() == [[4.0, 4.0]]
    again = pickle.loads(pickle.dumps(teacher))
    assert again.q_values(torch.ones(1, 4)).tolist() == [[4.0, 4.0]]
    assert len(again.module.function.__reduce__()[1][0]) < 1_000  # nothing else goes along


def test_what_no_one_checks_is_left_out(tmp_path):
    model = onnx_model([MATMUL])
    model.metadata_props.add(key="ort_config", value="{}")
    model.training_info.add().algorithm.node.add(op_type="Loop")
    model.graph.node[0].metadata_props.add(key="a", value="b")
    model.graph.value_info.add(name="q").type.tensor_type.elem_type = TensorProto.STRING
    (tmp_path / "a").write_bytes(model.SerializeToString())
    teacher = load_teacher(tmp_path / "a")
    kept = onnx.load_model_from_string(teacher.module.function.__reduce__()[1][0])
    for left_out in (kept.metadata_props, kept.training_info, kept.graph.value_info, kept.graph.node[0].metadata_props):
        assert not left_out


@pytest.mark.parametrize("domain", ["", "ai.onnx"])
def test_two_versions_of_the_same_operators(tmp_path, domain):
    model = onnx_model([MATMUL])
    model.opset_import.add(domain=domain, version=9)
    (tmp_path / "a").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="several versions of the same operators"):
        load_teacher(tmp_path / "a")


@pytest.mark.parametrize("changes", [{"ir_version": 2**40}, {"opset": 10_000}, {"opset": 0}, {"opset": -1}])
def test_versions_that_are_none(tmp_path, changes):
    model = onnx_model([MATMUL], opset=changes.get("opset", 18))
    model.ir_version = changes.get("ir_version", 9)
    (tmp_path / "a").write_bytes(model.SerializeToString())
    refused(lambda: load_teacher(tmp_path / "a"))


def test_a_fixed_number_of_observations(tmp_path):
    model = onnx_model([MATMUL])
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    (tmp_path / "a").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match=r"takes 2 observations at once\. Expected any number"):
        load_teacher(tmp_path / "a")


def node(op, *inputs, to="x", **attributes):
    return helper.make_node(op, list(inputs), [to], **attributes)


def integers(name, *values):
    return helper.make_tensor(name, TensorProto.INT64, [len(values)], values)


def floats(name, *shape):
    return helper.make_tensor(name, TensorProto.FLOAT, shape, bytes(4 * int(np.prod(shape))), raw=True)


LOOKS_SMALL = [
    node("ReduceSum", "x", to="s", keepdims=0),
    node("MatMul", "obs", "w", to="y"),
    node("Add", "s", "y", to="q"),
]
THOUSAND = floats("m", 2_000, 1_000)
ONNX = {
    "zeros": ([node("ConstantOfShape", "n")], [integers("n", 2**33)]),
    "zeros of several lengths": ([node("ConstantOfShape", "n")], [integers("n", 2**20, 2**20)]),
    "zeros, often": (
        [node("ConstantOfShape", "n", to=f"z{i}") for i in range(3_000)] + [node("Add", "z0", "z1")],
        [integers("n", 2**20)],
    ),
    "expanded": ([node("Expand", "w", "n")], [integers("n", 2**30, 4, 2)]),
    "tiles": ([node("Tile", "w", "n")], [integers("n", 2**20, 2**20)]),
    "a range": (
        [node("Range", "a", "b", "c")],
        [helper.make_tensor(name, TensorProto.INT64, [], [n]) for name, n in (("a", 0), ("b", 2**40), ("c", 1))],
    ),
    "padding": ([node("Pad", "w", "n")], [integers("n", 2**20, 2**20, 0, 0)]),
    "a resized image": (
        [node("Unsqueeze", "w", "a", to="i"), node("Resize", "i", "", "s2")],
        [integers("a", 0, 1), helper.make_tensor("s2", TensorProto.FLOAT, [4], [1, 1, 1e5, 1e5])],
    ),
    "a one-hot vector of millions": (
        [helper.make_node("Cast", ["obs"], ["i"], to=TensorProto.INT64), node("OneHot", "i", "d", "v")],
        [
            helper.make_tensor("d", TensorProto.INT64, [], [2**40]),
            helper.make_tensor("v", TensorProto.FLOAT, [2], [0, 1]),
        ],
    ),
    "products of columns and rows": (
        [node("MatMul", "c", "r")],
        [floats("c", 50_000, 1), floats("r", 1, 50_000)],
    ),
    "an einsum": ([node("Einsum", "m", "m", equation="ij,kj->")], [THOUSAND]),
    "an einsum of three": (
        [node("Einsum", "c", "r", "r", equation="i,j,k->")],
        [floats("c", 3_000), floats("r", 3_000)],
    ),
    "many products": (
        [node("MatMul", "k", "k", to="p0")]
        + [node("MatMul", f"p{i}", "k", to=f"p{i + 1}") for i in range(20)]
        + [node("Identity", "p20")],
        [floats("k", 600, 600)],
    ),
    "many steps for each of few numbers": (
        [node("Sin", "m", to="p0")]
        + [node("Sin", f"p{i}", to=f"p{i + 1}") for i in range(900)]
        + [node("Abs", "p900")],
        [THOUSAND],
    ),
    "a large filter": (
        [node("Reshape", "m", "n", to="i"), node("Conv", "i", "f")],
        [THOUSAND, integers("n", 1, 1, 2_000, 1_000), floats("f", 1, 1, 500, 500)],
    ),
    "a pool as large as the image": (
        [node("Reshape", "m", "n", to="i"), node("MaxPool", "i", kernel_shape=[500, 500])],
        [THOUSAND, integers("n", 1, 1, 2_000, 1_000)],
    ),
    "a transposed filter": (
        [node("Reshape", "m", "n", to="i"), node("ConvTranspose", "i", "f")],
        [THOUSAND, integers("n", 1, 1, 2_000, 1_000), floats("f", 1, 1, 50, 50)],
    ),
    "lengths doubled and doubled": (
        [node("Shape", "obs", to="p0")]
        + [node("Concat", f"p{i}", f"p{i}", to=f"p{i + 1}", axis=0) for i in range(40)]
        + [node("Identity", "p40")],
        [],
    ),
    "axes without end": (
        [node("Unsqueeze", "obs", "a", to="p0")]
        + [node("Unsqueeze", f"p{i}", "a", to=f"p{i + 1}") for i in range(3_000)]
        + [node("Identity", "p3000")],
        [integers("a", *range(20))],
    ),
    "more operators than any network has": ([node("Relu", "obs", to=f"r{i}") for i in range(100_000)], []),
    "weights that are not there": (
        [node("Identity", "big")],
        [TensorProto(name="big", data_type=TensorProto.FLOAT, dims=[2**20, 2**10])],
    ),
    "texts doubled and doubled": (
        [node("StringConcat", f"t{i}", f"t{i}", to=f"t{i + 1}") for i in range(40)],
        [helper.make_tensor("t0", TensorProto.STRING, [1], [b"x" * 100])],
    ),
    "a tree of decisions": ([helper.make_node("TreeEnsembleRegressor", ["obs"], ["x"], domain="ai.onnx.ml")], []),
}


@pytest.mark.parametrize("kind", ONNX)
def test_models_that_take_much(tmp_path, kind):
    nodes, weights = ONNX[kind]
    model = onnx_model([*nodes, *LOOKS_SMALL], weights, opset=20)
    model.opset_import.add(domain="ai.onnx.ml", version=3)
    (tmp_path / "a").write_bytes(model.SerializeToString())
    refused(lambda: load_teacher(tmp_path / "a"))


def test_lengths_that_are_huge_for_some_numbers_of_observations(tmp_path):
    """(n - 1)(1,000 - n) is nothing for 1 and for 1,000; and a second observation is one, or none."""
    computed = [
        node("Shape", "obs", to="s0"),
        node("Slice", "s0", "0", "1", "0", to="n"),
        node("Sub", "n", "1", to="a"),
        node("Sub", "1000", "n", to="b"),
        node("Mul", "a", "b", to="c"),
        node("Mul", "c", "k", to="length"),
        node("ConstantOfShape", "length"),
    ]
    sliced = [
        node("Slice", "obs", "1", "2", "0", to="second"),
        node("Tile", "second", "k1", to="tiles"),
        node("MatMul", "tiles", "wide"),
    ]
    weights = [integers(str(i), i) for i in (0, 1, 2, 1_000)]
    for nodes, others in (
        (computed, [integers("k", 250_000)]),
        (sliced, [integers("k1", 1_000, 1), floats("wide", 4, 200_000)]),
    ):
        content = onnx_model([*nodes, *LOOKS_SMALL], [*weights, *others]).SerializeToString()
        (tmp_path / "a").write_bytes(content)
        refused(lambda: load_teacher(tmp_path / "a").q_values(torch.ones(3, 4)))


@pytest.mark.parametrize("size", [1, 2, playing._ENVS_AT_ONCE, measures._STATES_AT_ONCE])
def test_what_the_packages_own_batches_take_is_known_when_a_model_is_loaded(tmp_path, size):
    """Nothing but for batches of one size: max(0, 1 - |n - size|) times a length."""
    nodes = [
        node("Shape", "obs", to="s0"),
        node("Slice", "s0", "0", "1", "0", to="n"),
        *(node("Sub", *pair, to=to) for *pair, to in (("n", "size", "a"), ("size", "n", "b"))),
        node("Max", "a", "b", to="far"),
        node("Sub", "1", "far", to="near"),
        node("Max", "near", "0", to="is_it"),
        node("Mul", "is_it", "k", to="length"),
        node("ConstantOfShape", "length"),
    ]
    weights = [integers("0", 0), integers("1", 1), integers("size", size), integers("k", size * limits.MAX_INPUTS + 1)]
    (tmp_path / "a").write_bytes(onnx_model([*nodes, *LOOKS_SMALL], weights).SerializeToString())
    with pytest.raises(CheckpointError, match=f"of {size} observations its operator 'ConstantOfShape' makes numbers"):
        load_teacher(tmp_path / "a")


def test_divisions_of_integers_that_floats_do_not_hold(tmp_path):
    nodes = [node("Div", "big", "one", to="d"), node("Sub", "d", "even", to="e"), node("Mul", "e", "k", to="length")]
    weights = [integers("big", 2**53 + 1), integers("one", 1), integers("even", 2**53), integers("k", 250_000_000)]
    model = onnx_model([*nodes, node("ConstantOfShape", "length"), *LOOKS_SMALL], weights)
    (tmp_path / "a").write_bytes(model.SerializeToString())
    refused(lambda: load_teacher(tmp_path / "a"))


@pytest.mark.parametrize("kind", ["sparse", "of one name"])
def test_weights_that_hide_behind_others(tmp_path, kind):
    model = onnx_model([node("ConstantOfShape", "n"), *LOOKS_SMALL], [integers("n", 1)])
    if kind == "sparse":
        parts = integers("n", 250_000_000), integers("places", 0)
        model.graph.sparse_initializer.append(helper.make_sparse_tensor(*parts, [1]))
    else:
        model.graph.initializer.append(integers("n", 2))
    (tmp_path / "a").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="sparse weights" if kind == "sparse" else "have the same name"):
        load_teacher(tmp_path / "a")


@pytest.mark.parametrize(("operator", "gates"), [("RNN", 1), ("GRU", 3), ("LSTM", 4)])
def test_many_steps_in_time(tmp_path, operator, gates):
    networks = [helper.make_node(operator, ["X", "W", "R"], ["", f"h{i}"], hidden_size=1) for i in range(3)]
    nodes = [node("ConstantOfShape", "n", to="X"), *networks, node("Sum", "h0", "h1", "h2")]
    weights = [integers("n", 2**19, 1, 1), floats("W", 1, gates, 1), floats("R", 1, gates, 1)]
    (tmp_path / "a").write_bytes(onnx_model([*nodes, *LOOKS_SMALL], weights).SerializeToString())
    refused(lambda: load_teacher(tmp_path / "a"))


@pytest.mark.parametrize("shape", [(1, 300), (3_000, 10)])
def test_operators_of_many_tensors(tmp_path, shape):
    count, width = shape
    nodes = [node("Sum", *["obs"] * width, to=f"s{i}") for i in range(count - 1)]
    (tmp_path / "a").write_bytes(onnx_model([*nodes, node("Sum", *["obs"] * width), MATMUL]).SerializeToString())
    with pytest.raises(CheckpointError, match="take and make more tensors"):
        load_teacher(tmp_path / "a")


def test_integers_of_one_byte_each(tmp_path):
    model = onnx_model([MATMUL], [helper.make_tensor("i", TensorProto.INT64, [2**21], np.zeros(2**21, int))])
    (tmp_path / "a").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="more parts than any model"):
        load_teacher(tmp_path / "a")


def test_a_fixed_number_of_answers(tmp_path):
    nodes = [node("MatMul", "obs", "w", to="y"), node("Slice", "y", "0", "2", "0", to="q")]
    model = onnx_model(nodes, [integers("0", 0), integers("2", 2)])
    (tmp_path / "a").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match=r"of 1000 observations it makes Q-values of the shape \[2, 2\]"):
        load_teacher(tmp_path / "a")


def test_parts_of_two_bytes_each(tmp_path):
    content = onnx_model([MATMUL]).SerializeToString()
    for tag in (b"\x3a", b"\x42", b"\xa2\x06"):  # graphs, versions, what nobody knows
        (tmp_path / "a").write_bytes(content + (tag + b"\0") * 5_000_000)
        refused(lambda: load_teacher(tmp_path / "a"))
    nodes = b"\x0a\0" * 5_000_000  # nodes in a graph
    length = bytes([len(nodes) >> 7 * i & 127 | (128 if i < 4 else 0) for i in range(5)])
    (tmp_path / "a").write_bytes(content + b"\x3a" + length + nodes)
    refused(lambda: load_teacher(tmp_path / "a"))


def test_shapes_that_are_computed_are_known(tmp_path):
    """As PyTorch's exporters write a flattened batch."""
    nodes = [
        node("Shape", "obs", to="shape"),
        node("Gather", "shape", "zero", to="n", axis=0),
        node("Unsqueeze", "n", "axes", to="n1"),
        node("Slice", "shape", "from", "to", "axes", to="rest"),
        node("ReduceProd", "rest", to="size", keepdims=1),
        node("Concat", "n1", "size", to="flat", axis=0),
        node("Reshape", "obs", "flat", to="x"),
        node("MatMul", "x", "w", to="q"),
    ]
    weights = [helper.make_tensor("zero", TensorProto.INT64, [], [0]), integers("axes", 0)]
    weights += [integers("from", 1), integers("to", 2**62)]
    (tmp_path / "a").write_bytes(onnx_model(nodes, weights, shape=(2, 2)).SerializeToString())
    assert load_teacher(tmp_path / "a").q_values(torch.ones(3, 2, 2)).tolist() == [[4.0, 4.0]] * 3


# --- What is accepted -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["safetensors", "onnx", "rllib"])
def test_wide_networks_answer_in_parts(tmp_path, kind, monkeypatch):
    """A thousand observations of what is just accepted would take 4 GB at once."""
    monkeypatch.setattr(limits, "MAX_IN_FLIGHT", 1_000)
    obs = torch.as_tensor(states(50))
    module = make_q_module(fcnet_hiddens=[64], dueling=True)
    path = tmp_path / "a"
    if kind == "rllib":
        module.save_to_path(str(path))
    else:
        from rllib_kd.export.export import export

        export(Teacher(module), path, format=kind, obs=states(5))
    sizes = []
    teacher = load_teacher(path)
    own = teacher.module.compute_q_values if kind != "onnx" else teacher.module.function._run
    holder, name = (teacher.module, "compute_q_values") if kind != "onnx" else (teacher.module.function, "_run")

    def watched(batch):
        sizes.append(len(batch["obs"]) if isinstance(batch, dict) else len(batch))
        return own(batch)

    monkeypatch.setattr(holder, name, watched, raising=False)
    q = teacher.q_values(obs)
    assert q.numpy() == pytest.approx(Teacher(module).q_values(obs).numpy(), abs=1e-5)
    assert len(sizes) > 1
    assert sum(sizes) == 50
    labels = teacher.labels(obs, ("teacher_q",))["teacher_q"]
    assert labels.numpy() == pytest.approx(q.numpy(), abs=1e-6)


# --- Fuzzing ----------------------------------------------------------------------------------------------------------


#: The others take several seconds each; tests/fuzzing/run.py tries more files of all.
QUICK = [pytest.param(name, marks=pytest.mark.slow) if name in ("onnx", "sb3") else name for name in FORMATS]


@pytest.mark.parametrize("name", QUICK)
def test_changed_files_are_read_or_refused(name):
    row = fuzz(name, 20, seed=1)
    assert (row.files, row.has_failed, row.over_300_mb) == (20, False, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_many_changed_files_are_read_or_refused(name):
    row = fuzz(name, 100, seed=2)
    assert (row.files, row.has_failed, row.over_300_mb) == (100, False, 0)


def test_a_file_that_is_executed_would_be_seen(tmp_path):
    """The calls that the fuzzer puts into pickles make their file where they are executed."""
    for i in range(len(canaries(""))):

        def unpickle(i=i):
            pickle.loads(b"\x80\x02" + canaries(os.environ["FUZZING_MARKER"])[i] + b".")

        if b"pathlib" not in canaries("")[i]:  # which only makes a path
            assert measure_apart(unpickle, tmp_path / "mark").executed


@pytest.mark.parametrize("operator", ["Div", "Mod"])
@pytest.mark.parametrize("divisor", [0, -1])
def test_onnx_integers_are_not_divided_by_what_ends_the_process(tmp_path, operator, divisor):
    """ONNX Runtime would fold the constants, and the processor would stop at −2⁶³ / −1."""
    helper, kinds = onnx.helper, onnx.TensorProto
    nodes = [
        helper.make_node(operator, ["dividend", "divisor"], ["whole"]),
        helper.make_node("Cast", ["whole"], ["number"], to=kinds.FLOAT),
        helper.make_node("Add", ["x", "number"], ["q"]),
    ]
    constants = {"dividend": -(2**63), "divisor": divisor}
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", kinds.FLOAT, ("N", 4))],
        [helper.make_tensor_value_info("q", kinds.FLOAT, None)],
        [onnx.numpy_helper.from_array(np.array([value]), name) for name, value in constants.items()],
    )
    path = tmp_path / "model.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match=f"'{operator}' divides integers"):
        load_teacher(str(path))
