"""Confusion matrices of many actions in a bounded form: their number of cells is the square of the actions'."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

MAX_ACTIONS = 100  # that are drawn; matrices of more are not written cell by cell
_MOST_PAIRS = 1_000  # that are written of a larger matrix


def is_large(matrix: Sequence[Sequence[int]]) -> bool:
    """Return whether a matrix `[A, A]` is drawn and written in part."""
    return len(matrix) > MAX_ACTIONS


def drawn_actions(counts: np.ndarray) -> np.ndarray:
    """Return the actions of a matrix `[A, A]` that teacher and student choose most often, ascending: 100, or A."""
    chosen = counts.sum(0) + counts.sum(1)
    return np.sort(np.argsort(-chosen, kind="stable")[:MAX_ACTIONS])


def written(matrix: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Return a large matrix `[A, A]` for JSON.

    Returns:
        The number of actions, and of pairs of actions that occurred; and the 1,000 most frequent pairs, each as
        [teacher's action, student's action, number of states].
    """
    counts = np.asarray(matrix)
    rows, columns = counts.nonzero()
    found = counts[rows, columns]
    most = np.argsort(-found, kind="stable")[:_MOST_PAIRS]
    pairs = np.stack([rows[most], columns[most], found[most]], -1)
    return {"num_actions": len(counts), "num_pairs": len(found), "most_frequent": pairs.tolist()}
