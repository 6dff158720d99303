"""Test whether a student keeps a share of its teacher's return, on fresh episodes, with peeking at any time.

With returns s of the student, t of the teacher and r of a random policy on the same seed, the return ratio is at least
`keep` if E[d] ≥ 0 for d = s − keep·t − (1 − keep)·r, and E[t − r] > 0. Both are tested by `evidence.log_capital()`,
each with the full α: a student is certified if both tests pass, and a wrong certificate needs an error of one of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from rllib_kd.certificates.evidence import as_range, as_returns, log_capital, more_episodes
from rllib_kd.evaluation.return_ratio import return_ratio

#: Without stated bounds, a return may be lower than all observed returns by this share of their range.
MARGIN = 0.25
#: A return counts as within stated bounds if it is beyond them by this share of the larger one: 40 rewards of -0.1 sum
#: up to less than -4, and more so if they are 32-bit floats.
_ROUNDING = 1e-6
#: Nobody is given up by a mean of fewer episodes, nor by a projection from a smaller share of the budget: few episodes
#: are often unlucky, and giving up then saves little.
MIN_EPISODES_TO_GIVE_UP = 30
SHARE_TO_GIVE_UP = 0.03
#: The return ratios among which an interval is searched, and the steps of the bisection (each halves the error).
_RATIOS, _STEPS = (-1.0, 2.0), 16


#: Why a test is given up: what is asked for is disproven; the teacher is no better than a random policy; no number of
#: episodes would prove it; or more are needed than the budget has.
Cause = Literal["below", "teacher", "unprovable", "budget"]


class Measured(NamedTuple):
    """The quantity that a test is about, in the words of its results.

    Args:
        name: what is to be at least `keep`.
        unit: what is counted, as a plural.
    """

    name: str
    unit: str

    @property
    def with_article(self) -> str:
        """Return the name after "a" or "an"."""
        return f"{'an' if self.name[0] in 'aeiou' else 'a'} {self.name}"


#: What `RatioTest` is about.
RETURN_RATIO = Measured("return ratio", "episodes")


@dataclass(frozen=True)
class Certificate:
    """What a test has found.

    Args:
        verdict: "certified", "hopeless" or "undecided".
        reason: the verdict as a sentence.
        keep: the return ratio that was asked for, in (0, 1].
        alpha: probability of certifying a student whose return ratio is below `keep`, at most.
        num_episodes: number of seeds that student, teacher and random policy have played.
        return_ratio: of the mean returns; None if the teacher's mean return is not above the random policy's.
        lower: lower bound of the return ratio, with confidence 1 − alpha at all numbers of episodes; None: none
            above −1.
        upper: the upper bound, with the same confidence on its own; None: none below 2.
        evidence: largest capital of the bets so far, in [1, 1e300]; `1 / alpha` certifies. Its inverse is a p-value
            that is valid at any time.
        episodes_needed: how many more episodes are expected to certify; None if none will.
        bounds: lowest and highest return that the test assumes; None before the first episode.
        are_bounds_stated: False if the bounds are the observed range with a margin: the confidence then holds on the
            condition that no return of the three policies is outside of them.
        mean_returns: means of the student, the teacher and the random policy; None before the first episode.
        measured: what the test measures. If it is agreement, `return_ratio` and all fields named after returns or
            episodes refer to it.
        cause: why the test was given up; None: it was not.
    """

    verdict: str
    reason: str
    keep: float
    alpha: float
    num_episodes: int
    return_ratio: float | None
    lower: float | None
    upper: float | None
    evidence: float
    episodes_needed: int | None
    bounds: tuple[float, float] | None
    are_bounds_stated: bool
    mean_returns: tuple[float, float, float] | None
    measured: Measured = RETURN_RATIO
    cause: Cause | None = None

    @property
    def is_certified(self) -> bool:
        """Return whether the verdict is "certified"."""
        return self.verdict == "certified"

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as values that JSON can express."""
        names = ("student", "teacher", "random")
        means = dict(zip(names, self.mean_returns, strict=True)) if self.mean_returns else None
        content = {name: value for name, value in asdict(self).items() if name not in ("measured", "cause")}
        return content | {"bounds": list(self.bounds) if self.bounds else None, "mean_returns": means}


class RatioTest:
    """Test whether a student's return ratio is at least `keep`, while episodes arrive.

    Looking at the result after each episode, and stopping at will, does not raise the error probability. Episodes must
    be independent, with seeds by which nothing was chosen, and in an order that does not depend on their returns.

    Args:
        keep: return ratio to prove, in (0, 1]. 1 asks for a student that is better than its teacher.
        alpha: error probability of this test, in (0, 0.5); see `evidence.spend_alpha()` for several candidates.
        bounds: lowest and highest undiscounted return that an episode of any policy can have, if you know them: the
            error probability then holds for any number of episodes without further assumptions. None (default): the
            range of all returns that this test has seen, with the lower end moved down by `MARGIN` of its width.
        seen: returns of any policies in other episodes, such as validation; they widen the range, and must be within
            stated bounds.
        max_episodes: budget of this test: it is hopeless if more are needed. None: no limit.

    Raises:
        ValueError: an argument is out of range, or a return outside of stated bounds has been seen.
    """

    def __init__(
        self,
        keep: float,
        alpha: float = 0.05,
        *,
        bounds: Sequence[float] | None = None,
        seen: Sequence[float] | np.ndarray = (),
        max_episodes: int | None = None,
    ) -> None:
        if not 0 < keep <= 1:
            raise ValueError(f"keep must be in (0, 1], got {keep!r}. Use 0.97 to keep 97 % of the teacher's return.")
        if not 0 < alpha < 0.5:
            raise ValueError(
                f"alpha must be in (0, 0.5), which is a confidence in (0.5, 1), got {alpha!r}. "
                "Use 0.05 for a confidence of 95 %."
            )
        if max_episodes is not None and max_episodes < 1:
            raise ValueError(f"max_episodes must be ≥ 1 or None, got {max_episodes!r}. Use None for no limit.")
        self.keep, self.alpha, self.max_episodes = float(keep), float(alpha), max_episodes
        self.measured = RETURN_RATIO
        self._stated = None if bounds is None else as_range(bounds)
        self._seen = self._within_bounds(as_returns("seen", seen))
        self._returns = np.empty((3, 0))  # of the student, the teacher and the random policy
        self._threshold = math.log(1 / alpha)
        self._results: dict[str, Any] = {}  # computed since the last update

    def update(
        self,
        *,
        student: Sequence[float] | np.ndarray,
        teacher: Sequence[float] | np.ndarray,
        random: Sequence[float] | np.ndarray,
    ) -> None:
        """Add episodes, in the order of their seeds.

        Args:
            student: undiscounted returns `[n]`.
            teacher: the teacher's on the same seeds, `[n]`.
            random: the random policy's, `[n]`.

        Raises:
            ValueError: the lengths differ, a return is not finite, or it is outside of stated bounds.
        """
        named = {"student": student, "teacher": teacher, "random": random}
        columns = [as_returns(name, values) for name, values in named.items()]
        if len({len(column) for column in columns}) > 1:
            lengths = ", ".join(f"{len(column)} of {name}" for name, column in zip(named, columns, strict=True))
            raise ValueError(f"Returns must be of the same seeds, got {lengths}. Pass one of each for every seed.")
        new = self._within_bounds(np.stack(columns))
        self._returns = np.concatenate([self._returns, new], axis=1)
        self._results = {}

    @property
    def num_episodes(self) -> int:
        """Return the number of seeds that all three have played."""
        return self._returns.shape[1]

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Return the lowest and the highest return that the test assumes; None if nothing is known yet."""
        if self._stated:
            return self._stated
        returns = np.concatenate([self._returns.ravel(), self._seen])
        if not returns.size:
            return None
        margin = MARGIN * np.ptp(returns)
        return float(returns.min() - margin), float(returns.max())

    @property
    def lower(self) -> float | None:
        """Return the lower bound of the return ratio, with confidence 1 − alpha; at least `keep` if certified."""
        return self._once("lower", self._lower)

    @property
    def upper(self) -> float | None:
        """Return the upper bound of the return ratio, with confidence 1 − alpha on its own."""
        return self._once("upper", self._upper)

    @property
    def is_certified(self) -> bool:
        """Return whether the return ratio is proven to be at least `keep`.

        With stated bounds, it remains proven when episodes are added. Without, a new return below the range undoes it.
        """
        return self._is_above(self.keep) and self._log_evidence_for_teacher() >= self._threshold

    @property
    def is_hopeless(self) -> bool:
        """Return whether to give up; this never makes the promised error probability larger."""
        return not self.is_certified and self._hopeless_because() is not None

    @property
    def return_ratio(self) -> float | None:
        """Return (student − random) / (teacher − random) of the mean returns; None if the teacher is not better."""
        if not self.num_episodes:
            return None
        ratio = return_ratio(*map(float, self._returns.mean(axis=1)))
        return None if math.isnan(ratio) else ratio

    def episodes_needed(self) -> int | None:
        """Return how many more episodes are expected to certify, if they are like those so far; None if none will."""
        return self._once("needed", lambda: self._projection(slack=0.0))

    def certificate(self) -> Certificate:
        """Return what the test has found so far."""
        cause, words = (None if self.is_certified else self._hopeless_because()) or (None, "")
        verdict = "certified" if self.is_certified else "undecided" if cause is None else "hopeless"
        means = tuple(map(float, self._returns.mean(axis=1))) if self.num_episodes else None
        return Certificate(
            verdict=verdict,
            reason=self._reason(verdict, words),
            keep=self.keep,
            alpha=self.alpha,
            num_episodes=self.num_episodes,
            return_ratio=self.return_ratio,
            lower=self.lower,
            upper=self.upper,
            # Of the claim: that for its weaker half.
            evidence=math.exp(min(self._log_evidence(self.keep), self._log_evidence_for_teacher(), 690.0)),
            episodes_needed=self.episodes_needed(),
            bounds=self.bounds,
            are_bounds_stated=self._stated is not None,
            mean_returns=means,  # type: ignore[arg-type]
            measured=self.measured,
            cause=cause,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return `certificate()` as values that JSON can express."""
        return self.certificate().as_dict()

    def _within_bounds(self, returns: np.ndarray) -> np.ndarray:
        """Return returns, without what rounding has put beyond stated bounds.

        Raises:
            ValueError: one is beyond them.
        """
        if self._stated is None or not returns.size:
            return returns
        inside = np.clip(returns, *self._stated)
        if np.abs(returns - inside).max() > _ROUNDING * np.abs(self._stated).max():
            raise ValueError(
                f"Returns must be within bounds={self._stated}, got {returns.min():.9g} to {returns.max():.9g}. "
                "State wider bounds and start again with fresh episodes, or pass bounds=None."
            )
        return inside

    def _once(self, name: str, compute: Any) -> Any:
        if name not in self._results:
            self._results[name] = compute()
        return self._results[name]

    def _differences(self, ratio: float) -> np.ndarray:
        student, teacher, random = self._returns
        return student - ratio * teacher - (1 - ratio) * random

    def _bound(self, ratio: float = 1.0) -> float:
        """Return how far below (or above) zero a difference can be: return units."""
        low, high = self.bounds or (0.0, 0.0)
        return (high - low) * max(1.0, ratio, 1 - ratio)

    def _most_evidence(self, differences: np.ndarray, ratio: float = 1.0) -> float:
        return float(log_capital(differences, self._bound(ratio)).max(initial=0.0))

    def _log_evidence(self, ratio: float) -> float:
        return self._once(f"above {ratio}", lambda: self._most_evidence(self._differences(ratio), ratio))

    def _log_evidence_for_teacher(self) -> float:
        return self._once("teacher", lambda: self._most_evidence(self._returns[1] - self._returns[2]))

    def _is_above(self, ratio: float) -> bool:
        return self._log_evidence(ratio) >= self._threshold

    def _is_below(self, ratio: float) -> bool:
        key = f"below {ratio}"
        return self._once(key, lambda: self._most_evidence(-self._differences(ratio), ratio)) >= self._threshold

    def _lower(self) -> float | None:
        if self.return_ratio is None:
            return None
        inside, outside = (self.keep, _RATIOS[1]) if self._is_above(self.keep) else (_RATIOS[0], self.keep)
        return _edge(self._is_above, inside, outside)

    def _upper(self) -> float | None:
        if self.return_ratio is None:
            return None
        inside, outside = (self.keep, _RATIOS[0]) if self._is_below(self.keep) else (_RATIOS[1], self.keep)
        return _edge(self._is_below, inside, outside)

    def _projection(self, *, slack: float) -> int | None:
        """Return the expected number of further episodes, if the means were higher by `slack` standard errors."""
        if not self.num_episodes:
            return None
        needed = 0
        for differences, ratio in ((self._differences(self.keep), self.keep), (self._returns[1] - self._returns[2], 1)):
            if self._most_evidence(differences, ratio) >= self._threshold:
                continue
            raised_by = slack * _standard_error(differences)
            more = more_episodes(differences, self._bound(ratio), self._threshold, raised_by=raised_by)
            if more is None:
                return None
            needed = max(needed, more)
        return needed

    def _hopeless_because(self) -> tuple[Cause, str] | None:
        """Return why the test is to be given up, and the same in words; None if it is not."""
        if self._is_below(self.keep):
            return "below", f"its {self.measured.name} is below {self.keep:g}"
        if self.num_episodes < MIN_EPISODES_TO_GIVE_UP:
            return None
        gaps = self._returns[1] - self._returns[2]
        if gaps.mean() + 2 * _standard_error(gaps) <= 0:
            words = (
                f"the teacher's mean return {self._returns[1].mean():g} is not above the random policy's "
                f"{self._returns[2].mean():g}, so that a return ratio has no meaning; check the teacher and its "
                "environment"
            )
            return "teacher", words
        if self.num_episodes < SHARE_TO_GIVE_UP * (self.max_episodes or 0):
            return None
        needed = self._once("optimistic", lambda: self._projection(slack=2.0))
        if needed is None:
            words = f"no number of {self.measured.unit} would prove {self.measured.with_article} of {self.keep:g}"
            return "unprovable", words
        if self.max_episodes is not None and self.num_episodes + needed > self.max_episodes:
            budget = f"beyond the budget of {self.max_episodes:,}"
            return "budget", f"at least {needed:,} more {self.measured.unit} are expected to be needed, {budget}"
        return None

    def _reason(self, verdict: str, words: str) -> str:
        after = f"after {self.num_episodes:,} {self.measured.unit}"
        if verdict == "certified":
            confidence = f"with {100 * (1 - self.alpha):g} % confidence"
            return f"The {self.measured.name} is at least {self.keep:g}, {confidence}, {after}."
        if verdict == "hopeless":
            return f"Given up {after}: {words}."
        needed = self.episodes_needed()
        more = "an unknown number of" if needed is None else f"about {needed:,}"
        return f"Not decided {after}: {more} more are expected to be needed."


def _standard_error(values: np.ndarray) -> float:
    return float(np.std(values) / math.sqrt(len(values)))


def _edge(holds: Callable[[float], bool], inside: float, outside: float) -> float | None:
    """Return the last value from `inside` towards `outside` for which something holds; None if not for `inside`."""
    if not holds(inside):
        return None
    for _ in range(_STEPS):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if holds(middle) else (inside, middle)
    return inside
