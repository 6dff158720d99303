"""Paths and URIs of what Tune writes.

Of a URI, Tune keeps the filesystem and the path in it, but not its options, such as `?endpoint_override=...`, and on
Azure not its account. Without them, what it names cannot be opened. Keys and passwords in a URI are left out, since
locations are printed and written: to open such a place again takes them from the environment.
"""

from __future__ import annotations

import pyarrow.fs
from ray import tune

from rllib_kd.checkpoints.uris import uri_of, without_secrets

#: URIs of folders with results of this process, by the types of their filesystems and the paths in them.
_uris: dict[tuple[str, str], str] = {}


def remember(uri: str) -> None:
    """Name what Tune writes into a folder by this path or URI, without its secrets, from now on."""
    if "://" in uri:
        filesystem, path = pyarrow.fs.FileSystem.from_uri(uri)
        _uris[filesystem.type_name, path] = without_secrets(uri)


def location(found: tune.Checkpoint | tune.Result) -> str:
    """Return the path or URI of a checkpoint, or of a trial, as `rllib evaluate` takes it."""
    return place_of(found.path, found.filesystem)


def place_of(path: str, filesystem: pyarrow.fs.FileSystem) -> str:
    """Return the path or URI of what Tune has written to a path in a filesystem."""
    kind = filesystem.type_name
    if kind == "local":
        return path
    for (type_name, folder), uri in _uris.items():
        if type_name == kind and f"{path}/".startswith(f"{folder}/"):
            return uri_of(uri, folder, path)
    return f"{kind}://{path}"
