"""Runs a student from TorchScript with torch and numpy alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch


def load(path: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function from observations `[B, ...]` to Q-values `[B, A]` of a TorchScript file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer torch announces the end of TorchScript each time
        script = torch.jit.load(path, map_location="cpu")

    def q_values(obs: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return script(torch.as_tensor(np.asarray(obs, np.float32))).numpy()

    return q_values
