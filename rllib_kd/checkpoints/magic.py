"""The kind of a file by its first bytes."""

from __future__ import annotations

import math

#: How many first bytes of a file show its kind.
NUM_BYTES = 9


def file_kind(head: bytes, size: float = math.inf) -> str | None:
    """Return "zip", "safetensors" or "onnx"; None if a file is none of them.

    Args:
        head: its first bytes, at least `NUM_BYTES` if it has as many.
        size: its size in bytes, if it is known.
    """
    # First, since the length of its JSON header may be any number. Where this has a brace, a zip file has a method of
    # compression.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size:
        return "safetensors"
    if head.startswith(b"PK"):
        return "zip"
    if head.startswith(b"\x08"):  # the protobuf tag of ir_version
        return "onnx"
    return None
