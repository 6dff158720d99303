"""Untrusted JSON: its values are counted before any of them takes memory."""

from __future__ import annotations

import json
from typing import Any

from rllib_kd import limits

_SEPARATORS = (b",", b"[", b"{")  # one before each value, at least


def parse_json(text: bytes, *, max_bytes: int = limits.MAX_DESCRIPTION) -> Any:
    """Parse JSON in UTF-8.

    Raises:
        ValueError: it is not JSON, has more bytes, or more values than any description of a network.
    """
    if len(text) > max_bytes:
        raise ValueError(f"it has {len(text)} bytes, expected at most {max_bytes}")
    if count_values(text) > limits.MAX_PARTS:
        raise ValueError(f"it has more than {limits.MAX_PARTS} values")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it nests its parts too deeply") from error


def count_values(text: bytes) -> int:
    """Return an upper bound of the number of values in JSON: texts that look like values are rare, but count, too."""
    return sum(map(text.count, _SEPARATORS))
