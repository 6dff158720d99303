"""Undiscounted returns of students, their teachers and random policies, and the return ratio."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, EPISODE_MODULE_RETURN_MEAN, EPISODE_RETURN_MEAN

from rllib_kd.evaluation.return_ratio import return_ratio

logger = logging.getLogger(__name__)


@dataclass
class Returns:
    """Mean undiscounted returns in one student's environment; NaN while unknown."""

    teacher: float = math.nan
    random: float = math.nan
    student: float = math.nan  # by the last evaluation in which an episode ended

    @property
    def ratio(self) -> float:
        """Return (student − random) / (teacher − random); NaN if the teacher is no better than a random policy."""
        return return_ratio(self.student, self.teacher, self.random)


class StudentReturns:
    """The returns of all students of a run, by name.

    Args:
        names: names of the students.
    """

    NOT_SAVED: ClassVar[frozenset[str]] = frozenset({"_has_warned"})

    def __init__(self, names: Iterable[str]):
        self._by_student = {name: Returns() for name in names}
        self._has_warned = False  # of an evaluation without a return

    def __getitem__(self, name: str) -> Returns:
        return self._by_student[name]

    def __iter__(self) -> Any:
        return iter(self._by_student)

    @property
    def ratio(self) -> float:
        """Return the lowest return ratio of all students; NaN while one is unknown."""
        return float(np.min([returns.ratio for returns in self._by_student.values()]))

    def take_baselines(self, names: Iterable[str], played: Mapping[str, Sequence[float]]) -> None:
        """Take each episode's returns, under "teacher" and "random", for the students of one group."""
        for name in names:
            self[name].teacher = mean_of(played["teacher"])
            self[name].random = mean_of(played["random"])

    def take_evaluation(self, evaluation: Mapping[str, Any], *, of: str | None = None) -> None:
        """Take the mean returns of an evaluation; those of the last one stay if no episode ended.

        Args:
            evaluation: RLlib's results.
            of: the student that acted; None in multi-agent settings, in which all act.
        """
        results = evaluation.get(ENV_RUNNER_RESULTS, {})
        by_module = results.get(EPISODE_MODULE_RETURN_MEAN, {})
        for name in self if of is None else [of]:
            value = by_module.get(name, math.nan) if of is None else results.get(EPISODE_RETURN_MEAN, math.nan)
            if math.isfinite(value):
                self[name].student = float(value)
            elif math.isnan(self[name].student) and not self._has_warned:
                self._has_warned = True
                logger.warning(
                    "No episode of the student '%s' ended in its first evaluation, so its return ratio is not known "
                    "yet. (kd_coeff='qdagger' is 1 until then.) Set .evaluation(evaluation_duration=...) to more, or "
                    "evaluation_duration_unit='episodes'.",
                    name,
                )

    def get_state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        return {"by_student": {name: dataclasses.asdict(returns) for name, returns in self._by_student.items()}}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore the state of `get_state()`."""
        self._by_student |= {name: Returns(**returns) for name, returns in state["by_student"].items()}


def mean_of(values: Sequence[float]) -> float:
    """Return the mean of values; NaN of none, such as returns of agents that come and go."""
    return float(np.mean(values)) if values else math.nan
