"""Keeps the state of a recurrent student from step to step; with numpy alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

#: State by name, each part `[B, units]`.
State = dict[str, np.ndarray]


class Remembering:
    """A recurrent student as a function of observations, which remembers those before: B episodes side by side.

    Call `begin()` before the first step of an episode. Each further call is the next step of the same episodes.

    Args:
        step: from observations `[B, ...]`, a state and legal actions (or None) to Q-values `[B, A]` and the next state.
        sizes: units of each part of a state, by name. At the beginning of an episode all are 0.
    """

    def __init__(
        self, step: Callable[[np.ndarray, State, np.ndarray | None], tuple[np.ndarray, State]], sizes: Mapping[str, int]
    ):
        self.step, self.sizes = step, dict(sizes)
        self.state: State | None = None

    def initial_state(self, count: int) -> State:
        """Return the state before the first step of `count` episodes."""
        return {name: np.zeros((count, units), np.float32) for name, units in self.sizes.items()}

    def begin(self, first: np.ndarray | None = None) -> None:
        """Begin new episodes: where `first` `[B]` is True, or all of them."""
        if first is None or self.state is None:
            self.state = None
            return
        self.state = {name: np.where(first[:, None], np.float32(0), part) for name, part in self.state.items()}

    def __call__(self, obs: np.ndarray, action_mask: np.ndarray | None = None) -> np.ndarray:
        """Return Q-values `[B, A]` of observations `[B, ...]`; those of illegal actions (mask 0) are −inf."""
        obs = np.asarray(obs, np.float32)
        if self.state is not None:  # as in training, an episode begins anew if an observation has left NaN in its state
            self.begin(~np.all([np.isfinite(part).all(-1) for part in self.state.values()], axis=0))
        state = self.initial_state(len(obs)) if self.state is None else self.state
        q_values, self.state = self.step(obs, state, action_mask)
        return q_values
