"""Measures of a student's size, of which "smallest" can mean each, and their units."""

from __future__ import annotations

from typing import Any

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
