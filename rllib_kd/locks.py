"""Locks of folders between processes; a lock is released if its process is killed."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


logger = logging.getLogger(__name__)

_SECONDS_BEFORE_WARNING, _SECONDS_BETWEEN_LOOKS = 5.0, 0.01


class LockedError(Exception):
    """Another process holds the lock; the message names it."""


@contextmanager
def locked(folder: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the lock of a folder, which need not exist: a file `.NAME.lock` beside it, deleted at the end.

    Args:
        folder: the folder; its parent must exist.
        wait: whether to wait until another process releases it.

    Yields:
        Whether the lock is held: False if the system or the filesystem has no locks.

    Raises:
        LockedError: another process holds it, and `wait` is False.
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
            path.unlink(missing_ok=True)  # before it is released, so that the next holder's file is not deleted
        finally:
            os.close(descriptor)


def _acquire(path: Path, *, wait: bool) -> int | None:
    """Return the descriptor that holds the lock; None if there are no locks."""
    if fcntl is None:
        return None
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if wait:
                _wait(descriptor, path)
            else:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_same(descriptor, path):
                _sign(descriptor)
                return descriptor
        except BlockingIOError as error:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise LockedError(holder) from error
        except OSError:  # a filesystem without locks
            os.close(descriptor)
            path.unlink(missing_ok=True)
            return None
        except BaseException:  # Ctrl-C while it waits
            os.close(descriptor)
            raise
        os.close(descriptor)  # of a file that its last holder has deleted since it was opened


def _wait(descriptor: int, path: Path) -> None:
    """Wait for the lock; after some seconds, warn that another process, which may hang, still holds it."""
    deadline = time.monotonic() + _SECONDS_BEFORE_WARNING
    while time.monotonic() < deadline:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        else:
            return
    logger.warning("Waiting for '%s', which %s holds. If that process hangs, kill it.", path, _holder(descriptor))
    fcntl.flock(descriptor, fcntl.LOCK_EX)


def _holder(descriptor: int) -> str:
    return os.pread(descriptor, 1_000, 0).decode(errors="replace") or "another process"


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _sign(descriptor: int) -> None:
    """Write the name of this process into the lock, for messages of others."""
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    except OSError:  # a full disk
        pass
