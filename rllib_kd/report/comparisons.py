"""The report of comparisons: a table for the terminal, an HTML page with plots, and every figure in JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rllib_kd.checkpoints.runs import BEHAVIOR, Curve, whose
from rllib_kd.paths import replace_file
from rllib_kd.public import public
from rllib_kd.report.confusion import MAX_ACTIONS, is_large, written
from rllib_kd.report.drawing import GLYPHS, VARIABLES, WIDTH, Points, colour_of, svg
from rllib_kd.report.page import page, section
from rllib_kd.report.plots import agreement_plot, confusion_plot, curves_plot, returns_plot, scatter
from rllib_kd.report.trees import tree_section
from rllib_kd.text import (
    cell,
    finite_or_none,
    for_html,
    how_many,
    means_and_intervals,
    percent,
    printable,
    ratio,
    rendered,
)

if TYPE_CHECKING:
    from rllib_kd.evaluation.result import Comparison


_STATES = ("teacher’s states", "student’s states")

_REGRET = "regret on"  # the head of its columns, without its name and unit

#: Heads of the table, each with the keys of its columns.
_COLUMNS = {
    "parameters": ("parameters",),
    "% of teacher": ("compression",),
    "return, mean ± 95&nbsp;%&nbsp;CI": ("return",),
    "return ratio": ("return_ratio",),
    "agreement (%) on": ("agreement_on_teacher_states", "agreement_on_student_states"),
    _REGRET: ("q_regret_on_teacher_states", "q_regret_on_student_states"),
    "latency (µs)": ("latency",),
    "times as fast": ("speedup",),
}


@public
def summary_table(comparisons: Sequence[Comparison]) -> str:
    """Return a table of at most 80 columns, with a row for each student, the teacher and a random policy.

    Args:
        comparisons: comparisons with one teacher in one environment, as `compare_all()` returns them; at least one.

    Raises:
        ValueError: there are no comparisons, or their environments, teachers or episodes differ.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    first = _common(comparisons)
    played_in = f"played in {printable(first.played_in)}\n\n" if first.env_config else ""
    # Narrow gaps and two figures in one column: 123,456,789 parameters leave eight characters for the name, a few
    # thousand leave twenty, and no figure is cut.
    title = cell(first.conditions if first.env_config else _title(first), "table.title").append("\n")
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), title=title)
    table.add_column("", min_width=8, overflow="fold")
    for head in ("para-\nmeters", "% of\nteacher", "return\n± 95 % CI", "return\nratio*"):
        table.add_column(head, justify="right", no_wrap=True)
    for head in ("agree %†\nT's / S's", "latency\nµs"):
        table.add_column(head, justify="right", no_wrap=True)
    for i, row in enumerate(_rows(comparisons)):
        cells = [row[key] for key in ("parameters", "compression", "return", "return_ratio")]
        both = [row[f"agreement_on_{owner}_states"] for owner in ("teacher", "student")]
        table.add_row(cell(row["name"]), *cells, " / ".join(filter(None, both)), row["latency"], end_section=i == 1)
    return played_in + rendered(
        table,
        "\n * (student − random) / (teacher − random)",
        " † states with the same action, or an equally good one: teacher's / student's",
    )


@public
def write_report(
    comparisons: Sequence[Comparison],
    out_dir: str | os.PathLike[str],
    *,
    curves: Mapping[str, Points] | None = None,
) -> Path:
    """Write `index.html`, a page with plots that loads nothing from elsewhere, and `figures.json`.

    Args:
        comparisons: comparisons with one teacher in one environment, as `compare_all()` returns them; at least one.
        out_dir: folder, which is created if it does not exist; files of these two names are replaced.
        curves: learning curves by name, as `read_curves()` returns them: pairs of (env steps, return), labelled with
            the policy whose returns they are. A curve with a student's name gets its colour.

    Returns:
        Path of `index.html`.

    Raises:
        ValueError: there are no comparisons, or their environments, teachers or episodes differ.
        OSError: the folder cannot be written.
    """
    _common(comparisons)
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    figures = _figures(comparisons, curves or {})
    replace_file(folder / "figures.json", (json.dumps(figures, indent=1, allow_nan=False) + "\n").encode())
    index = folder / "index.html"
    replace_file(index, _page(comparisons, curves or {}).encode())
    return index


def _common(comparisons: Sequence[Comparison]) -> Comparison:
    """Return the first comparison, after checking that all have its environment, teacher and random policy."""
    if not comparisons:
        raise ValueError("There is nothing to report: `comparisons` is empty. compare_all() returns some.")
    first = comparisons[0]
    for other in comparisons[1:]:
        names = f"{first.student.name!r} and {other.student.name!r}"
        if first.played_in != other.played_in:
            raise ValueError(
                f"{names} played in '{first.played_in}' and '{other.played_in}'. Write one report for each environment."
            )
        if (first.teacher.returns, first.random.returns) != (other.teacher.returns, other.random.returns):
            raise ValueError(
                f"{names} were compared with different teachers or on different episodes, so one table would be "
                "misleading. Compare them together, with compare_all()."
            )
    return first


def _figures(comparisons: Sequence[Comparison], curves: Mapping[str, Points]) -> dict[str, Any]:
    """Return all figures, with teacher and random policy once; values that are not finite are None, for JSON."""
    shared = ("env", "env_config", "num_episodes", "epsilon", "teacher", "random", "regret_unit")
    dicts = list(map(_as_dict, comparisons))
    students = [d["student"] | {k: v for k, v in d.items() if k not in (*shared, "student")} for d in dicts]
    figures = {key: dicts[0][key] for key in shared} | {"students": students}
    figures["curves"] = {name: [list(point) for point in curve] for name, curve in curves.items()}
    figures["curves_of"] = {name: whose(curve) for name, curve in curves.items()}
    return finite_or_none(figures)


def _as_dict(comparison: Comparison) -> dict[str, Any]:
    names = [f"confusion_on_{owner}_states" for owner in ("teacher", "student")]
    large = {name: matrix for name in names if is_large(matrix := getattr(comparison, name))}
    without: dict[str, Any] = {name: [] for name in large}
    return replace(comparison, **without).to_dict() | {name: written(matrix) for name, matrix in large.items()}


def _title(first: Comparison) -> str:
    return f"{first.played_in}, {first.conditions}"


def _rows(comparisons: Sequence[Comparison]) -> list[dict[str, str]]:
    """Return the cells of both tables, by row and name; a cell is empty if a policy has no such figure."""
    first = comparisons[0]
    reports = [first.teacher, first.random, *(comparison.student for comparison in comparisons)]
    returns = means_and_intervals([(report.return_mean, report.return_ci95) for report in reports])
    rows = []
    for report, shown_return in zip(reports, returns, strict=True):
        rows.append(
            dict.fromkeys(
                ("agreement_on_teacher_states", "agreement_on_student_states", "return_ratio", "compression"), ""
            )
            | dict.fromkeys(("q_regret_on_teacher_states", "q_regret_on_student_states", "speedup"), "")
            | {
                "name": report.name,
                "return": shown_return,
                "parameters": "" if report.num_parameters is None else how_many(report.num_parameters),
                "latency": "" if report.latency_ms is None else f"{1e3 * report.latency_ms:.0f}",
            }
        )
    rows[0] |= {"return_ratio": "1.000", "compression": "100.00", "speedup": "1.00"}
    rows[1] |= {"return_ratio": "0.000"}
    for comparison, row in zip(comparisons, rows[2:], strict=True):
        row |= {
            "return_ratio": ratio(comparison.return_ratio),
            "compression": percent(comparison.compression),
            "agreement_on_teacher_states": f"{100 * comparison.agreement_on_teacher_states:.1f}",
            "agreement_on_student_states": f"{100 * comparison.agreement_on_student_states:.1f}",
            "q_regret_on_teacher_states": f"{comparison.q_regret_on_teacher_states:#.3g}",
            "q_regret_on_student_states": f"{comparison.q_regret_on_student_states:#.3g}",
        }
        if comparison.teacher.latency_ms and comparison.student.latency_ms:
            row["speedup"] = f"{comparison.teacher.latency_ms / comparison.student.latency_ms:.2f}"
    return rows


def _page(comparisons: Sequence[Comparison], curves: Mapping[str, Points]) -> str:
    first = comparisons[0]
    count = "1 student" if len(comparisons) == 1 else f"{len(comparisons)} students"
    title = f"{first.env}: {count} beside the teacher"
    return page(
        title,
        f"""<p class="lead">{for_html(_title(first))}. All policies except the random one act greedily.</p>
<section class="card" id="summary">
{_table(comparisons)}
<p class="note"><b>Return ratio</b>: (student − random) / (teacher − random). <b>Agreement</b>: share of states in
which student and teacher choose the same action, or the student an equally good one. {_regret_note(first)}
<b>Latency</b>: median time of one forward pass of one observation, on one CPU thread. Parameters exclude target
networks. All figures, with the return of each episode, are in <a href="figures.json">figures.json</a> beside this
page.</p>
</section>
<div class="plots">
{"".join(_sections(comparisons, curves))}
</div>""",
    )


def _regret_note(first: Comparison) -> str:
    """Return what the regret is: of Q-values, or of the log-probabilities of an actor-critic."""
    if first.regret_unit == "nats":
        return (
            "<b>Regret in nats</b>: mean difference between the log-probabilities that the teacher’s policy gives its "
            "likeliest action and the student’s action."
        )
    return (
        "<b>Q-regret</b>: mean difference between the teacher’s best Q-value and its Q-value of the student’s action, "
        "in units of return."
    )


def _table(comparisons: Sequence[Comparison]) -> str:
    head = '<tr><th scope="col" rowspan="2">policy</th>'
    for name, keys in _COLUMNS.items():
        name = f"{comparisons[0].regret_name} on" if name == _REGRET else name
        head += f'<th scope="col" {"rowspan" if len(keys) == 1 else "colspan"}="2">{name}</th>'
    head += "</tr><tr>" + 2 * "".join(f'<th scope="col">{states}</th>' for states in _STATES) + "</tr>"
    lines = []
    for i, row in enumerate(_rows(comparisons)):
        mark, variable = ("★", "--fg") if i == 0 else ("", "--muted")
        if i > 1:
            mark, variable = GLYPHS[(i - 2) % len(GLYPHS)], VARIABLES[colour_of(i - 2)]
        mark = f'<span class="mark" style="color: var({variable})" aria-hidden="true">{mark}</span>'
        cells = "".join(f"<td>{for_html(row[key]) or '–'}</td>" for keys in _COLUMNS.values() for key in keys)
        kind = ' class="reference"' if i < 2 else ""
        lines.append(f'<tr{kind}><th scope="row">{mark}{for_html(row["name"])}</th>{cells}</tr>')
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{"".join(lines)}</tbody></table></div>'


def _sections(comparisons: Sequence[Comparison], curves: Mapping[str, Points]) -> list[str]:
    """Return the plots, each with an explanation of how to read it."""
    finite = {
        name: Curve((point for point in curve if all(map(math.isfinite, point))), of=whose(curve))
        for name, curve in curves.items()
    }
    shown = {name: curve for name, curve in finite.items() if curve}
    return [
        *_policy_sections(comparisons),
        *([_curves_section(comparisons, shown)] if shown else []),
        _confusion_section(comparisons),
        tree_section(comparisons),
    ]


def _policy_sections(comparisons: Sequence[Comparison]) -> list[str]:
    return [
        section(
            "size",
            "Size and return",
            "Left is smaller (the scale is logarithmic), up is better: the best student stands at the height of the "
            "teacher’s dashed line and far to its left. Bars are 95 % confidence intervals of the mean.",
            svg(
                "size-plot",
                "Size and return",
                lambda: scatter(comparisons, lambda report: report.num_parameters, "parameters", log=True),
            ),
        ),
        section(
            "latency",
            "Latency and return",
            "Left is faster, up is better. Below some size a forward pass is overhead only, and a smaller student is "
            "no faster.",
            svg(
                "latency-plot",
                "Latency and return",
                lambda: scatter(
                    comparisons,
                    lambda report: None if report.latency_ms is None else 1e3 * report.latency_ms,
                    "latency of one observation (µs)",
                ),
            ),
        ),
        section(
            "agreement",
            "Agreement with the teacher",
            "Filled: states that the teacher visits; open: states that the student visits. An open mark far left of "
            "the filled one is a student that drifts to states in which it has not learned the teacher’s action.",
            svg("agreement-plot", "Agreement with the teacher", lambda: agreement_plot(comparisons)),
        ),
        section(
            "returns",
            "Distribution of returns",
            "Each dot is an episode (spread vertically so that equal returns are visible), the box contains the middle "
            "half, its line is the median. Two policies with the same mean may differ in how often they fail.",
            svg("returns-plot", "Distribution of returns", lambda: returns_plot(comparisons)),
        ),
    ]


def _curves_section(comparisons: Sequence[Comparison], curves: Mapping[str, Curve]) -> str:
    # Twice, for wide and for narrow windows: scaled from one to the other its text would be unreadable.
    both = (
        f'<div class="if-{name}">'
        + svg(f"curves-{name}", "Learning curves", partial(curves_plot, comparisons, curves, width))
        + "</div>"
        for name, width in (("wide", 2 * WIDTH), ("narrow", WIDTH))
    )
    title, explanation = _about_curves({whose(curve) for curve in curves.values()})
    return section("curves", title, explanation, "".join(both), wide=True)


def _confusion_section(comparisons: Sequence[Comparison]) -> str:
    matrices = "".join(
        f"<div><h3>{for_html(comparison.student.name)}</h3>"
        + svg(
            f"confusion-{i}",
            f"Confusion of actions, {printable(comparison.student.name)}",
            partial(confusion_plot, comparison, i),
        )
        + "</div>"
        for i, comparison in enumerate(comparisons)
    )
    num_actions = len(comparisons[0].confusion_on_teacher_states)
    rest = (
        f" Of the {num_actions:,} actions, the {MAX_ACTIONS} that are chosen most often are drawn, and figures.json "
        "has the most frequent pairs."
        if is_large(comparisons[0].confusion_on_teacher_states)
        else ""
    )
    return section(
        "confusion",
        "Which actions are confused",
        "How often the student chooses the column’s action in states in which the teacher chooses the row’s: the "
        "stronger the colour, the larger the share of the row (in percent and number of states, if cells have room). "
        "A perfect student has colour on the diagonal only. A row without colour is an action that the teacher never "
        "chooses in these states." + rest,
        f'<div class="pair">{matrices}</div>',
        wide=True,
    )


def _about_curves(kinds: Collection[str]) -> tuple[str, str]:
    """Return title and explanation of learning curves of these kinds."""
    title, words = "Learning curves", ["Mean return after so many env steps of training."]
    if BEHAVIOR in kinds:
        title += " of the behaviour policy" if len(kinds) == 1 else ""
        words.append(
            "<b>Curves of the behaviour policy show teacher and student together, not the student alone</b>: these "
            "runs were not evaluated while they trained (evaluation_interval=1 does so)."
        )
    if set(kinds) != {BEHAVIOR}:
        words.append(
            "The further left a curve reaches the teacher’s dashed line, the fewer steps its student needed."
            if BEHAVIOR not in kinds
            else "Of the others, the further left a curve reaches the teacher’s dashed line, the fewer steps its "
            "student needed."
        )
    words.append("The dashed line is the teacher, the dotted one the random policy.")
    return title, " ".join(words)
