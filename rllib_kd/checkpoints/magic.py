"""The kind of a file by its first bytes."""

from __future__ import annotations

import math


def file_kind(head: bytes, size: float = math.inf) -> str | None:
    """Return the kind of a file: "zip", "safetensors" or "onnx", or None for any other kind.

    Args:
        head: its first bytes, at least nine if it has as many; or all of them.
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
