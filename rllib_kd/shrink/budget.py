"""The time that a run may take, or its env steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

#: Candidates that are tested, at most.
NUM_TESTED = 3
#: Certificate episodes of each candidate, if the user sets no number. The second is with a limit of time, as far as
#: there is time.
_EPISODES, _MOST_EPISODES = 5_000, 20_000
#: Share of the time that is kept for the certificate: what all episodes of so many candidates take, in these limits.
#: The rest is for training and comparing.
_SMALLEST_SHARE, _LARGEST_SHARE = 0.15, 0.45
#: The certificate has at least this share, or what those episodes take if that is less, also if all else took longer.
_LEAST_SHARE = 0.25
#: Share of the time for races: in proportion to what of training is done.
_RACE_SHARE = 0.11
#: Share of the time for other validation: from the beginning, in proportion to what of training is done, and after it.
_FIRST_LOOK_SHARE, _LOOK_SHARE, _LAST_LOOK_SHARE = 0.08, 0.12, 0.05
#: Share of the time for validation in a round, if earlier rounds took more than that.
_LEAST_LOOK_SHARE = 0.02
#: Share of the time for checks of the teacher; and if the first few leave a doubt.
_CHECK_SHARE, _CHECK_SHARE_IN_DOUBT = 0.05, 0.2
#: After training, students play about so many episodes of validation, for at most this share of the time.
_LAST_EPISODES, _MOST_AFTER_TRAINING = 500, 0.08
#: Training is saved after this time, s, and after at least this many times the duration of a save.
_SAVE_EVERY, _SAVES_TAKE = 60.0, 20.0
#: With env steps as the limit, it is saved after this share of them, and after at least this many. If an environment
#: cannot be captured, a save begins new episodes, so that equal runs must save at the same places.
_SAVE_SHARE, _LEAST_TO_SAVE = 0.02, 10_000


class PlayLimit(NamedTuple):
    """How much snapshots of students may play in validation, in all.

    Args:
        unit: "env_steps", by which equal runs play equally, or "seconds".
        races: most of it in races.
        looks: most of it in all other episodes, besides one of each size.
        least_looks: most of these in a round, if earlier ones took more than was planned.
        baselines: what an episode of teacher and random policy takes, where it counts.
    """

    unit: str
    races: float
    looks: float = math.inf
    least_looks: float = 0.0
    baselines: float = 0.0


class Budget:
    """Time, or env steps, of a run that begins or continues now.

    Args:
        minutes: limit of the whole run; None: not limited.
        env_steps: env steps of training, if `minutes` is None.
        max_episodes: most certificate episodes of each candidate; None: 5,000, or 20,000 with a limit of time, for
            which the time for 5,000 is kept.
        spent: time that the run took before it was interrupted, s.
        end: `end` of the interrupted run; None: its training had not ended.
        clock: returns a time, s.
    """

    def __init__(
        self,
        *,
        minutes: float | None,
        env_steps: int | None,
        max_episodes: int | None = None,
        spent: float = 0.0,
        end: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._seconds = math.inf if minutes is None else 60.0 * minutes
        self._env_steps = math.inf if env_steps is None else float(env_steps)
        self._max_episodes = _EPISODES if max_episodes is None else max_episodes
        self._may_have_more = max_episodes is None
        self._clock, self._began = clock, clock() - spent
        self._end = self._seconds if end is None else end  # s after the beginning
        self._needed_share = math.inf  # of the certificates' episodes; not known
        self._after_training = 0.0  # share of the time
        self._saved_at, self._saved_after, self._save_took = spent, 0, 0.0  # s, env steps, s

    @property
    def is_by_time(self) -> bool:
        """Return whether time is the limit, and not env steps."""
        return math.isfinite(self._seconds)

    @property
    def end(self) -> float | None:
        """Return when the certificate must end, s after the beginning; None without a limit."""
        return self._end if self.is_by_time else None

    def keep_for_certificate(self, seconds_per_seed: float) -> None:
        """Keep time for the certificate, by how long its episodes take.

        Args:
            seconds_per_seed: duration of an episode of student, teacher and random policy: s.
        """
        share_of_seed = seconds_per_seed / self._seconds
        self._needed_share = NUM_TESTED * self._max_episodes * share_of_seed
        self._after_training = min(_LAST_EPISODES * share_of_seed / 3, _MOST_AFTER_TRAINING)  # of three policies

    def training_is_over(self, share: float, env_steps: int) -> bool:
        """Return whether this share of training is done; it has at least one iteration.

        Args:
            share: in (0, 1].
            env_steps: env steps of training so far.
        """
        if env_steps == 0:
            return False
        kept = min(max(self._needed_share, _SMALLEST_SHARE), _LARGEST_SHARE)
        in_training = (1 - kept - self._after_training) * self._seconds
        return self.seconds >= share * in_training or env_steps >= share * self._env_steps

    def is_save_due(self, env_steps: int) -> bool:
        """Return whether training is to be saved.

        Args:
            env_steps: env steps of training so far.
        """
        if self.is_by_time:
            return self.seconds - self._saved_at >= max(_SAVE_EVERY, _SAVES_TAKE * self._save_took)
        return env_steps - self._saved_after >= max(_LEAST_TO_SAVE, _SAVE_SHARE * self._env_steps)

    def saved(self, env_steps: int, *, took: float = 0.0) -> None:
        """Note that training was saved, or restored, after `env_steps`.

        Args:
            env_steps: env steps of training so far.
            took: duration of the save, s.
        """
        self._saved_at, self._saved_after, self._save_took = self.seconds, env_steps, took

    def num_checks(self, most: int, seconds_per_check: float, *, in_doubt: bool) -> int:
        """Return how many episodes teacher and random policy may play before training, in all.

        Args:
            most: most of them.
            seconds_per_check: duration of an episode of both: s.
            in_doubt: whether the teacher may be no better than the random policy.
        """
        if not self.is_by_time or not seconds_per_check:
            return most
        share = _CHECK_SHARE_IN_DOUBT if in_doubt else _CHECK_SHARE
        return min(most, int(share * self._seconds / seconds_per_check))

    def play_limit(
        self, env_steps: int, share: float = 1.0, *, seconds_of_baselines: float = 0.0, at_end: bool = False
    ) -> PlayLimit:
        """Return how much snapshots may have played in all, after so many env steps of training.

        Args:
            env_steps: env steps of training so far; without a limit of time, snapshots race for as many.
            share: share of training that is done, in (0, 1].
            seconds_of_baselines: duration of an episode of teacher and random policy: s.
            at_end: whether training has ended.
        """
        if not self.is_by_time:
            return PlayLimit("env_steps", env_steps)
        looks = _FIRST_LOOK_SHARE + share * _LOOK_SHARE + at_end * _LAST_LOOK_SHARE
        return PlayLimit(
            "seconds",
            races=share * _RACE_SHARE * self._seconds,
            looks=looks * self._seconds,
            least_looks=_LEAST_LOOK_SHARE * self._seconds,
            baselines=seconds_of_baselines,
        )

    def begin_certificate(self) -> int:
        """End training and validation: from now on, time is for the certificate.

        Returns:
            Each candidate has at most so many episodes, as far as there is time.
        """
        least = min(_LEAST_SHARE, self._needed_share)
        self._end = max(self._seconds, self.seconds + least * self._seconds)
        self._max_episodes = self.most_episodes
        return self._max_episodes

    def episodes_left(self, num_candidates: int, seconds_per_seed: float, *, least: float = 0.0) -> float:
        """Return for how many more episodes of a candidate there is time; ∞ without a limit.

        Half of the time that is left is for the candidates after it, which are less likely to be needed; unless it is
        too short to certify one of them.

        Args:
            num_candidates: candidates that are left, with this one.
            seconds_per_seed: duration of an episode of student, teacher and random policy: s.
            least: episodes that the certificate of a student takes that plays as its teacher does.
        """
        if not self.is_by_time:
            return math.inf
        left = max(0.0, self._end - self.seconds) / max(seconds_per_seed, 1e-9)
        return left / 2 if num_candidates > 1 and left / 2 >= least else left

    def max_episodes(self, seconds_per_seed: float) -> int:
        """Return how many episodes of a candidate time is kept for: by these, candidates are chosen."""
        if not self.is_by_time:
            return self._max_episodes
        in_time = _LARGEST_SHARE * self._seconds / max(seconds_per_seed, 1e-9)
        return max(1, int(min(self._max_episodes, in_time)))

    def is_too_short(self, num_episodes: float, seconds_per_seed: float) -> bool:
        """Return whether so many certificate episodes would take longer than what can be kept for them."""
        return num_episodes * seconds_per_seed > _LARGEST_SHARE * self._seconds

    @property
    def most_episodes(self) -> int:
        """Return the most certificate episodes that a candidate can have, with any time."""
        return _MOST_EPISODES if self.is_by_time and self._may_have_more else self._max_episodes

    @staticmethod
    def minutes_for(num_episodes: float, seconds_per_seed: float) -> int:
        """Return how many minutes give the first of several candidates so many certificate episodes, rounded up."""
        return math.ceil(num_episodes * seconds_per_seed / (_LARGEST_SHARE / 2) / 60)

    @property
    def seconds(self) -> float:
        """Return the time since the beginning: s."""
        return self._clock() - self._began

    def left(self) -> str:
        """Return the time that is left in words; empty without a limit."""
        if not self.is_by_time:
            return ""
        return f" · {max(0.0, self._end - self.seconds):.0f} s left"
