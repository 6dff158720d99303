"""What "smallest" can mean, and its units."""

from __future__ import annotations

#: By what students are ordered, with its unit, as heads of tables and in sentences.
UNITS = {
    "parameters": "parameters",
    "bytes": "bytes",
    "int8_bytes": "bytes as integers",
    "multiply_adds": "multiply-adds",
    "latency": "µs per decision",
}
MINIMIZED = tuple(UNITS)
