"""The certificate of a sweep's recommended student: it plays fresh episodes, by which nothing was chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from rllib_kd.certificates.agreement import AGREEMENT, agreement_dict, note_on
from rllib_kd.certificates.certificate import RETURN_RATIO, RatioTest
from rllib_kd.certificates.certification import MAX_EPISODES, Episodes, Tested, certify
from rllib_kd.certificates.games import Games, first_certificate_seed
from rllib_kd.certificates.held_out import HeldOut, RowGames
from rllib_kd.checkpoints.run_json import read_json, write_json
from rllib_kd.checkpoints.uris import without_options
from rllib_kd.sweeps.baselines import Baselines
from rllib_kd.teachers.base import Teacher

if TYPE_CHECKING:
    from rllib_kd.sweeps.result import SweptStudent

_EPISODES = "certification.json"  # in the sweep's folder
#: What certificate.json has of a sweep.
_OF_SWEEP = ("env", "env_config", "teacher", "command")


@dataclass(frozen=True)
class Claim:
    """The claim that a certificate is to prove.

    Args:
        checkpoint: path or URI of the student's checkpoint.
        keep: return ratio to prove, in (0, 1].
        confidence: in (0.5, 1).
        seed: seed of the sweep: of which fresh episodes are played.
    """

    checkpoint: str
    keep: float
    confidence: float
    seed: int


def seen_returns(baselines: Baselines | None, students: Sequence[SweptStudent]) -> list[float]:
    """Return what a sweep knows of returns before the certificate's episodes, as `RatioTest` takes it.

    Args:
        baselines: episodes of the teacher and of the random policy; None: agreements in [0, 1] are judged instead.
        students: all students of the sweep.
    """
    if baselines is None:
        return [0.0, 1.0]
    return [*baselines.teacher, *baselines.random, *(value for each in students for value in each.extreme_returns)]


def certify_student(
    claim: Claim,
    student: Teacher,
    teacher: Teacher,
    make_env: Callable[[], gym.Env],
    *,
    seen: Sequence[float],
    uri: str,
    rows: HeldOut | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> Tested:
    """Test a student on the certificate episodes of the sweep's seed, as `rllib shrink` does.

    A test that was interrupted continues with the episodes that are kept, and one that has ended is not repeated.

    Args:
        claim: what is to be proven.
        student: the student.
        teacher: the teacher.
        make_env: makes one environment.
        seen: returns of other episodes, as in `RatioTest`.
        uri: path or URI of the sweep's folder.
        rows: held-out rows, on which agreement is tested instead of return; None: `make_env` makes an environment.
        report: called with a line after each batch.

    Raises:
        ValueError: the episodes have tested another student, or this one with another confidence: with a second test
            on them, an error is more likely than 1 − confidence.
    """
    games = Games(make_env, teacher, claim.seed) if rows is None else RowGames(rows)

    kept = read_json(uri, _EPISODES) or {}
    last = kept.get("claim", vars(claim))
    confidences = kept.get("confidences", {last["checkpoint"]: last["confidence"]})
    _check_first_test(claim, confidences, has_rows=rows is not None)
    begun = []
    if kept and (_in_sweep(last["checkpoint"]), last["seed"]) == (_in_sweep(claim.checkpoint), claim.seed):
        begun = [Episodes.of(one) for one in kept["episodes"]]
    if last["keep"] != claim.keep:  # the test goes on with the same episodes
        begun = [Episodes(one.returns) for one in begun]

    def save(played: Sequence[Episodes]) -> None:
        content = {"claim": vars(claim), "confidences": confidences, "episodes": [one.as_dict() for one in played]}
        write_json(uri, _EPISODES, content)

    (tested,) = certify(
        1,
        lambda place, first, count: games.certificate_episodes(student, first, count),
        keep=claim.keep,
        alpha=1 - claim.confidence,
        max_episodes=MAX_EPISODES if rows is None else min(MAX_EPISODES, rows.test.num_units),
        new_test=RatioTest if rows is None else rows.new_test(),
        seen=np.asarray(seen, dtype=float),
        begun=begun,
        save=save,
        report=lambda place, found: report(f"certificate · {found.num_episodes:,} {found.measured.unit}"),
    )
    return tested


def _check_first_test(claim: Claim, confidences: Mapping[str, float], *, has_rows: bool) -> None:
    """Check that episodes test no second student, and none at another α; any `keep` is covered by the one test.

    Args:
        claim: what is to be proven now.
        confidences: confidence of each test on these episodes so far, by checkpoint. Older versions tested several.
        has_rows: whether the episodes are held-out rows.
    """
    what, others = ("held-out rows", "--input") if has_rows else ("fresh episodes", "--seed")
    remedy = f"begin a sweep with another {others}"
    earlier = {_in_sweep(checkpoint): confidence for checkpoint, confidence in confidences.items()}
    first = earlier.get(_in_sweep(claim.checkpoint))
    if first is None:
        raise ValueError(
            f"The {what} of this sweep were used to test '{next(iter(confidences))}', and cannot test another student, "
            f"'{claim.checkpoint}'. Set --keep (keep=...) as it was then, or {remedy}."
        )
    if first != claim.confidence:
        raise ValueError(
            f"The {what} of this sweep were used to test '{claim.checkpoint}' with a confidence of {first:g}; got "
            f"{claim.confidence:g}. Set --confidence {first:g} (confidence=...) again, or {remedy}."
        )


def _in_sweep(checkpoint: str) -> str:
    """Return a checkpoint's path in the sweep's folder, which may have been moved: trial, checkpoint and seed."""
    return "/".join(without_options(checkpoint).split("/")[-3:])


def content_of(claim: Claim, tested: Tested, sweep: Mapping[str, Any]) -> dict[str, Any]:
    """Return what certificate.json has.

    Args:
        claim: the claim.
        tested: its test.
        sweep: `to_dict()` of the sweep.
    """
    shared = {name: sweep[name] for name in _OF_SWEEP if name in sweep} | vars(claim)
    if tested.certificate.measured != RETURN_RATIO:
        return {
            **shared,
            "measured": AGREEMENT.name,
            "note": note_on(tested.certificate.measured.unit.removeprefix("held-out ")),
            "certificate": agreement_dict(tested.certificate),
            "certificate_agreements": tested.returns_by_policy["student"],
        }
    return {
        **shared,
        "seeds": [first_certificate_seed(claim.seed), tested.certificate.num_episodes],
        "certificate": tested.certificate.as_dict(),
        "certificate_returns": tested.returns_by_policy,
    }
