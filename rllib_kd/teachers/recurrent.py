"""Recurrent Q-networks as frozen policies: only a view, which goes through an episode, has their state."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from rllib_kd.networks.recurrent import Memory, initial_state, run_sequences
from rllib_kd.observations.pipeline import Shown, View


class RecurrentView:
    """A view of one vector env whose inputs are the outputs `[N, A]` of a recurrent network in its present state.

    Args:
        teacher: the `Teacher` with the network; it is pickled by its state.
        view: view of the network's inputs.
    """

    def __init__(self, teacher: Any, view: View):
        self._teacher, self._view = teacher, view
        self._memory = Memory()

    def __call__(self, shown: Shown) -> np.ndarray:
        """Return the outputs in the states that the vector env shows, after those before."""
        module = self._teacher.module
        device = next(module.parameters()).device
        obs = torch.from_numpy(np.asarray(self._view(shown), np.float32)).to(device)
        self._memory.begin(module, shown.first, device)
        return self._memory.step(module, obs).cpu().numpy()


def first_outputs(module: Any, obs: torch.Tensor) -> torch.Tensor:
    """Return Q-values `[B, A]` of inputs `[B, ...]` as the first states of episodes."""
    return run_sequences(module, obs.unsqueeze(1), initial_state(module, len(obs), obs.device))[0][:, 0]
