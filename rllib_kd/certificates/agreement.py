"""Test how often a student takes its teacher's action, in recorded states: for runs without an environment.

The agreement of an episode is the share of its states in which the student takes the teacher's action, or one that the
teacher finds equally good; a number in [0, 1]. The test is about its mean over episodes. It is that of `RatioTest`,
with 1 as the teacher's return and 0 as the random policy's: the return ratio of these numbers is the agreement. As
nothing is below 0 or above 1, no range has to be assumed. Whole episodes are the units because states of one episode
resemble each other: as single outcomes they would prove more than they are worth. The shares of episodes may be
distributed in any way, within an episode, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rllib_kd.certificates.certificate import Certificate, Measured, RatioTest
from rllib_kd.certificates.evidence import more_episodes

#: What `AgreementTest` is about; its units are further described by what they are.
AGREEMENT = Measured("agreement", "held-out units")
#: A note in every result without an environment.
NO_RETURN = (
    "This is agreement with the teacher on recorded states, and not return: what the student's mistakes cost, and "
    "which states they lead to, was not tested."
)


def note_on(unit: str) -> str:
    """Return the note for every result that counts such units (a plural)."""
    if unit == "episodes":
        return NO_RETURN
    return f"{NO_RETURN} The rows do not name their episodes: that {unit} are independent is an assumption."


class AgreementTest(RatioTest):
    """Test whether a student's mean agreement is at least `keep`, while units of recorded states arrive.

    Args:
        keep: mean agreement to prove, in (0, 1). 1 cannot be proven.
        alpha: as in `RatioTest`.
        unit: what states come in, as a plural: "episodes" or "blocks of 64 rows".
        seen: not used: all agreements are in [0, 1].
        bounds: likewise.
        max_episodes: most units; None: no limit.
    """

    def __init__(
        self,
        keep: float,
        alpha: float = 0.05,
        *,
        unit: str = "episodes",
        bounds: Sequence[float] | None = None,
        seen: Sequence[float] | np.ndarray = (),
        max_episodes: int | None = None,
    ) -> None:
        super().__init__(keep, alpha, bounds=(0.0, 1.0), max_episodes=max_episodes)
        self.measured = AGREEMENT._replace(unit=f"held-out {unit}")

    def add(self, agreements: Sequence[float] | np.ndarray) -> None:
        """Add units, in an order that does not depend on their agreement.

        Args:
            agreements: share of the states of each unit in which the student agrees with the teacher, `[n]`.
        """
        ones = np.ones(len(agreements))
        self.update(student=agreements, teacher=ones, random=0.0 * ones)

    def _lower(self) -> float | None:
        return None if (found := super()._lower()) is None else max(found, 0.0)

    def _upper(self) -> float | None:
        return None if (found := super()._upper()) is None else min(found, 1.0)

    def _bound(self, ratio: float = 1.0) -> float:
        return max(ratio, 1 - ratio)  # of agreement − ratio, and of ratio − agreement


def fewest_units(keep: float, confidence: float) -> float:
    """Return how many units certify a student that always takes the teacher's action: with fewer, nothing does.

    Args:
        keep: agreement to prove, in (0, 1].
        confidence: in (0.5, 1).

    Returns:
        A number ≥ 1; ∞ for an agreement of 1, and if it takes more than a billion.
    """
    more = more_episodes(np.array([1 - keep]), max(keep, 1 - keep), math.log(1 / (1 - confidence)))
    return math.inf if more is None else 1 + more


def agreement_means(unit: str, keep: float, alpha: float) -> list[str]:
    """Return what a certificate of agreement means, and on what condition, in sentences for people.

    Args:
        unit: what states come in, as a plural.
        keep: agreement that is certified.
        alpha: error probability, of all candidates together.
    """
    condition = (
        "episodes are drawn independently, as one policy records them in one environment, and `eps_id` names each of "
        "them. States of one episode may depend on each other in any way."
    )
    if unit != "episodes":
        condition = (
            f"{unit} are drawn independently. The rows do not name their episodes, so that this is an assumption: it "
            "holds if the order of the rows is random, and hardly if episodes are much longer than a block."
        )
    return [
        f"Agreement is the mean, over {unit}, of the share of the states in which the student prefers the teacher's "
        f"action, or an equally good one. The probability of certifying a student whose agreement on further {unit} is "
        f"below {keep:g} is at most {100 * alpha:.3g} %, for all candidates together.",
        f"This holds on the condition that {condition}",
        "No student has learned from the rows of the certificate, and no choice was made by them.",
    ]


def agreement_dict(found: Certificate) -> dict[str, Any]:
    """Return the fields of a certificate of agreement for JSON, by names that do not mention returns."""
    return {
        "verdict": found.verdict,
        "reason": found.reason,
        "is_about_return": False,
        "keep": found.keep,
        "alpha": found.alpha,
        "unit": found.measured.unit,
        "num_units": found.num_episodes,
        "agreement": found.return_ratio,
        "lower": found.lower,
        "upper": found.upper,
        "evidence": found.evidence,
        "units_needed": found.episodes_needed,
    }
