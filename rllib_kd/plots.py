"""The plots of the report: drawn by matplotlib, put into the page as SVG that follows its light or dark theme."""

from __future__ import annotations

import io
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from rllib_kd.runs import BEHAVIOR, EXPLORING, whose
from rllib_kd.text import printable

if TYPE_CHECKING:  # matplotlib takes a second to import, and torch more
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from rllib_kd.evaluation import Comparison, PolicyReport
    from rllib_kd.pareto import SweepResult, SweptStudent

Points = Sequence[tuple[float, float]]  # (env steps, return); a `runs.Curve` knows whose returns they are

_FOREGROUND, _MUTED, _GRID = "#1b1f24", "#5b6570", "#d5d9de"
#: Distinct with any colour vision; six, and seven markers, so that forty-two students differ in one or the other.
_COLOURS = ("#0072b2", "#c44e00", "#00795a", "#a8407f", "#7a5c00", "#5252b8")
_DARK_COLOURS = ("#5ab4f0", "#ff8f52", "#3fcb9c", "#ea94c6", "#e2c34c", "#aaaaff")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GLYPHS = "●■▲◆▼✚✖"  # the same marks, for the table
_DASHES = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)))
#: What matplotlib draws in the colour on the left gets the colour of the page's light or dark theme instead.
VARIABLES = {_FOREGROUND: "--fg", _MUTED: "--muted", _GRID: "--grid"}
VARIABLES |= {colour: f"--c{i}" for i, colour in enumerate(_COLOURS)}

#: The page's variables in each theme.
THEMES = {
    "light": (_FOREGROUND, _MUTED, _GRID, *_COLOURS),
    "dark": ("#e8eaed", "#a3adb8", "#353c45", *_DARK_COLOURS),
}

_LARGEST = 1e100  # that is drawn: matplotlib computes with distances and margins, which must not overflow

WIDTH = 5.6  # inches of a plot; the page scales it to about 560 pixels
_LABEL_LENGTH = 22  # characters of a name in a plot; the tables have all of it
_CURVE_LABEL_LENGTH = 72  # what tells Tune's trials apart stands behind 40 characters that they share
_MAX_ACTIONS_WITH_NUMBERS = 6  # cells of larger confusion matrices are too small for text


@contextmanager
def _style() -> Iterator[None]:
    """Matplotlib as these plots want it, whatever the user's matplotlibrc says."""
    import matplotlib as mpl

    style: Any = {
        "svg.fonttype": "none",  # text stays text: it can be selected, read aloud, and takes the page's font
        "svg.hashsalt": "rllib_kd",  # the same figures give the same file
        "text.parse_math": False,  # a name with a $ is no formula
        "text.color": _FOREGROUND,
        "axes.labelcolor": _FOREGROUND,
        "axes.edgecolor": _MUTED,
        "xtick.color": _MUTED,
        "ytick.color": _MUTED,
        "xtick.labelcolor": _FOREGROUND,
        "ytick.labelcolor": _FOREGROUND,
        "grid.color": _GRID,
        "grid.linewidth": 0.6,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.8,
        "font.size": 9,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "figure.constrained_layout.use": True,
    }
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the browser has other fonts
        mpl.rcdefaults()  # a matplotlibrc of the user's would bring colours that no theme knows
        mpl.rcParams.update(style)
        yield


def png(path: str | os.PathLike[str], draw: Callable[[], Figure]) -> None:
    """Draw a figure into a PNG file, dark on white."""
    with _style():
        draw().savefig(path, dpi=200, facecolor="white", bbox_inches="tight", pad_inches=0.08)


def svg(key: str, title: str, draw: Callable[[], Figure]) -> str:
    """Draw a figure as an SVG element for this page: its theme's colours and fonts, ids of its own, no namespaces."""
    buffer = io.StringIO()
    with _style():
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        draw().savefig(buffer, format="svg", transparent=True, metadata=metadata, bbox_inches="tight", pad_inches=0.04)
    root = ElementTree.fromstring(buffer.getvalue())  # comments and doctype fall away
    for element in root.iter():
        element.tag = element.tag.split("}")[-1]
        for name, value in list(element.attrib.items()):
            del element.attrib[name]
            element.set(name.split("}")[-1], _attribute(key, name.split("}")[-1], value))
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    for definitions in root.findall("defs"):
        for rule in definitions.findall("style"):  # it would rule the whole page
            definitions.remove(rule)
    root.set("role", "img")
    root.set("aria-label", title)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _attribute(key: str, name: str, value: str) -> str:
    if name == "id":
        return f"{key}-{value}"
    if name == "href":
        return value.replace("#", f"#{key}-")
    value = re.sub(r"url\(#", f"url(#{key}-", value)
    return re.sub(r"#[0-9a-f]{6}", lambda match: _themed(match[0]), value) if name == "style" else value


def _themed(colour: str) -> str:
    return f"var({VARIABLES[colour]})" if colour in VARIABLES else colour


def _label(name: str, length: int = _LABEL_LENGTH) -> str:
    name = printable(name)
    return name if len(name) <= length else name[: length - 1] + "…"


def _legend_label(name: str, length: int = _LABEL_LENGTH) -> str:
    return " " + _label(name, length)  # matplotlib leaves out what begins with an underscore, or is empty


def _drawn(values: Sequence[float]) -> list[float]:
    """The values where they can be drawn; those beyond on the edge."""
    return [math.copysign(min(abs(value), _LARGEST), value) for value in values]


def colour_of(i: int) -> str:
    """The colour of student number `i`."""
    return _COLOURS[i % len(_COLOURS)]


def _marker(i: int) -> str:
    return _MARKERS[i % len(_MARKERS)]


def _figure(height: float, *, width: float = WIDTH, columns: int = 1) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def _legend(figure: Figure, axes: Axes) -> None:
    """Below the plot, where it covers nothing; in as many columns as have room."""
    handles, labels = axes.get_legend_handles_labels()
    column = 45 + 5 * max(map(len, labels))  # points: the mark, and about 5 for a character
    columns = min(max(1, int(72 * figure.get_figwidth() / column)), 6, len(labels))
    figure.set_figheight(figure.get_figheight() + 0.19 * math.ceil(len(handles) / columns))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, handlelength=2.2, columnspacing=1.4)


def _references(axes: Axes, first: Comparison, teacher: str | None = None) -> None:
    teacher_return, random_return = _drawn((first.teacher.return_mean, first.random.return_mean))
    axes.axhline(teacher_return, color=_FOREGROUND, linestyle="--", linewidth=1, zorder=1, label=teacher)
    axes.axhline(random_return, color=_MUTED, linestyle=":", linewidth=1.4, zorder=1, label="random policy")


def scatter(
    comparisons: Sequence[Comparison],
    measure: Callable[[PolicyReport], float | None],
    label: str,
    *,
    log: bool = False,
) -> Figure:
    """Return over some measure of a policy, one mark each."""
    figure, (axes,) = _figure(3.3)
    _references(axes, comparisons[0])
    marks = [(comparisons[0].teacher, _FOREGROUND, "*")]
    marks += [(comparison.student, colour_of(i), _marker(i)) for i, comparison in enumerate(comparisons)]
    values = []
    for report, colour, marker in marks:
        value = measure(report)
        if value is None:
            continue
        values.append(value)
        mean, interval = _drawn((report.return_mean, report.return_ci95))
        if math.isfinite(report.return_ci95):
            bars: dict[str, Any] = {
                "fmt": "none",
                "color": colour,
                "capsize": 4,
                "elinewidth": 1.2,
                "zorder": 2,
            }
            axes.errorbar(value, mean, yerr=interval, **bars)
        size = 11 if marker == "*" else 7
        mark: dict[str, Any] = {"color": colour, "marker": marker, "markersize": size, "linestyle": "none", "zorder": 3}
        axes.plot(value, mean, label=_legend_label(report.name), **mark)
    if log:
        _log_axis(axes, values)
    else:
        axes.set_xlim(0, 1.08 * max(values))
    axes.margins(y=0.08)
    axes.set_xlabel(label)
    axes.set_ylabel("return, mean of episodes")
    _legend(figure, axes)
    return figure


def _log_axis(axes: Axes, values: Sequence[float]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.set_xlim(min(values) / 1.6, max(values) * 1.6)
    decades = math.log10(max(values) / min(values))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2.5 else (1,)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def front_plot(result: SweepResult) -> Figure:
    """Every student of a sweep on size against return ratio, with the Pareto front: all, and those near the teacher."""
    from rllib_kd.pareto import GOOD_RATIO

    figure, both = _figure(3.4, width=2 * WIDTH, columns=2)
    for axes in both:
        _draw_front(axes, result)
    every, near = both
    lowest = min(student.return_ratio for student in result.students)
    every.set_ylim(min(0.0, lowest) - 0.06, None)
    every.set_ylabel("return ratio, mean of seeds")
    near.axhline(GOOD_RATIO, color=_FOREGROUND, linestyle="-.", linewidth=0.8, zorder=1)
    near.annotate(f"{GOOD_RATIO:g}", (0.995, GOOD_RATIO), xycoords=("axes fraction", "data"), ha="right", va="bottom")
    near.set_ylim(0.9, max(1.01, 0.01 + max(student.return_ratio for student in result.students)))
    near.set_title("from 0.9 on", fontsize=9)
    every.set_title("all", fontsize=9)
    _legend(figure, every)
    return figure


def _draw_front(axes: Axes, result: SweepResult) -> None:
    axes.axhline(1.0, color=_FOREGROUND, linestyle="--", linewidth=1, zorder=1, label="teacher")
    axes.axhline(0.0, color=_MUTED, linestyle=":", linewidth=1.4, zorder=1, label="random policy")
    front, best = result.front, result.recommended
    if front:  # up to the size of the teacher
        sizes = [*(student.num_parameters for student in front), result.teacher_parameters]
        ratios = [*(student.return_ratio for student in front), front[-1].return_ratio]
        line: dict[str, Any] = {"color": colour_of(0), "linewidth": 1.6, "drawstyle": "steps-post", "zorder": 2}
        axes.plot(sizes, ratios, label="Pareto front", **line)
    # With an underscore Matplotlib leaves a label out of the legend: the line has one.
    kinds: dict[str, tuple[str, list[SweptStudent], dict[str, Any]]] = {
        "stopped early": (_MUTED, [], {"marker": "o", "markersize": 5, "markerfacecolor": "none"}),
        "student": (_MUTED, [], {"marker": "o", "markersize": 5}),
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
    axes.plot(result.teacher_parameters, 1.0, color=_FOREGROUND, marker="*", markersize=11, linestyle="none", zorder=3)
    _log_axis(axes, [result.teacher_parameters, *(student.num_parameters for student in result.students)])
    axes.set_xlabel("parameters")


def agreement_plot(comparisons: Sequence[Comparison]) -> Figure:
    """Agreement on the teacher's and on the student's states, a line for each student."""
    figure, (axes,) = _figure(1.1 + 0.42 * len(comparisons))
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
                marker=_marker(i),
                markersize=9 if fill == "none" else 6,
                markerfacecolor=fill,
                markeredgewidth=1.6,
                zorder=3,
                clip_on=False,
            )
    span = max(100 - lowest, 2.0)
    axes.set_xlim(max(100 - 1.1 * span, -2), 100)
    axes.set_ylim(len(comparisons) - 0.4, -0.6)
    axes.set_yticks(range(len(comparisons)), [_label(comparison.student.name) for comparison in comparisons])
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("states with the teacher's action (%)")
    return figure


def returns_plot(comparisons: Sequence[Comparison]) -> Figure:
    """Every episode's return, with the middle half and the median, a row for each policy."""
    import numpy as np
    from matplotlib.patches import Rectangle

    first = comparisons[0]
    rows = [(first.teacher, _FOREGROUND), (first.random, _MUTED)]
    rows += [(comparison.student, colour_of(i)) for i, comparison in enumerate(comparisons)]
    figure, (axes,) = _figure(0.8 + 0.46 * len(rows))
    rng = np.random.default_rng(0)
    for i, (report, colour) in enumerate(rows):
        returns = _drawn(report.returns)
        spread = rng.uniform(-0.3, 0.3, len(returns))
        axes.scatter(returns, i + spread, s=9, color=colour, alpha=0.45, linewidths=0, zorder=3)
        low, median, high = np.percentile(returns, (25, 50, 75))
        axes.add_patch(Rectangle((low, i - 0.33), high - low, 0.66, facecolor="none", edgecolor=colour, zorder=2))
        axes.plot([median, median], [i - 0.33, i + 0.33], color=colour, linewidth=2.4, zorder=4)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [_label(report.name) for report, _ in rows])
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("return of an episode")
    return figure


def curves_plot(comparisons: Sequence[Comparison], curves: Mapping[str, Points], width: float) -> Figure:
    """Return over env steps, `width` inches wide. Curves of others than greedy policies say so."""
    from matplotlib.ticker import EngFormatter

    figure, (axes,) = _figure(3.4, width=width)
    _references(axes, comparisons[0], "teacher")
    students = [comparison.student.name for comparison in comparisons]
    kinds = {whose(curve) for curve in curves.values()}
    added = {BEHAVIOR: " (behaviour policy)", EXPLORING: " (exploring)" if len(kinds) > 1 else ""}
    for i, name in enumerate([*students, *(name for name in curves if name not in students)]):
        if name not in curves:
            continue
        steps, returns = map(_drawn, zip(*curves[name], strict=True))
        axes.plot(
            steps,
            returns,
            color=colour_of(i),
            linestyle=_DASHES[i // len(_COLOURS) % len(_DASHES)],
            linewidth=1.6,
            marker=_marker(i),
            markersize=4,
            markevery=max(1, len(steps) // 12),
            label=_legend_label(name, _CURVE_LABEL_LENGTH) + added.get(whose(curves[name]), ""),
        )
    axes.margins(x=0.01, y=0.08)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("env steps")
    axes.set_ylabel("return of the behaviour policy" if kinds == {BEHAVIOR} else "return, mean of episodes")
    _legend(figure, axes)
    return figure


def confusion_plot(comparison: Comparison, i: int) -> Figure:
    """Both confusion matrices of one comparison, in the colour of its number `i`."""
    from matplotlib.patches import Rectangle

    figure, both = _figure(2.9, columns=2)
    matrices = (comparison.confusion_on_teacher_states, comparison.confusion_on_student_states)
    for axes, matrix, owner in zip(both, matrices, ("teacher's", "student's"), strict=True):
        actions = len(matrix)
        for row, counts in enumerate(matrix):
            total = sum(counts)
            for column, count in enumerate(counts):
                share = count / total if total else 0.0
                # Never opaque, so that text in the foreground's colour can be read in every cell of either theme.
                cell: dict[str, Any] = {"facecolor": colour_of(i), "alpha": 0.55 * share, "linewidth": 0}
                axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, **cell))
                if actions <= _MAX_ACTIONS_WITH_NUMBERS:
                    text = f"{100 * share:.1f} %\n({count:,})" if actions < 4 else f"{100 * share:.0f} %"
                    axes.text(column, row, text if total else "–", ha="center", va="center", fontsize=8)
        every = math.ceil(actions / 10)
        axes.set_xticks(range(0, actions, every))
        axes.set_yticks(range(0, actions, every))
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
