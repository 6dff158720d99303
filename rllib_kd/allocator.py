"""The allocator of glibc: freed memory is kept for the next arrays of the same size.

A Learner makes the same arrays at each gradient step, and a teacher for each batch of images. By default, glibc gives
large ones back to the system when they are freed, which hands the next ones out page by page, filled with zeros: it
took a third of the time of a family of 96 small students, and two fifths of that of a student of Atari
(docs/results/speed.md).
"""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache

#: Parameters of `mallopt()` (malloc.h), and their values, bytes. Of free memory at the end of a heap, what is above the
#: trim threshold is given back. Arrays above the mmap threshold, of at most 32 MiB, are never on a heap.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = (-1, 128 * 2**20), (-3, 32 * 2**20)
#: With one of these, the user has chosen.
_VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


@cache
def keep_freed_memory() -> bool:
    """Keep up to 128 MiB of freed memory at the end of each heap of this process; return whether glibc does.

    Nothing changes with another C library, nor if environment variables of glibc set its allocator.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    is_chosen = "glibc.malloc." in tunables or any(name in os.environ for name in _VARIABLES)
    if is_chosen or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(parameter, value) for parameter, value in (_TRIM_THRESHOLD, _MMAP_THRESHOLD))
