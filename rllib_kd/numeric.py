"""What counts as a number, in settings and in files of others: numpy's numbers do, and True and False do not."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import TypeGuard


def is_integer(value: object, low: float = -math.inf, high: float = math.inf) -> TypeGuard[int]:
    """Return whether a value is an integer of at least `low` and at most `high`."""
    return isinstance(value, Integral) and not isinstance(value, bool) and low <= int(value) <= high


def check_integer(name: str, value: object, *, low: int) -> None:
    """Check that a setting is an integer of at least `low`.

    Raises:
        ValueError: it is not.
    """
    if not is_integer(value, low):
        raise ValueError(f"`{name}` must be an integer of at least {low}, got {value!r}.")


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is a real number, which may be infinite or NaN."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_finite(value: object, low: float = -math.inf, high: float = math.inf) -> TypeGuard[float]:
    """Return whether a value is a finite real number of at least `low` and at most `high`."""
    try:
        return is_number(value) and math.isfinite(value) and low <= value <= high
    except OverflowError:  # an integer with hundreds of digits
        return False


def as_float(value: float | Real) -> float:
    """Return a real number as a float: infinity for integers that are too large for one."""
    try:
        return float(value)
    except OverflowError:  # an integer with hundreds of digits
        return -math.inf if value < 0 else math.inf
