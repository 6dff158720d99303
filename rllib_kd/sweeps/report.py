"""The plot of a sweep."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rllib_kd.report.drawing import FOREGROUND, MUTED, WIDTH, colour_of, new_figure, place_legend, use_log_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from rllib_kd.sweeps.result import SweepResult, SweptStudent


def front_plot(result: SweepResult) -> Figure:
    """Every student of a sweep on size against return ratio, with the Pareto front: all, and those near the teacher."""
    from rllib_kd.sweeps.result import GOOD_RATIO

    figure, both = new_figure(3.4, width=2 * WIDTH, columns=2)
    for axes in both:
        _draw_front(axes, result)
    every, near = both
    lowest = min(student.return_ratio for student in result.students)
    every.set_ylim(min(0.0, lowest) - 0.06, None)
    every.set_ylabel("return ratio, mean of seeds")
    near.axhline(GOOD_RATIO, color=FOREGROUND, linestyle="-.", linewidth=0.8, zorder=1)
    near.annotate(f"{GOOD_RATIO:g}", (0.995, GOOD_RATIO), xycoords=("axes fraction", "data"), ha="right", va="bottom")
    near.set_ylim(0.9, max(1.01, 0.01 + max(student.return_ratio for student in result.students)))
    near.set_title("from 0.9 on", fontsize=9)
    every.set_title("all", fontsize=9)
    place_legend(figure, every)
    return figure


def _draw_front(axes: Axes, result: SweepResult) -> None:
    axes.axhline(1.0, color=FOREGROUND, linestyle="--", linewidth=1, zorder=1, label="teacher")
    axes.axhline(0.0, color=MUTED, linestyle=":", linewidth=1.4, zorder=1, label="random policy")
    front, best = result.front, result.recommended
    if front:  # up to the size of the teacher
        sizes = [*(student.num_parameters for student in front), result.teacher_parameters]
        ratios = [*(student.return_ratio for student in front), front[-1].return_ratio]
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
        sizes = [student.num_parameters for student in students]
        ratios = [student.return_ratio for student in students]
        lower = [student.return_ratio_lower for student in students]
        drops = [r - low if math.isfinite(low) else 0.0 for r, low in zip(ratios, lower, strict=True)]
        if students:
            bars: dict[str, Any] = {"fmt": "none", "color": colour, "elinewidth": 1.0, "zorder": 2}
            axes.errorbar(sizes, ratios, yerr=[drops, [0.0] * len(drops)], **bars)
            axes.plot(sizes, ratios, label=label, color=colour, linestyle="none", zorder=3, **mark)
    axes.plot(result.teacher_parameters, 1.0, color=FOREGROUND, marker="*", markersize=11, linestyle="none", zorder=3)
    use_log_axis(axes, [result.teacher_parameters, *(student.num_parameters for student in result.students)])
    axes.set_xlabel("parameters")
