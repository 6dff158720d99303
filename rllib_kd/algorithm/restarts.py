"""Restarts: choose which copy of a student becomes the student."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from ray.rllib.core.learner.learner_group import LearnerGroup

from rllib_kd.algorithm.dead_learners import ask_learners
from rllib_kd.evaluation.validation import Validation, validate
from rllib_kd.observations.pipeline import ObservationPipeline
from rllib_kd.students.restarts import by_student

logger = logging.getLogger(__name__)


#: The copies of a student with the lowest Q-regret play: this share of them, and at least this many.
_SHARE_THAT_PLAYS, _LEAST_THAT_PLAY = 0.25, 3


class Restarts:
    """Chooses a copy of each student by validation episodes.

    Args:
        num_episodes: episodes of each copy.
    """

    NOT_SAVED: ClassVar = frozenset({"_num_episodes"})

    def __init__(self, num_episodes: int):
        self._num_episodes = num_episodes
        self._chosen_at = -1  # gradient steps at the last choice
        #: Of all choices so far.
        self._env_steps = 0
        self._seconds = 0.0
        self._returns: dict[str, float] = {}  # mean of each student, as it was chosen

    def are_chosen(self, num_gradient_steps: int) -> bool:
        """Return whether nothing was learned since the last choice."""
        return self._chosen_at == num_gradient_steps

    def choose(
        self,
        learner_group: LearnerGroup,
        modules: Mapping[str, Any],
        make_env: Callable[[], gym.Env],
        pipeline: ObservationPipeline,
        num_gradient_steps: int,
    ) -> dict[str, str]:
        """Play validation episodes, and give each student's best copy its name, on the Learners.

        Args:
            learner_group: Learners whose modules are swapped.
            modules: current modules of all copies.
            make_env: makes one environment.
            pipeline: from the environment's observations to the modules' inputs.
            num_gradient_steps: gradient steps so far.

        Returns:
            Module IDs that were swapped.
        """
        regrets = _mean_regrets(learner_group)
        copies = by_student(modules)
        playing = {student: _least(names, regrets) for student, names in copies.items()}
        played = validate(
            make_env,
            {name: modules[name] for names in playing.values() for name in names},
            pipeline,
            self._num_episodes,
        )
        best = {student: played.best(names) for student, names in playing.items()}
        pairs = {student: name for student, name in best.items() if name != student}
        ask_learners(learner_group, lambda learner: learner.exchange(pairs))
        self._count(played, best, num_gradient_steps)
        return pairs

    def results(self) -> dict[str, Any]:
        """Return the entry `validation` of a training result."""
        return {
            "env_steps_lifetime": self._env_steps,
            "seconds_lifetime": self._seconds,
            "episode_return_mean": dict(self._returns),
        }

    def get_state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        return {
            "chosen_at": self._chosen_at,
            "env_steps": self._env_steps,
            "seconds": self._seconds,
            "returns": dict(self._returns),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore the state of `get_state()`."""
        self._chosen_at = state["chosen_at"]
        self._env_steps = state["env_steps"]
        self._seconds = state["seconds"]
        self._returns = dict(state["returns"])

    def _count(self, played: Validation, best: Mapping[str, str], num_gradient_steps: int) -> None:
        self._chosen_at = num_gradient_steps
        self._env_steps += played.env_steps
        self._seconds += played.seconds
        self._returns = {student: float(np.mean(played.returns[name])) for student, name in best.items()}
        logger.info(
            "Validation: %d episodes each of %d copies, in %.1f s. Mean returns of the best: %s",
            self._num_episodes,
            len(played.returns),
            played.seconds,
            self._returns,
        )


def _mean_regrets(learner_group: LearnerGroup) -> dict[str, float]:
    """Return the Q-regret of each module over the replays of all Learners."""
    by_learner = ask_learners(learner_group, lambda learner: learner.q_regret())
    return {name: float(np.nanmean([regrets[name] for regrets in by_learner])) for name in by_learner[0]}


def _least(names: list[str], regrets: Mapping[str, float]) -> list[str]:
    """Return the copies that play: those with the least regret."""
    count = max(_LEAST_THAT_PLAY, math.ceil(_SHARE_THAT_PLAYS * len(names)))
    return sorted(names, key=lambda name: regrets[name])[:count]
