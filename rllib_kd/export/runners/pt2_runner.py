"""Runs a student from a program of `torch.export` with torch and numpy alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch


def load(path: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function from observations `[B, ...]` to Q-values `[B, A]` of a `.pt2` file."""
    with open(path, "rb") as file:
        network = torch.export.load(file).module()

    def q_values(obs: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.as_tensor(np.asarray(obs, np.float32))).numpy()

    return q_values
