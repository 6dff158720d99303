"""The kind of a file by its first bytes."""

from __future__ import annotations

import math

#: The number with which files of PyTorch before 1.6 begin, as pickles have it.
_LEGACY_NUMBER = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_MOST_BEFORE = 11  # bytes: the pickle's protocol, and from protocol 4 on the length of a frame


def is_legacy_torch(head: bytes) -> bool:
    """Return whether a file with these first bytes was saved by PyTorch before 1.6, or in its format."""
    return head.startswith(b"\x80") and _LEGACY_NUMBER in head[: _MOST_BEFORE + len(_LEGACY_NUMBER)]


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
