"""Small checkpoints of RLlib that would take much are refused: in 2 s of processor time, and 300 MB."""

import base64
import dataclasses
import io
import os
import sys
import types
import zlib

import gymnasium as gym
import numpy as np
import pytest
from ray.rllib.connectors.common.flatten_observations import FlattenObservations
from ray.rllib.connectors.common.frame_stacking import FrameStacking

from rllib_kd.checkpoints.pickles import CheckpointError, ReadBudget
from rllib_kd.checkpoints.rllib import open_checkpoint
from rllib_kd.observations.connectors import OneVector
from tests.checkpoints.hostile import Recipe, refused, write_rllib


def read_rllib(path):
    checkpoint = open_checkpoint(str(path))
    checkpoint.load_observation_pipeline(checkpoint.load_module())


def nested(depth):
    """A Dict of two references to one Dict of two..., which gymnasium itself would copy on its way."""
    space = gym.spaces.Discrete(2)
    for _ in range(depth):
        space = Recipe(gym.spaces.Dict, (), {"spaces": {"a": space, "b": space}})
    return space


def text(**state):
    """A Text with another state."""
    return Recipe(gym.spaces.Text, (), vars(gym.spaces.Text(3)) | state)


MANY = np.full(3_000, 2**60)
SPACES = {
    "a Dict of shared Dicts": lambda: nested(60),
    "a Discrete of millions of millions": lambda: gym.spaces.Discrete(10**15),
    "a MultiDiscrete of more than 64 bits": lambda: gym.spaces.MultiDiscrete(MANY),
    "a MultiDiscrete of many parts": lambda: gym.spaces.MultiDiscrete(np.ones(20_000, np.int64)),
    "a Tuple of many spaces": lambda: gym.spaces.Tuple([gym.spaces.Box(-1, 1, (1,)) for _ in range(5_000)]),
    "a MultiBinary of millions of millions": lambda: gym.spaces.MultiBinary(10**12),
    "a Tuple of many texts": lambda: gym.spaces.Tuple([gym.spaces.Text(1) for _ in range(1_001)]),
    "a Text of negative length": lambda: text(min_length=-1),
    "a Text longer than any number": lambda: text(max_length="1"),
    "a Text of characters that are none": lambda: text(_char_str=[1, 2]),
    "a Text of millions of characters": lambda: text(_char_str="ab" * 10_000_000),
    "a Text without a state": lambda: Recipe(gym.spaces.Text, (3,), None),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SPACES)
def test_spaces_that_unfold_to_more_than_memory(tmp_path, kind):
    write_rllib(tmp_path, space=SPACES[kind](), connectors=[(FlattenObservations, (), {})])
    refused(lambda: read_rllib(tmp_path))


def test_a_class_of_texts_is_not_imported(tmp_path):
    """A space of another package is read as a Text by its dtype alone."""
    state = {"dtype": np.dtype(str), "_shape": None, "mission_func": os.system}
    space = gym.spaces.Dict(a=gym.spaces.Discrete(3))
    space.spaces["b"] = Recipe(os.system, (f"touch {tmp_path}/executed",), state)
    write_rllib(tmp_path, space=Recipe(gym.spaces.Dict, (), vars(space)), connectors=[(OneVector, (), {})])
    found = open_checkpoint(str(tmp_path)).load_observation_pipeline()
    assert found.observation_space == gym.spaces.Dict(a=gym.spaces.Discrete(3), b=gym.spaces.Text(1))
    assert found.stages[0].size == 67
    assert not (tmp_path / "executed").exists()


def test_a_call_that_only_looks_like_texts_is_refused(tmp_path):
    for state in ({"dtype": np.dtype(str)}, {"dtype": np.dtype("f4"), "_shape": None}, None):
        folder = tmp_path / str(len(os.listdir(tmp_path)))
        write_rllib(folder, space=Recipe(os.getcwd, (), state), connectors=[(OneVector, (), {})])
        with pytest.raises(CheckpointError, match="which is code, not data"):
            open_checkpoint(str(folder)).load_observation_pipeline()


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


def test_files_of_one_checkpoint_share_their_limits(tmp_path):
    write_rllib(tmp_path)
    checkpoint = open_checkpoint(str(tmp_path))
    for budget in (ReadBudget(opcodes=600), ReadBudget(num_bytes=10_000)):
        few = dataclasses.replace(checkpoint, _budget=budget)
        few.environment()
        with pytest.raises(CheckpointError, match=r"has too many opcodes|together with the files read before, it has"):
            [few.load_module() for _ in range(100)]
    assert checkpoint.load_module() is not None
