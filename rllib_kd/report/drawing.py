"""Drawing by Matplotlib in the colours of the page: SVG that follows its light or dark theme, and PNG."""

from __future__ import annotations

import io
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from rllib_kd.paths import replace_file
from rllib_kd.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = Sequence[tuple[float, float]]  # (env steps, return); a `runs.Curve` also records whose returns they are

FOREGROUND, MUTED, _GRID = "#1b1f24", "#5b6570", "#d5d9de"

#: Distinct with any colour vision; six, and seven markers, so that forty-two students differ in one or the other.
COLOURS = ("#0072b2", "#c44e00", "#00795a", "#a8407f", "#7a5c00", "#5252b8")
_DARK_COLOURS = ("#5ab4f0", "#ff8f52", "#3fcb9c", "#ea94c6", "#e2c34c", "#aaaaff")

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GLYPHS = "●■▲◆▼✚✖"  # the same marks, for the table

DASHES = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)))

#: What matplotlib draws in the colour on the left gets the colour of the page's light or dark theme instead.
VARIABLES = {FOREGROUND: "--fg", MUTED: "--muted", _GRID: "--grid"}
VARIABLES |= {colour: f"--c{i}" for i, colour in enumerate(COLOURS)}

#: The page's variables in each theme.
THEMES = {
    "light": (FOREGROUND, MUTED, _GRID, *COLOURS),
    "dark": ("#e8eaed", "#a3adb8", "#353c45", *_DARK_COLOURS),
}

_LARGEST = 1e100  # that is drawn: matplotlib computes with distances and margins, which must not overflow
WIDTH = 5.6  # inches of a plot; the page scales it to about 560 pixels
_LABEL_LENGTH = 22  # characters of a name in a plot; the tables have all of it


def png(path: str | os.PathLike[str], draw: Callable[[], Figure]) -> None:
    """Draw a figure into a PNG file, dark on white."""
    buffer = io.BytesIO()
    with _style():
        draw().savefig(buffer, format="png", dpi=200, facecolor="white", bbox_inches="tight", pad_inches=0.08)
    replace_file(path, buffer.getvalue())


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


def short_label(name: str, length: int = _LABEL_LENGTH) -> str:
    """Return a name that fits beside a mark."""
    name = printable(name)
    return name if len(name) <= length else name[: length - 1] + "…"


def short_legend_label(name: str, length: int = _LABEL_LENGTH) -> str:
    """Return a name that fits into a legend."""
    return " " + short_label(name, length)  # matplotlib leaves out names that begin with an underscore, or are empty


def as_drawn(values: Sequence[float]) -> list[float]:
    """Return the values, clipped to the range that can be drawn."""
    return [math.copysign(min(abs(value), _LARGEST), value) for value in values]


def colour_of(i: int) -> str:
    """Return the colour of student number `i`."""
    return COLOURS[i % len(COLOURS)]


def marker_of(i: int) -> str:
    """Return the marker of student number `i`."""
    return _MARKERS[i % len(_MARKERS)]


def new_figure(height: float, *, width: float = WIDTH, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure of this height and width, in inches, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def place_legend(figure: Figure, axes: Axes) -> None:
    """Put the legend below the plot, where it covers nothing, in as many columns as have room."""
    handles, labels = axes.get_legend_handles_labels()
    column = 45 + 5 * max(map(len, labels))  # points: the mark, and about 5 for a character
    columns = min(max(1, int(72 * figure.get_figwidth() / column)), 6, len(labels))
    figure.set_figheight(figure.get_figheight() + 0.19 * math.ceil(len(handles) / columns))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, handlelength=2.2, columnspacing=1.4)


def use_log_axis(axes: Axes, values: Sequence[float]) -> None:
    """Make the x axis logarithmic, with ticks that suit these values; linear up to 1 if one is 0. NaN is ignored."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    positive = [value for value in values if value > 0]
    low, high = min(positive, default=1.0), max(positive, default=1.0)
    if 0 in values:  # a tree multiplies nothing
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xlim(-0.2, 1.6 * high)
    else:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.6, 1.6 * high)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if math.log10(high / low) < 2.5 else (1,)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


@contextmanager
def _style() -> Iterator[None]:
    """Set Matplotlib's style for these plots, independently of the user's matplotlibrc."""
    import matplotlib as mpl

    style: Any = {
        "svg.fonttype": "none",  # text stays text: it can be selected, read aloud, and takes the page's font
        "svg.hashsalt": "rllib_kd",  # the same figures give the same file
        "text.parse_math": False,  # a name with a $ is not a formula
        "text.color": FOREGROUND,
        "axes.labelcolor": FOREGROUND,
        "axes.edgecolor": MUTED,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": FOREGROUND,
        "ytick.labelcolor": FOREGROUND,
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
        mpl.rcdefaults()  # a user's matplotlibrc may have colours that no theme has
        mpl.rcParams.update(style)
        yield


def _attribute(key: str, name: str, value: str) -> str:
    if name == "id":
        return f"{key}-{value}"
    if name == "href":
        return value.replace("#", f"#{key}-")
    value = re.sub(r"url\(#", f"url(#{key}-", value)
    return re.sub(r"#[0-9a-f]{6}", lambda match: _themed(match[0]), value) if name == "style" else value


def _themed(colour: str) -> str:
    return f"var({VARIABLES[colour]})" if colour in VARIABLES else colour
