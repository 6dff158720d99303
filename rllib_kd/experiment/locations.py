"""Paths and URIs of what Tune writes.

Of a URI, Tune keeps the filesystem and the path in it, but not its options, such as `?endpoint_override=...`, and on
Azure not its account. Without them, what it names cannot be opened.
"""

from __future__ import annotations

import pyarrow.fs
from ray import tune

from rllib_kd.checkpoints.uris import uri_of

_uris: dict[str, str] = {}  # of folders with results of this process, by their paths in their filesystems


def remember(uri: str) -> None:
    """Name what Tune writes into a folder by this path or URI from now on."""
    if "://" in uri:
        _uris[pyarrow.fs.FileSystem.from_uri(uri)[1]] = uri


def location(found: tune.Checkpoint | tune.Result) -> str:
    """Return the path or URI of a checkpoint, or of a trial, as `rllib evaluate` takes it."""
    return place_of(found.path, found.filesystem)


def place_of(path: str, filesystem: pyarrow.fs.FileSystem) -> str:
    """Return the path or URI of what Tune has written to a path in a filesystem."""
    kind = filesystem.type_name
    if kind == "local":
        return path
    for folder, uri in _uris.items():
        if f"{path}/".startswith(f"{folder}/"):
            return uri_of(uri, folder, path)
    return f"{kind}://{path}"
