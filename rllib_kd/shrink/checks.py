"""Checks before anything is trained: that the teacher is better than a random policy, and that the time is enough."""

from __future__ import annotations

from typing import Any

import numpy as np

from rllib_kd.certificates.certificate import fewest_episodes
from rllib_kd.certificates.certification import BATCH
from rllib_kd.certificates.games import Games
from rllib_kd.certificates.held_out import RowGames
from rllib_kd.evaluation.return_ratio import doubt
from rllib_kd.evaluation.seeds import FIRST_CHECK
from rllib_kd.shrink.budget import Budget
from rllib_kd.text import number

#: Episodes of teacher and random policy: those that show how long an episode takes, the fewest, and the most.
_FIRST, _FEWEST, _MOST = 10, 20, 100


def least_episodes(keep: float, confidence: float) -> float:
    """Return about how many certificate episodes a student needs that plays as its teacher does.

    With `keep=1` it must play better; how much better decides, but a batch is played in any case.
    """
    return BATCH if keep == 1 else fewest_episodes(keep, confidence)


class Checks:
    """Episodes of teacher and random policy before training.

    Args:
        asked: the `Shrink`.
        games: plays episodes.
        budget: the time of the run.
        teacher: name of the teacher.
        env: name of the environment.
    """

    def __init__(self, asked: Any, games: Games | RowGames, budget: Budget, *, teacher: str, env: str):
        self._asked, self._games, self._budget = asked, games, budget
        self._teacher, self._env = teacher, env

    def play(self) -> np.ndarray:
        """Return the returns of teacher and random policy, `[2, n]`; they play little if the run is too short."""
        returns = self._games.validation_baselines(FIRST_CHECK, _FIRST)
        if self._is_too_short:
            return returns
        for least, most in ((_FEWEST, _FEWEST), (_FEWEST, _MOST)):
            seconds, in_doubt = self._games.seconds_of_baselines, self._is_doubtful(returns)
            end = self._budget.num_checks(least, most, seconds, in_doubt=in_doubt)
            if end > (begin := returns.shape[1]):
                more = self._games.validation_baselines(FIRST_CHECK + begin, end - begin)
                returns = np.concatenate([returns, more], axis=1)
        return returns

    def reason_to_end(self, returns: np.ndarray) -> str:
        """Return why nothing should be trained, or an empty text; `returns` are those of `play()`."""
        if returns.shape[1] == _FIRST:
            return self._too_short()
        if not self._is_doubtful(returns):
            return ""
        teacher, random = map(number, returns.mean(axis=1))
        return (
            f"The teacher is not clearly better than a random policy: mean returns of {teacher} and {random} in "
            f"{returns.shape[1]} episodes, so that a return ratio has no meaning. Check the teacher and its "
            "environment. Nothing was trained."
        )

    def _is_doubtful(self, returns: np.ndarray) -> bool:
        return doubt(self._teacher, self._env, *returns, to_play_more="", same_seeds=True) is not None

    @property
    def _least(self) -> float:
        return least_episodes(self._asked.keep, self._asked.confidence)

    @property
    def _is_too_short(self) -> bool:
        return self._budget.is_too_short(self._least, self._games.seconds_per_seed)

    def _too_short(self) -> str:
        seconds, asked = self._games.seconds_per_seed, self._asked
        minutes = self._budget.minutes_for(self._least, seconds)
        return (
            f"An episode of a student, its teacher and the random policy takes about {seconds:.2g} s here. A "
            f"certificate takes at least {self._least:.0f} of them if the student plays as its teacher does: more than "
            f"can be kept of --minutes {asked.minutes:g}. Give more time (--minutes {minutes}), or ask for less "
            "(--keep, --confidence). Nothing was trained."
        )
