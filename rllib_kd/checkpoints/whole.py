"""Check that an Algorithm's checkpoint is complete: a full disk, or a copy that was cut off, leaves half of one."""

from __future__ import annotations

import logging
import posixpath
import re
from collections.abc import Container, Iterable, Mapping

import pyarrow.fs

from rllib_kd import limits
from rllib_kd.checkpoints.manifest import ALGORITHM_FILE, CLASS_FILE, COMPONENT_FILE, MANIFEST, MARKS, parse_manifest
from rllib_kd.checkpoints.pickles import CheckpointError
from rllib_kd.checkpoints.replay_files import REPLAY_FOLDER
from rllib_kd.checkpoints.uris import list_folder, read_file
from rllib_kd.text import one_line

logger = logging.getLogger(__name__)

_MAX_SHOWN = 300  # characters of a name in a message
_MAX_DEPTH, _MAX_ENTRIES = 6, 2_000  # files and folders that are looked at
#: How a file ends that is whole, in so many last bytes: a pickle by its opcode STOP, JSON by its object's bracket, an
#: archive by a record of its own.
_ENDS = {".pkl": (b".", 1), ".json": (b"}", 8), ".npz": (b"PK\x05\x06", 22)}

#: Files that RLlib and this package write, and that end so, at the top and in these folders. Others are the user's.
_WRITTEN = re.compile(
    r"(rllib_checkpoint|metadata)\.json|class_and_ctor_args\.pkl|((algorithm|module)_)?state\.pkl|\d+\.npz"
)

#: Names by which a folder is an Algorithm's checkpoint; and the folders in one.
_OF_ALGORITHM = {*MARKS, "algorithm_state.pkl", "learner_group", "env_runner"}
_FOLDERS = {"learner_group", "env_runner", "eval_env_runner", "teacher", REPLAY_FOLDER}
#: A component (an Algorithm, a Learner, a module, ...) writes the first of these files first, and its state last.
_FIRST, _STATE = {ALGORITHM_FILE, COMPONENT_FILE}, re.compile(r"(.+_)?state\.[a-z]+")


def first_whole(filesystem: pyarrow.fs.FileSystem, folders: Iterable[str]) -> str | None:
    """Return the first of these checkpoints that is whole, and warn of those before it; None if none is."""
    skipped: dict[str, str] = {}
    for folder in folders:
        if (lack := lacking(filesystem, folder)) is not None:
            skipped[folder] = lack
            continue
        for each, why in skipped.items():
            logger.warning(
                "The checkpoint '%s' is incomplete, and is skipped: %s. Was the disk full, or is it being written?",
                one_line(each, limit=_MAX_SHOWN),
                one_line(why, limit=_MAX_SHOWN),
            )
        return folder
    return None


def lacking(filesystem: pyarrow.fs.FileSystem, folder: str) -> str | None:
    """Return what a checkpoint lacks, in words; None if it is complete, or is not an Algorithm's and not empty.

    Args:
        filesystem: filesystem of the folder.
        folder: folder of the checkpoint.
    """
    try:
        top = {entry.base_name for entry in list_folder(filesystem, folder)}
        if not top:
            return "it is empty"
        if not top & _OF_ALGORITHM:
            return None
        if not top & _FIRST:
            return f"it has no {ALGORITHM_FILE}"
        sizes, are_all = _sizes(filesystem, folder)
        if (written := _listed(filesystem, folder, top)) is not None:
            return _lacking_of(sizes, written, are_all=are_all)
        own = [name for name in sizes if "/" not in name or name.partition("/")[0] in _FOLDERS]
        has_networks = "learner_group" not in top or any("/rl_module/" in name for name in own)
        lack = _half_file(filesystem, folder, own) or (_missing_file(own) if are_all else None)
        return lack or (None if has_networks else "it has no networks")
    except (CheckpointError, OSError):
        return None  # the code that reads it reports why it cannot be read


def files_written(filesystem: pyarrow.fs.FileSystem, folder: str) -> list[str]:
    """Return the paths, within an Algorithm's checkpoint, of the files that it wrote, those that make it one first.

    They are those of its manifest, which comes first. Without one, they are those of RLlib's and this package's names.

    Args:
        filesystem: filesystem of the folder.
        folder: folder of the checkpoint. If it is none, or not there, nothing was written.

    Raises:
        CheckpointError: it cannot be read.
    """
    top = {entry.base_name for entry in list_folder(filesystem, folder, missing_ok=True)}
    if top.isdisjoint(MARKS):
        return []
    sizes, _ = _sizes(filesystem, folder)
    listed = _listed(filesystem, folder, top)
    names = filter(_is_written, sizes) if listed is None else sizes.keys() & {*listed, MANIFEST}
    return sorted(names, key=lambda name: (name != MANIFEST, name not in MARKS, name))


def _is_written(name: str) -> bool:
    """Return whether RLlib or this package writes a file of this name; the user may have arrays beside the replay."""
    top, _, inner = name.partition("/")
    base = posixpath.basename(name)
    is_array = base.endswith(".npz")
    is_ours = not inner or top in (_FOLDERS if not is_array else {REPLAY_FOLDER})
    return is_ours and (inner or not is_array) and bool(_WRITTEN.fullmatch(base) or _STATE.fullmatch(base))


def _listed(filesystem: pyarrow.fs.FileSystem, folder: str, top: Container[str]) -> Mapping[str, int] | None:
    """Return the sizes of the files in a checkpoint's manifest; None if it has none to be trusted."""
    if MANIFEST not in top:
        return None
    path = posixpath.join(folder, MANIFEST)
    return parse_manifest(read_file(filesystem, path, max_bytes=limits.MAX_DESCRIPTION), present=top)


def _lacking_of(sizes: Mapping[str, int], written: Mapping[str, int], *, are_all: bool) -> str | None:
    """Return what a checkpoint lacks of the files in its manifest. The user may delete a replay, which fills again."""
    for name, size in written.items():
        if name in sizes and sizes[name] < size:
            return f"its {name} ends in the middle"
        if name not in sizes and are_all and not name.startswith(f"{REPLAY_FOLDER}/"):
            return f"its {name} is missing"
    return None


def _half_file(filesystem: pyarrow.fs.FileSystem, folder: str, names: Iterable[str]) -> str | None:
    for name in names:
        end = _ENDS[posixpath.splitext(name)[1]] if _WRITTEN.fullmatch(posixpath.basename(name)) else None
        if end is not None and not _ends_with(filesystem, posixpath.join(folder, name), *end):
            return f"its {name} ends in the middle"
    return None


def _missing_file(names: Iterable[str]) -> str | None:
    components: dict[str, set[str]] = {}
    for name in names:
        components.setdefault(posixpath.dirname(name), set()).add(posixpath.basename(name))
    for component, files in components.items():
        if files & _FIRST:
            if CLASS_FILE not in files:
                return f"its {posixpath.join(component, CLASS_FILE)} is missing"
            if not any(map(_STATE.fullmatch, files)):
                return f"the state in its {component or 'folder'} is missing"
    return None


def _sizes(filesystem: pyarrow.fs.FileSystem, folder: str) -> tuple[dict[str, int], bool]:
    """Return the sizes in bytes of a checkpoint's files, by their paths in it; and whether these are all files."""
    sizes, folders, num_entries, are_all = {}, [(folder, 0)], 0, True
    while folders and num_entries < _MAX_ENTRIES:  # links may make a few folders look like millions
        current, depth = folders.pop()
        for entry in list_folder(filesystem, current):
            num_entries += 1
            if entry.type == pyarrow.fs.FileType.File:
                sizes[posixpath.relpath(entry.path, folder)] = entry.size or 0
            elif entry.type == pyarrow.fs.FileType.Directory:
                are_all = are_all and depth < _MAX_DEPTH
                folders += [(entry.path, depth + 1)] if depth < _MAX_DEPTH else []
    return sizes, are_all and not folders


def _ends_with(filesystem: pyarrow.fs.FileSystem, path: str, mark: bytes, num_bytes: int) -> bool:
    with filesystem.open_input_file(path) as file:
        file.seek(max(0, file.size() - num_bytes))
        return mark in file.read(num_bytes)
