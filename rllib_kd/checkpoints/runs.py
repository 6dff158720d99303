"""Runs of Ray Tune and RLlib on disk: their learning curves."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.fs

from rllib_kd.checkpoints.results import RESULTS, TrialReader, finite_number

_LOCAL = pyarrow.fs.LocalFileSystem()


#: Whose returns a curve shows.
GREEDY, BEHAVIOR, EXPLORING = "greedy", "behavior", "exploring"


class Curve(list[tuple[float, float]]):
    """(env steps, mean return) in the order of env steps.

    Args:
        points: of the curve.
        of: whose returns they are: "greedy": the student's (or the policy's) alone, in evaluations; "behavior": of the
            behaviour policy, in which the teacher acts too; "exploring": the policy's, in training.
    """

    def __init__(self, points: Iterable[tuple[float, float]] = (), of: str = GREEDY):
        super().__init__(points)
        self.of = of


def read_curves(run_dir: str | os.PathLike[str]) -> dict[str, Curve]:
    """Learning curves of every run below a directory, from the `result.json` that Ray Tune and RLlib write.

    Args:
        run_dir: of a trial, or of an experiment with several.

    Returns:
        By the run's path below `run_dir`. Runs without a finished episode are left out.

    Raises:
        ValueError: no `result.json` is there.
    """
    root = Path(run_dir)
    files = sorted(root.rglob(RESULTS))
    if not files:
        raise ValueError(
            f"There is no result.json in {root} or below it. Expected the directory of a Ray Tune trial or experiment."
        )
    names = [root.resolve().name if file.parent == root else file.parent.relative_to(root).as_posix() for file in files]
    curves = zip(names, map(read_curve, files), strict=True)
    return {name: curve for name, curve in curves if curve}


def read_curve(file: Path) -> Curve:
    """The learning curve of one run.

    A run that was evaluated gives the returns of its evaluations, which are the greedy student's (of a family, the last
    student's); any other one those of its EnvRunners, where the behaviour policy acts. The two are never mixed, and
    `.of` says which they are.

    Args:
        file: the run's `result.json`.
    """
    reader = CurveReader()
    for row in TrialReader(_LOCAL, is_own=True).rows(str(file)):
        reader.add(row)
    return reader.curve


class CurveReader:
    """Makes the learning curve of a run from its results, one after the other."""

    def __init__(self) -> None:
        self._evaluations, self._returns, self._has_teacher = Curve(), Curve(), False

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a result."""
        _go_on(self._evaluations, row, "evaluation", "env_runners")
        _go_on(self._returns, row, "env_runners")
        self._has_teacher = self._has_teacher or bool(teacher_fraction(row))

    @property
    def curve(self) -> Curve:
        """The curve of the results so far, as in `read_curve()`."""
        return self._evaluations or Curve(self._returns, of=BEHAVIOR if self._has_teacher else EXPLORING)


def whose(curve: Sequence[tuple[float, float]]) -> str:
    """`Curve.of`; of points that do not tell, "greedy"."""
    return curve.of if isinstance(curve, Curve) else GREEDY


def teacher_fraction(result: Mapping[str, Any]) -> float | None:
    """The teacher's share in acting when this result was reported; None in a run without a teacher."""
    own = result.get("distillation")
    fraction = own.get("teacher_fraction") if isinstance(own, Mapping) else None
    return fraction if isinstance(fraction, int | float) else None


def _go_on(curve: Curve, row: Mapping[str, Any], *keys: str) -> None:
    """Add the return of a result to a curve, if it has one."""
    node: Any = row
    for key in (*keys, "episode_return_mean"):
        node = node.get(key) if isinstance(node, Mapping) else None
    steps, mean_return = finite_number(row.get("num_env_steps_sampled_lifetime")), finite_number(node)
    if steps is None or mean_return is None:
        return
    # A trial that resumes from a checkpoint writes the steps since then again: the later rows count.
    while curve and curve[-1][0] >= steps:
        curve.pop()
    curve.append((steps, mean_return))
