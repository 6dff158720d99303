"""Recorded columns, checked: what is written of them, and where wrong rows are."""

from __future__ import annotations

from typing import Any

import numpy as np
from ray.rllib.core.columns import Columns

from rllib_kd.observations.masks import MASK
from rllib_kd.offline.schema import DataError

_FLAGS = (Columns.TERMINATEDS, Columns.TRUNCATEDS)


class Place:
    """The place of rows: a file, and the index of the first row in it, or of all rows."""

    def __init__(self, file: str, start: int | np.ndarray | None):
        self.file, self.start = file, start

    def error(self, message: str, column: str, *, row: int | None = None) -> DataError:
        """Return an error at a column, and at a row of these rows."""
        at = "" if row is None else f"row {self._index(int(row))}: "
        return DataError(at + message, file=self.file, column=column)

    def _index(self, row: int) -> int:
        return int(self.start[row]) if isinstance(self.start, np.ndarray) else (self.start or 0) + row


def recorded(name: str, values: Any, count: int, num_actions: int, place: Place) -> np.ndarray:
    """Return a recorded column as it is written, after checking that it fits its name.

    Args:
        name: one of RLlib's names.
        values: `[N]`, of masks `[N, A]`.
        count: number of rows, N.
        num_actions: number of actions, A.
        place: where the rows are.

    Raises:
        DataError: it is not.
    """
    shape = (count, num_actions) if name == MASK else (count,)
    if not isinstance(values, np.ndarray) or values.shape != shape:
        got = list(values.shape) if isinstance(values, np.ndarray) else "parts"
        raise place.error(f"has the shape {got}; expected {list(shape)}", name)
    if name == Columns.EPS_ID:
        if values.dtype.kind == "f":
            finite(values, name, place)
        return values if values.dtype == object else values.astype(str).astype(object)
    if values.dtype.kind not in "biuf":
        raise place.error(f"has the type {values.dtype}; expected numbers", name)
    if name == Columns.REWARDS:
        with np.errstate(over="ignore"):
            return finite(values.astype(np.float32), name, place)
    if name in (*_FLAGS, MASK):
        flags = values if values.dtype == bool else values == 1
        if (wrong := rows_where(~flags & (values != 0))).size:
            raise place.error(f"has {values[wrong[0]].tolist()}; expected zeros and ones", name, row=wrong[0])
        if name == MASK and (wrong := np.flatnonzero(~flags.any(1))).size:
            raise place.error("allows no action; expected at least one", name, row=wrong[0])
        return flags
    with np.errstate(invalid="ignore"):
        numbers = values.astype(np.int64)
    if (wrong := np.flatnonzero(numbers != values)).size:
        raise place.error(f"has {values[wrong[0]]}; expected integers", name, row=wrong[0])
    if name == Columns.ACTIONS and (wrong := np.flatnonzero((numbers < 0) | (numbers >= num_actions))).size:
        raise place.error(
            f"has the action {numbers[wrong[0]]}, but the teacher's are 0 to {num_actions - 1}. Does it belong to this "
            "environment?",
            name,
            row=wrong[0],
        )
    return numbers


def not_finite(values: np.ndarray, *, may_be_illegal: bool = False) -> np.ndarray:
    """Return which numbers are not finite as 32-bit floats, in which Learners have them.

    Args:
        values: floats `[N, ...]`.
        may_be_illegal: whether the values `[N, A]` are of actions, of which −inf marks illegal ones: one is legal.
    """
    with np.errstate(over="ignore"):
        is_wrong = ~np.isfinite(values.astype(np.float32, copy=False))
    if may_be_illegal and is_wrong.any():
        is_wrong &= ~np.isneginf(values) | is_wrong.all(-1, keepdims=True)
    return is_wrong


def finite(values: np.ndarray, column: str, place: Place, *, may_be_illegal: bool = False) -> np.ndarray:
    """Return numbers, once all floats among them are finite, but for what `not_finite()` permits."""
    if values.dtype.kind != "f":
        return values
    is_wrong = not_finite(values, may_be_illegal=may_be_illegal)
    if is_wrong.any():
        row = rows_where(is_wrong)[0]
        raise place.error(
            f"has the number {values[row][is_wrong[row]].ravel()[0]}. Expected finite numbers, that 32-bit floats can "
            "hold: leave out such rows.",
            column,
            row=row,
        )
    return values


def rows_where(found: np.ndarray) -> np.ndarray:
    """Return the indices of the rows `[N, ...]` in which anything is found."""
    return np.flatnonzero(found.reshape(len(found), -1).any(1)) if found.size else np.empty(0, np.int64)
