"""Stacks of frames, as single frames: of k frames in one observation, k − 1 were in the one before.

Packed columns hold one frame a row, the newest one of that row's state; its stack is this row and the k − 1 rows before
it. Where a row's stack does not go on from the one before (another environment, an episode's start with its padding),
k − 1 *context* rows come first, which are frames and nothing else. Whether a stack goes on is seen by its pixels alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

OBS = "obs"


VALID = "valid"  # whether an action was taken in a row's state


CONTEXT = "context"  # whether a row is there for the stacks of later ones only; in packed columns alone


def pack(columns: Mapping[str, np.ndarray], shape: Sequence[int], *, always: bool = False) -> dict[str, np.ndarray]:
    """Columns with their stacks packed, if that saves more than half of the frames that it could save.

    Args:
        columns: each `[R, ...]`, with `obs` `[R, H, W, k]` or `[R, k, H, W]`.
        shape: (H, W, k), as networks take it.
        always: pack, whether it saves or not.

    Returns:
        Columns `[P, ...]`, with `obs` `[P, H, W]`, `valid` and `context`; or the columns as they came.
    """
    num_rows, num_frames = len(columns[OBS]), shape[-1]
    if num_rows == 0 or num_frames < 2:
        return dict(columns)
    stacks = columns[OBS]  # [R, k, H, W]
    if stacks.shape[1:] == tuple(shape):
        stacks = np.moveaxis(stacks, -1, 1)
    starts = np.ones(num_rows, dtype=bool)  # where a stack does not go on from the one before
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
    """How many frames are in a stack of packed columns; 1 where they are not packed."""
    return int(np.argmin(columns[CONTEXT])) + 1 if CONTEXT in columns else 1


def observations(columns: Mapping[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
    """What was seen at `rows` `[B]`, packed or not: stacks are `[B, H, W, k]`."""
    if CONTEXT not in columns:
        return columns[OBS][rows]
    ages = np.arange(1 - num_frames_of(columns), 1)
    return np.moveaxis(columns[OBS][rows[:, None] + ages], 1, -1)


def unpack(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The columns that were packed; the stacks are `[R, H, W, k]`."""
    rows = np.flatnonzero(~columns[CONTEXT])
    others = {name: column[rows] for name, column in columns.items() if name not in (OBS, CONTEXT)}
    return {**others, OBS: observations(columns, rows)}
