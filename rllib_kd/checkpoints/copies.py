"""Checkpoints on filesystems that are not local, such as S3: written to a folder on this machine and copied.

RLlib's own way there leaves the files of an older checkpoint, and cannot send there what a Learner on another node has.
"""

from __future__ import annotations

import posixpath
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow.fs

from rllib_kd.checkpoints.manifest import MANIFEST, write_manifest
from rllib_kd.checkpoints.whole import files_written


@contextmanager
def copied_to(path: str, filesystem: pyarrow.fs.FileSystem) -> Iterator[Path]:
    """Yield a folder, still to be made, that is copied to `path` once everything is written.

    Files that an older checkpoint has written there are deleted first; others stay. The manifest comes last. A kill
    while files are copied leaves an incomplete checkpoint.

    Args:
        path: path of the checkpoint in the filesystem.
        filesystem: a filesystem that is not local.

    Raises:
        OSError: it cannot be written.
    """
    with tempfile.TemporaryDirectory() as work:
        yield (new := Path(work, "new"))
        _delete(files_written(filesystem, path), path, filesystem)
        filesystem.create_dir(path, recursive=True)
        _copy(str(new), path, pyarrow.fs.LocalFileSystem(), filesystem)
        write_manifest(new)
        _copy(f"{new}/{MANIFEST}", posixpath.join(path, MANIFEST), pyarrow.fs.LocalFileSystem(), filesystem)


@contextmanager
def on_this_machine(path: str, filesystem: pyarrow.fs.FileSystem, *, without: Sequence[str] = ()) -> Iterator[str]:
    """Yield a local path with what lies at `path`: a copy that is deleted afterwards, unless the filesystem is local.

    Args:
        path: path of a folder in the filesystem.
        filesystem: any filesystem.
        without: names of files and folders in it that need not be copied.

    Raises:
        OSError: there is nothing, or it cannot be read.
    """
    if filesystem.type_name == "local":
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        for entry in filesystem.get_file_info(pyarrow.fs.FileSelector(path)):
            if entry.base_name not in without:
                if entry.type == pyarrow.fs.FileType.Directory:
                    Path(folder, entry.base_name).mkdir()
                _copy(entry.path, f"{folder}/{entry.base_name}", filesystem, pyarrow.fs.LocalFileSystem())
        yield folder


def _copy(
    source: str, target: str, source_filesystem: pyarrow.fs.FileSystem, filesystem: pyarrow.fs.FileSystem
) -> None:
    pyarrow.fs.copy_files(source, target, source_filesystem=source_filesystem, destination_filesystem=filesystem)


def _delete(names: list[str], folder: str, filesystem: pyarrow.fs.FileSystem) -> None:
    """Delete files of a folder, and the folders within it that are empty then."""
    for name in names:
        filesystem.delete_file(posixpath.join(folder, name))
    inner = {posixpath.dirname(name) for name in names} - {""}
    for name in sorted(inner, key=len, reverse=True):  # the innermost first
        place = posixpath.join(folder, name)
        if not filesystem.get_file_info(pyarrow.fs.FileSelector(place, allow_not_found=True)):
            filesystem.delete_dir(place)
