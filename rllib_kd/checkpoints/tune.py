"""Folders of Ray Tune: the best checkpoint of an experiment or a trial, by the return that its results tell."""

from __future__ import annotations

import io
import json
import math
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow.fs

from rllib_kd.checkpoints.pickles import CheckpointError, read_pickle
from rllib_kd.checkpoints.uris import read_file

_RESULTS = "result.json"
_STATE = "algorithm_state.pkl"  # in a checkpoint
_ITERATION = "training_iteration"  # in that state, and in results
#: Where the return of a result stands: an evaluation's says more than one of training, in which policies explore.
_RETURNS = (("evaluation", "env_runners", "episode_return_mean"), ("env_runners", "episode_return_mean"))


class TrainedCheckpoint(NamedTuple):
    """A checkpoint that Tune wrote."""

    path: str
    trained_return: float  # mean, of the result that came with it; −inf where it has none


def best_checkpoint(filesystem: pyarrow.fs.FileSystem, path: str, uri: str) -> TrainedCheckpoint | None:
    """The best checkpoint of a trial's folder, or of the trials in an experiment's; None where it is neither.

    Among trials that were evaluated and others, the evaluated ones come first.

    Raises:
        CheckpointError: it has results, but no checkpoints.
    """
    trials = [path] if _is_file(filesystem, posixpath.join(path, _RESULTS)) else _trials(filesystem, path)
    if not trials:
        return None
    for keys in _RETURNS:
        found = [
            checkpoint
            for trial in trials
            for checkpoint in _checkpoints(filesystem, trial, _folders(filesystem, trial), keys)
        ]
        if any(math.isfinite(checkpoint.trained_return) for checkpoint in found) or (found and keys == _RETURNS[-1]):
            return max(reversed(found), key=lambda checkpoint: checkpoint.trained_return)  # of equals the newest
    raise CheckpointError(
        f"'{uri}' is a folder of Ray Tune without checkpoints. Let Tune write some: CheckpointConfig("
        "checkpoint_at_end=True), or --checkpoint-freq on the command line."
    )


def trained_return(filesystem: pyarrow.fs.FileSystem, path: str) -> float | None:
    """The mean return that Tune's results tell of a checkpoint; None where they do not."""
    for keys in _RETURNS:
        for checkpoint in _checkpoints(filesystem, path.rpartition("/")[0], [path], keys):
            if math.isfinite(checkpoint.trained_return):
                return checkpoint.trained_return
    return None


def _trials(filesystem: pyarrow.fs.FileSystem, path: str) -> list[str]:
    folders = _folders(filesystem, path)
    return [folder for folder in folders if _is_file(filesystem, posixpath.join(folder, _RESULTS))]


def _folders(filesystem: pyarrow.fs.FileSystem, path: str) -> list[str]:
    entries = filesystem.get_file_info(pyarrow.fs.FileSelector(path))
    return sorted(entry.path for entry in entries if entry.type == pyarrow.fs.FileType.Directory)


def _checkpoints(
    filesystem: pyarrow.fs.FileSystem, trial: str, folders: Sequence[str], keys: tuple[str, ...]
) -> list[TrainedCheckpoint]:
    """The checkpoints among folders of a trial, each with the last return before it was written."""
    if not _is_file(filesystem, posixpath.join(trial, _RESULTS)):
        return []
    last = -math.inf
    by_name: dict[Any, float] = {}
    by_iteration: dict[Any, float] = {}
    for row in _rows(filesystem, posixpath.join(trial, _RESULTS)):
        value = _look_up(row, keys)
        last = last if value is None else value
        by_name[str(row.get("checkpoint_dir_name"))] = by_iteration[str(row.get(_ITERATION))] = last
    found = []
    for folder in folders:
        name = folder.rpartition("/")[2]
        if name in by_name:
            found.append(TrainedCheckpoint(folder, by_name[name]))
        elif name.startswith("checkpoint_"):  # Tune names it in no result if it is an Algorithm's
            iteration = str(_iteration(filesystem, posixpath.join(folder, _STATE)))
            found.append(TrainedCheckpoint(folder, by_iteration.get(iteration, last)))
    return found


def _iteration(filesystem: pyarrow.fs.FileSystem, path: str) -> Any:
    """How many iterations an Algorithm had trained when this state was written; None where it does not say."""
    try:
        state = read_pickle(io.BytesIO(read_file(filesystem, path)), path)
    except (CheckpointError, OSError):
        return None
    return state.get(_ITERATION) if isinstance(state, dict) else None


def _rows(filesystem: pyarrow.fs.FileSystem, path: str) -> Iterator[dict[str, Any]]:
    """The objects of a file, one a line; the last line of a run that is still going may not be whole."""
    text = read_file(filesystem, path).decode("utf-8", errors="replace")
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            yield row


def _look_up(row: Any, keys: tuple[str, ...]) -> float | None:
    for key in keys:
        row = row.get(key) if isinstance(row, Mapping) else None
    return finite_number(row)


def finite_number(value: Any) -> float | None:
    """A number of a result; None for what is none, or not finite as a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:  # of an integer with hundreds of digits
        return None
    return number if math.isfinite(number) else None


def _is_file(filesystem: pyarrow.fs.FileSystem, path: str) -> bool:
    return filesystem.get_file_info(path).type == pyarrow.fs.FileType.File
