"""Runs a tree from its Python file, whose code is run."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from typing import Any

import numpy as np


def load(path: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function from observations `[B, inputs]` to Q-values `[B, A]` of a Python file."""
    q_values: Callable[[Any], Any] = runpy.run_path(path)["q_values"]
    return lambda obs: np.array([q_values(row) for row in np.asarray(obs, np.float32).tolist()], np.float32)
