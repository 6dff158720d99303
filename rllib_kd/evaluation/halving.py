"""Successive halving in validation episodes: those that play worst play no more of them.

Jamieson and Talwalkar 2016, arXiv 1502.07943.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from rllib_kd.evaluation.validation import Validation

#: A round ends after each of these shares of the episodes, and the better half plays on, at least so many.
_ROUND_ENDS, _LEAST_THAT_PLAY = (0.25, 0.5, 1.0), 3

#: Plays validation episodes: names of those that play, number of the first episode, how many.
Play = Callable[[Sequence[str], int, int], Validation]


def halve(
    copies: dict[str, list[str]], num_episodes: int, play: Play, known: Mapping[str, Sequence[float]] | None = None
) -> Validation:
    """Play in rounds, each with fewer copies of each student.

    Args:
        copies: copies by student; of equal ones the first are preferred. The lists are shortened to those left.
        num_episodes: episodes of those that play all.
        play: plays episodes.
        known: returns of copies that have played the first episodes already.
    """
    returns = {name: list((known or {}).get(name, ())) for names in copies.values() for name in names}
    played = Validation(returns, 0, 0.0)
    for number, share in enumerate(_ROUND_ENDS):
        last = math.ceil(share * num_episodes)
        for student, names in copies.items() if number else ():
            copies[student] = played.best(names, max(_LEAST_THAT_PLAY, math.ceil(0.5 * len(names))))
        left = [name for names in copies.values() for name in names]
        for first in sorted({len(played.returns[name]) for name in left}):
            if first < last:
                played += play([name for name in left if len(played.returns[name]) == first], first, last - first)
    return played


def num_played(num_copies: int, num_episodes: int) -> int:
    """Return how many episodes all copies of a student play together, of whom none has played before."""

    def count_them(names: Sequence[str], first: int, count: int) -> Validation:
        return Validation({name: [0.0] * count for name in names}, count * len(names), 0.0)  # a step each

    return halve({"": [str(number) for number in range(num_copies)]}, num_episodes, count_them).env_steps
