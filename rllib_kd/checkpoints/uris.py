"""Paths and URIs, as pyarrow's filesystems take them."""

from __future__ import annotations

import pyarrow.fs

from rllib_kd.checkpoints.pickles import CheckpointError

_MAX_FILE = 2**31  # bytes; a sparse file may claim any


def open_uri(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The filesystem, and the path in it.

    Raises:
        CheckpointError: nothing is there.
    """
    try:
        filesystem, path = pyarrow.fs.FileSystem.from_uri(uri)
        found = filesystem.get_file_info(path).type != pyarrow.fs.FileType.NotFound
    except (pyarrow.ArrowInvalid, OSError, UnicodeEncodeError) as error:
        raise CheckpointError(f"'{uri}' is neither an absolute path nor a URI that can be read: {error}") from error
    if not found:
        raise CheckpointError(
            f"There is no checkpoint at '{uri}'. Expected the directory of a trained RLlib DQN, a file of another "
            "library (in the config of a Tune trial as an absolute path, since trials run elsewhere), or 'cartpole', "
            "which comes with rllib_kd."
        )
    return filesystem, path.rstrip("/") or "/"


def uri_of(uri: str, path: str, inner: str) -> str:
    """The URI of a path inside of another one's.

    Args:
        uri: of the outer path; options may follow it, as in `s3://bucket/folder?region=eu-west-1`.
        path: the outer path in its filesystem.
        inner: the inner path in the same filesystem.
    """
    before, mark, options = uri.partition("?") if "://" in uri else (uri, "", "")
    return before.rstrip("/") + inner[len(path.rstrip("/")) :] + mark + options


def read_file(filesystem: pyarrow.fs.FileSystem, path: str) -> bytes:
    """Content of a file.

    Raises:
        CheckpointError: it cannot be read, is no plain file (a device or a pipe never ends), or is larger than any
            network.
    """
    try:
        info = filesystem.get_file_info(path)
        if info.type != pyarrow.fs.FileType.File:
            raise CheckpointError(f"'{path}' is missing, or no plain file. Is the checkpoint complete?")
        if info.size is not None and info.size > _MAX_FILE:
            raise CheckpointError(f"'{path}' has {info.size} bytes, more than any network that is read here.")
        with filesystem.open_input_file(path) as file:
            return file.read()
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be opened: {error}") from error
