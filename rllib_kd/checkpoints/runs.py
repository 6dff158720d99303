"""Learning curves of runs of Ray Tune and RLlib on disk."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.fs

from rllib_kd.checkpoints.results import RESULTS, TrialReader, finite_number, value_at
from rllib_kd.paths import expanded
from rllib_kd.public import public

_LOCAL = pyarrow.fs.LocalFileSystem()
#: The policies whose returns a curve may have.
GREEDY, BEHAVIOR, EXPLORING = "greedy", "behavior", "exploring"


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
    reader = CurveReader()
    for row in TrialReader(_LOCAL, is_own=True).rows(str(file)):
        reader.add(row)
    return reader.curve


class CurveReader:
    """Builds the learning curve of a run from its results, one after the other."""

    def __init__(self) -> None:
        self._evaluations, self._returns, self._has_teacher = Curve(), Curve(), False

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a result."""
        _go_on(self._evaluations, row, "evaluation", "env_runners")
        _go_on(self._returns, row, "env_runners")
        self._has_teacher = self._has_teacher or bool(teacher_fraction(row))

    @property
    def curve(self) -> Curve:
        """Return the curve of the results so far, as `read_curve()` does."""
        return self._evaluations or Curve(self._returns, of=BEHAVIOR if self._has_teacher else EXPLORING)


def whose(curve: Sequence[tuple[float, float]]) -> str:
    """Return `Curve.of`; for plain points, "greedy"."""
    return curve.of if isinstance(curve, Curve) else GREEDY


def teacher_fraction(result: Mapping[str, Any]) -> float | None:
    """Return the teacher's share of actions when this result was reported; None in a run without a teacher."""
    own = result.get("distillation")
    fraction = own.get("teacher_fraction") if isinstance(own, Mapping) else None
    return fraction if isinstance(fraction, int | float) else None


def _go_on(curve: Curve, row: Mapping[str, Any], *keys: str) -> None:
    """Add the return of a result to a curve, if it has one."""
    mean_return = finite_number(value_at(row, (*keys, "episode_return_mean")))
    steps = finite_number(row.get("num_env_steps_sampled_lifetime"))
    if steps is None or mean_return is None:
        return
    # A trial that resumes from a checkpoint writes the steps since then again; the later rows count.
    while curve and curve[-1][0] >= steps:
        curve.pop()
    curve.append((steps, mean_return))
