"""Pickles that would unfold to gigabytes, or end the process, are refused."""

import io
import pickle
import struct

import numpy as np
import pytest

from rllib_kd.checkpoints.pickles import CheckpointError, read_pickle
from rllib_kd.checkpoints.values import build
from tests.checkpoints.files import change_model_config, read_all, replace_statistics, there_and_back


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
    replace_statistics(checkpoint, b"\x93NUMPY" + b"\0" * 2**27)
    with pytest.raises(CheckpointError, match="unpack to more than"):
        read_all(checkpoint)


def test_a_network_of_any_size_is_not_built(checkpoint):
    change_model_config(checkpoint, {"fcnet_hiddens": [10**7, 10**7]})
    with pytest.raises(CheckpointError, match=r"does not fit its model config.*expected \[10000000"):
        read_all(checkpoint)
