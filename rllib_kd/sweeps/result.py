"""The result of a sweep as data: the Pareto front of size and return, and the recommended student."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rllib_kd.certificates.agreement import AGREEMENT, agreement_dict, note_on
from rllib_kd.certificates.certificate import RETURN_RATIO, Measured
from rllib_kd.checkpoints.uris import child_of
from rllib_kd.evaluation.intervals import lower_bound
from rllib_kd.export.units import UNITS
from rllib_kd.text import finite_or_none, plain, printable, ratio, rough_percent

if TYPE_CHECKING:
    from rllib_kd.certificates.certification import Tested
    from rllib_kd.sweeps.certifying import Claim

#: A student counts as good as its teacher if the mean return ratio of at least MIN_SEEDS seeds is at least this.
GOOD_RATIO, MIN_SEEDS = 0.98, 3


@dataclass(frozen=True)
class SweptStudent:
    """One setting of a sweep, with the return ratios of its students."""

    name: str  # of the trial
    settings: dict[str, Any]  # of the config, that were varied
    num_parameters: int
    cost: float  # what is minimized, and orders students: by default their parameters
    compression: float  # student parameters / teacher parameters
    return_ratios: tuple[float, ...]  # of each seed: (student − random) / (teacher − random)
    env_steps: int  # that each seed was trained for
    finished: bool  # False: the scheduler has stopped it early, and it is out of the running
    checkpoint: str | None = None  # path or URI: a folder with a checkpoint for each seed
    q_regret: float | None = None  # on held-out rows, mean of the seeds; None: it played instead
    extreme_returns: tuple[float, ...] = ()  # lowest and highest of its last episodes; of older sweeps unknown

    @property
    def best_checkpoint(self) -> str | None:
        """Return path or URI of the checkpoint of the best seed, as all commands take it; None if there is none."""
        if self.checkpoint is None:
            return None
        best = max(range(len(self.return_ratios)), key=self.return_ratios.__getitem__)
        return child_of(self.checkpoint, f"seed_{best}")

    @property
    def return_ratio(self) -> float:
        """Return the mean return ratio of the seeds."""
        return sum(self.return_ratios) / len(self.return_ratios)

    @property
    def return_ratio_lower(self) -> float:
        """Return `lower_bound()` of the seeds' return ratios."""
        return lower_bound(self.return_ratios)

    @property
    def size(self) -> str:
        """Return the size as text: `16 units`, `linear`."""
        widths = self.settings.get("model_config", {}).get("fcnet_hiddens")
        if widths is None:
            return f"{100 * self.compression:.2g} % of the teacher"
        return " × ".join(map(str, widths)) + (" units" if widths else "linear")


@dataclass(frozen=True)
class SweepResult:
    """A finished sweep.

    Args:
        env: environment of all students.
        teacher: source of the teacher; a list for an ensemble.
        teacher_parameters: number of the teacher's parameters that act; NaN if it is unknown.
        teacher_return: mean return of the greedy teacher.
        random_return: mean return of a random policy.
        num_episodes: episodes behind each of these two means, and behind each seed of a finished student.
        env_steps: training length of finished students.
        fixed: settings that all students share.
        students: one for each setting that has reported.
        failed: trial name → reason, for settings that have not reported.
        note: a remark on how the settings were chosen.
        is_complete: False if the sweep was interrupted; it can be resumed.
        certified: what the recommended student was to prove in fresh episodes, and its test; None without a test.
        minimize: what "smallest" means, one of `MINIMIZED` but "latency".
        held_out: of a sweep without an environment, the numbers of the held-out states that judge. All return ratios
            are then agreements with the teacher.
        good: return ratio from which on a student counts as good as its teacher.
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
    certified: tuple[Claim, Tested] | None = None
    minimize: str = "parameters"
    held_out: Mapping[str, Any] | None = None
    good: float = GOOD_RATIO

    @property
    def measured(self) -> Measured:
        """Return what students are judged by."""
        return RETURN_RATIO if self.held_out is None else AGREEMENT

    @property
    def front(self) -> list[SweptStudent]:
        """Return the Pareto front, small students first."""
        return pareto_front(self.students)

    @property
    def recommended(self) -> SweptStudent | None:
        """Return the smallest student that is as good as its teacher; None if there is none."""
        return recommend(self.students, self.good)

    @property
    def best(self) -> SweptStudent | None:
        """Return the recommended student, else the one with the highest return ratio; None if none has finished."""
        return self.recommended or (self.front[-1] if self.front else None)

    @property
    def ranked(self) -> list[SweptStudent]:
        """Return all students: finished ones first, then by size, then by return ratio."""
        return sorted(self.students, key=lambda s: (not s.finished, s.cost, -s.return_ratio))

    def command(self, student: SweptStudent) -> str:
        """Return the shell command that trains such a student; settings of Python alone, such as classes, as text."""
        words, fixed = ["rllib", "train", "--algo", "DistillDQN"], plain(self.fixed)
        if self.held_out is None:
            words += ["--env", self.env]
        if "input_" in fixed:
            places = fixed.pop("input_")
            words += [
                word for place in ([places] if isinstance(places, str) else places) for word in ("--input", place)
            ]
        for teacher in [self.teacher] if isinstance(self.teacher, str) else self.teacher:
            words += ["--teacher", teacher]
        words += ["--config", json.dumps({**fixed, **plain(student.settings)})]
        words += ["--stop", json.dumps({"num_env_steps_sampled_lifetime": self.env_steps})]
        return shlex.join(words)

    def verdict(self) -> str:
        """Return a sentence with the recommended student, or with the reason why there is none."""
        good = f"at least {100 * self.good:.3g} % of the teacher's return"
        if self.held_out is not None:
            good = f"a mean agreement with the teacher of at least {self.good:.3g}"
        if (student := self.recommended) is not None:
            each = ", ".join(map(ratio_text, student.return_ratios))
            return (
                f"Recommended: {student.size}, {student.num_parameters:,} parameters{self._cost(student)} "
                f"({rough_percent(student.compression)} % of the teacher's). It is the smallest with {good} on at "
                f"least {MIN_SEEDS} seeds: {ratio_text(student.return_ratio)}, the mean of {each}."
            )
        if not self.front:
            return "No student has finished its training, so none is recommended."
        best = self.front[-1]
        reason = f"No student reached {good}"
        if best.return_ratio >= self.good:
            reason = (
                f"A recommendation needs {good} on at least {MIN_SEEDS} seeds, but there were {len(best.return_ratios)}"
            )
        return (
            f"{reason}, so none is recommended. The best was {best.size}, {best.num_parameters:,} parameters, with "
            f"{ratio_text(best.return_ratio)}."
        )

    def _cost(self, student: SweptStudent) -> str:
        """Return what is minimized beside the parameters, as the middle of a sentence."""
        return "" if self.minimize == "parameters" else f" and {student.cost:,g} {UNITS[self.minimize]}"

    def certificate_line(self) -> str:
        """Return a sentence with what the recommended student has proven, or not; empty without a test."""
        if self.certified is None:
            return ""
        found = self.certified[1].certificate
        value = ratio_text(math.nan if found.return_ratio is None else found.return_ratio)
        head = "Certified" if found.is_certified else "Not certified"
        where = "fresh episodes" if self.held_out is None else found.measured.unit
        return f"{head}, in {where}: its {found.measured.name} there is {value}. {found.reason}"

    def remarks(self) -> list[str]:
        """Return the verdict, and sentences about how the sweep went, as they can be printed."""
        about = "" if self.held_out is None else note_on(self.held_out["unit"])
        remarks = [self.verdict(), self.certificate_line(), about, self.note]
        if not self.is_complete:
            remarks.append("The sweep was interrupted. Continue with the same command and --resume.")
        if count := len(self.failed):
            of = count + len(self.students)
            remarks.append(f"{count} of {of} settings failed: {next(iter(self.failed.values()))}")
        return [printable(remark) for remark in remarks if remark]

    def rows(self) -> list[dict[str, Any]]:
        """Return each student's figures by name, in the order of `ranked`."""
        front, recommended = self.front, self.recommended
        name = self.measured.name.replace(" ", "_")
        return [
            {
                "trial": student.name,
                "finished": student.finished,
                "on_front": student in front,
                "recommended": student is recommended,
                "parameters": student.num_parameters,
                **({} if self.minimize == "parameters" else {self.minimize: student.cost}),
                "compression": student.compression,
                name: student.return_ratio,
                f"{name}_lower": student.return_ratio_lower,
                "seeds": len(student.return_ratios),
                f"{name}s": list(student.return_ratios),
                **({} if self.held_out is None else {"q_regret": student.q_regret}),
                "env_steps": student.env_steps,
                **student.settings,
                "checkpoint": student.checkpoint or "",
            }
            for student in self.ranked
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return everything in JSON's terms; values that are not finite are None."""
        of_env = ("env", "teacher_return", "random_return", "num_episodes") if self.held_out is None else ()
        shared = (*of_env, "teacher", "teacher_parameters")
        content = {name: getattr(self, name) for name in (*shared, "env_steps", "note", "is_complete")}
        content |= {"fixed": dict(self.fixed), "failed": dict(self.failed), "verdict": self.verdict()}
        content |= {"minimize": self.minimize, "measured": self.measured.name}
        if self.held_out is None:
            content["env_config"] = self.fixed.get("env_config") or {}
        else:
            content |= {"rows": dict(self.held_out), "note": note_on(self.held_out["unit"])}
        content["students"] = self.rows()
        if (best := self.best) is not None:
            content["command"] = self.command(best)
            content["checkpoint"] = best.best_checkpoint
        if self.certified is not None:
            found = self.certified[1].certificate
            content["certificate"] = found.as_dict() if self.held_out is None else agreement_dict(found)
        return finite_or_none(plain(content))


def pareto_front(students: Sequence[SweptStudent]) -> list[SweptStudent]:
    """Return the finished students that are best at their size, small ones first.

    For each of them, no other finished student has the same return ratio at a lower cost, or a higher one at the same.
    """
    front: list[SweptStudent] = []
    for student in sorted((s for s in students if s.finished), key=lambda s: (s.cost, -s.return_ratio)):
        if not front or student.return_ratio > front[-1].return_ratio:
            front.append(student)
    return front


def good_agreement(keep: float | None) -> float:
    """Return the agreement from which on a student is recommended: above that which it is to prove."""
    return GOOD_RATIO if keep is None else keep + (1 - keep) / 3


def recommend(students: Sequence[SweptStudent], good: float = GOOD_RATIO) -> SweptStudent | None:
    """Return the smallest student with a mean return ratio ≥ `good` on at least `MIN_SEEDS` seeds, or None."""
    enough = [student for student in students if len(student.return_ratios) >= MIN_SEEDS]
    return next((student for student in pareto_front(enough) if student.return_ratio >= good), None)


def ratio_text(value: float) -> str:
    """Return a return ratio with three digits, or a dash if it is not finite."""
    return ratio(value) if math.isfinite(value) else "–"
