"""Measures of a student's size, of which "smallest" can mean each, and their units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rllib_kd.text import did_you_mean

#: By what students are ordered, with its unit, as heads of tables and in sentences.
UNITS = {
    "parameters": "parameters",
    "bytes": "bytes",
    "int8_bytes": "bytes as integers",
    "multiply_adds": "multiply-adds",
    "latency": "µs per decision",
}
MINIMIZED = tuple(UNITS)
_ATTRIBUTES = {
    "parameters": "num_parameters",
    "bytes": "num_bytes",
    "int8_bytes": "num_int8_bytes",
    "multiply_adds": "multiply_adds",
    "latency": "latency_ms",
}


def measured_cost(measured: Any, minimize: str) -> float | None:
    """Return what is to be minimized, one of `MINIMIZED`: latency in ms; None for what was not measured.

    Args:
        measured: object with these costs as attributes.
        minimize: which of them.
    """
    return getattr(measured, _ATTRIBUTES[minimize])


def check_minimized(minimize: object, allowed: Sequence[str], *, has_trees: bool) -> None:
    """Check that students can be ordered by a measure.

    Args:
        minimize: its name.
        allowed: those of `MINIMIZED` that can be had.
        has_trees: whether trees are among the students.

    Raises:
        ValueError: they cannot.
    """
    if minimize not in allowed:
        hint = did_you_mean(str(minimize), allowed)
        raise ValueError(f"minimize must be one of {', '.join(allowed)}, got {minimize!r}.{hint}")
    if minimize == "int8_bytes" and has_trees:
        raise ValueError(
            "minimize='int8_bytes' does not compare trees, which have no weights of 8 bits. Leave the trees out, or "
            "minimize 'bytes'."
        )
