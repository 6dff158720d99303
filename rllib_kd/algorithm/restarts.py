"""Restarts: choose which copy of a student, at which time of its training, becomes the student."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import gymnasium as gym
import numpy as np
from ray.rllib.core.learner.learner_group import LearnerGroup

from rllib_kd import _rllib
from rllib_kd.algorithm.dead_learners import ask_learners
from rllib_kd.algorithm.returns import mean_of
from rllib_kd.checkpoints.connectors import pipeline_of
from rllib_kd.environments.failures import EnvFailedError
from rllib_kd.environments.making import env_maker
from rllib_kd.evaluation.halving import halve, num_played
from rllib_kd.evaluation.validation import Validation, play_validation
from rllib_kd.networks.weights import Weights, weights_of, with_weights
from rllib_kd.observations.pipeline import ObservationPipeline
from rllib_kd.students.restarts import by_student, student_of

logger = logging.getLogger(__name__)

#: A look plays this share of the validation episodes. The best snapshots of all looks are kept, at most this many.
_SHARE_OF_LOOK, _NUM_KEPT = 0.25, 4
#: The first look comes after at least this many env steps, and each further one after this many times as many.
_FIRST_LOOK, _FACTOR = 20_000, 1.5
#: A look plays at most this many env steps for each one that was sampled since the last look.
_MOST_PLAYED = 2.0


class Players(NamedTuple):
    """Who plays validation episodes, and in what.

    Args:
        copies: current modules of all copies, by ID.
        make_env: makes one environment; None: there is none.
        pipeline: from the environment's observations to the modules' inputs.
    """

    copies: Mapping[str, Any]
    make_env: Callable[[], gym.Env] | None
    pipeline: ObservationPipeline

    @classmethod
    def of(cls, config: Any, copies: Mapping[str, Any], env_runner: Any) -> Players:
        """Return the players of a run, by its config and its EnvRunner."""
        make_env = None if config.env is None else env_maker(config.env, config.env_config)
        return cls(copies, make_env, pipeline_of(_rllib.env_to_module(env_runner), next(iter(copies.values()))))


class KeptCopy(NamedTuple):
    """A copy of a student at a time of training.

    Args:
        copy: module ID of the copy.
        env_steps: env steps sampled until then.
        weights: its weights.
        returns: undiscounted returns in the first validation episodes; empty before its first one.
    """

    copy: str
    env_steps: int
    weights: Weights
    returns: Sequence[float] = ()

    @classmethod
    def of(cls, name: str, module: Any, env_steps: int, returns: Sequence[float] = ()) -> KeptCopy:
        """Return the snapshot of a module as it is now."""
        return cls(name, env_steps, weights_of(module), returns)

    def is_unchanged(self, copies: Mapping[str, Any]) -> bool:
        """Return whether the copy still has these weights, as a tree has that was not regrown."""
        now = weights_of(copies[self.copy])
        return all(np.array_equal(value, now[name]) for name, value in self.weights.items())


class Restarts:
    """Chooses a copy of each student by validation episodes. Training itself does not depend on the choice.

    From time to time there is a *look*: a few episodes of all copies, after which the best one is kept as a snapshot. A
    *choice* is made among the copies of its time and the kept snapshots. What DAgger promises, it promises for the best
    student of the sequence, not for the last (Ross et al. 2011, arXiv 1011.0686).

    Args:
        num_copies: copies of each student.
        num_episodes: validation episodes of a choice.
        num_students: students, all of whose copies play in a look.
    """

    NOT_SAVED: ClassVar = frozenset({"_num_episodes", "_num_students"})

    def __init__(self, num_copies: int, num_episodes: int, num_students: int = 1):
        self._num_copies, self._num_episodes, self._num_students = num_copies, num_episodes, num_students
        self._chosen_at = -1  # gradient steps, and regrowths of trees, at the last choice
        self._chosen: dict[str, KeptCopy] = {}  # by student
        self._looked_at = 0  # env steps of training at the last look
        self._kept: dict[str, list[KeptCopy]] = {}  # by student, the best first
        #: Weights of copies whose place a chosen one takes, in the checkpoint that is being saved or restored.
        self._displaced: dict[str, Weights] = {}
        #: Totals over all looks and choices so far.
        self._env_steps = 0
        self._seconds = 0.0

    def weights(self, student: str) -> Weights | None:
        """Return the weights chosen for a student; None if there was no choice yet."""
        return self._chosen[student].weights if student in self._chosen else None

    def is_choice_due(self, num_updates: int) -> bool:
        """Return whether something was learned since the last choice, given the updates so far."""
        return self._chooses and num_updates not in (0, self._chosen_at)

    def is_look_due(self, env_steps: int, episode_length: float) -> bool:
        """Return whether copies are to be looked at, which depends on nothing but the run.

        Args:
            env_steps: env steps of training so far.
            episode_length: mean length of its episodes lately; NaN if none has ended.
        """
        if not self._chooses or env_steps < max(_FIRST_LOOK, _FACTOR * self._looked_at):
            return False
        played = self._num_students * num_played(self._num_copies, self._num_looked_at) * episode_length
        return played <= _MOST_PLAYED * (env_steps - self._looked_at)  # NaN: not due

    @property
    def _chooses(self) -> bool:
        return self._num_copies > 1 and self._num_episodes > 0

    @property
    def _num_looked_at(self) -> int:
        """Return how many episodes the best copies play in a look."""
        return math.ceil(_SHARE_OF_LOOK * self._num_episodes)

    def look(self, players: Players, env_steps: int) -> None:
        """Let all copies play a few episodes, and keep each student's best one.

        Args:
            players: without an environment, nothing happens.
            env_steps: env steps of training so far.
        """
        if players.make_env is None:
            return
        self._looked_at = env_steps
        names = by_student(players.copies)
        try:
            played = self._play(names, players, self._num_looked_at)
        except (EnvFailedError, ValueError) as error:
            logger.warning("Validation failed, so no copies of %d env steps are kept: %s", env_steps, error)
            return
        for student, own in names.items():
            kept = self._kept.get(student, [])
            unchanged = {one.copy for one in kept if one.is_unchanged(players.copies)}
            new = [name for name in own if name not in unchanged]
            snapshots = [
                KeptCopy.of(best, players.copies[best], env_steps, played.returns[best]) for best in played.best(new)
            ]
            self._kept[student] = sorted([*kept, *snapshots], key=lambda one: -float(np.mean(one.returns)))[:_NUM_KEPT]

    def choose(self, players: Players, learner_group: LearnerGroup, *, num_updates: int, env_steps: int) -> None:
        """Play validation episodes, and choose each student's best copy; if that fails, the one with the least regret.

        Args:
            players: without an environment, the copies with the least regret are chosen.
            learner_group: Learners that measure the Q-regrets.
            num_updates: gradient steps and regrowths of trees so far.
            env_steps: env steps of training so far.
        """
        regrets = _mean_regrets(learner_group)
        copies = players.copies
        names = {student: _by_regret(own, regrets) for student, own in by_student(copies).items()}
        self._chosen_at = num_updates
        self._chosen = {student: KeptCopy.of(own[0], copies[own[0]], env_steps) for student, own in names.items()}
        if players.make_env is None:
            return
        snapshots = [one for own in self._kept.values() for one in own if not one.is_unchanged(copies)]
        kept = {f"{one.copy} at {one.env_steps}": one for one in snapshots}
        for name, one in kept.items():
            names[student_of(one.copy)].append(name)  # behind those of now, which have learned for longer
        modules = {name: with_weights(copies[one.copy], one.weights) for name, one in kept.items()}
        try:
            played = self._play(names, players._replace(copies={**copies, **modules}), self._num_episodes, kept)
        except (EnvFailedError, ValueError) as error:
            logger.warning(
                "Validation failed, so the copies with the lowest Q-regret on the replay's states were chosen: %s",
                error,
            )
            return
        for student, own in names.items():
            best = played.best(own)[0]
            of = kept.get(best) or KeptCopy.of(best, copies[best], env_steps)
            self._chosen[student] = of._replace(returns=played.returns[best])

    def _play(
        self,
        names: dict[str, list[str]],
        players: Players,
        num_episodes: int,
        kept: Mapping[str, KeptCopy] | None = None,
    ) -> Validation:
        """Play in rounds, shorten `names` to those left, and return what they played."""
        make_env, pipeline = players.make_env, players.pipeline
        assert make_env is not None

        def play(left: Sequence[str], first: int, count: int) -> Validation:
            modules = {name: players.copies[name] for name in left}
            return play_validation(make_env, modules, pipeline, count, first_episode=first)

        known = {name: one.returns for name, one in (kept or {}).items()}
        played = halve(names, num_episodes, play, known)
        self._env_steps += played.env_steps
        self._seconds += played.seconds
        means = {student: float(np.mean(played.returns[played.best(own)[0]])) for student, own in names.items()}
        logger.info(
            "Validation: up to %d episodes each of %d copies, in %.1f s. Mean returns of the best: %s",
            num_episodes,
            len(played.returns),
            played.seconds,
            means,
        )
        return played

    @contextmanager
    def in_their_places(self, learner_group: LearnerGroup) -> Iterator[None]:
        """Give the chosen weights to the modules with their students' names, while a checkpoint is saved."""
        self._displaced = _give_weights(learner_group, {name: one.weights for name, one in self._chosen.items()})
        try:
            yield
        finally:
            self.put_back(learner_group)

    def put_back(self, learner_group: LearnerGroup) -> None:
        """Give modules their own weights again, also those of a restored checkpoint."""
        displaced, self._displaced = self._displaced, {}
        _give_weights(learner_group, displaced)

    def results(self) -> dict[str, Any]:
        """Return the entry `validation` of a training result."""
        played = {student: one for student, one in self._chosen.items() if one.returns}
        return {
            "env_steps_lifetime": self._env_steps,
            "seconds_lifetime": self._seconds,
            "episode_return_mean": {student: float(np.mean(one.returns)) for student, one in played.items()},
            "chosen_at_env_steps": {student: one.env_steps for student, one in self._chosen.items()},
        }

    def get_state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        return {
            "num_copies": self._num_copies,
            "chosen_at": self._chosen_at,
            "chosen": {student: one._asdict() for student, one in self._chosen.items()},
            "looked_at": self._looked_at,
            "kept": {student: [one._asdict() for one in own] for student, own in self._kept.items()},
            "displaced": dict(self._displaced),
            "env_steps": self._env_steps,
            "seconds": self._seconds,
        }

    def check(self, state: Mapping[str, Any]) -> None:
        """Check that a state of `get_state()` has the same number of copies.

        Raises:
            ValueError: it has another number, or it is of a development version that kept no snapshots.
        """
        if state["num_copies"] != self._num_copies:
            raise ValueError(
                f"This checkpoint has restarts={state['num_copies']}, but this run has restarts={self._num_copies}. To "
                f"continue from it, set restarts={state['num_copies']}."
            )
        if self._num_copies > 1 and "kept" not in state:
            raise ValueError(
                "This checkpoint has restarts of a development version of 0.2, which this version cannot continue. "
                "Train again. You can still load its student."
            )

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore the state of `get_state()`.

        Raises:
            ValueError: as `check()`.
        """
        self.check(state)
        if self._num_copies == 1:
            return
        self._chosen_at, self._looked_at = state["chosen_at"], state["looked_at"]
        self._chosen = {student: KeptCopy(**one) for student, one in state["chosen"].items()}
        self._kept = {student: [KeptCopy(**one) for one in own] for student, own in state["kept"].items()}
        self._displaced = dict(state["displaced"])
        self._env_steps, self._seconds = state["env_steps"], state["seconds"]


def _give_weights(learner_group: LearnerGroup, weights: Mapping[str, Weights]) -> dict[str, Weights]:
    """Give weights to modules on all Learners, by module ID, and return those that they had."""
    if not weights:
        return {}
    return ask_learners(learner_group, lambda learner: learner.give_weights(weights))[0]


def _mean_regrets(learner_group: LearnerGroup) -> dict[str, float]:
    """Return the Q-regret of each module over the replays of all Learners; NaN if nothing is known."""
    by_learner = ask_learners(learner_group, lambda learner: learner.q_regret())
    known = {name: [regrets[name] for regrets in by_learner if math.isfinite(regrets[name])] for name in by_learner[0]}
    return {name: mean_of(regrets) for name, regrets in known.items()}


def _by_regret(names: Sequence[str], regrets: Mapping[str, float]) -> list[str]:
    """Return the copies in the order of their regrets, those without one last."""
    return sorted(names, key=lambda name: (math.isnan(regrets[name]), regrets[name]))
