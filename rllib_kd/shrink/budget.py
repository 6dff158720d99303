"""The time that a run may take, or its env steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

#: Share of the time in which students are trained and compared; the rest is for the certificate.
_TRAINING_SHARE = 0.55
#: The certificate has at least this share, also if training and validation have taken longer than theirs.
_LEAST_SHARE = 0.25


class Budget:
    """Time, or env steps, of a run that begins now.

    Args:
        minutes: of the whole run; None: not limited.
        env_steps: of training, if `minutes` is None.
        max_episodes: certificate episodes of each candidate.
        clock: returns a time, s.
    """

    def __init__(
        self,
        *,
        minutes: float | None,
        env_steps: int | None,
        max_episodes: int,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._seconds = math.inf if minutes is None else 60.0 * minutes
        self._env_steps = math.inf if env_steps is None else float(env_steps)
        self._max_episodes, self._clock, self._began = max_episodes, clock, clock()
        self._end = self._seconds  # s after the beginning

    def training_is_over(self, share: float, env_steps: int) -> bool:
        """Return whether this share of training is done; it has at least one iteration.

        Args:
            share: in (0, 1].
            env_steps: env steps of training so far.
        """
        if env_steps == 0:
            return False
        return self.seconds >= share * _TRAINING_SHARE * self._seconds or env_steps >= share * self._env_steps

    def begin_certificate(self) -> None:
        """End training and validation: from now on, time is for the certificate."""
        self._end = max(self._seconds, self.seconds + _LEAST_SHARE * self._seconds)

    def episodes_left(self, num_candidates: int, seconds_per_seed: float) -> float:
        """Return for how many more episodes of a candidate there is time; ∞ without a limit.

        Half of the time that is left is for the candidates after it, which are less likely to be needed.

        Args:
            num_candidates: candidates that are left, with this one.
            seconds_per_seed: duration of an episode of student, teacher and random policy: s.
        """
        if math.isinf(self._seconds):
            return math.inf
        return max(0.0, self._end - self.seconds) / max(seconds_per_seed, 1e-9) / min(num_candidates, 2)

    def max_episodes(self, seconds_per_seed: float) -> int:
        """Return how many episodes a certificate may have, in the time that is for it."""
        if math.isinf(self._seconds):
            return self._max_episodes
        in_time = (1 - _TRAINING_SHARE) * self._seconds / max(seconds_per_seed, 1e-9)
        return max(1, int(min(self._max_episodes, in_time)))

    @property
    def seconds(self) -> float:
        """Return the time since the beginning: s."""
        return self._clock() - self._began

    def left(self) -> str:
        """Return the time that is left in words; empty without a limit."""
        if math.isinf(self._seconds):
            return ""
        return f" · {max(0.0, self._end - self.seconds):.0f} s left"
