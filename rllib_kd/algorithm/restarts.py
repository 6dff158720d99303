"""Restarts: choose which copy of a student becomes the student."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from ray.rllib.core.learner.learner_group import LearnerGroup

from rllib_kd.algorithm.dead_learners import ask_learners
from rllib_kd.environments.failures import EnvFailedError
from rllib_kd.evaluation.validation import Validation, validate
from rllib_kd.observations.pipeline import ObservationPipeline
from rllib_kd.students.restarts import by_student

logger = logging.getLogger(__name__)


#: Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943): a round ends after each of these shares of the
#: episodes, and the better half of the copies plays on, at least so many.
_ROUND_ENDS, _LEAST_THAT_PLAY = (0.25, 0.5, 1.0), 3


class Restarts:
    """Chooses a copy of each student by validation episodes. Training itself does not depend on the choice.

    Args:
        num_copies: copies of each student.
        num_episodes: validation episodes of each copy.
    """

    NOT_SAVED: ClassVar = frozenset({"_num_episodes"})

    def __init__(self, num_copies: int, num_episodes: int):
        self._num_copies, self._num_episodes = num_copies, num_episodes
        self._chosen_at = -1  # gradient steps, and regrowths of trees, at the last choice
        self._chosen: dict[str, str] = {}  # module ID of the chosen copy, by student
        self._exchanged: dict[str, str] = {}  # module IDs exchanged in the checkpoint being saved or restored
        #: Of all choices so far.
        self._env_steps = 0
        self._seconds = 0.0
        self._returns: dict[str, float] = {}  # mean of each student, as it was chosen

    def chosen(self, student: str) -> str:
        """Return the module ID of the copy chosen for a student."""
        return self._chosen.get(student, student)

    def are_chosen(self, num_updates: int) -> bool:
        """Return whether nothing was learned since the last choice."""
        return self._chosen_at == num_updates

    def choose(
        self,
        learner_group: LearnerGroup,
        modules: Mapping[str, Any],
        make_env: Callable[[], gym.Env] | None,
        pipeline: ObservationPipeline,
        num_updates: int,
    ) -> None:
        """Play validation episodes, and choose each student's best copy; if that fails, the one with the least regret.

        Args:
            learner_group: Learners that measure the Q-regrets.
            modules: current modules of all copies.
            make_env: makes one environment; None: there is none, and the copies with the least regret are chosen.
            pipeline: from the environment's observations to the modules' inputs.
            num_updates: gradient steps and regrowths of trees so far.
        """
        copies = self._choose_by_regret(learner_group, modules, num_updates)
        if make_env is None:
            return

        def play(names: Sequence[str], first: int, count: int) -> Validation:
            players = {name: modules[name] for name in names}
            return validate(make_env, players, pipeline, count, first_episode=first)

        try:
            played = _halve(copies, self._num_episodes, play)
        except (EnvFailedError, ValueError) as error:
            logger.warning(
                "Validation failed, so the copies with the lowest Q-regret on the replay's states were chosen: %s",
                error,
            )
            return
        self._chosen = {student: played.best(names)[0] for student, names in copies.items()}
        self._count(played)

    def _choose_by_regret(
        self, learner_group: LearnerGroup, modules: Mapping[str, Any], num_updates: int
    ) -> dict[str, list[str]]:
        """Choose each student's copy with the least Q-regret on states of the replays; return all in this order."""
        regrets = _mean_regrets(learner_group)
        copies = {student: _by_regret(names, regrets) for student, names in by_student(modules).items()}
        self._chosen_at, self._returns = num_updates, {}
        self._chosen = {student: names[0] for student, names in copies.items()}
        return copies

    @contextmanager
    def in_their_places(self, learner_group: LearnerGroup) -> Iterator[None]:
        """Give the chosen copies the names of their students on the Learners, while a checkpoint is saved."""
        pairs = {student: name for student, name in self._chosen.items() if name != student}
        _exchange(learner_group, pairs)
        self._exchanged = pairs
        try:
            yield
        finally:
            self._exchanged = {}
            _exchange(learner_group, pairs)

    def put_back(self, learner_group: LearnerGroup) -> bool:
        """Undo the exchange of a restored checkpoint, and return whether there was one."""
        pairs, self._exchanged = self._exchanged, {}
        _exchange(learner_group, pairs)
        return bool(pairs)

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
            "num_copies": self._num_copies,
            "chosen_at": self._chosen_at,
            "chosen": dict(self._chosen),
            "exchanged": dict(self._exchanged),
            "env_steps": self._env_steps,
            "seconds": self._seconds,
            "returns": dict(self._returns),
        }

    def check(self, state: Mapping[str, Any]) -> None:
        """Check that a state of `get_state()` has the same number of copies.

        Raises:
            ValueError: it has another number.
        """
        if state["num_copies"] != self._num_copies:
            raise ValueError(
                f"This checkpoint has restarts={state['num_copies']}, but this run has restarts={self._num_copies}. To "
                f"continue from it, set restarts={state['num_copies']}."
            )

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore the state of `get_state()`.

        Raises:
            ValueError: the state has another number of copies.
        """
        self.check(state)
        self._chosen_at = state["chosen_at"]
        self._chosen = dict(state["chosen"])
        self._exchanged = dict(state["exchanged"])
        self._env_steps = state["env_steps"]
        self._seconds = state["seconds"]
        self._returns = dict(state["returns"])

    def _count(self, played: Validation) -> None:
        self._env_steps += played.env_steps
        self._seconds += played.seconds
        self._returns = {student: float(np.mean(played.returns[name])) for student, name in self._chosen.items()}
        logger.info(
            "Validation: %d episodes each of %d copies, in %.1f s. Mean returns of the best: %s",
            self._num_episodes,
            len(played.returns),
            played.seconds,
            self._returns,
        )


def _exchange(learner_group: LearnerGroup, pairs: Mapping[str, str]) -> None:
    if pairs:
        ask_learners(learner_group, lambda learner: learner.exchange(pairs))


def _mean_regrets(learner_group: LearnerGroup) -> dict[str, float]:
    """Return the Q-regret of each module over the replays of all Learners; NaN if nothing is known."""
    by_learner = ask_learners(learner_group, lambda learner: learner.q_regret())
    known = {name: [regrets[name] for regrets in by_learner if math.isfinite(regrets[name])] for name in by_learner[0]}
    return {name: float(np.mean(regrets)) if regrets else math.nan for name, regrets in known.items()}


def _by_regret(names: Sequence[str], regrets: Mapping[str, float]) -> list[str]:
    """Return the copies in the order of their regrets, those without one last."""
    return sorted(names, key=lambda name: (math.isnan(regrets[name]), regrets[name]))


def _halve(
    copies: dict[str, list[str]], num_episodes: int, play: Callable[[Sequence[str], int, int], Validation]
) -> Validation:
    """Play in rounds, each with fewer copies of each student.

    Args:
        copies: copies by student; of equal ones the first are preferred. The lists are shortened to those left.
        num_episodes: episodes of those that play all.
        play: plays with some copies from one episode on, so many.
    """
    played, first = Validation({name: [] for names in copies.values() for name in names}, 0, 0.0), 0
    for share in _ROUND_ENDS:
        last = math.ceil(share * num_episodes)
        for student, names in copies.items() if first else ():
            copies[student] = played.best(names, max(_LEAST_THAT_PLAY, math.ceil(0.5 * len(names))))
        if last > first:
            played += play([name for names in copies.values() for name in names], first, last - first)
        first = last
    return played
