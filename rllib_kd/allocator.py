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

#: Parameters of `mallopt()` (malloc.h), and their values, bytes: free memory at the end of the heap is given back from
#: the first on, and arrays are never on the heap from the second on. 32 MiB is the largest that glibc accepts.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = (-1, 128 * 2**20), (-3, 32 * 2**20)
#: With one of these, the user has chosen.
_VARIABLES = ("GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


@cache
def keep_freed_memory() -> bool:
    """Keep up to 128 MiB of freed memory in this process; return whether the allocator is glibc's, and obeys.

    Nothing changes with another C library, nor if an environment variable of glibc sets it.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _VARIABLES):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(parameter, value) for parameter, value in (_TRIM_THRESHOLD, _MMAP_THRESHOLD))
