"""What counts as a number."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rllib_kd.numeric import as_float, is_finite, is_integer, is_number

HUGE = 10**400  # more than a float can hold


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_integers_are_python_s_and_numpy_s(value):
    assert is_integer(value, 3, 3)
    assert is_number(value)
    assert is_finite(value, 3, 3)
    assert not is_integer(value, 4)
    assert not is_finite(value, high=2)


@pytest.mark.parametrize("value", [True, np.True_, None, "3", b"3", [3], 3j])
def test_what_is_no_number(value):
    assert not is_integer(value)
    assert not is_number(value)
    assert not is_finite(value)


@pytest.mark.parametrize("value", [2.5, 3.0, np.float32(3)])
def test_floats_are_no_integers_even_if_whole(value):
    assert not is_integer(value)
    assert is_finite(value)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, np.float32("nan")])
def test_infinite_numbers_are_numbers(value):
    assert is_number(value)
    assert not is_finite(value)
    assert not is_integer(value)


def test_an_integer_that_no_float_can_hold():
    assert is_integer(HUGE)
    assert not is_integer(HUGE, high=2**60)
    assert not is_finite(HUGE)


def test_integers_that_no_float_can_hold_are_infinite():
    assert (as_float(HUGE), as_float(-HUGE), as_float(np.int64(3))) == (math.inf, -math.inf, 3.0)
