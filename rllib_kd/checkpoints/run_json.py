"""JSON files that this package keeps in the folder of a run, which may be at a URI."""

from __future__ import annotations

import json
from typing import Any

import pyarrow.fs

from rllib_kd import limits
from rllib_kd.checkpoints.uris import replace_remote_file


def write_json(folder: str, name: str, value: Any, *, indent: int | None = None) -> None:
    """Write a file in one step, so that no reader finds a part of it. The folder is made if it is missing.

    Args:
        folder: path or URI of the folder.
        name: name of the file.
        value: in JSON's terms.
        indent: as in `json.dumps()`.
    """
    filesystem, path = pyarrow.fs.FileSystem.from_uri(folder)
    filesystem.create_dir(path, recursive=True)
    replace_remote_file(filesystem, f"{path}/{name}", json.dumps(value, indent=indent).encode())


def read_json(folder: str, name: str) -> Any:
    """Return the value of a file; None if there is none.

    Raises:
        ValueError: the file is damaged.
    """
    filesystem, path = pyarrow.fs.FileSystem.from_uri(folder)
    file = filesystem.get_file_info(f"{path}/{name}")
    if not file.is_file:
        return None
    if file.size > limits.MAX_SMALL_FILE:
        raise ValueError(f"'{folder}/{name}' is damaged: it has {file.size} bytes.")
    with filesystem.open_input_stream(f"{path}/{name}") as stream:
        try:
            return json.loads(stream.read())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"'{folder}/{name}' is damaged: {error}.") from error
