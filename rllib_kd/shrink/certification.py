"""Certification: candidates are tested on fresh episodes, smallest first, until one passes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from rllib_kd.shrink.certificate import Certificate, RatioTest
from rllib_kd.shrink.evidence import spend_alpha

#: Episodes between two looks at the result.
_BATCH = 50


#: Plays a candidate: its place, number of the first certificate episode, number of episodes → returns of the student,
#: the teacher and the random policy in the same episodes, `[3, n]`.
Play = Callable[[int, int, int], np.ndarray]


@dataclass
class Tested:
    """A candidate's test.

    Args:
        certificate: what it found.
        returns: of the student, the teacher and the random policy, `[3, n]`.
    """

    certificate: Certificate
    returns: np.ndarray = field(repr=False)

    @property
    def is_certified(self) -> bool:
        """Return whether the candidate passed."""
        return self.certificate.is_certified


def certify(
    num_candidates: int,
    play: Play,
    *,
    keep: float,
    alpha: float,
    max_episodes: int,
    bounds: Sequence[float] | None = None,
    seen: np.ndarray,
    affordable: Callable[[int, int], float] = lambda num_left, num_played: math.inf,
    report: Callable[[int, Certificate], None] = lambda place, certificate: None,
) -> list[Tested]:
    """Test candidates in a fixed order, the smallest first, until one is certified.

    Args:
        num_candidates: number of candidates; ≥ 1.
        play: plays the next episodes.
        keep: return ratio to prove.
        alpha: probability of certifying any candidate below `keep`, at most.
        max_episodes: episodes of each candidate.
        bounds: as in `RatioTest`.
        seen: returns of other episodes, as in `RatioTest`.
        affordable: how many more episodes there is time for, from the number of candidates that are left (with this
            one) and the number of episodes that this one has played; the test ends at 0.
        report: called after each batch, with the candidate's place.

    Returns:
        The tests so far, in the order of the candidates; the last one may have passed.
    """
    tests: list[Tested] = []
    for place, share in enumerate(spend_alpha(alpha, num_candidates)):
        test = RatioTest(keep, share, bounds=bounds, seen=seen, max_episodes=max_episodes)
        returns = np.empty((3, 0))
        while True:
            num_played = test.num_episodes
            left = min(max_episodes - num_played, affordable(num_candidates - place, num_played))
            if left <= 0 and (num_played or left == -math.inf):  # each gets one batch, unless all is over
                break
            # Time makes the budget smaller, so that a candidate that needs more is given up for the next one.
            test.max_episodes = int(min(max_episodes, num_played + max(left, _BATCH)))
            new = play(place, num_played, min(_BATCH, max_episodes - num_played))
            returns = np.concatenate([returns, new], axis=1)
            test.update(student=new[0], teacher=new[1], random=new[2])
            certificate = test.certificate()
            report(place, certificate)
            if certificate.verdict != "undecided":
                break
        if not test.num_episodes:
            break
        tests.append(Tested(test.certificate(), returns))
        if tests[-1].is_certified:
            break
        seen = np.concatenate([seen, returns.ravel()])
    return tests
