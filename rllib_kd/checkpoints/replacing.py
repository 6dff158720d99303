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
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rllib_kd.locks import locked

#: Files by which a folder is a checkpoint, or the beginning of one.
_MARKS = ("rllib_checkpoint.json", "class_and_ctor_args.pkl")


#: Files that RLlib and this package write into the folders of a checkpoint. Others there are the user's.
_WRITTEN = re.compile(
    r"(rllib_checkpoint|metadata)\.json|class_and_ctor_args\.pkl|((algorithm|module)_)?state\.(pkl|msgpack|pt)|\d+\.npz"
)


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
        left_out: folders of older checkpoints that do not stay, but for the user's files in them.

    Raises:
        ValueError: a file is there, or other files than a checkpoint's that have the names of a checkpoint's.
        OSError: it cannot be written, or an older checkpoint cannot be replaced as a whole.
    """
    folder = Path(os.path.realpath(path))
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"A checkpoint is a folder, but '{path}' is a file. Name another path.")
    above = next(place for place in folder.parents if place.exists())
    if not above.is_dir():
        raise ValueError(f"A checkpoint is a folder, but '{above}' above '{path}' is a file. Name another path.")
    if folder.exists() and folder in (here := Path.cwd().resolve(), *here.parents):
        raise ValueError(
            f"'{folder}' is the folder in which this process works, or above it: replacing it would pull the ground "
            f"away. Name a folder within it, such as '{folder / 'checkpoint'}'."
        )
    with _naming(path):
        folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists() and not _can_be_replaced(folder):
        if _is_checkpoint(folder):
            raise OSError(
                f"The checkpoint at '{path}' cannot be replaced as a whole, since nothing can be written beside it, to "
                f"'{folder.parent}' on the same filesystem. Save into a new folder within it."
            )
        yield folder
        return
    with ExitStack() as stack:
        with _naming(path):
            is_alone = stack.enter_context(locked(folder, wait=True))
            if is_alone:
                _clear_leftovers(folder)
            work = Path(tempfile.mkdtemp(prefix=_prefix(folder), dir=folder.parent))
        try:
            (work / _OURS).touch()
            yield work / _NEW
            _put(work, folder, left_out)
        finally:
            _clear(work, folder)


@contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """Errors of the system name the checkpoint, and not a file of ours beside it."""
    try:
        yield
    except OSError as error:
        named = type(error)(
            f"No checkpoint can be saved to '{path}': {error.strerror or error}. Name a folder that can be written to."
        )
        named.errno = error.errno
        raise named from error


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
        target = new / entry.name
        if is_checkpoint and (entry.name in left_out or (_is_folder(entry) and _is_folder(target))):
            _keep_files_of_the_user(entry, target)
        elif not os.path.lexists(target):
            if _is_folder(entry):
                shutil.copytree(entry, target, symlinks=True, copy_function=_link)
            else:
                _link(entry, target)
        elif not is_checkpoint:
            raise ValueError(
                f"'{folder}' holds no checkpoint, but other files, and a checkpoint would replace '{entry.name}'. Save "
                "into a new folder."
            )


def _keep_files_of_the_user(older: Path, new: Path) -> None:
    """Give a folder of the new checkpoint what the user has put into that of the older one, at any depth."""
    if not _is_folder(older):
        return
    for entry in older.iterdir():
        target = new / entry.name
        if _is_folder(entry):
            _keep_files_of_the_user(entry, target)
        elif not _WRITTEN.fullmatch(entry.name) and not os.path.lexists(target):
            new.mkdir(parents=True, exist_ok=True)
            _link(entry, target)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


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
