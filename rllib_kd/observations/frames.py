"""Stacks of frames stored as single frames: of k frames in an observation, the previous one has k − 1, too.

Packed columns have one frame in each row, the newest one of that row's state; its stack consists of this row and the
k − 1 rows before it. If a row's stack does not continue the previous one (another environment, an episode's start with
its padding), k − 1 *context* rows precede it, which are only frames. Whether it does is determined from pixels alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

OBS = "obs"
VALID = "valid"  # whether an action was taken in a row's state
CONTEXT = "context"  # whether a row is there for the stacks of later ones only; in packed columns alone


def pack(columns: Mapping[str, np.ndarray], shape: Sequence[int], *, always: bool = False) -> dict[str, np.ndarray]:
    """Pack the stacks in columns, if that saves more than half of the frames that it could save.

    Args:
        columns: columns `[R, ...]`, with `obs` `[R, H, W, k]` or `[R, k, H, W]`.
        shape: (H, W, k), as networks take it.
        always: whether to pack in any case.

    Returns:
        Columns `[P, ...]`, with `obs` `[P, H, W]`, `valid` and `context`; or the given columns.
    """
    num_rows, num_frames = len(columns[OBS]), shape[-1]
    if num_rows == 0 or num_frames < 2:
        return dict(columns)
    stacks = columns[OBS]  # [R, k, H, W]
    if stacks.shape[1:] == tuple(shape):
        stacks = np.moveaxis(stacks, -1, 1)
    starts = np.ones(num_rows, dtype=bool)  # whether a stack does not continue the previous one
    starts[1:] = (stacks[1:, :-1] != stacks[:-1, 1:]).any((1, 2, 3))
    places = np.arange(num_rows) + (num_frames - 1) * np.cumsum(starts)  # of rows among packed ones
    num_packed = num_rows + (num_frames - 1) * int(starts.sum())
    if not always and 2 * num_packed > (num_frames + 1) * num_rows:
        return dict(columns)

    packed = {}
    for name, column in ({VALID: np.ones(num_rows, dtype=bool)} | {**columns, OBS: stacks[:, -1]}).items():
        packed[name] = np.zeros((num_packed, *column.shape[1:]), column.dtype)
        packed[name][places] = column
    for age in range(1, num_frames):
        packed[OBS][places[starts] - age] = stacks[starts, -1 - age]
    packed[CONTEXT] = np.ones(num_packed, dtype=bool)
    packed[CONTEXT][places] = False
    return packed


def num_frames_of(columns: Mapping[str, np.ndarray]) -> int:
    """Return the number of frames in a stack of packed columns; 1 if they are not packed."""
    return int(np.argmin(columns[CONTEXT])) + 1 if CONTEXT in columns else 1


def observations(columns: Mapping[str, np.ndarray], rows: np.ndarray, num_frames: int | None = None) -> np.ndarray:
    """Return the observations at `rows` `[B]`, of packed or other columns: stacks are `[B, H, W, k]`.

    Args:
        columns: columns `[R, ...]`.
        rows: places in them.
        num_frames: k; None: the columns begin with a whole stack, which shows it.
    """
    if CONTEXT not in columns:
        return columns[OBS][rows]
    ages = np.arange(1 - (num_frames or num_frames_of(columns)), 1)
    return np.moveaxis(columns[OBS][rows[:, None] + ages], 1, -1)


def unpack(columns: Mapping[str, np.ndarray], num_frames: int | None = None) -> dict[str, np.ndarray]:
    """Invert `pack()`; the stacks are `[R, H, W, k]`. `num_frames` is as in `observations()`."""
    rows = np.flatnonzero(~columns[CONTEXT])
    others = {name: column[rows] for name, column in columns.items() if name not in (OBS, CONTEXT)}
    return {**others, OBS: observations(columns, rows, num_frames)}
