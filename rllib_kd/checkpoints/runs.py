"""Learning curves of runs of Ray Tune and RLlib on disk."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.fs

from rllib_kd.checkpoints.results import ENV_STEPS, TrialReader, finite_number, of_rows_that_count, value_at
from rllib_kd.checkpoints.run_names import RESULTS
from rllib_kd.paths import expanded
from rllib_kd.public import public

_LOCAL = pyarrow.fs.LocalFileSystem()
#: The policies whose returns a curve may have.
GREEDY, BEHAVIOR, EXPLORING = "greedy", "behavior", "exploring"
#: Paths of returns in a result, preferred ones first: in training, policies explore.
RETURNS = (("evaluation", "env_runners", "episode_return_mean"), ("env_runners", "episode_return_mean"))
EVALUATION, TRAINING = range(2)  # in RETURNS


class Curve(list[tuple[float, float]]):
    """(env steps, mean return) in the order of env steps.

    Args:
        points: points of the curve.
        of: the policy whose returns they are: "greedy": the student (or the policy) alone, in evaluations; "behavior":
            the behaviour policy, in which the teacher acts, too; "exploring": the policy in training.
    """

    def __init__(self, points: Iterable[tuple[float, float]] = (), of: str = GREEDY):
        super().__init__(points)
        self.of = of


@public
def read_curves(run_dir: str | os.PathLike[str]) -> dict[str, Curve]:
    """Read the learning curves of every run below a folder, from the `result.json` that Ray Tune and RLlib write.

    Args:
        run_dir: folder of a trial, or of an experiment with several.

    Returns:
        Curves of (env steps, mean return) by the run's path below `run_dir`. Runs without a finished episode are left
        out.

    Raises:
        ValueError: there is no `result.json`, or it is a URI.
    """
    if "://" in (text := os.fspath(run_dir)):
        raise ValueError(f"Curves are read from folders of this machine, but '{text}' is a URI. Copy the run first.")
    root = expanded(text)
    files = sorted(root.rglob(RESULTS))
    if not files:
        raise ValueError(
            f"There is no result.json in {root} or below it. Expected the folder of a Ray Tune trial or experiment."
        )
    names = [root.resolve().name if file.parent == root else file.parent.relative_to(root).as_posix() for file in files]
    curves = zip(names, map(read_curve, files), strict=True)
    return {name: curve for name, curve in curves if curve}


def read_curve(file: Path) -> Curve:
    """Read the learning curve of one run.

    For a run that was evaluated, it has the returns of its evaluations, which are the greedy student's (in a family,
    the last student's); otherwise those of its EnvRunners, in which the behaviour policy acts. The two are never mixed;
    `.of` names the policy.

    Args:
        file: the run's `result.json`.
    """
    return curve_of(of_rows_that_count(TrialReader(_LOCAL, is_own=True).rows(str(file)), CurvePoint.of))


class CurvePoint(NamedTuple):
    """What learning curves take of a result.

    Args:
        steps: env steps so far, if they are known.
        returns: mean returns by `RETURNS`; None where there is none.
        has_teacher: whether the teacher acted, too.
    """

    steps: float | None
    returns: tuple[float | None, ...]
    has_teacher: bool

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> CurvePoint:
        """Return the point of a result, which may contain anything."""
        returns = tuple(finite_number(value_at(row, keys)) for keys in RETURNS)
        return cls(finite_number(row.get(ENV_STEPS)), returns, bool(teacher_fraction(row)))


def curve_of(points: Sequence[CurvePoint]) -> Curve:
    """Return the learning curve of a run's points, as `read_curve()` does; of equal env steps, the last one counts."""
    evaluations, training = (
        {
            point.steps: value
            for point in points
            if point.steps is not None and (value := point.returns[kind]) is not None
        }
        for kind in (EVALUATION, TRAINING)
    )
    if evaluations:
        return Curve(evaluations.items())
    return Curve(training.items(), of=BEHAVIOR if any(point.has_teacher for point in points) else EXPLORING)


def whose(curve: Sequence[tuple[float, float]]) -> str:
    """Return `Curve.of`; for plain points, "greedy"."""
    return curve.of if isinstance(curve, Curve) else GREEDY


def teacher_fraction(result: Mapping[str, Any]) -> float | None:
    """Return the teacher's share of actions when this result was reported; None in a run without a teacher."""
    own = result.get("distillation")
    fraction = own.get("teacher_fraction") if isinstance(own, Mapping) else None
    return fraction if isinstance(fraction, int | float) else None
