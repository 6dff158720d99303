"""The report of a sweep: a table for the terminal, an HTML page with a plot, and every figure in CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
import posixpath
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from rllib_kd.checkpoints.uris import without_options
from rllib_kd.export.certificate_card import write_certificate_card
from rllib_kd.export.units import UNITS
from rllib_kd.paths import replace_file
from rllib_kd.report.drawing import (
    FOREGROUND,
    MUTED,
    WIDTH,
    colour_of,
    new_figure,
    place_legend,
    png,
    svg,
    use_log_axis,
)
from rllib_kd.report.page import page, section
from rllib_kd.sweeps.certifying import content_of
from rllib_kd.sweeps.result import SweepResult, SweptStudent, ratio_text
from rllib_kd.text import cell, for_html, for_spreadsheet, number, plain, printable, rendered, rough_percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class ReportedSweep(SweepResult):
    """A sweep's result that can be printed and written: what `Sweep.run()` returns."""

    def __str__(self) -> str:
        return summary(self)

    def write(self, folder: Path, *, at: str | None = None) -> None:
        """Write the report, as `write()` does."""
        write(self, folder, at=at)


def summary(result: SweepResult) -> str:
    """Return the front as a table of 80 columns, and the recommended student with its command and checkpoint."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    counts = f"{len(result.students)} settings, {len(result.front)} on the Pareto front"
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.title = cell(f"{result.env}: {counts}", "table.title").append("\n")
    own = [] if result.minimize == "parameters" else [UNITS[result.minimize].replace("-", "-\n").replace(" ", "\n", 1)]
    judged = "return\nratio*" if result.held_out is None else "agree-\nment*"
    for head in ("para-\nmeters", *own, "% of\nteacher", judged, "at\nleast†"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("setting")
    for student in result.front:
        mark = "→ " if student is result.recommended else ""
        table.add_row(
            f"{mark}{student.num_parameters:,}",
            *(f"{student.cost:,g}" for _ in own),
            rough_percent(student.compression),
            ratio_text(student.return_ratio),
            ratio_text(student.return_ratio_lower),
            cell(setting_in_a_line(student)),
        )
    text = rendered(
        table,
        "\n* (student − random) / (teacher − random), mean of the seeds"
        if result.held_out is None
        else "\n* with the teacher on held-out rows, mean of the seeds",
        "† lower bound of that mean, 95 % confidence\n",
        *result.remarks(),
    )
    if (best := result.best) is not None:  # not wrapped: it is there to be copied
        text += f"\n\n{printable(result.command(best))}"
        if best.best_checkpoint is not None:
            text += f"\n\n{_of_the_best(best)}:\n{printable(best.best_checkpoint)}"
    return text


def _of_the_best(student: SweptStudent) -> str:
    count = len(student.return_ratios)
    return "Its checkpoint" if count == 1 else f"Its checkpoint, of the best of {count} seeds"


def write(result: SweepResult, folder: Path, *, at: str | None = None) -> None:
    """Write `index.html` (one file that requests nothing), `pareto.png`, `sweep.csv` and `sweep.json`.

    If the recommended student was tested, `certificate.json` and `README.md`, too.

    Args:
        result: result of the sweep.
        folder: folder to write to.
        at: path or URI of the folder in which the page will lie, for its links to checkpoints; None: `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = result.rows()
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(map(for_spreadsheet, names))
    writer.writerows([_csv(row.get(name, "")) for name in names] for row in rows)
    replace_file(folder / "sweep.csv", table.getvalue().encode())
    content = result.to_dict()
    text = json.dumps(content, indent=1, allow_nan=False)
    replace_file(folder / "sweep.json", f"{text}\n".encode())
    if result.certified is not None:
        text = json.dumps(content_of(*result.certified, content), indent=1)
        replace_file(folder / "certificate.json", f"{text}\n".encode())
        write_certificate_card(folder, content)
    if result.students:
        png(folder / "pareto.png", partial(front_plot, result))
    at = str(folder.absolute()) if at is None else at
    replace_file(folder / "index.html", _page(result, at).encode())


def setting_in_a_line(student: SweptStudent) -> str:
    """Return the setting in a line: `16 units, kl, lr 0.003, …`."""
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


def front_plot(result: SweepResult) -> Figure:
    """Plot size against return ratio of every student, with the Pareto front: all, and those near the teacher."""
    figure, both = new_figure(3.4, width=2 * WIDTH, columns=2)
    for axes in both:
        _draw_front(axes, result)
    every, near = both
    lowest = min(student.return_ratio for student in result.students)
    every.set_ylim(min(0.0, lowest) - 0.06, None)
    every.set_ylabel(f"{result.measured.name}, mean of seeds")
    near.axhline(result.good, color=FOREGROUND, linestyle="-.", linewidth=0.8, zorder=1)
    near.annotate(
        f"{result.good:.3g}", (0.995, result.good), xycoords=("axes fraction", "data"), ha="right", va="bottom"
    )
    near.set_ylim(0.9, max(1.01, 0.01 + max(student.return_ratio for student in result.students)))
    near.set_title("from 0.9 on", fontsize=9)
    every.set_title("all", fontsize=9)
    place_legend(figure, every)
    return figure


def _draw_front(axes: Axes, result: SweepResult) -> None:
    axes.axhline(1.0, color=FOREGROUND, linestyle="--", linewidth=1, zorder=1, label="teacher")
    if result.held_out is None:
        axes.axhline(0.0, color=MUTED, linestyle=":", linewidth=1.4, zorder=1, label="random policy")
    front, best = result.front, result.recommended
    is_known = result.minimize == "parameters" and math.isfinite(result.teacher_parameters)
    teacher = [result.teacher_parameters] if is_known else []
    if front:  # up to the size of the teacher
        sizes = [*(student.cost for student in front), *teacher]
        ratios = [*(student.return_ratio for student in front), *(front[-1].return_ratio for _ in teacher)]
        line: dict[str, Any] = {"color": colour_of(0), "linewidth": 1.6, "drawstyle": "steps-post", "zorder": 2}
        axes.plot(sizes, ratios, label="Pareto front", **line)
    # With an underscore Matplotlib leaves a label out of the legend: the line has one.
    kinds: dict[str, tuple[str, list[SweptStudent], dict[str, Any]]] = {
        "stopped early": (MUTED, [], {"marker": "o", "markersize": 5, "markerfacecolor": "none"}),
        "student": (MUTED, [], {"marker": "o", "markersize": 5}),
        "_front": (colour_of(0), [], {"marker": "o", "markersize": 7}),
        "recommended": (colour_of(1), [], {"marker": "*", "markersize": 15}),
    }
    for student in result.students:
        kind = "recommended" if student is best else "_front" if student in front else "student"
        kinds[kind if student.finished else "stopped early"][1].append(student)
    for label, (colour, students, mark) in kinds.items():
        sizes = [student.cost for student in students]
        ratios = [student.return_ratio for student in students]
        lower = [student.return_ratio_lower for student in students]
        drops = [r - low if math.isfinite(low) else 0.0 for r, low in zip(ratios, lower, strict=True)]
        if students:
            bars: dict[str, Any] = {"fmt": "none", "color": colour, "elinewidth": 1.0, "zorder": 2}
            axes.errorbar(sizes, ratios, yerr=[drops, [0.0] * len(drops)], **bars)
            axes.plot(sizes, ratios, label=label, color=colour, linestyle="none", zorder=3, **mark)
    star: dict[str, Any] = {"marker": "*", "markersize": 11, "linestyle": "none", "zorder": 3}
    axes.plot(teacher, [1.0] * len(teacher), color=FOREGROUND, **star)
    use_log_axis(axes, [*teacher, *(student.cost for student in result.students)])
    axes.set_xlabel(UNITS[result.minimize])


def _page(result: SweepResult, at: str) -> str:
    title = f"{printable(result.env)}: how small can the student be?"
    lead = f"{len(result.students)} settings, each a mean of its seeds."
    known = [f"{result.teacher_parameters:,} parameters"] if math.isfinite(result.teacher_parameters) else []
    if result.held_out is None:
        known.append(f"a mean return of {number(result.teacher_return)}")
        random = f"a random policy's return is {number(result.random_return)} ({result.num_episodes} episodes each)"
        lead += f" The teacher has {' and '.join(known)}; {random}."
    else:
        lead += "".join(f" The teacher has {size}." for size in known)
        lead += f" Students are judged on {result.held_out['choice']['units']:,} held-out {result.held_out['unit']}."
    body = f'<p class="lead">{for_html(lead)}</p>\n<section class="card" id="recommended">'
    body += "".join(f"<p>{for_html(line)}</p>" for line in result.remarks())
    if (best := result.best) is not None:
        body += f"<pre>{for_html(result.command(best))}</pre>"
        if best.best_checkpoint is not None:
            body += f"<p>{_of_the_best(best)}: {_link(best, at, best.best_checkpoint)}</p>"
    body += "</section>\n"
    if result.students:
        plot_title = f"Size and {'return' if result.held_out is None else 'agreement'}"
        plot = svg("front-plot", plot_title, partial(front_plot, result))
        body += '<div class="plots">' + section(
            "front",
            plot_title,
            "Left is smaller (the scale is logarithmic), up is better. The line is the Pareto front: no student "
            "found is both smaller and better than one on it. Bars reach down to the lower bound of the mean over "
            "seeds (95 % confidence). Open marks were stopped early.",
            # Twice as wide as other plots: narrow windows scroll.
            f'<div class="scroll"><div class="broad">{plot}</div></div>',
            wide=True,
        )
        body += "</div>\n" + f'<section class="card" id="settings">{_table(result, at)}</section>'
    return page(title, body)


def _table(result: SweepResult, at: str) -> str:
    own = [] if result.minimize == "parameters" else [UNITS[result.minimize]]
    heads = ("", "parameters", *own, "% of teacher", result.measured.name, "at least", "seeds", "env steps")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    head += "".join(f'<th scope="col" class="words">{name}</th>' for name in ("setting", "checkpoint"))
    lines = []
    for student in result.ranked:
        mark = "★ recommended" if student is result.recommended else "● front" if student in result.front else ""
        cells = [
            f"{student.num_parameters:,}",
            *(f"{student.cost:,g}" for _ in own),
            rough_percent(student.compression),
            ratio_text(student.return_ratio),
            ratio_text(student.return_ratio_lower),
            str(len(student.return_ratios)),
            f"{student.env_steps:,}",
        ]
        kind = "" if student.finished else ' class="reference"'
        row = "".join(f"<td>{for_html(figure)}</td>" for figure in cells)
        row += f'<td class="words">{for_html(setting_in_a_line(student))}</td>'
        row += f'<td class="words">{_link(student, at, student.name)}</td>'
        lines.append(
            f'<tr{kind}><th scope="row">{mark or ("" if student.finished else "stopped early")}</th>{row}</tr>'
        )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _link(student: SweptStudent, at: str, text: str) -> str:
    """Return a link to a student's checkpoint, relative to the page, so that it holds when the sweep's folder moves."""
    checkpoint = student.best_checkpoint
    if checkpoint is None:
        return "–"
    if _scheme(checkpoint) != _scheme(at):
        return for_html(text)
    link = posixpath.relpath(without_options(checkpoint), without_options(at))
    return f'<a href="{for_html(quote(link))}">{for_html(text)}</a>'


def _scheme(uri: str) -> str:
    return uri.partition("://")[0] if "://" in uri else ""


def _csv(value: Any) -> str | int | float:
    value = plain(value)
    if isinstance(value, int | float):
        return value
    return for_spreadsheet(value if isinstance(value, str) else json.dumps(value))
