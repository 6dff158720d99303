"""The format version of `DistillDQN`'s checkpoints."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import pyarrow.fs

from rllib_kd.checkpoints.pickles import CheckpointError
from rllib_kd.checkpoints.uris import is_file

#: The entry of the Algorithm's state that is not RLlib's own.
STATE_ENTRY = "distillation"
#: Incremented when checkpoints change so that other versions cannot read them.
#: 1: an entry for each object of the Algorithm that has a state; the first numbered version.
FORMAT_VERSION = 1


def check_format(state: Mapping[str, Any] | None) -> None:
    """Check that this version of the package can read a state.

    Args:
        state: the entry `distillation` of the Algorithm's state; None if it has none.

    Raises:
        ValueError: the state is of a newer version, or of one before versions were numbered.
    """
    if state is None:
        return
    version = state.get("format_version", 0)
    if version > FORMAT_VERSION:
        raise ValueError(
            f"This checkpoint has format version {version}, but this version of rllib-kd reads format version "
            f"{FORMAT_VERSION}. Install the newer rllib-kd that wrote it."
        )
    if version < FORMAT_VERSION:
        raise ValueError(
            f"This checkpoint has format version {version}, but this version of rllib-kd reads format version "
            f"{FORMAT_VERSION}. Train again, or install the rllib-kd that wrote it."
        )


def check_format_at(path: str, filesystem: pyarrow.fs.FileSystem) -> Mapping[str, Any]:
    """Check the file of an Algorithm's state before anything is restored from its checkpoint, and return its entry.

    Args:
        path: path of the pickle on `filesystem`. Other files are left to RLlib.
        filesystem: the filesystem of `path`.

    Raises:
        ValueError: as `check_format()`, or the file cannot be read.
    """
    if not is_file(filesystem, path):
        return {}
    try:
        with filesystem.open_input_stream(path) as stream:
            entry = pickle.load(stream).get(STATE_ENTRY)
    except Exception as error:  # unpickling executes what is in it
        raise CheckpointError(
            f"'{path}' cannot be read ({type(error).__name__}: {error}). Is the checkpoint complete?"
        ) from error
    check_format(entry)
    return entry or {}
