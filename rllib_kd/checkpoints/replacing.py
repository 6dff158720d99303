"""A checkpoint that takes the place of an older one, whole."""

from __future__ import annotations

import ctypes
import glob
import os
import re
import shutil
import sys
import tempfile
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rllib_kd.checkpoints.manifest import COMPONENT_FILE, MANIFEST, MARKS, files_below, read_manifest, write_manifest
from rllib_kd.locks import locked
from rllib_kd.paths import check_path

#: The endings of a state's file, one for each of RLlib's formats.
_FORMATS = (".pkl", ".msgpack", ".pt")
#: In a working folder: the file that marks it as ours, the new checkpoint, and the older one for a moment.
_OURS, _NEW, _OLDER = ".rllib_kd", "new", "older"
_HERE, _RENAME_EXCHANGE = -100, 2  # AT_FDCWD of fcntl.h, and the flag of stdio.h


@contextmanager
def replacing(path: str | Path, *, left_out: Collection[str] = ()) -> Iterator[Path]:
    """Yield a folder, still to be made, that replaces the checkpoint at `path` once everything is written.

    Of several savers of one path, each waits for the one before it. Working folders that killed savers have left are
    deleted. Files that the older checkpoint did not write are the user's, and stay. If nothing can be written
    beside a folder (its parent is read-only, or it is a mounted volume), a first checkpoint is made within it.

    Args:
        path: path of the checkpoint. If it is a link, its target is replaced, and not the link.
        left_out: folders of numbered arrays (`0.npz`, ...), of which a checkpoint may have fewer than the older one.

    Raises:
        ValueError: a file or a link that leads back to itself is there, it is a folder in which this process works, or
            the user's files have names of the checkpoint's; or as `check_path()`.
        OSError: it cannot be written, or an older checkpoint cannot be replaced as a whole.
    """
    with _naming(path):
        folder = _checked(path)
        folder.parent.mkdir(parents=True, exist_ok=True)
        is_replaced = not folder.exists() or _can_be_replaced(folder)
    if not is_replaced and _is_checkpoint(folder):
        raise OSError(
            f"The checkpoint at '{path}' cannot be replaced as a whole, since nothing can be written beside it, to "
            f"'{folder.parent}' on the same filesystem. Save into a new folder within it."
        )
    place = (folder.parent if is_replaced else folder) / folder.name  # beside which working folders are made
    with ExitStack() as stack:
        with _naming(path):
            is_alone = stack.enter_context(locked(place, wait=True))
            if is_alone:
                _clear_leftovers(place)
            work = Path(tempfile.mkdtemp(prefix=_prefix(place), dir=place.parent))
        try:
            (work / _OURS).touch()
            yield work / _NEW
            write_manifest(work / _NEW)
            if is_replaced:
                _put(work, folder, left_out)
            else:
                _move_in(work / _NEW, folder)
        finally:
            _clear(work, place)


def _checked(path: str | Path) -> Path:
    """Return the folder that a path means, if a checkpoint can lie there."""
    check_path(path)
    folder = Path(os.path.realpath(path))
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"A checkpoint is a folder, but '{path}' is a file. Name another path.")
    if (link := next(filter(os.path.islink, (folder, *folder.parents)), None)) is not None:
        raise ValueError(
            f"'{link}' is a link that leads back to itself, so '{path}' is not a folder. Name another path."
        )
    above = next((place for place in folder.parents if place.exists()), folder)
    if not above.is_dir():
        raise ValueError(f"A checkpoint is a folder, but '{above}' above '{path}' is a file. Name another path.")
    if folder.exists() and folder in (here := Path.cwd().resolve(), *here.parents):
        raise ValueError(
            f"'{folder}' is the folder in which this process works, or above it: it cannot be replaced. Name a "
            f"folder within it, such as '{folder / 'checkpoint'}'."
        )
    return folder


@contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """In this context, errors of the system name the checkpoint, and not a file of ours beside it."""
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


def _move_in(new: Path, folder: Path) -> None:
    """Move a first checkpoint into a folder that cannot be replaced: last of all the files that make it one."""
    _check_is_free(folder, new)
    for entry in sorted(new.iterdir(), key=lambda entry: entry.name in MARKS):
        entry.rename(folder / entry.name)


def _can_be_replaced(folder: Path) -> bool:
    return not os.path.ismount(folder) and os.access(folder.parent, os.W_OK | os.X_OK)


def _is_checkpoint(folder: Path) -> bool:
    whole, begun = (folder / mark for mark in MARKS)
    return whole.is_file() or (begun.is_file() and not (folder / COMPONENT_FILE).is_file())


def _check_is_free(folder: Path, new: Path) -> None:
    """Check that a first checkpoint replaces nothing."""
    for entry in new.iterdir():
        if os.path.lexists(folder / entry.name):
            raise ValueError(
                f"'{folder}' holds no checkpoint, but other files, and a checkpoint would replace '{entry.name}'. Save "
                "into a new folder."
            )


# --- The user's files -------------------------------------------------------------------------------------------------


def _keep_the_rest(folder: Path, new: Path, left_out: Collection[str]) -> None:
    """Link into the new checkpoint what else lies in its place, so that nothing is missing at any moment."""
    if not _is_checkpoint(folder):
        _check_is_free(folder, new)
        _keep(folder, new, _Written(()))
    elif (listed := read_manifest(folder)) is not None:
        _keep(folder, new, _Written({*listed, MANIFEST}))
    else:
        _keep(folder, new, _Written(name for name in files_below(folder) if _is_replaced(name, new, left_out)))


class _Written:
    """The paths of the files that the older checkpoint wrote."""

    def __init__(self, files: Iterable[str]):
        self._files = sorted(files)

    def has_file(self, path: str) -> bool:
        """Return whether a file was written there."""
        return self._first_from(path) == path

    def has_folder(self, path: str) -> bool:
        """Return whether a file was written below this path."""
        return self._first_from(f"{path}/").startswith(f"{path}/")

    def _first_from(self, path: str) -> str:
        place = bisect_left(self._files, path)
        return self._files[place] if place < len(self._files) else ""


def _is_replaced(name: str, new: Path, left_out: Collection[str]) -> bool:
    """Return whether the new checkpoint replaces a file of an older one without a manifest, by its name.

    It does so if it has a file of this name, or the same state in another format, which RLlib might prefer; and arrays
    that it no longer has. Other files that it no longer has do no harm, and may be the user's.
    """
    target, top = new / name, name.partition("/")[0]
    if top in left_out and re.fullmatch(r"\d+\.npz", name[len(top) + 1 :]):
        return True
    is_state = target.stem.endswith("state") and target.suffix in _FORMATS
    return any(target.with_suffix(ending).is_file() for ending in (_FORMATS if is_state else (target.suffix,)))


def _keep(older: Path, new: Path, written: _Written, inside: str = "") -> None:
    """Link a folder's entries from the older checkpoint into the new one, except for files that the older one wrote."""
    for entry in older.iterdir():
        name, target = inside + entry.name, new / entry.name
        if _is_folder(entry) and (_is_folder(target) or written.has_folder(name)):
            _keep(entry, target, written, f"{name}/")
        elif _is_folder(entry) or not written.has_file(name):
            try:
                new.mkdir(parents=True, exist_ok=True)
                taken = os.path.lexists(target)
            except (FileExistsError, NotADirectoryError):
                taken = True  # by a file in the place of the folder
            if taken:
                raise ValueError(
                    f"A new checkpoint would replace '{name}' in '{older}', which the older one did not write. Move it "
                    "to another place, or save into a new folder."
                )
            if _is_folder(entry):
                shutil.copytree(entry, target, symlinks=True, copy_function=_link)
            else:
                _link(entry, target)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _link(source: os.PathLike[str] | str, target: os.PathLike[str] | str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # a filesystem without hard links
        shutil.copy2(source, target, follow_symlinks=False)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders atomically, which Linux can on most filesystems; return whether it did."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    return rename is not None and rename(_HERE, bytes(first), _HERE, bytes(second), _RENAME_EXCHANGE) == 0


# --- What killed savers have left -------------------------------------------------------------------------------------


def _prefix(place: Path) -> str:
    return f".{place.name}.saving-"


def _clear_leftovers(folder: Path) -> None:
    """Delete the working folders of dead savers: all of them are dead, as this one holds the lock."""
    prefix = _prefix(folder)
    for work in folder.parent.glob(glob.escape(prefix) + "*"):
        is_named_by_us = re.fullmatch(r"[a-z0-9_]{8}", work.name.removeprefix(prefix))
        if is_named_by_us and work.is_dir() and not work.is_symlink() and _is_ours(work):
            _clear(work, folder)


def _is_ours(work: Path) -> bool:
    """Return whether it has the mark; or is empty, as after a kill before it got the mark, or after it lost it."""
    entries = os.listdir(work)
    return not entries or _OURS in entries


def _clear(work: Path, folder: Path) -> None:
    """Delete a working folder, its mark last; an older checkpoint that lies in it is moved back."""
    if (work / _OLDER).exists() and not folder.exists():
        (work / _OLDER).rename(folder)
    for name in (_NEW, _OLDER):
        shutil.rmtree(work / name, ignore_errors=True)
    shutil.rmtree(work, ignore_errors=True)
