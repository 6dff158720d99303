"""Schedules: a number, or RLlib's `[[env_steps, value], ...]`, interpolated linearly and constant afterwards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from rllib_kd.numeric import is_finite

Schedule = float | Sequence[Sequence[float]]


def value_at(schedule: Schedule, env_steps: int) -> float:
    """Return the schedule's value after `env_steps` environment steps."""
    if not isinstance(schedule, Sequence):
        return float(schedule)
    times, values = zip(*schedule, strict=True)
    return float(np.interp(env_steps, times, values))


def qdagger(return_ratio: float) -> float:
    """Return the weight of the distillation loss beside TD: 1 − return ratio, clipped to [0, 1].

    Agarwal et al. 2022, arXiv 2206.01626, with the return ratio in which a random policy counts as 0: with negative
    returns, the ratio of plain returns would grow as the student gets worse.

    Args:
        return_ratio: (student − random) / (teacher − random); NaN while unknown.

    Returns:
        In [0, 1]; 1 for NaN.
    """
    return 1.0 if math.isnan(return_ratio) else min(max(1.0 - return_ratio, 0.0), 1.0)


def values_of(schedule: Schedule) -> list[float]:
    """Return every value in the schedule, for checks of their range."""
    return [float(value) for _, value in schedule] if isinstance(schedule, Sequence) else [float(schedule)]


def last_change(schedule: Schedule) -> int:
    """Return the env steps after which the schedule has its last value; 0 for a number."""
    return int(schedule[-1][0]) if isinstance(schedule, Sequence) else 0


def check_schedule(
    name: str, schedule: object, *, low: float = 0.0, high: float = math.inf, words: Sequence[str] = ()
) -> None:
    """Check form and range of a schedule.

    Args:
        name: name of the field, for messages.
        schedule: the user's value.
        low: lowest valid value.
        high: highest valid value.
        words: words that are also valid, for messages.

    Raises:
        ValueError: `schedule` is neither a number nor `[[env_steps, value], ...]` with increasing steps from 0, or one
            of its values is outside [`low`, `high`].
    """
    expected = (
        f"`{name}` must be a number or a schedule [[0, value], [env_steps, value], ...] with increasing env_steps"
        + "".join(f", or '{word}'" for word in words)
    )
    if not is_finite(schedule):
        if not isinstance(schedule, Sequence) or isinstance(schedule, str) or not schedule:
            raise ValueError(f"{expected}, got {schedule!r}.")
        pairs = list(schedule)
        if not all(isinstance(p, Sequence) and len(p) == 2 and all(map(is_finite, p)) for p in pairs):
            raise ValueError(f"{expected}, got {schedule!r}.")
        times = [time for time, _ in pairs]
        if times[0] != 0 or any(later <= earlier for earlier, later in pairwise(times)):
            raise ValueError(f"{expected}, got the steps {times}.")
    for value in values_of(schedule):
        if not low <= value <= high:
            bounds = f"at least {low:g}" if high == math.inf else f"in [{low:g}, {high:g}]"
            raise ValueError(f"`{name}` must be {bounds}, got {value:g}.")
