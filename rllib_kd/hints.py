"""What an error says about a name that nobody knows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: object, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """` Did you mean 'x'?` with the nearest known name in any case, or nothing; `cutoff` is difflib's, in [0, 1]."""
    spelled = {known_name.lower(): known_name for known_name in known}
    near = difflib.get_close_matches(str(name).lower(), list(spelled), n=1, cutoff=cutoff)
    return f" Did you mean '{spelled[near[0]]}'?" if near else ""
