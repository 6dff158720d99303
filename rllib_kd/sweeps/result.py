"""What a sweep found: the Pareto front of size and return, and the student to take."""

from __future__ import annotations

import csv
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rllib_kd.report.drawing import png, svg
from rllib_kd.sweeps.report import front_plot
from rllib_kd.text import cell, for_html, for_spreadsheet, number, printable, ratio, rendered

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


def lower_bound(values: Sequence[float]) -> float:
    """Of the mean, with 95 % confidence on this side (Student's t); −inf for a single value."""
    import numpy as np
    import scipy.stats

    if len(values) < 2:
        return -math.inf
    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(np.mean(values)) - float(scipy.stats.t.ppf(0.95, len(values) - 1)) * spread


def pareto_front(students: Sequence[SweptStudent]) -> list[SweptStudent]:
    """Those that no other finished one equals in return ratio at fewer parameters, or beats at as many; small first."""
    front: list[SweptStudent] = []
    for student in sorted((s for s in students if s.finished), key=lambda s: (s.num_parameters, -s.return_ratio)):
        if not front or student.return_ratio > front[-1].return_ratio:
            front.append(student)
    return front


def recommend(students: Sequence[SweptStudent]) -> SweptStudent | None:
    """The smallest with at least `GOOD_RATIO` of the teacher's return over at least `MIN_SEEDS` seeds, or None."""
    enough = [student for student in students if len(student.return_ratios) >= MIN_SEEDS]
    return next((student for student in pareto_front(enough) if student.return_ratio >= GOOD_RATIO), None)


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
    teacher_parameters: int
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
        """The smallest student that is as good as its teacher; None where there is none."""
        return recommend(self.students)

    def command(self, student: SweptStudent) -> str:
        """What trains such a student, for a shell."""
        words = ["rllib", "train", "--algo", "DistillDQN", "--env", self.env]
        for teacher in [self.teacher] if isinstance(self.teacher, str) else self.teacher:
            words += ["--teacher", teacher]
        words += ["--config", json.dumps({**self.fixed, **student.settings})]
        words += ["--stop", json.dumps({"num_env_steps_sampled_lifetime": self.env_steps})]
        return shlex.join(words)

    def verdict(self) -> str:
        """The recommended student in a sentence, or why there is none."""
        good = f"at least {100 * GOOD_RATIO:.0f} % of the teacher's return"
        if (student := self.recommended) is not None:
            each = ", ".join(map(_ratio, student.return_ratios))
            return (
                f"Recommended: {student.size}, {student.num_parameters:,} parameters "
                f"({100 * student.compression:.2g} % of the teacher's). It is the smallest with {good} over at least "
                f"{MIN_SEEDS} seeds: {_ratio(student.return_ratio)}, the mean of {each}."
            )
        if not self.front:
            return "No student has finished its training, so there is none to recommend."
        best = self.front[-1]
        reason = f"No student reached {good}"
        if best.return_ratio >= GOOD_RATIO:
            reason = f"{good.capitalize()} counts from {MIN_SEEDS} seeds on, and there were {len(best.return_ratios)}"
        return (
            f"{reason}, so none is recommended. The best was {best.size}, {best.num_parameters:,} parameters, with "
            f"{_ratio(best.return_ratio)}."
        )

    def __str__(self) -> str:
        """The front as a table of 80 columns, and the recommended student with its command."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        counts = f"{len(self.students)} settings, {len(self.front)} on the Pareto front"
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        table.title = cell(f"{self.env}: {counts}", "table.title").append("\n")
        for head in ("para-\nmeters", "% of\nteacher", "return\nratio*", "at\nleast†"):
            table.add_column(head, justify="right", no_wrap=True)
        table.add_column("setting")
        for student in self.front:
            mark = "→ " if student is self.recommended else ""
            table.add_row(
                f"{mark}{student.num_parameters:,}",
                f"{100 * student.compression:.2g}",
                _ratio(student.return_ratio),
                _ratio(student.return_ratio_lower),
                cell(describe(student)),
            )
        text = rendered(
            table,
            "\n* (student − random) / (teacher − random), mean of the seeds",
            "† lower bound of that mean, 95 % confidence\n",
            *self._remarks(),
        )
        if self.front:  # not wrapped: it is there to be copied
            text += f"\n\n{printable(self.command(self.recommended or self.front[-1]))}"
        return text

    def _remarks(self) -> list[str]:
        remarks = [self.verdict(), self.note]
        if not self.is_complete:
            remarks.append("The sweep was interrupted. The same command with --resume goes on.")
        if count := len(self.failed):
            of = count + len(self.students)
            remarks.append(f"{count} of {of} settings failed: {next(iter(self.failed.values()))}")
        return [printable(remark) for remark in remarks if remark]

    def write(self, folder: Path) -> None:
        """Write `index.html` (one file that requests nothing), `pareto.png`, `sweep.csv` and `sweep.json`."""
        from rllib_kd.text import finite_or_none

        folder.mkdir(parents=True, exist_ok=True)
        rows = [self._row(student) for student in self._sorted()]
        names = list(dict.fromkeys(name for row in rows for name in row))
        with (folder / "sweep.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(map(for_spreadsheet, names))
            writer.writerows([_csv(row.get(name, "")) for name in names] for row in rows)
        shared = ("env", "teacher", "teacher_parameters", "teacher_return", "random_return", "num_episodes")
        content = {name: getattr(self, name) for name in (*shared, "env_steps", "note", "is_complete")}
        content |= {"fixed": dict(self.fixed), "failed": dict(self.failed), "verdict": self.verdict(), "students": rows}
        if self.front:
            content["command"] = self.command(self.recommended or self.front[-1])
        text = json.dumps(finite_or_none(content), indent=1, allow_nan=False)
        (folder / "sweep.json").write_text(text + "\n", encoding="utf-8")
        if self.students:
            png(folder / "pareto.png", self._plot)
        (folder / "index.html").write_text(self._page(), encoding="utf-8")

    def _plot(self) -> Any:
        return front_plot(self)

    def _sorted(self) -> list[SweptStudent]:
        return sorted(self.students, key=lambda s: (not s.finished, s.num_parameters, -s.return_ratio))

    def _row(self, student: SweptStudent) -> dict[str, Any]:
        """A student's figures by name, for CSV and JSON."""
        return {
            "trial": student.name,
            "finished": student.finished,
            "on_front": student in self.front,
            "recommended": student is self.recommended,
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

    def _page(self) -> str:
        from rllib_kd.report.page import page, section

        title = f"{printable(self.env)}: how small can the student be?"
        lead = (
            f"{len(self.students)} settings, each a mean of its seeds, beside a teacher of "
            f"{self.teacher_parameters:,} parameters, whose mean return is {number(self.teacher_return)} where a "
            f"random policy gets {number(self.random_return)} ({self.num_episodes} episodes each)."
        )
        body = f'<p class="lead">{for_html(lead)}</p>\n<section class="card" id="recommended">'
        body += "".join(f"<p>{for_html(line)}</p>" for line in self._remarks())
        if self.front:
            body += f"<pre>{for_html(self.command(self.recommended or self.front[-1]))}</pre>"
        body += "</section>\n"
        if self.students:
            plot = svg("front-plot", "Size and return", self._plot)
            body += '<div class="plots">' + section(
                "front",
                "Size and return",
                "Left is smaller (the scale is logarithmic), up is better. The line is the Pareto front: no student "
                "found is both smaller and better than one on it. Bars reach down to the lower bound of the mean over "
                "seeds (95 % confidence). Open marks were stopped early.",
                # Twice as wide as other plots: narrow windows scroll.
                f'<div class="scroll"><div class="broad">{plot}</div></div>',
                wide=True,
            )
            body += "</div>\n" + f'<section class="card" id="settings">{self._table()}</section>'
        return page(title, body)

    def _table(self) -> str:
        heads = ("", "parameters", "% of teacher", "return ratio", "at least", "seeds", "env steps", "setting")
        head = "".join(f'<th scope="col">{name}</th>' for name in heads[:-1])
        head += f'<th scope="col" class="words">{heads[-1]}</th>'
        lines = []
        for student in self._sorted():
            mark = "★ recommended" if student is self.recommended else "● front" if student in self.front else ""
            cells = [
                f"{student.num_parameters:,}",
                f"{100 * student.compression:.2g}",
                _ratio(student.return_ratio),
                _ratio(student.return_ratio_lower),
                str(len(student.return_ratios)),
                f"{student.env_steps:,}",
            ]
            kind = "" if student.finished else ' class="reference"'
            row = "".join(f"<td>{for_html(figure)}</td>" for figure in cells)
            row += f'<td class="words">{for_html(describe(student))}</td>'
            lines.append(
                f'<tr{kind}><th scope="row">{mark or ("" if student.finished else "stopped early")}</th>{row}</tr>'
            )
        return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def describe(student: SweptStudent) -> str:
    """The setting in a line: `16 units, kl, lr 0.003, …`."""
    words = [student.size]
    for name, value in student.settings.items():
        if name == "teacher_fraction" and isinstance(value, list):
            env_steps, last = value[-1]
            words.append(f"{name} {value[0][1]:g}→{last:g} by {env_steps:,}")
        elif name not in ("model_config", "compression"):
            words.append(
                str(value) if name == "loss" else f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
            )
    return ", ".join(words)


def _ratio(value: float) -> str:
    return ratio(value) if math.isfinite(value) else "–"


def _csv(value: Any) -> str | int | float:
    if isinstance(value, int | float):
        return value
    return for_spreadsheet(value if isinstance(value, str) else json.dumps(value))
