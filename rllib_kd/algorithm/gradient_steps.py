"""How many gradient steps are made: `training_intensity` rows are learned from for each env step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class ReplayRatio:
    """Decides how many gradient steps are due, by counting env steps against them.

    Args:
        rows_per_env_step: rows that are learned from for each env step (RLlib's `training_intensity`).
        batch_size: rows of one gradient step, of all Learners together.
        learning_starts: env steps that are sampled into an empty replay before rows become due.
    """

    NOT_SAVED: ClassVar = frozenset({"_rows_per_env_step", "_batch_size", "_learning_starts"})

    def __init__(self, *, rows_per_env_step: float, batch_size: int, learning_starts: int):
        self._rows_per_env_step = rows_per_env_step
        self._batch_size = batch_size
        self._learning_starts = learning_starts
        self._rows_due = 0.0  # to be learned from, until the replay ratio is met
        self._steps_since_start = 0  # env steps since the replay was empty
        self.num_gradient_steps = 0  # including those before a restore
        self.num_regrowths = 0  # times at which trees were regrown, likewise

    @property
    def num_updates(self) -> int:
        """Return how often students have changed: gradient steps, and regrowths of trees."""
        return self.num_gradient_steps + self.num_regrowths

    def sampled(self, num_env_steps: int) -> None:
        """Count env steps that were sampled."""
        self._steps_since_start += num_env_steps
        if self._steps_since_start >= self._learning_starts:
            self._rows_due += self._rows_per_env_step * num_env_steps

    def steps_due(self) -> int:
        """Return the gradient steps that are due, once. The rest of a batch counts towards the next call."""
        num_steps = int(self._rows_due // self._batch_size)
        self._rows_due -= num_steps * self._batch_size
        return num_steps

    def learned(self, num_gradient_steps: int, num_regrowths: int = 0) -> None:
        """Count gradient steps that were made, and regrowths of trees."""
        self.num_gradient_steps += num_gradient_steps
        self.num_regrowths += num_regrowths

    def replay_is_empty(self) -> None:
        """Wait for `learning_starts` env steps again before learning continues."""
        self._steps_since_start = 0

    def get_state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        return {
            "rows_due": self._rows_due,
            "steps_since_start": self._steps_since_start,
            "num_gradient_steps": self.num_gradient_steps,
            "num_regrowths": self.num_regrowths,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore the state of `get_state()`."""
        self._rows_due = state["rows_due"]
        self._steps_since_start = state["steps_since_start"]
        self.num_gradient_steps = state["num_gradient_steps"]
        self.num_regrowths = state.get("num_regrowths", 0)  # not of a version without
