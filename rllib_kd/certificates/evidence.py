"""Evidence that a mean is above zero, valid at every number of episodes: the capital of bets, and alpha for candidates.

A gambler starts with a capital of 1 and bets on each difference d_i a share λ/B of the capital, so that the capital is
multiplied by 1 + λ d_i / B. If d_i ≥ −B and E[d_i] ≤ 0, the capital is a nonnegative supermartingale: the probability
that it ever reaches 1/α is at most α (Ville's inequality). This is the betting method of Waudby-Smith and Ramdas 2024
("Estimating means of bounded random variables by betting", arXiv 2010.09686). The capital is an e-value (Vovk and Wang
2021, arXiv 1912.06116). Three properties fit returns:

- Only a lower bound of d is needed to prove that its mean is above zero; no variance is estimated. Asymptotic
  confidence sequences (arXiv 2103.06476) estimate one, and certify students with a rare catastrophe while it has not
  occurred yet; docs/results/certificates.md has the measured rates.
- Several values of λ hold a part of the capital each, fixed in advance. λ = 1 is best without noise, smaller values
  with noise. Nothing is learned from the data, and the capital does not depend on the order of the episodes.
- Empirical Bernstein bounds (arXiv 1810.08240) are valid too, but wider, as Waudby-Smith and Ramdas show.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rllib_kd.numeric import is_integer

#: The values of λ, and the part of the capital that each holds: half for the largest, a quarter for the next, ...
BETS = 2.0 ** -np.arange(6)
_PARTS = BETS / BETS.sum()


def log_capital(differences: np.ndarray, bound: float) -> np.ndarray:
    """Return the logarithm of the capital after each episode.

    Args:
        differences: `[n]`, return units.
        bound: B ≥ 0, return units: no difference is below −B. A lower one is a loss of everything that was bet at a
            rate it could ruin. 0: all returns are the same, and there is no evidence.

    Returns:
        `[n]`, nats; −∞ after a loss of everything.
    """
    if bound <= 0:
        return np.zeros(len(differences))
    parts = np.cumsum(_growth(differences, bound), axis=1)  # [bets, n]
    largest = np.maximum(parts.max(axis=0), -1e300)  # finite, so that the difference is a number
    with np.errstate(divide="ignore"):
        return largest + np.log(_PARTS @ np.exp(parts - largest))


def more_episodes(differences: np.ndarray, bound: float, log_goal: float, *, raised_by: float = 0.0) -> int | None:
    """Return after how many more episodes the capital is expected to reach a goal, if they are like those so far.

    Args:
        differences: `[n]`, return units, n ≥ 1.
        bound: B ≥ 0, as in `log_capital()`.
        log_goal: logarithm of the goal: nats.
        raised_by: what is added to the differences of the further episodes: return units.

    Returns:
        A number ≥ 0, or None if no bet grows, or not within a billion episodes.
    """
    if bound <= 0:
        return None
    now = _growth(differences, bound).sum(axis=1) + np.log(_PARTS)
    growth = _growth(differences + raised_by, bound).mean(axis=1)
    growing = (growth > 0) & np.isfinite(now)
    alone = ((log_goal - now[growing]) / growth[growing]).min(initial=math.inf)  # for one bet
    if alone > 1e9:
        return None
    too_few, enough = -1, max(math.ceil(alone), 0)
    while enough - too_few > 1:  # the logarithm of the sum is convex, and crosses the goal once
        middle = (too_few + enough) // 2
        reaches = np.logaddexp.reduce(now[growing] + middle * growth[growing]) >= log_goal
        too_few, enough = (too_few, middle) if reaches else (middle, enough)
    return enough


def _growth(differences: np.ndarray, bound: float) -> np.ndarray:
    """Return the logarithm of what each bet makes of its capital in each episode, `[bets, n]`."""
    with np.errstate(divide="ignore"):
        return np.log(np.maximum(1 + np.outer(BETS / bound, differences), 0.0))


def spend_alpha(alpha: float, num_candidates: int) -> tuple[float, ...]:
    """Return the error probability that each candidate may use, if they are tested in a fixed order.

    The candidates are tested from the smallest to the largest, in an order that is fixed before the first test episode.
    The first that passes is certified, and the others are not tested. The first may use α/2, the second α/4, and so on;
    the last two the same. The sum is α, so that the probability of certifying any student below `keep` is at most α,
    whatever the dependence between the tests (Bonferroni with weights; Holm 1979). Candidates may share episodes of
    the teacher and the random policy.

    A fixed sequence from the largest to the smallest (Wiens 2003, "A fixed sequence Bonferroni procedure for testing
    multiple endpoints") would leave all of α to each test, but it must certify every larger student first, and ends at
    the first that fails. α/2 instead of α costs ln 2 / ln(1/α) more episodes, 23 % for α = 0.05. The caller chose the
    first candidate by validation, so that it usually passes.

    Args:
        alpha: in (0, 0.5).
        num_candidates: ≥ 1.

    Raises:
        ValueError: an argument is out of range.
    """
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha must be in (0, 0.5), got {alpha!r}. Use 0.05 for a confidence of 95 %.")
    if not is_integer(num_candidates, 1):
        raise ValueError(
            f"num_candidates must be an integer ≥ 1, got {num_candidates!r}. Count all students that may be tested."
        )
    shares = [0.5**k for k in range(1, num_candidates)]
    return tuple(alpha * share for share in (*shares, 0.5 ** len(shares)))


def as_returns(name: str, values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return undiscounted returns as `[n]` floats.

    Raises:
        ValueError: they are no flat list of numbers, or one is not finite.
    """
    try:
        returns = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        text = f"{values!r:.80}"
        raise ValueError(f"{name} must be a list of returns, got {text}. Pass one number per episode.") from None
    if returns.ndim != 1:
        raise ValueError(f"{name} must have shape [n], got {list(returns.shape)}. Pass one return per episode.")
    if not np.isfinite(returns).all():
        (index,) = np.flatnonzero(~np.isfinite(returns))[:1]
        raise ValueError(
            f"{name}[{index}] is {returns[index]}, but returns must be finite. Check the environment's rewards; "
            "leaving out such episodes would make the certificate wrong."
        )
    return returns


def as_range(bounds: Sequence[float]) -> tuple[float, float]:
    """Return the lowest and the highest return that are possible.

    Raises:
        ValueError: they are not two finite numbers in this order.
    """
    try:
        low, high = map(float, bounds)
    except (TypeError, ValueError):
        low = high = math.nan
    if isinstance(bounds, str | set) or not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(
            f"bounds must be two finite returns, the lowest first, got {bounds!r}. Pass the lowest and the highest "
            "undiscounted return that any episode can have, or None if you do not know them."
        )
    return low, high
