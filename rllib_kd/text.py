"""Words for people: the nearest known name, what can be printed, what JSON can express."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any


def finite_or_none(value: Any) -> Any:
    """The value, in which numbers that are not finite, for which JSON has no word, are None."""
    if isinstance(value, dict):
        return {key: finite_or_none(part) for key, part in value.items()}
    if isinstance(value, list):
        return [finite_or_none(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def printable(name: str) -> str:
    """Replace control characters, which would steer a terminal or break a document."""
    return "".join(character if character.isprintable() else "�" for character in name)


def did_you_mean(name: object, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """` Did you mean 'x'?` with the nearest known name in any case, or nothing; `cutoff` is difflib's, in [0, 1]."""
    spelled = {known_name.lower(): known_name for known_name in known}
    near = difflib.get_close_matches(str(name).lower(), list(spelled), n=1, cutoff=cutoff)
    return f" Did you mean '{spelled[near[0]]}'?" if near else ""
