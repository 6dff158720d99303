"""A checkpoint that takes the place of an older one, whole."""

from __future__ import annotations

import ctypes
import glob
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from rllib_kd.locks import locked

#: Files by which a folder is a checkpoint, or the beginning of one.
_MARKS = ("rllib_checkpoint.json", "class_and_ctor_args.pkl")


#: In a working folder: the file by which it is ours, the new checkpoint, and the older one for a moment.
_OURS, _NEW, _OLDER = ".rllib_kd", "new", "older"


_HERE, _RENAME_EXCHANGE = -100, 2  # AT_FDCWD of fcntl.h, and the flag of stdio.h


@contextmanager
def replacing(path: str | Path, *, left_out: Collection[str] = ()) -> Iterator[Path]:
    """A folder, still to be made, that takes the place of the checkpoint at `path` when everything is written.

    Of several savers of one path, each waits for the one before it. Working folders that killed savers have left are
    cleared away. Where nothing can be written beside a folder (its parent is read-only, or it is a mounted volume), a
    first checkpoint is written into it directly.

    Args:
        path: where a link leads to is replaced, and not the link.
        left_out: entries of older checkpoints that do not stay.

    Raises:
        ValueError: a file is there, or other files than a checkpoint's that have the names of a checkpoint's.
        OSError: it cannot be written, or an older checkpoint cannot be replaced as a whole.
    """
    folder = Path(os.path.realpath(path))
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"A checkpoint is a folder, but '{path}' is a file. Name another path.")
    if folder.exists() and folder in (here := Path.cwd().resolve(), *here.parents):
        raise ValueError(
            f"'{folder}' is the folder in which this process works, or above it: replacing it would pull the ground "
            f"away. Name a folder within it, such as '{folder / 'checkpoint'}'."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists() and not _can_be_replaced(folder):
        if _is_checkpoint(folder):
            raise OSError(
                f"The checkpoint at '{path}' cannot be replaced as a whole, since nothing can be written beside it, to "
                f"'{folder.parent}' on the same filesystem. Save into a new folder within it."
            )
        yield folder
        return
    with locked(folder, wait=True) as is_alone:
        if is_alone:
            _clear_leftovers(folder)
        work = Path(tempfile.mkdtemp(prefix=_prefix(folder), dir=folder.parent))
        try:
            (work / _OURS).touch()
            yield work / _NEW
            _put(work, folder, left_out)
        finally:
            _clear(work, folder)


def _put(work: Path, folder: Path, left_out: Collection[str]) -> None:
    new = work / _NEW
    if folder.exists():
        _keep_the_rest(folder, new, left_out)
        shutil.copymode(folder, new)
        if _exchange(new, folder):
            return
        folder.rename(work / _OLDER)  # a kill right now leaves it there, until the next save
    new.rename(folder)


def _can_be_replaced(folder: Path) -> bool:
    return not os.path.ismount(folder) and os.access(folder.parent, os.W_OK | os.X_OK)


def _is_checkpoint(folder: Path) -> bool:
    return any((folder / mark).exists() for mark in _MARKS)


def _keep_the_rest(folder: Path, new: Path, left_out: Collection[str]) -> None:
    """Give the new checkpoint what else lies in its place: linked, so that nothing is missing at any moment."""
    is_checkpoint = _is_checkpoint(folder)
    for entry in folder.iterdir():
        if is_checkpoint and entry.name in left_out:
            continue
        if not os.path.lexists(new / entry.name):
            if entry.is_dir() and not entry.is_symlink():
                shutil.copytree(entry, new / entry.name, symlinks=True, copy_function=_link)
            else:
                _link(entry, new / entry.name)
        elif not is_checkpoint:
            raise ValueError(
                f"'{folder}' holds no checkpoint, but other files, and a checkpoint would replace '{entry.name}'. Save "
                "into a new folder."
            )


def _link(source: os.PathLike[str] | str, target: os.PathLike[str] | str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # a filesystem without hard links
        shutil.copy2(source, target, follow_symlinks=False)


def _exchange(first: Path, second: Path) -> bool:
    """Let two folders change places at one stroke, which Linux can on most filesystems; whether it has."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    return rename is not None and rename(_HERE, bytes(first), _HERE, bytes(second), _RENAME_EXCHANGE) == 0


# --- What killed savers have left -------------------------------------------------------------------------------------


def _prefix(folder: Path) -> str:
    return f".{folder.name}.saving-"


def _clear_leftovers(folder: Path) -> None:
    """Clear away the working folders of savers that are dead: all of them, as this one holds the lock."""
    prefix = _prefix(folder)
    for work in folder.parent.glob(glob.escape(prefix) + "*"):
        is_named_by_us = re.fullmatch(r"[a-z0-9_]{8}", work.name.removeprefix(prefix))
        if is_named_by_us and work.is_dir() and not work.is_symlink() and _is_ours(work):
            _clear(work, folder)


def _is_ours(work: Path) -> bool:
    """Whether it has the mark; or is empty, as after a kill before it gets the mark, or after it has lost it."""
    entries = os.listdir(work)
    return not entries or _OURS in entries


def _clear(work: Path, folder: Path) -> None:
    """Delete a working folder, last of all the mark that it is ours; an older checkpoint that lies in it goes back."""
    if (work / _OLDER).exists() and not folder.exists():
        (work / _OLDER).rename(folder)
    for name in (_NEW, _OLDER):
        shutil.rmtree(work / name, ignore_errors=True)
    shutil.rmtree(work, ignore_errors=True)
