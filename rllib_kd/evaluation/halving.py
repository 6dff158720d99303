"""Successive halving in validation episodes: those that play worst play no more of them.

Jamieson and Talwalkar 2016, arXiv 1502.07943.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

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
    for number, last in enumerate(_round_ends(num_episodes)):
        for student, names in copies.items() if number else ():
            copies[student] = played.best(names, _num_playing_on(len(names)))
        left = [name for names in copies.values() for name in names]
        for first in sorted({len(played.returns[name]) for name in left}):
            if first < last:
                played += play([name for name in left if len(played.returns[name]) == first], first, last - first)
    return played


def num_played(num_copies: int, num_episodes: int) -> int:
    """Return how many episodes all copies of a student play together, of whom none has played before."""
    total, first = 0, 0
    for last in _round_ends(num_episodes):
        num_copies = _num_playing_on(num_copies) if first else num_copies
        total, first = total + num_copies * (last - first), last
    return total


def _round_ends(num_episodes: int) -> Iterator[int]:
    """Return after how many episodes each round ends."""
    yield from (math.ceil(share * num_episodes) for share in _ROUND_ENDS)


def _num_playing_on(count: int) -> int:
    return min(count, max(_LEAST_THAT_PLAY, math.ceil(0.5 * count)))
