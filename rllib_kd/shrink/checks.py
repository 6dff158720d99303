"""Checks before anything is trained: that the teacher is better than a random policy, and that the time is enough."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from rllib_kd.certificates.certificate import RatioTest
from rllib_kd.certificates.certification import BATCH
from rllib_kd.certificates.games import Games
from rllib_kd.certificates.held_out import RowGames
from rllib_kd.evaluation.return_ratio import doubt
from rllib_kd.evaluation.seeds import FIRST_CHECKED_EPISODE
from rllib_kd.shrink.budget import Budget
from rllib_kd.text import number

#: Episodes of teacher and random policy: of each process that plays at first; and if these took too long to certify
#: anything, as many at once as a certificate plays, which take less time each. Then up to the most in all.
_FIRST, _AT_ONCE, _MOST = 10, 50, 100


def least_episodes(test: RatioTest, returns: np.ndarray) -> int:
    """Return about how many certificate episodes a student needs that plays as its teacher does.

    With `keep=1` it must play better; how much better decides, but a batch is played in any case.

    Args:
        test: a new test.
        returns: of teacher and random policy, `[2, n]`.
    """
    teacher, random = returns
    test.update(student=teacher, teacher=teacher, random=random)
    needed = test.episodes_needed()
    return BATCH if needed is None else test.num_episodes + needed


class Checks:
    """Episodes of teacher and random policy before training.

    Args:
        asked: the `Shrink`.
        games: plays episodes.
        budget: the time of the run.
        new_test: makes a test like that of the first candidate, from returns that were seen.
        teacher: name of the teacher.
        env: name of the environment.
        num_processes: how many processes play.
    """

    def __init__(
        self,
        asked: Any,
        games: Games | RowGames,
        budget: Budget,
        new_test: Callable[[np.ndarray], RatioTest],
        *,
        teacher: str,
        env: str,
        num_processes: int,
    ):
        self._asked, self._games, self._budget, self._new_test = asked, games, budget, new_test
        self._teacher, self._env, self._num_processes = teacher, env, num_processes
        #: Why the run is too short for any certificate, after `play()`.
        self.too_short = ""

    def play(self) -> np.ndarray:
        """Return the returns of teacher and random policy, `[2, n]`; they play little if the run is too short."""
        returns, seconds = self._play_on(np.empty((2, 0)), _FIRST * self._num_processes)
        self.too_short = self._why_too_short(returns, seconds)
        at_once = _AT_ONCE * self._num_processes
        if self.too_short and self._budget.num_checks(at_once, seconds, in_doubt=True) == at_once:
            returns, seconds = self._play_on(returns, at_once)
            self.too_short = self._why_too_short(returns, seconds)
        if self.too_short:
            return returns
        end = self._budget.num_checks(_MOST, seconds, in_doubt=bool(self.why_not_better(returns)))
        return self._play_on(returns, end - returns.shape[1])[0] if end > returns.shape[1] else returns

    def _play_on(self, returns: np.ndarray, count: int) -> tuple[np.ndarray, float]:
        """Return more returns, and how long each further episode of both has taken, s."""
        began = time.perf_counter()
        more = self._games.validation_baselines(FIRST_CHECKED_EPISODE + returns.shape[1], count)
        return np.concatenate([returns, more], axis=1), (time.perf_counter() - began) / count

    def _why_too_short(self, returns: np.ndarray, seconds: float) -> str:
        asked, least = self._asked, least_episodes(self._new_test(returns.ravel()), returns)
        per_seed = 2 * seconds  # a student may take as long as both
        if not self._budget.is_too_short(least, per_seed):
            return ""
        like = "" if asked.keep == 1 else " if the student plays as its teacher does"
        return (
            f"An episode of a student, its teacher and the random policy takes about {per_seed:.2g} s here. A "
            f"certificate takes at least {least:,} of them{like}: more than can be kept of --minutes "
            f"{asked.minutes:g}. Give more time (--minutes {self._budget.minutes_for(least, per_seed)}), or ask for "
            "less (--keep, --confidence). Nothing was trained."
        )

    def why_not_better(self, returns: np.ndarray) -> str:
        """Return why the teacher may be no better than a random policy, or an empty text."""
        if doubt(self._teacher, self._env, *returns, to_play_more="", same_seeds=True) is None:
            return ""
        teacher, random = map(number, returns.mean(axis=1))
        return (
            f"The teacher is not clearly better than a random policy: mean returns of {teacher} and {random} in "
            f"{returns.shape[1]} episodes, so that a return ratio has no meaning. Check the teacher and its "
            "environment. Nothing was trained."
        )
