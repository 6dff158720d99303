"""The manifest of a checkpoint: which files its saver wrote, and their sizes. Others in its folder are the user's."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from rllib_kd import limits
from rllib_kd.checkpoints.json_text import parse_json

#: The file at the top of a checkpoint.
MANIFEST = "rllib_kd_manifest.json"


def write_manifest(folder: Path) -> None:
    """Write the manifest of a checkpoint that is complete, and in whose folder nothing else lies."""
    sizes = {name: (folder / name).stat().st_size for name in files_below(folder)}
    (folder / MANIFEST).write_text(json.dumps({"files": sizes}))


def parse_manifest(content: bytes) -> Mapping[str, int] | None:
    """Return the sizes of the files in bytes, by their paths in the checkpoint; None if it is no manifest."""
    try:
        files = parse_json(content)["files"]
        is_valid = all(isinstance(size, int) and size >= 0 for size in files.values())
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return files if is_valid else None


def read_manifest(folder: Path) -> Mapping[str, int] | None:
    """Return what the manifest of a checkpoint on this machine records; None if there is none that can be read."""
    try:
        with (folder / MANIFEST).open("rb") as file:
            return parse_manifest(file.read(limits.MAX_DESCRIPTION + 1))
    except OSError:
        return None


def files_below(folder: Path) -> list[str]:
    """The paths of all files below a folder, relative to it, with `/` between their parts; links are files."""
    found = []
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        found += [Path(place, name).relative_to(folder).as_posix() for name in (*files, *links)]
    return found
