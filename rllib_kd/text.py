"""Words for people: the nearest known name, what can be printed, what JSON can express."""

from __future__ import annotations

import difflib
import html
import math
from collections.abc import Iterable, Sequence
from typing import Any


def finite_or_none(value: Any) -> Any:
    """The value, in which numbers that are not finite, for which JSON has no word, are None."""
    if isinstance(value, dict):
        return {key: finite_or_none(part) for key, part in value.items()}
    if isinstance(value, list):
        return [finite_or_none(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


_UNPRINTABLE = "\N{REPLACEMENT CHARACTER}"


_MAX_CELL = 200  # characters of a name in a table


#: What a spreadsheet takes for the beginning of a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def did_you_mean(name: object, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """` Did you mean 'x'?` with the nearest known name in any case, or nothing; `cutoff` is difflib's, in [0, 1]."""
    spelled = {known_name.lower(): known_name for known_name in known}
    near = difflib.get_close_matches(str(name).lower(), list(spelled), n=1, cutoff=cutoff)
    return f" Did you mean '{spelled[near[0]]}'?" if near else ""


def printable(text: object, *, limit: int | None = None, lines: bool = False) -> str:
    """Text from a file, a path or another program, that neither steers a terminal nor misleads who reads it.

    Control characters (of which escape sequences are made), characters that change the direction of text or take no
    place, and halves of surrogate pairs are replaced by U+FFFD each.

    Args:
        text: or what has one.
        limit: characters, > 10; of a longer text the middle is left out.
        lines: whether line ends stay.
    """
    kept = "\n" if lines else ""
    clean = "".join(c if c.isprintable() or c in kept else _UNPRINTABLE for c in str(text))
    if limit is not None and len(clean) > limit:
        half = (limit - 5) // 2
        clean = f"{clean[:half]} ... {clean[-half:]}"
    return clean


def one_line(text: object, *, limit: int | None = None) -> str:
    """As `printable()`; what stands in several lines, or is indented, becomes one line with single spaces."""
    return printable(" ".join(str(text).split()), limit=limit)


def for_html(text: object) -> str:
    """As `printable()`, as HTML that shows this text."""
    return html.escape(printable(text))


def for_spreadsheet(value: str) -> str:
    """As `printable()`; a text that a spreadsheet would execute as a formula has a quote before it."""
    return f"'{printable(value)}" if value.startswith(_FORMULA) else printable(value)


def cell(text: object, style: str = "") -> Any:
    """Text of a table by rich, whose markup in it (`[red]`) is none."""
    from rich.text import Text

    return Text(printable(text, limit=_MAX_CELL), style)


def rendered(*parts: Any) -> str:
    """What rich would print on 80 columns: plain text, whether this is a terminal or not, without spaces at line ends.

    Args:
        parts: tables, or text without markup.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(width=80, highlight=False, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        for part in parts:
            console.print(Text(part) if isinstance(part, str) else part)
    return "\n".join(line.rstrip() for line in printable(capture.get(), lines=True).split("\n")).rstrip("\n")


def mean_and_interval(mean: float, half_width: float = math.nan) -> str:
    """`-0.062 ± 0.043`, `500.0 ± 0.0`, `12,345 ± 210`: the digits follow the interval.

    Args:
        mean: in any unit.
        half_width: of its confidence interval; where it is not finite, as that of one episode, the mean stands alone.
    """
    return means_and_intervals([(mean, half_width)])[0]


def means_and_intervals(pairs: Sequence[tuple[float, float]]) -> list[str]:
    """As `mean_and_interval()`, for a column of a table: with equally many decimals, as far as they mean something."""
    finest = max((_decimals(*pair) for pair in pairs), default=0)
    texts = []
    for mean, half_width in pairs:
        decimals = max(_decimals(mean, half_width), min(finest, _most_decimals(mean, half_width)))
        parts = [mean, half_width] if math.isfinite(mean) and math.isfinite(half_width) else [mean]
        texts.append(" ± ".join(_number(part, decimals, scale=max(map(abs, parts))) for part in parts))
    return texts


def number(value: float, half_width: float = math.nan) -> str:
    """A mean alone, with the digits that it has beside its interval."""
    return mean_and_interval(value, half_width).split(" ± ")[0]


def ratio(value: float) -> str:
    """A return ratio: `0.987`; `–` where there is none."""
    return f"{value:.3g}" if 10 <= abs(value) < math.inf else _number(value, 3, scale=1.0)


def _decimals(mean: float, half_width: float) -> int:
    """That a mean and its interval need: two digits of the interval, or three of the mean where there is none.

    Where numbers are of an ordinary size, one at least; and five digits of the larger of the two are enough.
    """
    if not math.isfinite(mean):
        return 0
    has_interval = math.isfinite(half_width) and half_width > 0
    needed = 1 - _magnitude(half_width) if has_interval else 2 - _magnitude(mean) if mean else 1
    return min(max(needed, 1), _most_decimals(mean, half_width))


def _most_decimals(mean: float, half_width: float) -> int:
    scale = max(abs(value) for value in (mean, half_width, 0.0) if math.isfinite(value))
    return max(0, 4 - _magnitude(scale)) if scale else 1


def _magnitude(value: float) -> int:
    """Of the first digit, once the value has two: 0.0996 → -1 (0.10), 0.5 → -1, 500 → 2."""
    return int(f"{abs(value):.1e}".split("e")[1])


def _number(value: float, decimals: int, *, scale: float) -> str:
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    text = f"{value:.3g}" if scale >= 1e7 or 0 < scale < 1e-4 else f"{value:,.{decimals}f}"
    return text.removeprefix("-") if not float(text.replace(",", "")) else text
