"""The return ratio, and doubts about a teacher that is no better than a random policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rllib_kd.evaluation.intervals import mean_and_ci95, standard_error
from rllib_kd.text import count_of_episodes, means_and_intervals


def return_ratio(student: float, teacher: float, random: float) -> float:
    """Return (student − random) / (teacher − random) of three mean undiscounted returns.

    It is NaN if one of them is, or if the teacher is no better than the random policy.
    """
    gap = teacher - random
    return (student - random) / gap if gap > 0 else math.nan


def has_higher_mean(teacher_returns: Sequence[float], random_returns: Sequence[float]) -> bool:
    """Return whether a teacher's mean return is higher than a random policy's: without that, no return ratio exists."""
    return float(np.mean(teacher_returns)) > float(np.mean(random_returns))


def doubt(
    source: str,
    env: Any,
    teacher_returns: Sequence[float],
    random_returns: Sequence[float],
    *,
    to_play_more: str,
    same_seeds: bool = False,
) -> str | None:
    """Return why a teacher may be no better than a random policy, as the sentences of a warning or an error.

    "No better" is claimed only if its mean return is not higher. If it is higher, but by less than two standard errors
    of the difference, the text says that the episodes are too few to tell. Of one episode the noise is unknown, and
    counts as none.

    Args:
        source: the teacher's name or path.
        env: name of the environment.
        teacher_returns: the teacher's undiscounted return of each episode.
        random_returns: the random policy's.
        to_play_more: how to play more episodes, as a sentence.
        same_seeds: whether both have played the same seeds, in the same order. The noise is then that of the episodes'
            differences, without the chance that both share: where demand or weather decides most of the return, it is
            a small part of the noise of either.

    Returns:
        The text; None if the teacher is better.
    """
    means = [mean_and_ci95(values) for values in (teacher_returns, random_returns)]
    samples = [np.subtract(teacher_returns, random_returns)] if same_seeds else [teacher_returns, random_returns]
    noise = 2.0 * math.sqrt(sum(standard_error(values) ** 2 for values in samples if len(values) > 1))
    if means[0][0] - means[1][0] > noise:
        return None
    episodes = count_of_episodes(len(teacher_returns))
    plays, shown = f"The teacher '{source}' plays '{env}'", " and ".join(means_and_intervals(means))
    if not has_higher_mean(teacher_returns, random_returns):
        return f"{plays} no better than a random policy: mean returns of {shown} over {episodes}."
    return (
        f"{plays} with a higher mean return than a random policy, {shown}, but {episodes} are too few to tell "
        f"whether it is better. {to_play_more}"
    )
