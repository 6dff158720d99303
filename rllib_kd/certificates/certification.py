"""Certification: candidates are tested on fresh episodes, smallest first, until one passes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rllib_kd.certificates.certificate import Certificate, RatioTest
from rllib_kd.certificates.evidence import spend_alpha

#: Episodes between two looks at the result: so many, or this share of those played, if that is more. A look takes time
#: in proportion to all episodes.
BATCH, _BATCH_SHARE = 50, 0.05
#: Most episodes of a candidate, by default.
MAX_EPISODES = 5_000
#: Plays a candidate: its place, number of the first certificate episode, number of episodes → returns of the student,
#: the teacher and the random policy in the same episodes, `[3, n]`.
Play = Callable[[int, int, int], np.ndarray]


@dataclass
class Episodes:
    """The episodes of a candidate: its test depends on them alone, so an interrupted test continues unchanged.

    Args:
        returns: of the student, the teacher and the random policy, `[3, n]`.
        max_episodes: what the test could afford when it played them; None before the first ones.
        is_over: whether its test has ended.
    """

    returns: np.ndarray = field(repr=False, default_factory=lambda: np.empty((3, 0)))
    max_episodes: int | None = None
    is_over: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as values that JSON can express."""
        return {"returns": self.returns.tolist(), "max_episodes": self.max_episodes, "is_over": self.is_over}

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Episodes:
        """Return the `Episodes` that an `as_dict()` came from."""
        returns = np.array(content["returns"], dtype=float).reshape(3, -1)
        return cls(returns, content["max_episodes"], content["is_over"])


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

    @property
    def returns_by_policy(self) -> dict[str, list[float]]:
        """Return the returns of "student", "teacher" and "random", for JSON."""
        return dict(zip(("student", "teacher", "random"), self.returns.tolist(), strict=True))


# Longer than other functions by its docstring.
def certify(
    num_candidates: int,
    play: Play,
    *,
    keep: float,
    alpha: float,
    max_episodes: int,
    bounds: Sequence[float] | None = None,
    seen: np.ndarray,
    new_test: Callable[..., RatioTest] = RatioTest,
    begun: Sequence[Episodes] = (),
    least_episodes: int = BATCH,
    affordable: Callable[[int], float] = lambda num_left: math.inf,
    save: Callable[[Sequence[Episodes]], None] = lambda played: None,
    report: Callable[[int, Certificate], None] = lambda place, certificate: None,
) -> list[Tested]:
    """Test candidates in a fixed order, the smallest first, until one is certified.

    Tests that were interrupted continue from what was saved last, with the same shares of alpha. Episodes that were not
    saved are played again: nothing depends on what they were.

    Args:
        num_candidates: number of candidates; ≥ 1.
        play: plays the next episodes.
        keep: return ratio to prove.
        alpha: probability of certifying any candidate below `keep`, at most.
        max_episodes: episodes of each candidate.
        bounds: as in `RatioTest`.
        seen: returns of other episodes, as in `RatioTest`.
        new_test: makes a test, with the arguments of `RatioTest`.
        begun: what `save` got last, if the tests were interrupted.
        least_episodes: episodes that certify a student like its teacher. The first candidate plays as many in any case,
            or a batch if that is less; another one only if there is time for as many.
        affordable: for how many more episodes there is time, by the number of candidates left; the test ends at 0.
        save: called after each batch, before anyone sees its result, with the episodes of each candidate so far.
        report: called after each batch, with the candidate's place.

    Returns:
        The tests so far, in the order of the candidates; the last one may have passed.
    """
    tests: list[Tested] = []
    played = list(begun)
    least = min(least_episodes, BATCH, max_episodes)
    for place, share in enumerate(spend_alpha(alpha, num_candidates)):
        played += [Episodes()] if place == len(played) else []
        one = played[place]
        test = new_test(keep, share, bounds=bounds, seen=seen, max_episodes=one.max_episodes or max_episodes)
        test.update(student=one.returns[0], teacher=one.returns[1], random=one.returns[2])
        while not one.is_over:
            num_played = test.num_episodes
            left = min(max_episodes - num_played, affordable(num_candidates - place))
            if num_played == 0 and left < least:
                if tests:
                    return tests
                left = least
            if left < 1:
                one.is_over = True
                save(played)
                continue
            batch = min(max(BATCH, int(_BATCH_SHARE * num_played)), int(left))
            new = play(place, num_played, batch)
            # Time makes the budget smaller, so that a candidate that needs more is given up for the next one. How much
            # is left is known best now.
            left = max(0.0, affordable(num_candidates - place))
            test.max_episodes = one.max_episodes = int(min(max_episodes, num_played + batch + left))
            certificate = _add(new, test, one)
            save(played)
            report(place, certificate)
        tests.append(Tested(test.certificate(), one.returns))
        if tests[-1].is_certified:
            break
        seen = np.concatenate([seen, one.returns.ravel()])
    return tests


def _add(new: np.ndarray, test: RatioTest, one: Episodes) -> Certificate:
    """Add a batch `[3, n]` to a candidate's test and its episodes; return what the test has found."""
    test.update(student=new[0], teacher=new[1], random=new[2])
    one.returns = np.concatenate([one.returns, new], axis=1)
    certificate = test.certificate()
    one.is_over = certificate.verdict != "undecided"
    return certificate
