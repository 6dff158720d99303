"""Text for people: the nearest known name, printable characters, numbers; and values that JSON can express."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from types import SimpleNamespace
from typing import Any

_ADDRESS, _MAX_DEPTH = re.compile(r" at 0x[0-9a-f]+"), 3  # of an object in its repr; of objects in objects
_MAX_NUMBERS = 1_000  # of an array that is written as it is


def finite_or_none(value: Any) -> Any:
    """Return the value with None for numbers that are not finite, which JSON lacks."""
    if isinstance(value, dict):
        return {key: finite_or_none(part) for key, part in value.items()}
    if isinstance(value, list):
        return [finite_or_none(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def plain(value: Any) -> Any:
    """Return a value in JSON's terms, which are the same in every process: without addresses, in the order of names.

    Arrays of many numbers become digests. Functions count by their names, and objects deep in others by their types.
    """
    return _plain(value, 0, ())


def _plain(value: Any, depth: int, outer: tuple[int, ...]) -> Any:
    """Return a value as `plain()` does.

    Args:
        value: of any kind.
        depth: of objects in objects.
        outer: ids of the containers that it is in, which it may contain again.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if id(value) in outer:
        return "..."
    within = (*outer, id(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(part, depth, within) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part, depth, within) for part in value]
    if isinstance(value, set | frozenset):
        return sorted((_plain(part, depth, within) for part in value), key=repr)
    name = getattr(value, "__qualname__", None)  # of a class or a function
    if name is not None:
        return f"{value.__module__}.{name}"
    if hasattr(value, "__array__") and hasattr(value, "dtype"):  # of numpy, or a tensor on any device
        return _numbers(value.detach().cpu().numpy() if hasattr(value, "detach") else value)
    has_parts = is_dataclass(value) or isinstance(value, SimpleNamespace)  # sets in their reprs have any order
    if not has_parts and not _ADDRESS.search(text := _whole_repr(value)):
        return text
    parts = vars(value) if hasattr(value, "__dict__") and depth < _MAX_DEPTH else {}
    own = {str(key): _plain(part, depth + 1, within) for key, part in parts.items()}
    return {"type": f"{type(value).__module__}.{type(value).__qualname__}", **own}


def _whole_repr(value: Any) -> str:
    import numpy as np  # which `rllib --help` does without

    with np.printoptions(threshold=sys.maxsize):  # or of large arrays in it, numpy shows the ends alone
        return repr(value)


def _numbers(array: Any) -> Any:
    if array.size <= _MAX_NUMBERS or array.dtype == object:
        return _plain(array.tolist(), 0, ())
    digest = hashlib.sha256(array.tobytes()).hexdigest()
    return f"{array.dtype} {list(array.shape)} {digest[:32]}"


def stable_text(value: Any) -> str:
    """Return a text that is equal for equal values, in every process: `plain()` as JSON, sorted by names."""
    return json.dumps(plain(value), sort_keys=True)


_UNPRINTABLE = "\N{REPLACEMENT CHARACTER}"
_MAX_CELL = 200  # characters of a name in a table
#: Characters that begin a formula in a spreadsheet.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def did_you_mean(name: object, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Return ` Did you mean 'x'?` with the nearest known name in any case, or ''; `cutoff` is difflib's, in [0, 1]."""
    spelled = {known_name.lower(): known_name for known_name in known}
    near = difflib.get_close_matches(str(name).lower(), list(spelled), n=1, cutoff=cutoff)
    return f" Did you mean '{spelled[near[0]]}'?" if near else ""


def filled(text: str, values: Mapping[str, str]) -> str:
    """Return a text with values in place of the words that name them, in one pass: values are not filled themselves."""
    return re.sub(rf"\b({'|'.join(values)})\b", lambda match: values[match[1]], text)


def first_line(error: BaseException) -> str:
    """Return the first line of an error, or the name of its class; of TorchScript the last, which is the reason."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1 if "TorchScript" in lines[0] else 0][:300].rstrip(". ")


def printable(text: object, *, limit: int | None = None, lines: bool = False) -> str:
    """Return text from a file, a path or another program that can neither control a terminal nor mislead a reader.

    Control characters (including escape sequences), characters that change the direction of text or have no width, and
    halves of surrogate pairs are replaced by U+FFFD each.

    Args:
        text: text, or an object with one.
        limit: characters, > 10; the middle of a longer text is left out. None: no limit.
        lines: whether line ends are kept.
    """
    kept = "\n" if lines else ""
    clean = "".join(c if c.isprintable() or c in kept else _UNPRINTABLE for c in str(text))
    if limit is not None and len(clean) > limit:
        half = (limit - 5) // 2
        clean = f"{clean[:half]} ... {clean[-half:]}"
    return clean


def one_line(text: object, *, limit: int | None = None) -> str:
    """Return `printable()` text in one line, with single spaces."""
    return printable(" ".join(str(text).split()), limit=limit)


def for_html(text: object, *, lines: bool = False) -> str:
    """Return `printable()` text, escaped for HTML; `lines` as there."""
    import html  # which `rllib --help` does without

    return html.escape(printable(text, lines=lines))


def for_spreadsheet(value: str) -> str:
    """Return `printable()` text, with a quote before it if a spreadsheet would run it as a formula."""
    return f"'{printable(value)}" if value.startswith(_FORMULA) else printable(value)


def cell(text: object, style: str = "") -> Any:
    """Return text for a table of rich, in which markup like `[red]` is plain text."""
    from rich.text import Text

    return Text(printable(text, limit=_MAX_CELL), style)


def rendered(*parts: Any) -> str:
    """Return what rich prints on 80 columns as plain text, on a terminal or not, without spaces at line ends.

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
    """Return a text like `-0.062 ± 0.043`, `500.0 ± 0.0` or `12,345 ± 210`, with digits as the interval needs.

    Args:
        mean: in any unit.
        half_width: half width of its confidence interval; if it is not finite, as for one episode, it is left out.
    """
    return means_and_intervals([(mean, half_width)])[0]


def means_and_intervals(pairs: Sequence[tuple[float, float]]) -> list[str]:
    """Return `mean_and_interval()` for a column of a table, with the same decimals as far as they are significant."""
    finest = max((_decimals(*pair) for pair in pairs), default=0)
    texts = []
    for mean, half_width in pairs:
        decimals = max(_decimals(mean, half_width), min(finest, _most_decimals(mean, half_width)))
        parts = [mean, half_width] if math.isfinite(mean) and math.isfinite(half_width) else [mean]
        texts.append(" ± ".join(_number(part, decimals, scale=max(map(abs, parts))) for part in parts))
    return texts


def number(value: float, half_width: float = math.nan) -> str:
    """Return a mean without its interval, with the same digits as with it."""
    return mean_and_interval(value, half_width).split(" ± ")[0]


def how_many(value: float | None) -> str:
    """Return a number of parameters as text: `67,843`; `–` if it is not known (None, or NaN of a function)."""
    return "–" if value is None or math.isnan(value) else f"{value:,.0f}"


def count_of_episodes(count: int) -> str:
    """Return how many episodes as text: `1 episode`, `1,000 episodes`."""
    return "1 episode" if count == 1 else f"{count:,} episodes"


def percent(share: float) -> str:
    """Return a share in [0, 1] as percent with two decimals, without the sign; `–` if it is not known."""
    return "–" if math.isnan(share) else f"{100 * share:.2f}"


def rough_percent(share: float) -> str:
    """Return a share as percent with two digits, without the sign: `0.67`; `–` if it is not known."""
    if not math.isfinite(share):
        return "–"
    return f"{100 * share:.2g}" if share < 0.995 else f"{100 * share:,.0f}"


def ratio(value: float) -> str:
    """Return a return ratio as text: `0.987`; `–` if there is none."""
    return f"{value:.3g}" if 10 <= abs(value) < math.inf else _number(value, 3, scale=1.0)


def _decimals(mean: float, half_width: float) -> int:
    """Return the decimals of a mean and its interval: two digits of the interval, or three of the mean without one.

    At least one decimal for numbers of ordinary size, and at most five digits of the larger of the two.
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
    """Return the power of ten of a value rounded to two digits: 0.0996 → -1 (0.10), 0.5 → -1, 500 → 2."""
    return int(f"{abs(value):.1e}".split("e")[1])


def _number(value: float, decimals: int, *, scale: float) -> str:
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    text = f"{value:.3g}" if scale >= 1e7 or 0 < scale < 1e-4 else f"{value:,.{decimals}f}"
    return text.removeprefix("-") if not float(text.replace(",", "")) else text
