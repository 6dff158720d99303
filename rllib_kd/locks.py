"""Locks of folders, between processes: whoever holds one and is killed frees it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class LockedError(Exception):
    """Somebody else holds the lock; the message names who."""


@contextmanager
def locked(folder: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the lock of a folder, which need not exist: a file `.NAME.lock` beside it, gone at the end.

    Args:
        folder: its parent must exist.
        wait: for somebody else to free it.

    Yields:
        Whether it is held: not where the system or the filesystem has no locks.

    Raises:
        LockedError: somebody else holds it, and `wait` is False.
        OSError: the parent cannot be written to.
    """
    path = folder.with_name(f".{folder.name}.lock")
    descriptor = _acquire(path, wait=wait)
    if descriptor is None:
        yield False
        return
    try:
        yield True
    finally:
        try:
            path.unlink(missing_ok=True)  # before it is freed, so that nobody deletes the file of the next holder
        finally:
            os.close(descriptor)


def _acquire(path: Path, *, wait: bool) -> int | None:
    """The descriptor that holds the lock; None where there are no locks."""
    if fcntl is None:
        return None
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _is_same(descriptor, path):
                _sign(descriptor)
                return descriptor
        except BlockingIOError as error:
            holder = os.pread(descriptor, 1_000, 0).decode(errors="replace")
            os.close(descriptor)
            raise LockedError(holder or "another process") from error
        except OSError:  # a filesystem without locks
            os.close(descriptor)
            path.unlink(missing_ok=True)
            return None
        except BaseException:  # Ctrl-C while it waits
            os.close(descriptor)
            raise
        os.close(descriptor)  # of a file that its last holder has deleted since it was opened


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _sign(descriptor: int) -> None:
    """Write down who holds the lock, for the others' messages."""
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    except OSError:  # a full disk
        pass
