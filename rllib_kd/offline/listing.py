"""Files of a folder in any filesystem: recorded ones, and labelled ones."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem

from rllib_kd import limits
from rllib_kd.checkpoints.uris import filesystem_at
from rllib_kd.offline.schema import DataError

#: End of the names of labelled files.
PARQUET = ".parquet"
_ENDS = 2**16  # bytes at each end of a file, of which its digest is


def filesystem_of(uri: str) -> tuple[FileSystem, str]:
    """Return the filesystem of a URI or absolute path, and the path in it. Whether there is anything is not checked.

    Raises:
        DataError: it is neither.
    """
    try:
        return filesystem_at(uri)
    except ValueError as error:
        raise DataError(f"'{uri}' is neither a path nor a URI that can be read: {error}.") from error


def files_below(filesystem: FileSystem, folder: str) -> list[str]:
    """Return the paths of all files in a folder and below it, in order, without those whose names are hidden.

    Names that begin with a dot or an underscore are hidden, as for Ray Data and Spark.

    Raises:
        DataError: there are too many, or one has a name that is not in UTF-8; or a link leads back to its own folder.
        OSError: the folder cannot be listed.
    """
    if isinstance(filesystem, LocalFileSystem):
        _check_links(folder)
    entries = filesystem.get_file_info(FileSelector(folder, recursive=True))
    try:
        for entry in entries:
            entry.path  # noqa: B018 (which raises)
    except UnicodeDecodeError as error:
        raise DataError(f"'{folder}' has a file whose name is not in UTF-8. Rename it.") from error
    if len(entries) > limits.MAX_RECORDED_FILES:
        raise DataError(
            f"'{folder}' has {len(entries)} files and folders, expected at most {limits.MAX_RECORDED_FILES}. Name its "
            "folders one after the other."
        )
    start = len(folder.rstrip("/")) + 1
    files = (entry.path for entry in entries if entry.type == FileType.File)
    return sorted(file for file in files if not any(part.startswith((".", "_")) for part in file[start:].split("/")))


def without_repeats(files: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Return files in their order, each once.

    Args:
        files: the filesystem of each, its path there, and whatever belongs to it.
    """
    filesystems: dict[str, list[FileSystem]] = {}  # in which a path has been found; they cannot be hashed
    first = []
    for file in files:
        filesystem, path, *_ = file
        there = filesystems.setdefault(path, [])
        if filesystem not in there:
            there.append(filesystem)
            first.append(file)
    return first


def _check_links(folder: str) -> None:
    """Check that no symbolic link leads to a folder that it is in: its files would be found again and again.

    Raises:
        DataError: one does.
    """
    for parent, folders, _ in os.walk(folder, followlinks=True):
        for name in folders:
            path = Path(parent, name)
            if path.is_symlink() and any(path.samefile(above) for above in path.parents):
                raise DataError(f"'{path}' is a link to a folder that it is in: '{path.resolve()}'. Remove it.")


def digest_of(filesystem: FileSystem, path: str, obs_column: str = "") -> str:
    """Return a text that is equal for equal files, wherever they are and whenever they were written.

    It is the SHA-256 of the column's name, of the size, and of the first and last 64 KiB: at its end, Parquet has
    sizes and statistics of its columns, and `.npz` has their checksums.

    Args:
        filesystem: filesystem of the path.
        path: path of the recorded file.
        obs_column: name of the column of observations, if the digest is to depend on it.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with filesystem.open_input_file(path) as file:
            size = file.size()
            ends = file.read_at(_ENDS, 0), file.read_at(_ENDS, max(0, size - _ENDS))
    except OSError as error:
        raise DataError(f"cannot be read: {error}", file=path) from error
    return hashlib.sha256(repr((obs_column, size, ends)).encode()).hexdigest()
