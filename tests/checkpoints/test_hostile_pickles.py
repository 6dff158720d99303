"""Small pickles that would take seconds, gigabytes or for ever are refused: in 2 s of processor time, and 300 MB."""

import gc
import io
import pickle
import struct
import zipfile

import gymnasium as gym
import numpy as np
import pytest
import torch

from rllib_kd import load_teacher
from rllib_kd.checkpoints.pickles import CheckpointError, read_pickle
from rllib_kd.checkpoints.values import build, build_entries
from tests.checkpoints.hostile import PRIME, Recipe, get, long, put, refused
from tests.formats import to_bytes


def only_read(content):
    read_pickle(io.BytesIO(content), "it")


def build_pickle(content):
    build(read_pickle(io.BytesIO(content), "it"), "it")


PAIRS = b")" + b"2\x86" * 60  # a pair of pairs of pairs... of one empty tuple
LARGE = b"(" + b"K\x01" * 100_000 + b"t" + put(1)  # one tuple, to be used often
PICKLES = {
    "empty sets": lambda: b"\x8f" * 12_000_000 + b".",
    "classes without a name": lambda: b"(" + b"c\n\n" * 1_500_000 + b"l.",
    "many classes": lambda: b"(" + b"".join(b"c%d\nx\n" % i for i in range(100_000)) + b"l.",
    "keys of one hash": lambda: b"}(" + b"".join(long(k * PRIME) + b"K\x01" for k in range(1, 100_000)) + b"u.",
    "a set of one hash": lambda: b"\x8f(" + b"".join(long(k * PRIME) for k in range(1, 100_000)) + b"\x90.",
    "keys of one hash in a call": lambda: (
        b"ccollections\nOrderedDict\n(](" + b"".join(long(k * PRIME) + b"N\x86" for k in range(1, 30_000)) + b"etR."
    ),
    "places of one hash": lambda: b"N" + b"".join(b"p%d\n" % (k * PRIME) for k in range(1, 100_000)) + b".",
    "tuples of one hash": lambda: (
        b"}(" + b"".join(long(k * PRIME) + long(-k * PRIME) + b"\x86K\x01" for k in range(1, 60_000)) + b"u."
    ),
    "one large integer in a tuple": lambda: b"}" + long(PRIME) + b"K\x01\x86\x85K\x01s.",
    "pairs of small numbers": lambda: b"}(" + b"".join(long(k) + b"K\x01\x86N" for k in range(300)) + b"u.",
    "pairs of pairs as a key": lambda: b"}" + PAIRS + b"K\x01s.",
    "pairs of pairs in a set": lambda: b"(" + PAIRS + b"\x91.",
    "a large tuple as a key": lambda: LARGE + b"0}(" + (get(1) + b"K\x01") * 50_000 + b"u.",
    "calls that share their arguments": lambda: LARGE + b"(" + (b"cx\nx\n" + get(1) + b"R") * 80_000 + b"l.",
    "an integer of a megabyte": lambda: b"\x8b" + struct.pack("<i", 10**6) + b"\x01" * 10**6 + b".",
    "pairs of pairs": lambda: PAIRS + b".",
    "lists of lists": lambda: b"]" + b"".join(put(i) + b"0(" + get(i) * 2 + b"l" for i in range(60)) + b".",
    "a long text, often": lambda: (
        b"X" + struct.pack("<I", 10**6) + b"x" * 10**6 + put(1) + b"(" + get(1) * 60_000 + b"l."
    ),
    "a shape of many lengths": lambda: (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01("
        + long(2**1_000) * 30_000
        + b"tcnumpy\ndtype\nX\x02\0\0\0f4\x89\x88\x87R\x89C\x00tb."
    ),
    "a message of many words": lambda: (
        b"\x80\x04X" + struct.pack("<I", 5 * 10**7) + b"a " * 25_000_000 + b"\x8c\x01a\x93)R."
    ),
}

#: One of each kind: what is built, what is hashed, what is shared, what is a number.
FAST = {"empty sets", "keys of one hash", "pairs of pairs as a key", "lists of lists", "a shape of many lengths"}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind in FAST else pytest.mark.slow) for kind in PICKLES]
)
def test_small_pickles_that_take_much(kind):
    content = PICKLES[kind]()
    refused(lambda: build_pickle(content))


@pytest.mark.parametrize("kind", ["one large integer in a tuple", "pairs of small numbers"])
def test_tuples_as_keys_are_refused_before_they_are_hashed(kind):
    with pytest.raises(CheckpointError, match=r"in a key|too many tuples as keys"):
        only_read(PICKLES[kind]())


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


def weights_file(path, content):
    """A file of PyTorch around a pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in (("data.pkl", b"\x80\x02" + content), ("byteorder", b"little"), ("version", b"3\n")):
            archive.writestr(f"a/{name}", part)


ORDERED = b"ccollections\nOrderedDict\n"
SHARED_PAIRS = b")" + put(0) + b"".join(get(i) + b"\x86" + put(i + 1) for i in range(60))
WEIGHTS = {
    "nested pairs in a call": lambda: ORDERED + b"(](" + SHARED_PAIRS + b"K\x01\x86etR.",
    "nested pairs in a new object": lambda: ORDERED + b"(](" + SHARED_PAIRS + b"K\x01\x86et\x81.",
    "keys of one hash in a call": lambda: (
        ORDERED + b"(](" + b"".join(long(k * PRIME) + b"N\x86" for k in range(1, 30_000)) + b"etR."
    ),
    "nested pairs as the name of a storage": lambda: (
        b"(X\x07\0\0\0storagectorch\nFloatStorage\n" + SHARED_PAIRS + b"X\x03\0\0\0cpuK\x08tQ."
    ),
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_with_keys_that_take_much(tmp_path, kind):
    weights_file(tmp_path / "a", WEIGHTS[kind]())
    refused(lambda: load_teacher(tmp_path / "a"))


@pytest.mark.slow
def test_many_weights(tmp_path):
    (tmp_path / "a").write_bytes(to_bytes({f"network.{i}.bias": torch.zeros(1) for i in range(9_000)}))
    refused(lambda: load_teacher(tmp_path / "a"))
