"""The manifest of a checkpoint: which files its saver wrote, and their sizes. Others in its folder are the user's."""

from __future__ import annotations

import json
import os
from collections.abc import Container, Mapping
from pathlib import Path

from rllib_kd import limits
from rllib_kd.checkpoints.json_text import parse_json

#: The file at the top of a checkpoint.
MANIFEST = "rllib_kd_manifest.json"
#: RLlib's files: metadata of an Algorithm's checkpoint, metadata of a component's, and, in both, class and arguments.
ALGORITHM_FILE, COMPONENT_FILE, CLASS_FILE = "rllib_checkpoint.json", "metadata.json", "class_and_ctor_args.pkl"
#: Files by which a folder is the checkpoint of an Algorithm, or the beginning of one.
MARKS = (ALGORITHM_FILE, CLASS_FILE)
#: The folder of the RLModules in the checkpoint of an Algorithm.
MODULES = "learner_group/learner/rl_module"


def write_manifest(folder: Path) -> None:
    """Write the manifest of a checkpoint that is complete, and in whose folder nothing else lies."""
    sizes = {name: (folder / name).stat().st_size for name in files_below(folder)}
    (folder / MANIFEST).write_text(json.dumps({"files": sizes}), encoding="utf-8")


def parse_manifest(content: bytes, *, present: Container[str]) -> Mapping[str, int] | None:
    """Return the sizes of a checkpoint's files in bytes, by their paths in it; None if it is no manifest.

    A manifest that lists none of the `MARKS` that are present is another checkpoint's, or was written by others.

    Args:
        content: of the manifest's file.
        present: names of what lies in the checkpoint's folder.
    """
    try:
        files = parse_json(content)["files"]
        is_valid = all(type(size) is int and size >= 0 for size in files.values())  # a bool is no size
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    marks = [mark for mark in MARKS if mark in present]
    return files if is_valid and (not marks or any(mark in files for mark in marks)) else None


def read_manifest(folder: Path) -> Mapping[str, int] | None:
    """Return what the manifest of a checkpoint on this machine records; None if there is none to be trusted."""
    try:
        with (folder / MANIFEST).open("rb") as file:
            return parse_manifest(file.read(limits.MAX_DESCRIPTION + 1), present=os.listdir(folder))
    except OSError:
        return None


def files_below(folder: Path) -> list[str]:
    """Return the paths of all files below a folder, relative to it, with `/` between their parts; links are files."""
    found = []
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        found += [Path(place, name).relative_to(folder).as_posix() for name in (*files, *links)]
    return found
