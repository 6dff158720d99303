"""Stacks of frames in files: each row has its newest frame, and the frames before it only where a sequence begins."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def split(stacks: np.ndarray) -> tuple[np.ndarray, list[bytes]]:
    """Split stacks into frames.

    Args:
        stacks: `[R, H, W, k]`, those of one environment one after the other.

    Returns:
        The newest frames `[R, H, W]`; and the bytes of the k − 1 frames before, `[H, W, k − 1]`, of each row whose
        stack does not continue the one before it, otherwise none.
    """
    begins = np.ones(len(stacks), dtype=bool)
    begins[1:] = (stacks[1:, ..., :-1] != stacks[:-1, ..., 1:]).any((1, 2, 3))
    before = [row[..., :-1].tobytes() if is_first else b"" for row, is_first in zip(stacks, begins, strict=True)]
    return stacks[..., -1], before


def saved_share(stacks: np.ndarray) -> float:
    """Return the share of all frames `[R, H, W, k]` that `split()` leaves out, in [0, 1)."""
    num_rows, num_frames = len(stacks), stacks.shape[-1]
    if not num_rows:
        return 0.0
    _, before = split(stacks)
    kept = num_rows + (num_frames - 1) * sum(map(bool, before))
    return 1.0 - kept / (num_rows * num_frames)


def join(frames: np.ndarray, before: Sequence[bytes], num_frames: int) -> np.ndarray:
    """Return the stacks `[R, H, W, k]` of `split()`.

    Raises:
        ValueError: the first row has no frames before it, or a row has another number of them.
    """
    begins = np.array([bool(part) for part in before], dtype=bool)
    size = (num_frames - 1) * frames[:1].nbytes
    if len(begins) and not begins[0]:
        raise ValueError("begins in the middle of a sequence of frames")
    if any(len(part) not in (0, size) for part in before):
        raise ValueError(f"has frames of other sizes before its first rows; expected {size} bytes")
    places = np.arange(len(frames)) + (num_frames - 1) * np.cumsum(begins)  # with the frames before in their places
    found = np.empty((len(frames) + (num_frames - 1) * int(begins.sum()), *frames.shape[1:]), frames.dtype)
    found[places] = frames
    for place, part in zip(places[begins], filter(None, before), strict=True):
        earlier = np.frombuffer(part, frames.dtype).reshape(*frames.shape[1:], num_frames - 1)
        found[place - num_frames + 1 : place] = np.moveaxis(earlier, -1, 0)
    return np.moveaxis(found[places[:, None] + np.arange(1 - num_frames, 1)], 1, -1)
