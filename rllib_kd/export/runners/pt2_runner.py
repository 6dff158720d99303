"""Runs a student from a program of `torch.export` with torch and numpy alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch


def load(path: str) -> Callable[..., np.ndarray]:
    """Return the function from observations `[B, ...]` to Q-values `[B, A]` of a `.pt2` file.

    It also takes the legal actions, `action_mask` `[B, A]` (1: legal, 0: not): the others get −inf.
    """
    with open(path, "rb") as file:
        program = torch.export.load(file)
    _, *masks = program.graph_signature.user_inputs
    takes_mask = bool(masks)
    num_actions = [int(node.meta["val"].shape[1]) for node in program.graph.nodes if node.name in masks]
    network = program.module()

    def q_values(obs: np.ndarray, action_mask: np.ndarray | None = None) -> np.ndarray:
        inputs = [np.asarray(obs, np.float32)]
        if takes_mask:
            mask = np.ones((len(obs), *num_actions)) if action_mask is None else action_mask
            inputs.append(np.asarray(mask, np.float32))
        with torch.inference_mode():
            q = network(*map(torch.as_tensor, inputs)).numpy()
        if takes_mask or action_mask is None:
            return q
        return np.where(np.asarray(action_mask) == 1, q, np.float32(-np.inf))

    return q_values
