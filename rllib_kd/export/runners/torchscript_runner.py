"""Runs a student from TorchScript with torch and numpy alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch


def load(path: str) -> Callable[..., np.ndarray]:
    """Return the function from observations `[B, ...]` to Q-values `[B, A]` of a TorchScript file.

    It also takes the legal actions, `action_mask` `[B, A]` (1: legal, 0: not): the others get −inf.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer torch announces the end of TorchScript each time
        script = torch.jit.load(path, map_location="cpu")

    takes_mask = len(script.forward.schema.arguments) == 3  # with `self`

    def q_values(obs: np.ndarray, action_mask: np.ndarray | None = None) -> np.ndarray:
        inputs = [np.asarray(obs, np.float32)]
        if takes_mask:
            inputs.append(np.asarray(np.ones((len(obs), 1)) if action_mask is None else action_mask, np.float32))
        with torch.inference_mode():
            q = script(*map(torch.as_tensor, inputs)).numpy()
        if takes_mask or action_mask is None:
            return q
        return np.where(np.asarray(action_mask) == 1, q, np.float32(-np.inf))

    return q_values
