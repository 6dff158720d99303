"""Runs of Ray Tune and RLlib on disk: their checkpoints and learning curves."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.fs

from rllib_kd.checkpoints.results import RESULTS, TrialReader
from rllib_kd.checkpoints.tune import finite_number
from rllib_kd.checkpoints.uris import expanded
from rllib_kd.checkpoints.whole import first_whole

_LOCAL = pyarrow.fs.LocalFileSystem()


_CHECKPOINT = "checkpoint_"


#: Algorithm_environment_experiment_number_and-again_what=it varies_date_time
_TRIAL = re.compile(r"^.+_(?P<number>\d{5})_\d+(_(?P<varied>.+))?_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d$")


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


class Student(NamedTuple):
    """A checkpoint, and how it came about, where that is known."""

    checkpoint: str
    curve: Curve


def find_students(paths: Sequence[str | os.PathLike[str]], *, with_curves: bool = True) -> dict[str, Student]:
    """The students that paths stand for, by the shortest ends of their paths that tell them apart.

    Args:
        paths: of checkpoints; of trials, which stand for their newest checkpoint; or of experiments, which stand for
            all their trials. What is no run on this machine's disk (a URI, the name of a packaged teacher, a folder of
            another origin) stands for itself.
        with_curves: whether their learning curves are read.

    Raises:
        ValueError: a run has no checkpoint, a path is empty, or all runs together hold more files or results than are
            read.
    """
    students: dict[str, Student] = {}
    reader = TrialReader(_LOCAL)

    def curve_of(run: Path) -> Curve:
        return _read_curve(run / RESULTS, reader) if with_curves and (run / RESULTS).is_file() else Curve()

    for given in (os.fspath(path) for path in paths):
        path = Path(given) if "://" in given else expanded(given)
        trials = _trials(path, reader)
        for trial in trials:
            students[str(trial)] = Student(_newest_checkpoint(trial, reader), curve_of(trial))
        if not trials:
            students[given] = Student(given, curve_of(path.parent) if path.name.startswith(_CHECKPOINT) else Curve())
    return dict(zip(_short_names(list(students)), students.values(), strict=True))


def _trials(path: Path, reader: TrialReader) -> list[Path]:
    """The trial that a path is, or those in it."""
    if not path.is_dir():
        return []
    if (path / RESULTS).is_file():
        return [path]
    return [Path(folder) for folder in reader.folders(str(path)) if (Path(folder) / RESULTS).is_file()]


def find_student(path: str | os.PathLike[str]) -> str:
    """The one checkpoint that a path stands for, as in `find_students()`.

    Raises:
        ValueError: it stands for several.
    """
    students = find_students([path], with_curves=False)
    if len(students) != 1:
        raise ValueError(f"'{path}' holds {len(students)} runs: {', '.join(students)}. Name the folder of one.")
    return next(iter(students.values())).checkpoint


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
    return _read_curve(file, TrialReader(_LOCAL, is_own=True))


def _read_curve(file: Path, reader: TrialReader) -> Curve:
    evaluations, returns, has_teacher = Curve(), Curve(), False
    for row in reader.rows(str(file)):
        _go_on(evaluations, row, "evaluation", "env_runners")
        _go_on(returns, row, "env_runners")
        has_teacher = has_teacher or bool(teacher_fraction(row))
    if evaluations:
        return evaluations
    return Curve(returns, of=BEHAVIOR if has_teacher else EXPLORING)


def whose(curve: Sequence[tuple[float, float]]) -> str:
    """`Curve.of`; of points that do not tell, "greedy"."""
    return curve.of if isinstance(curve, Curve) else GREEDY


def teacher_fraction(result: Mapping[str, Any]) -> float | None:
    """The teacher's share in acting when this result was reported; None in a run without a teacher."""
    own = result.get("distillation")
    fraction = own.get("teacher_fraction") if isinstance(own, Mapping) else None
    return fraction if isinstance(fraction, int | float) else None


def _newest_checkpoint(trial: Path, reader: TrialReader) -> str:
    folders = map(Path, reader.folders(str(trial)))
    checkpoints = [folder for folder in folders if folder.name.startswith(_CHECKPOINT)]
    if not checkpoints:
        raise ValueError(f"The run '{trial}' has no checkpoint. Train with --checkpoint-at-end.")
    newest_first = list(map(str, reversed(checkpoints)))
    return first_whole(_LOCAL, newest_first) or newest_first[0]


def _short_names(paths: Sequence[str]) -> list[str]:
    """The shortest ends that tell them apart, without checkpoints; of Tune's names of trials what they vary.

    Trials that vary nothing have the name of their experiment, or their number where there are several.
    """
    parts = [_parts(path) for path in paths]
    for shorten in (_without_checkpoint, _with_brief_trial, _without_number):
        shorter = list(map(shorten, parts))
        parts = shorter if len(set(shorter)) == len(set(parts)) and all(shorter) else parts
    length = 1
    while len({part[-length:] for part in parts}) < len(set(parts)):
        length += 1
    return [str(Path(*part[-length:])) for part in parts]


def _parts(path: str) -> tuple[str, ...]:
    """Of a path; of `.`, `..` and the like those of the folder that they mean, which has a name."""
    return Path(path if Path(path).name not in ("", "..") else os.path.abspath(path)).parts


def _without_checkpoint(parts: tuple[str, ...]) -> tuple[str, ...]:
    return parts[:-1] if parts[-1].startswith(_CHECKPOINT) else parts


def _with_brief_trial(parts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(_TRIAL.sub(lambda match: match["varied"] or match["number"], part) for part in parts)


def _without_number(parts: tuple[str, ...]) -> tuple[str, ...]:
    return parts[:-1] if re.fullmatch(r"\d{5}", parts[-1]) else parts


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
