"""A checkpoint that takes the place of an older one, whole."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlparse

import pyarrow.fs

from rllib_kd.checkpoints.replay_files import REPLAY_FOLDER

_HERE, _RENAME_EXCHANGE = -100, 2  # AT_FDCWD of fcntl.h, and the flag of stdio.h


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A folder that takes the place of the checkpoint at `path` when everything is written.

    A kill or a full disk in the meantime leaves the checkpoint that was there. What else lies in it stays there.
    """
    path = Path(path)
    written, previous = (path.with_name(f"{path.name}.{suffix}") for suffix in ("saving", "previous"))
    shutil.rmtree(written, ignore_errors=True)
    try:
        yield written
    except BaseException:
        shutil.rmtree(written, ignore_errors=True)
        raise
    shutil.rmtree(previous, ignore_errors=True)
    if _exchange(written, path):
        written.rename(previous)
    else:
        path.rename(previous)  # a kill right now leaves it there
        written.rename(path)
    for entry in previous.iterdir():
        if entry.name != REPLAY_FOLDER and not (path / entry.name).exists():
            os.replace(entry, path / entry.name)
    shutil.rmtree(previous)


def _exchange(first: Path, second: Path) -> bool:
    """Let two folders change places at one stroke, which Linux can on most filesystems; whether it has."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    return rename is not None and rename(_HERE, bytes(first), _HERE, bytes(second), _RENAME_EXCHANGE) == 0


def local_checkpoint(path: str | Path | None, filesystem: pyarrow.fs.FileSystem | None) -> Path | None:
    """The folder of a checkpoint on this machine's disk; None where there is none yet, or the path is elsewhere."""
    if path is None or not (filesystem is None or isinstance(filesystem, pyarrow.fs.LocalFileSystem)):
        return None
    url = urlparse(str(path))
    if url.scheme not in ("", "file"):
        return None
    folder = Path(unquote(url.path) if url.scheme else str(path))
    return folder if (folder / "class_and_ctor_args.pkl").exists() else None
