"""Runs a tree from its Python file, whose code is run."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from typing import Any

import numpy as np


def load(path: str) -> Callable[..., np.ndarray]:
    """Return the function from observations `[B, inputs]` to Q-values `[B, A]` of a Python file.

    It also takes the legal actions, `action_mask` `[B, A]` (1: legal, 0: not): the others get −inf.
    """
    q_of_row: Callable[[Any], Any] = runpy.run_path(path)["q_values"]

    def q_values(obs: np.ndarray, action_mask: np.ndarray | None = None) -> np.ndarray:
        q = np.array([q_of_row(row) for row in np.asarray(obs, np.float32).tolist()], np.float32)
        return q if action_mask is None else np.where(np.asarray(action_mask) == 1, q, np.float32(-np.inf))

    return q_values
