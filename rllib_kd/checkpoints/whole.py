"""Whether a checkpoint of an Algorithm is whole: a full disk, or a copy that was cut off, leaves half of one."""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Iterable, Iterator

import pyarrow.fs

from rllib_kd.checkpoints.pickles import CheckpointError
from rllib_kd.checkpoints.uris import list_folder

logger = logging.getLogger(__name__)


_MAX_DEPTH, _MAX_FILES = 6, 2_000  # that are looked at


#: How a file ends that is whole, in so many last bytes: a pickle by its opcode STOP, JSON by its object's bracket, an
#: archive by a record of its own.
_ENDS = {".pkl": (b".", 1), ".json": (b"}", 8), ".npz": (b"PK\x05\x06", 22)}


#: What is in the folder of an Algorithm's checkpoint, and the one of these that RLlib writes last.
_MARKS = {"algorithm_state.pkl", "class_and_ctor_args.pkl", "learner_group", "env_runner", "rllib_checkpoint.json"}


_LAST = "rllib_checkpoint.json"


def first_whole(filesystem: pyarrow.fs.FileSystem, folders: Iterable[str]) -> str | None:
    """Return the first of these checkpoints that is whole, and warn of those before it; None if none is."""
    skipped: dict[str, str] = {}
    for folder in folders:
        if (lack := lacking(filesystem, folder)) is not None:
            skipped[folder] = lack
            continue
        for each, why in skipped.items():
            logger.warning("The checkpoint '%s' is not whole, and is skipped: %s. Was the disk full?", each, why)
        return folder
    return None


def lacking(filesystem: pyarrow.fs.FileSystem, folder: str) -> str | None:
    """Return what a checkpoint lacks, in words; None if it is whole, or is none of an Algorithm's and not empty.

    Args:
        filesystem: that holds it.
        folder: of the checkpoint.
    """
    try:
        top = {entry.base_name for entry in list_folder(filesystem, folder)}
        if not top:
            return "it is empty"
        if not top & _MARKS:
            return None
        if _LAST not in top:
            return f"it has no {_LAST}"
        has_networks = "learner_group" not in top
        for path in _files(filesystem, folder):
            has_networks |= "/rl_module/" in path
            if (end := _ENDS.get(posixpath.splitext(path)[1])) and not _ends_with(filesystem, path, *end):
                return f"its {posixpath.relpath(path, folder)} ends in the middle"
        return None if has_networks else "it has no networks"
    except (CheckpointError, OSError):
        return None  # whoever reads it says why it cannot be read


def _files(filesystem: pyarrow.fs.FileSystem, folder: str) -> Iterator[str]:
    folders, num_files = [(folder, 0)], 0
    while folders:
        current, depth = folders.pop()
        for entry in list_folder(filesystem, current):
            if entry.type == pyarrow.fs.FileType.File:
                num_files += 1
                yield entry.path
            elif depth < _MAX_DEPTH:
                folders.append((entry.path, depth + 1))
            if num_files >= _MAX_FILES:
                return


def _ends_with(filesystem: pyarrow.fs.FileSystem, path: str, mark: bytes, num_bytes: int) -> bool:
    with filesystem.open_input_file(path) as file:
        file.seek(max(0, file.size() - num_bytes))
        return mark in file.read(num_bytes)
