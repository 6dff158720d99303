"""When a run ends by itself: its students no longer come closer to their teacher."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, ClassVar

from rllib_kd.schedules import Schedule, last_change

logger = logging.getLogger(__name__)

#: Share by which a smoothed regret must fall to count as lower: less is chance.
LEAST_FALL = 0.02
#: The regret of an iteration is an average over this share of the patience, whose recent part counts most.
_SMOOTHED_OVER = 0.25


class Patience:
    """Counts env steps since any student's regret on new states last fell.

    It counts only after β has stopped changing: before, the states themselves change. A regret of 0 cannot fall.

    Args:
        patience: env steps without a lower regret after which the run ends, ≥ 1; None: it does not end.
        teacher_fraction: β.
    """

    NOT_SAVED: ClassVar = frozenset({"_patience", "_starts_at"})

    def __init__(self, patience: int | None, teacher_fraction: Schedule):
        self._patience, self._starts_at = patience, last_change(teacher_fraction)
        self._smoothed: dict[str, float] = {}
        self._lowest: dict[str, float] = {}
        self._env_steps = self._fell_at = 0

    def look_at(self, results: dict[str, Any], env_steps: int) -> None:
        """Add `env_steps_without_lower_regret` to the results of an iteration, and `done` if the patience is over.

        Args:
            results: results with the entries `distillation` and `learners`.
            env_steps: env steps sampled so far.
        """
        if self._patience is None:
            return
        weight = 1.0 - math.exp((self._env_steps - env_steps) / (_SMOOTHED_OVER * self._patience))
        self._env_steps = env_steps
        for name, regret in _regrets(results).items():
            self._smoothed[name] = smoothed = regret + (1.0 - weight) * (self._smoothed.get(name, regret) - regret)
            lowest = self._lowest.get(name, math.inf)
            can_fall = regret > 0.0 or lowest == math.inf  # at 0, the average alone still falls, until it underflows
            if env_steps <= self._starts_at or (can_fall and smoothed < (1.0 - LEAST_FALL) * lowest):
                self._lowest[name], self._fell_at = smoothed, env_steps
        waited = max(0, env_steps - max(self._fell_at, self._starts_at))
        results["distillation"]["env_steps_without_lower_regret"] = waited
        if self._lowest and waited >= self._patience:
            results["done"] = True
            logger.warning(
                "The run ends after %s env steps: for %s, no student's regret has fallen by %g %% (patience=%s).",
                f"{env_steps:,}",
                f"{waited:,}",
                100 * LEAST_FALL,
                f"{self._patience:,}",
            )

    def get_state(self) -> dict[str, Any]:
        """Return what it has counted."""
        return {
            "smoothed": dict(self._smoothed),
            "lowest": dict(self._lowest),
            "env_steps": self._env_steps,
            "fell_at": self._fell_at,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore the state of `get_state()`."""
        self._smoothed, self._lowest = dict(state["smoothed"]), dict(state["lowest"])
        self._env_steps, self._fell_at = state["env_steps"], state["fell_at"]


def _regrets(results: Mapping[str, Any]) -> dict[str, float]:
    """Return each student's regret on held-out rows if there are any, otherwise on new states."""
    of_runs = results["distillation"]
    return _finite_regrets(of_runs.get("students", {"": of_runs})) or _finite_regrets(results.get("learners", {}))


def _finite_regrets(entries: Mapping[str, Any]) -> dict[str, float]:
    found = {}
    for name, entry in entries.items():
        for kind in ("q_regret", "regret_nats"):
            if isinstance(entry, Mapping) and math.isfinite(regret := float(entry.get(kind, math.nan))):
                found[name] = regret
    return found
