"""The plots of comparisons."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rllib_kd.checkpoints.runs import BEHAVIOR, EXPLORING, whose
from rllib_kd.report.confusion import drawn_actions
from rllib_kd.report.drawing import (
    COLOURS,
    DASHES,
    FOREGROUND,
    MUTED,
    Points,
    as_drawn,
    colour_of,
    marker_of,
    new_figure,
    place_legend,
    short_label,
    short_legend_label,
    use_log_axis,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from rllib_kd.evaluation.result import Comparison, PolicyReport


_CURVE_LABEL_LENGTH = 72  # names of Tune's trials share their first 40 characters
_MAX_ACTIONS_WITH_NUMBERS = 6  # cells of larger confusion matrices are too small for text


def scatter(
    comparisons: Sequence[Comparison],
    measure: Callable[[PolicyReport], float | None],
    label: str,
    *,
    log: bool = False,
) -> Figure:
    """Plot the return over some measure of a policy, one mark each."""
    figure, (axes,) = new_figure(3.3)
    _draw_references(axes, comparisons[0])
    marks = [(comparisons[0].teacher, FOREGROUND, "*")]
    marks += [(comparison.student, colour_of(i), marker_of(i)) for i, comparison in enumerate(comparisons)]
    values = []
    for report, colour, marker in marks:
        value = measure(report)
        if value is None or math.isnan(value):  # not measured, or unknown, as for a function
            continue
        values.append(value)
        mean, interval = as_drawn((report.return_mean, report.return_ci95))
        if math.isfinite(report.return_ci95):
            bars: dict[str, Any] = {"fmt": "none", "color": colour, "capsize": 4, "elinewidth": 1.2, "zorder": 2}
            axes.errorbar(value, mean, yerr=interval, **bars)
        size = 11 if marker == "*" else 7
        mark: dict[str, Any] = {"color": colour, "marker": marker, "markersize": size, "linestyle": "none", "zorder": 3}
        axes.plot(value, mean, label=short_legend_label(report.name), **mark)
    if log:
        use_log_axis(axes, values)
    else:
        axes.set_xlim(0, 1.08 * max(values))
    axes.margins(y=0.08)
    axes.set_xlabel(label)
    axes.set_ylabel("return, mean of episodes")
    place_legend(figure, axes)
    return figure


def agreement_plot(comparisons: Sequence[Comparison]) -> Figure:
    """Plot the agreement on the teacher's and on the student's states, a line for each student."""
    figure, (axes,) = new_figure(1.1 + 0.42 * len(comparisons))
    lowest = 100.0
    for i, comparison in enumerate(comparisons):
        on_teachers = 100 * comparison.agreement_on_teacher_states
        on_students = 100 * comparison.agreement_on_student_states
        lowest = min(lowest, on_teachers, on_students)
        axes.plot([on_teachers, on_students], [i, i], color=colour_of(i), linewidth=1.6, zorder=2)
        for value, fill in ((on_teachers, colour_of(i)), (on_students, "none")):
            axes.plot(
                value,
                i,
                color=colour_of(i),
                marker=marker_of(i),
                markersize=9 if fill == "none" else 6,
                markerfacecolor=fill,
                markeredgewidth=1.6,
                zorder=3,
                clip_on=False,
            )
    span = max(100 - lowest, 2.0)
    axes.set_xlim(max(100 - 1.1 * span, -2), 100)
    axes.set_ylim(len(comparisons) - 0.4, -0.6)
    axes.set_yticks(range(len(comparisons)), [short_label(comparison.student.name) for comparison in comparisons])
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("states with the teacher's action (%)")
    return figure


def returns_plot(comparisons: Sequence[Comparison]) -> Figure:
    """Plot every episode's return, with the middle half and the median, a row for each policy."""
    from matplotlib.patches import Rectangle

    first = comparisons[0]
    rows = [(first.teacher, FOREGROUND), (first.random, MUTED)]
    rows += [(comparison.student, colour_of(i)) for i, comparison in enumerate(comparisons)]
    figure, (axes,) = new_figure(0.8 + 0.46 * len(rows))
    rng = np.random.default_rng(0)
    for i, (report, colour) in enumerate(rows):
        returns = as_drawn(report.returns)
        spread = rng.uniform(-0.3, 0.3, len(returns))
        axes.scatter(returns, i + spread, s=9, color=colour, alpha=0.45, linewidths=0, zorder=3)
        low, median, high = np.percentile(returns, (25, 50, 75))
        axes.add_patch(Rectangle((low, i - 0.33), high - low, 0.66, facecolor="none", edgecolor=colour, zorder=2))
        axes.plot([median, median], [i - 0.33, i + 0.33], color=colour, linewidth=2.4, zorder=4)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [short_label(report.name) for report, _ in rows])
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("return of an episode")
    return figure


def curves_plot(comparisons: Sequence[Comparison], curves: Mapping[str, Points], width: float) -> Figure:
    """Plot the return over env steps, `width` inches wide; curves of others than greedy policies are marked."""
    from matplotlib.ticker import EngFormatter

    figure, (axes,) = new_figure(3.4, width=width)
    _draw_references(axes, comparisons[0], "teacher")
    students = [comparison.student.name for comparison in comparisons]
    kinds = {whose(curve) for curve in curves.values()}
    added = {BEHAVIOR: " (behaviour policy)", EXPLORING: " (exploring)" if len(kinds) > 1 else ""}
    for i, name in enumerate([*students, *(name for name in curves if name not in students)]):
        if name not in curves:
            continue
        steps, returns = map(as_drawn, zip(*curves[name], strict=True))
        axes.plot(
            steps,
            returns,
            color=colour_of(i),
            linestyle=DASHES[i // len(COLOURS) % len(DASHES)],
            linewidth=1.6,
            marker=marker_of(i),
            markersize=4,
            markevery=max(1, len(steps) // 12),
            label=short_legend_label(name, _CURVE_LABEL_LENGTH) + added.get(whose(curves[name]), ""),
        )
    axes.margins(x=0.01, y=0.08)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("env steps")
    axes.set_ylabel("return of the behaviour policy" if kinds == {BEHAVIOR} else "return, mean of episodes")
    place_legend(figure, axes)
    return figure


def confusion_plot(comparison: Comparison, i: int) -> Figure:
    """Plot both confusion matrices of one comparison, in the colour of student number `i`."""
    from matplotlib.patches import Rectangle

    figure, both = new_figure(2.9, columns=2)
    matrices = (comparison.confusion_on_teacher_states, comparison.confusion_on_student_states)
    for axes, matrix, owner in zip(both, matrices, ("teacher's", "student's"), strict=True):
        every_count = np.asarray(matrix)
        shown = drawn_actions(every_count)
        actions, totals = len(shown), every_count[shown].sum(-1)
        for row, counts in enumerate(every_count[np.ix_(shown, shown)]):
            total = totals[row]
            for column, count in enumerate(counts):
                share = count / total if total else 0.0
                # Never opaque, so that text in the foreground's colour can be read in every cell of either theme.
                cell: dict[str, Any] = {"facecolor": colour_of(i), "alpha": 0.55 * share, "linewidth": 0}
                if count:  # of hundreds of actions, few are confused
                    axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, **cell))
                if actions <= _MAX_ACTIONS_WITH_NUMBERS:
                    text = f"{100 * share:.1f} %\n({count:,})" if actions < 4 else f"{100 * share:.0f} %"
                    axes.text(column, row, text if total else "–", ha="center", va="center", fontsize=8)
        every = math.ceil(actions / 10)
        places = range(0, actions, every)
        axes.set_xticks(places, labels=shown[places])
        axes.set_yticks(places, labels=shown[places])
        axes.set_xlim(-0.5, actions - 0.5)
        axes.set_ylim(actions - 0.5, -0.5)
        axes.set_aspect("equal")
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.spines[:].set_visible(True)
        axes.set_title(f"on the {owner} states", fontsize=9)
        axes.set_xlabel("student's action")
        axes.set_ylabel("teacher's action" if axes is both[0] else "")
    return figure


def _draw_references(axes: Axes, first: Comparison, teacher: str | None = None) -> None:
    """Draw the returns of the teacher and of the random policy as lines."""
    axes.axhline(first.teacher.return_mean, color=FOREGROUND, linestyle="--", linewidth=1, zorder=1, label=teacher)
    axes.axhline(first.random.return_mean, color=MUTED, linestyle=":", linewidth=1.4, zorder=1, label="random policy")
