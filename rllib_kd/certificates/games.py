"""Episodes of validation and of certificates: teacher and random policy play each seed once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np

from rllib_kd.evaluation.playing import RandomActions, play
from rllib_kd.evaluation.policies import GreedyQ
from rllib_kd.evaluation.seeds import CERTIFICATE_SEED, VALIDATION_SEED
from rllib_kd.evaluation.validation import Validation, play_validation
from rllib_kd.observations.pipeline import ObservationPipeline
from rllib_kd.teachers.base import Teacher

#: Certificate episodes of one run: the next `--seed` has others.
EPISODES_OF_A_SEED, _NUM_SEEDS = 100_000, 1_000


def first_certificate_seed(seed: int) -> int:
    """Return the seed of the first certificate episode of the run with this `--seed`."""
    return CERTIFICATE_SEED + seed % _NUM_SEEDS * EPISODES_OF_A_SEED


class Games:
    """Plays episodes, and measures how long they take.

    Args:
        make_env: makes one environment.
        teacher: the teacher, for this environment.
        seed: seed of the run: of the random policy's actions, and of which certificate episodes are played.
        in_pool: whether certificate episodes are played where validation episodes are (`choosing_envs()`).
        advance: called after each step with the number of episodes that have ended; what it raises ends the others.
    """

    def __init__(
        self,
        make_env: Callable[[], gym.Env],
        teacher: Teacher,
        seed: int,
        *,
        in_pool: bool = False,
        advance: Callable[[int], None] = lambda count: None,
    ):
        self._make_env, self._teacher, self._seed, self._in_pool = make_env, teacher, seed, in_pool
        self._advance = advance
        self._baselines: dict[tuple[int, int], np.ndarray] = {}
        #: Seconds, and number of seeds: of validation by teacher and random policy, of certificates by all three.
        self._spent = {"validation": [0.0, 0], "certificate": [0.0, 0]}

    @property
    def seconds_of_baselines(self) -> float:
        """Return how long an episode of validation takes for teacher and random policy together: s."""
        seconds, num_seeds = self._spent["validation"]
        return seconds / max(num_seeds, 1)

    @property
    def seconds_per_seed(self) -> float:
        """Return how long a seed of a certificate takes for student, teacher and random policy: s.

        Before the first one, it is what validation takes of teacher and random policy, and as much again: a student
        that plays as its teacher does takes less, and others are not tested.
        """
        seconds, num_seeds = self._spent["certificate"]
        return seconds / num_seeds if num_seeds else 2 * self.seconds_of_baselines

    def validation_baselines(self, first: int, count: int) -> np.ndarray:
        """Return the returns of teacher and random policy in validation episodes, `[2, count]`."""
        first_seed = VALIDATION_SEED + first
        num_new = 0 if (first_seed, count) in self._baselines else count
        with self._timed("validation", num_new):
            return self._play_baselines(first_seed, count, chooses=True)

    def validate(self, modules: Mapping[str, Any], pipeline: ObservationPipeline, first: int, count: int) -> Validation:
        """Let students play validation episodes."""
        return play_validation(self._make_env, modules, pipeline, count, first_episode=first, advance=self._advance)

    def certificate_episodes(self, student: Teacher, first: int, count: int) -> np.ndarray:
        """Return the returns of a student, the teacher and the random policy in certificate episodes, `[3, count]`."""
        first_seed = first_certificate_seed(self._seed) + first
        seeds, chooses = range(first_seed, first_seed + count), self._in_pool
        with self._timed("certificate", count):
            returns = self._returns(GreedyQ(student), seeds, chooses=chooses)
            return np.concatenate([[returns], self._play_baselines(first_seed, count, chooses=chooses)])

    def get_state(self) -> dict[str, Any]:
        """Return what a resumed run needs, as JSON: all returns of teacher and random policy, and durations."""
        baselines = [[*key, *returns.tolist()] for key, returns in self._baselines.items()]
        return {"baselines": baselines, "spent": {name: list(spent) for name, spent in self._spent.items()}}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore a state of `get_state()`: no seed is played again by teacher and random policy."""
        self._baselines = {
            (first, count): np.array([teacher, random]) for first, count, teacher, random in state["baselines"]
        }
        self._spent |= {name: list(spent) for name, spent in state["spent"].items() if name in self._spent}

    def _play_baselines(self, first_seed: int, count: int, *, chooses: bool) -> np.ndarray:
        key = first_seed, count
        if key not in self._baselines:
            seeds = range(first_seed, first_seed + count)
            players = GreedyQ(self._teacher), self._randomly(first_seed)
            returns = [self._returns(player, seeds, chooses=chooses) for player in players]
            self._baselines[key] = np.array(returns)
        return self._baselines[key]

    def _randomly(self, first_seed: int) -> RandomActions:
        """Return the random policy; its actions depend on the seeds alone, and not on what was played before."""
        return RandomActions(int(self._teacher.action_space.n), seed=self._seed + first_seed)

    def _returns(self, player: Any, seeds: Sequence[int], *, chooses: bool) -> list[float]:
        return play(self._make_env, player, seeds, chooses=chooses, advance=self._advance)[0]

    @contextmanager
    def _timed(self, what: str, num_seeds: int) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._spent[what][0] += time.perf_counter() - began
        self._spent[what][1] += num_seeds
