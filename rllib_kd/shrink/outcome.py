"""The outcome of a run: every size, the certified student, and why none is certified."""

from __future__ import annotations

import math
import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rllib_kd.certificates.agreement import AGREEMENT, agreement_dict, note_on
from rllib_kd.certificates.certificate import RETURN_RATIO, Certificate, Measured
from rllib_kd.export.units import UNITS, measured_cost
from rllib_kd.text import cell, finite_or_none, number, plain, printable, ratio, rendered, rough_percent

#: The version of the layout of certificate.json.
FORMAT = 1
#: The name of that file.
CERTIFICATE = "certificate.json"


@dataclass(frozen=True)
class ShrunkStudent:
    """The best student of one size.

    Args:
        name: name of the size.
        label: the size in words.
        num_parameters: acting parameters.
        model_config: RLlib's model config.
        env_steps: env steps of training before.
        validation_ratio: return ratio in validation episodes; too high as an estimate, since it was chosen by them.
        validation_returns: undiscounted returns in validation episodes, by number of the episode.
        certificate: its test; None if it was not tested.
        returns: of student, teacher and random policy in certificate episodes, by name.
        num_bytes: of its weights as float32, exported to safetensors; None if it cannot be exported so.
        latency_ms: median time of one decision in the numpy runner, on one thread, ms; None if it was not measured.
        multiply_adds: of one decision, in linear layers and convolutions; None if it cannot be exported so.
        num_int8_bytes: of all constants as C with weights of 8 bits; None if it was not measured.
    """

    name: str
    label: str
    num_parameters: int
    model_config: dict[str, Any]
    env_steps: int
    validation_ratio: float
    validation_returns: dict[int, float] = field(repr=False)
    certificate: Certificate | None = None
    returns: dict[str, list[float]] = field(default_factory=dict, repr=False)
    num_bytes: int | None = None
    latency_ms: float | None = None
    multiply_adds: int | None = None
    num_int8_bytes: int | None = None

    def cost(self, minimize: str) -> float:
        """Return what was to be minimized: parameters, bytes, multiply-adds, or latency in ms."""
        return float("nan") if (value := measured_cost(self, minimize)) is None else value

    @property
    def is_certified(self) -> bool:
        """Return whether it is certified."""
        return self.certificate is not None and self.certificate.is_certified


@dataclass(frozen=True)
class Shrunk:
    """The result of `Shrink.run()`. `str()` of it is one screen.

    Args:
        env: name of the environment.
        env_config: its config, as JSON.
        teacher: the teacher, as it was given.
        teacher_parameters: its acting parameters.
        teacher_return: mean of its undiscounted returns in validation episodes.
        random_return: mean of the random policy's.
        keep: return ratio that was asked for.
        confidence: probability that no student below `keep` is certified, at least.
        students: the best student of each size that was played, smallest first.
        copies: name of the size and validation return ratio of each copy at each round.
        reason: why none is certified; empty if one is.
        folder: path of the folder with all files.
        facts: what else certificate.json has: command, seeds, budget, versions.
        minimize: what "smallest" means: "parameters", "bytes", "int8_bytes", "multiply_adds" or "latency".
        is_complete: False if the run was interrupted; it can be resumed, and there is no certificate.json yet.
        rows: of a run without an environment, the numbers of the held-out states that judge. All return ratios are then
            agreements with the teacher, whose own is 1.
    """

    env: str
    env_config: dict[str, Any]
    teacher: str
    teacher_parameters: float
    teacher_return: float
    random_return: float
    keep: float
    confidence: float
    students: list[ShrunkStudent]
    copies: list[tuple[str, float]]
    reason: str
    folder: str
    facts: dict[str, Any]
    minimize: str = "parameters"
    is_complete: bool = True
    rows: dict[str, Any] | None = None

    @property
    def measured(self) -> Measured:
        """Return what is kept and certified."""
        return RETURN_RATIO if self.rows is None else AGREEMENT

    @property
    def goal(self) -> str:
        """Return what was asked for, in words."""
        what = "of the return" if self.rows is None else "agreement with the teacher"
        return f"keep {100 * self.keep:g} % {what}, {100 * self.confidence:g} % confidence"

    @property
    def certified(self) -> ShrunkStudent | None:
        """Return the certified student; None if there is none."""
        return next((student for student in self.students if student.is_certified), None)

    @property
    def best(self) -> ShrunkStudent | None:
        """Return the certified student, or else the one with the highest validation ratio; None without students."""
        return self.certified or max(self.students, key=lambda student: student.validation_ratio, default=None)

    @property
    def checkpoint(self) -> str | None:
        """Return the path of the checkpoint of `best`; None without students, or if the run was interrupted."""
        if self.best is None or not self.is_complete:
            return None
        return str(Path(self.folder) / ("student" if self.certified else "uncertified"))

    @property
    def export_command(self) -> str:
        """Return the command that exports the certified student."""
        out = str(Path(self.folder) / "student.onnx")
        return shlex.join(["rllib", "export", str(self.checkpoint), "--out", out])

    @property
    def verdict(self) -> str:
        """Return the result in one or two sentences."""
        student = self.certified
        about = "" if self.rows is None else f" {note_on(self.rows['unit'])}"
        if student is None or student.certificate is None:
            return f"Not certified. {self.reason}{about}"
        found = student.certificate
        interval = (
            f"{ratio(found.lower or 0.0)} to {ratio(found.upper)}" if found.upper else f"≥ {ratio(found.lower or 0.0)}"
        )
        head = f"Certified: the {student.label} student, with {self._size(student)},"
        value, confidence = ratio(_or_nan(found.return_ratio)), f"with {100 * self.confidence:g} % confidence"
        if self.rows is None:
            return (
                f"{head} keeps at least {100 * self.keep:g} % of the return, {confidence}. Its return ratio in "
                f"{found.num_episodes:,} fresh episodes{self._where} is {value} ({interval})."
            )
        return (
            f"{head} has a mean agreement with its teacher of at least {self.keep:g}, {confidence}: in "
            f"{found.num_episodes:,} {found.measured.unit} it is {value} ({interval}).{about}"
        )

    @property
    def _where(self) -> str:
        return " of envpool's environment" if self.facts.get("certify_in_pool") else ""

    def _size(self, student: ShrunkStudent) -> str:
        words = f"{student.num_parameters:,} parameters"
        if math.isfinite(self.teacher_parameters):  # unknown for a function
            words += f" ({share_text(student, self)} % of the teacher's)"
        if self.minimize == "parameters":
            return words
        return f"{words} and {cost_text(student, self.minimize)} {UNITS[self.minimize]}"

    def __str__(self) -> str:
        return summary(self)

    def to_dict(self) -> dict[str, Any]:
        """Return what certificate.json has."""
        of_env = ("env", "env_config", "teacher_return", "random_return") if self.rows is None else ()
        names = (*of_env, "teacher", "teacher_parameters", "keep")
        certified = self.certified
        content = {
            "format": FORMAT,
            "measured": self.measured.name,
            **({} if self.rows is None else {"note": note_on(self.rows["unit"]), "rows": self.rows}),
            **{name: getattr(self, name) for name in names},
            "confidence": self.confidence,
            "minimize": self.minimize,
            "certified": None if certified is None else certified.name,
            "verdict": self.verdict,
            "checkpoint": None if self.checkpoint is None else Path(self.checkpoint).name,
            "candidates": [_student_dict(student, self.measured) for student in self.students],
            "copies": [{"size": size, _validated(self.measured): value} for size, value in self.copies],
            **self.facts,
        }
        return finite_or_none(plain(content))


#: Heads of narrow columns.
_HEADS = {
    "bytes": "bytes",
    "int8_bytes": "bytes\n(int8)",
    "multiply_adds": "multiply-\nadds",
    "latency": "latency\n(µs)",
}


def cost_text(student: ShrunkStudent, minimize: str) -> str:
    """Return what was to be minimized, in its unit."""
    cost = student.cost(minimize)
    if math.isnan(cost):
        return "–"
    return f"{1e3 * cost:.3g}" if minimize == "latency" else f"{cost:,}"


def share_text(student: ShrunkStudent, result: Shrunk) -> str:
    """Return a student's share of the teacher's parameters, in percent; a dash if these are not known."""
    return rough_percent(student.num_parameters / result.teacher_parameters)


def summary(result: Shrunk) -> str:
    """Return one screen of 80 columns: a row for each size, the verdict, and what to do next."""
    from rich.table import Table

    table = Table(title=cell(f"{result.env}: {result.goal}", "table.title"))
    table.add_column("student")
    for head in ("para-\nmeters", "% of\nteacher", "valida-\ntion*"):
        table.add_column(head, justify="right", no_wrap=True)
    if result.minimize != "parameters":
        table.add_column(_HEADS[result.minimize], justify="right", no_wrap=True)
    table.add_column("certificate")
    for student in result.students:
        table.add_row(
            cell(student.label),
            f"{student.num_parameters:,}",
            share_text(student, result),
            ratio(student.validation_ratio),
            *([] if result.minimize == "parameters" else [cost_text(student, result.minimize)]),
            cell(untested(student, result) if student.certificate is None else _in_short(student.certificate)),
        )
    table.caption = "* mean agreement with the teacher, which is not return"
    if result.rows is None:
        teacher, random = number(result.teacher_return), number(result.random_return)
        table.caption = f"* return ratio: teacher ({teacher}) 1, random policy ({random}) 0"
    text = rendered(*([table] if result.students else []), "\n" + result.verdict)
    if result.checkpoint is not None:  # not wrapped: they are there to be copied
        text += f"\n\n{printable(result.checkpoint)}"
    if result.certified is not None:
        text += f"\n{printable(result.export_command)}"
    if not result.is_complete:
        return text
    return f"{text}\n{printable(result.folder)}/shrink.html, {CERTIFICATE}"


def untested(student: ShrunkStudent, result: Shrunk) -> str:
    """Return why a student was not tested, in two words: larger ones than the certified one rest, and learn no more."""
    certified = result.certified
    is_larger = certified is not None and student.num_parameters > certified.num_parameters
    return "not needed" if is_larger else "not tested"


def _in_short(certificate: Certificate) -> str:
    unit = certificate.measured.unit.removeprefix("held-out ")
    played = f"{ratio(_or_nan(certificate.return_ratio))} in {certificate.num_episodes:,} {unit}"
    if certificate.is_certified:
        return f"certified: {played}"
    return f"{'given up' if certificate.verdict == 'hopeless' else 'not decided'}: {played}"


def _validated(measured: Measured) -> str:
    """Return the key of what validation has found."""
    return "validation_ratio" if measured == RETURN_RATIO else "validation_agreement"


def _student_dict(student: ShrunkStudent, measured: Measured) -> dict[str, Any]:
    content = {name: value for name, value in asdict(student).items() if name not in ("certificate", "returns")}
    if measured != RETURN_RATIO:
        content[_validated(measured)] = content.pop("validation_ratio")
        del content["validation_returns"]
        content["certificate"] = None if student.certificate is None else agreement_dict(student.certificate)
        return content | {"certificate_agreements": student.returns.get("student", [])}
    content["validation_returns"] = {str(episode): value for episode, value in student.validation_returns.items()}
    content["certificate"] = None if student.certificate is None else student.certificate.as_dict()
    content["certificate_returns"] = student.returns
    return content


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def why_not(
    students: list[ShrunkStudent],
    *,
    keep: float,
    more: str,
    measured: Measured = RETURN_RATIO,
    needs_episodes: bool = False,
) -> str:
    """Return why no student is certified, and what would help.

    Args:
        students: the best student of each size, smallest first.
        keep: return ratio that was asked for.
        more: how to give more time, such as "--minutes 20".
        measured: what is to be kept.
        needs_episodes: whether certificate episodes are what is missing, and not time.
    """
    if not students:
        return f"No student was trained long enough to play. Train longer: {more}."
    best = max(students, key=lambda student: student.validation_ratio)
    tested = [student for student in students if student.certificate is not None]
    if not tested:
        return (
            f"No student came near enough to {keep:g} in validation for a test: the best one, {best.label}, has "
            f"{measured.with_article} of {ratio(best.validation_ratio)}. Train longer ({more}), or ask for less "
            "(--keep)."
        )
    last = tested[-1]
    found: Any = last.certificate
    text = f"The last candidate, {last.label}: {found.reason}"
    if found.verdict == "undecided" or found.cause == "budget":  # of --episodes, or of the time
        if measured != RETURN_RATIO:
            return f"{text} Record more, or hold out a larger share of the rows."
        if needs_episodes:
            return f"{text} More episodes may decide (--episodes), or a student that has trained longer ({more})."
        return f"{text} More time may decide: {more}."
    return f"{text} Train longer ({more}), or ask for less (--keep)."
