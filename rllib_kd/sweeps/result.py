"""What a sweep found, as data: the Pareto front of size and return, and the student to take."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rllib_kd.evaluation.intervals import lower_bound
from rllib_kd.text import finite_or_none, printable, ratio

#: A student is as good as its teacher from this return ratio on, as the mean of at least so many seeds.
GOOD_RATIO, MIN_SEEDS = 0.98, 3


@dataclass(frozen=True)
class SweptStudent:
    """One setting of a sweep, and what its students reach."""

    name: str  # of the trial
    settings: dict[str, Any]  # of the config, that were varied
    num_parameters: int
    compression: float  # student parameters / teacher parameters
    return_ratios: tuple[float, ...]  # of each seed: (student − random) / (teacher − random)
    env_steps: int  # that each seed was trained for
    finished: bool  # False: the scheduler has stopped it early, and it is out of the running
    checkpoint: str | None = None  # path or URI: a folder with a checkpoint for each seed

    @property
    def return_ratio(self) -> float:
        """Mean of the seeds."""
        return sum(self.return_ratios) / len(self.return_ratios)

    @property
    def return_ratio_lower(self) -> float:
        """`lower_bound()` of the seeds."""
        return lower_bound(self.return_ratios)

    @property
    def size(self) -> str:
        """In words: `16 units`, `linear`."""
        widths = self.settings.get("model_config", {}).get("fcnet_hiddens")
        if widths is None:
            return f"{100 * self.compression:.2g} % of the teacher"
        return " × ".join(map(str, widths)) + (" units" if widths else "linear")


@dataclass(frozen=True)
class SweepResult:
    """A finished sweep.

    Args:
        env: that all students play.
        teacher: where it came from; several of an ensemble.
        teacher_parameters: that act.
        teacher_return: mean of the greedy teacher.
        random_return: mean of a random policy.
        num_episodes: behind each of these two, and behind each seed of a finished student.
        env_steps: that finished students were trained for.
        fixed: settings that all students share.
        students: one for each setting that has reported.
        failed: trial name → reason, of those that have not.
        note: what one should know about how the settings were chosen.
        is_complete: False: it was interrupted, and can be resumed.
    """

    env: str
    teacher: str | list[str]
    teacher_parameters: float
    teacher_return: float
    random_return: float
    num_episodes: int
    env_steps: int
    fixed: Mapping[str, Any]
    students: Sequence[SweptStudent]
    failed: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    is_complete: bool = True

    @property
    def front(self) -> list[SweptStudent]:
        """The Pareto front, small students first."""
        return pareto_front(self.students)

    @property
    def recommended(self) -> SweptStudent | None:
        """The smallest student that is as good as its teacher; None if there is none."""
        return recommend(self.students)

    @property
    def best(self) -> SweptStudent | None:
        """The recommended student, else the one with the highest return ratio; None if none has finished."""
        return self.recommended or (self.front[-1] if self.front else None)

    @property
    def ranked(self) -> list[SweptStudent]:
        """All students: finished ones first, then small ones, then good ones."""
        return sorted(self.students, key=lambda s: (not s.finished, s.num_parameters, -s.return_ratio))

    def command(self, student: SweptStudent) -> str:
        """Return the shell command that trains such a student."""
        words = ["rllib", "train", "--algo", "DistillDQN", "--env", self.env]
        for teacher in [self.teacher] if isinstance(self.teacher, str) else self.teacher:
            words += ["--teacher", teacher]
        words += ["--config", json.dumps({**self.fixed, **student.settings})]
        words += ["--stop", json.dumps({"num_env_steps_sampled_lifetime": self.env_steps})]
        return shlex.join(words)

    def verdict(self) -> str:
        """Return a sentence with the recommended student, or with the reason why there is none."""
        good = f"at least {100 * GOOD_RATIO:.0f} % of the teacher's return"
        if (student := self.recommended) is not None:
            each = ", ".join(map(ratio_text, student.return_ratios))
            return (
                f"Recommended: {student.size}, {student.num_parameters:,} parameters "
                f"({100 * student.compression:.2g} % of the teacher's). It is the smallest with {good} over at least "
                f"{MIN_SEEDS} seeds: {ratio_text(student.return_ratio)}, the mean of {each}."
            )
        if not self.front:
            return "No student has finished its training, so there is none to recommend."
        best = self.front[-1]
        reason = f"No student reached {good}"
        if best.return_ratio >= GOOD_RATIO:
            reason = f"{good.capitalize()} counts from {MIN_SEEDS} seeds on, and there were {len(best.return_ratios)}"
        return (
            f"{reason}, so none is recommended. The best was {best.size}, {best.num_parameters:,} parameters, with "
            f"{ratio_text(best.return_ratio)}."
        )

    def remarks(self) -> list[str]:
        """Return the verdict, and sentences about how the sweep went, as they can be printed."""
        remarks = [self.verdict(), self.note]
        if not self.is_complete:
            remarks.append("The sweep was interrupted. The same command with --resume goes on.")
        if count := len(self.failed):
            of = count + len(self.students)
            remarks.append(f"{count} of {of} settings failed: {next(iter(self.failed.values()))}")
        return [printable(remark) for remark in remarks if remark]

    def rows(self) -> list[dict[str, Any]]:
        """Return each student's figures by name, in the order of `ranked`."""
        front, recommended = self.front, self.recommended
        return [
            {
                "trial": student.name,
                "finished": student.finished,
                "on_front": student in front,
                "recommended": student is recommended,
                "parameters": student.num_parameters,
                "compression": student.compression,
                "return_ratio": student.return_ratio,
                "return_ratio_lower": student.return_ratio_lower,
                "seeds": len(student.return_ratios),
                "return_ratios": list(student.return_ratios),
                "env_steps": student.env_steps,
                **student.settings,
                "checkpoint": student.checkpoint or "",
            }
            for student in self.ranked
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return everything, for JSON; what has no finite value is None."""
        shared = ("env", "teacher", "teacher_parameters", "teacher_return", "random_return", "num_episodes")
        content = {name: getattr(self, name) for name in (*shared, "env_steps", "note", "is_complete")}
        content |= {"fixed": dict(self.fixed), "failed": dict(self.failed), "verdict": self.verdict()}
        content["students"] = self.rows()
        if (best := self.best) is not None:
            content["command"] = self.command(best)
        return finite_or_none(content)


def pareto_front(students: Sequence[SweptStudent]) -> list[SweptStudent]:
    """Find the finished students that are best at their size, small ones first.

    No other finished student equals one of them in return ratio with fewer parameters, or beats it with as many.
    """
    front: list[SweptStudent] = []
    for student in sorted((s for s in students if s.finished), key=lambda s: (s.num_parameters, -s.return_ratio)):
        if not front or student.return_ratio > front[-1].return_ratio:
            front.append(student)
    return front


def recommend(students: Sequence[SweptStudent]) -> SweptStudent | None:
    """Find the smallest with at least `GOOD_RATIO` of the teacher's return over at least `MIN_SEEDS` seeds, or None."""
    enough = [student for student in students if len(student.return_ratios) >= MIN_SEEDS]
    return next((student for student in pareto_front(enough) if student.return_ratio >= GOOD_RATIO), None)


def ratio_text(value: float) -> str:
    """Return a return ratio with three digits, or a dash if it is not finite."""
    return ratio(value) if math.isfinite(value) else "–"
