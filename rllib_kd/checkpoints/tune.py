"""Folders of Ray Tune: the best checkpoint of an experiment or a trial, by the return that its results tell."""

from __future__ import annotations

import io
import math
import os
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow.fs

from rllib_kd import limits
from rllib_kd.checkpoints.pickles import Budget, CheckpointError, read_pickle
from rllib_kd.checkpoints.results import RESULTS, TrialReader, folders_among
from rllib_kd.checkpoints.uris import file_types, is_file, list_folder, read_file
from rllib_kd.checkpoints.whole import first_whole

_STATE = "algorithm_state.pkl"  # in a checkpoint


_ITERATION = "training_iteration"  # in that state, and in results


#: Where the return of a result stands: an evaluation's says more than one of training, in which policies explore.
_RETURNS = (("evaluation", "env_runners", "episode_return_mean"), ("env_runners", "episode_return_mean"))


_MAX_OPCODES = 8 * limits.MAX_OPCODES  # of the states of all checkpoints of a folder together


_MAX_NAME = 255  # characters of a checkpoint's folder


class TrainedCheckpoint(NamedTuple):
    """A checkpoint that Tune wrote."""

    path: str
    trained_return: float  # mean, of the result that came with it; −inf where it has none


class _Scored(NamedTuple):
    """A checkpoint, with the last return before it was written for each of `_RETURNS`; −inf where there is none."""

    path: str
    returns: tuple[float, ...]


def best_checkpoint(filesystem: pyarrow.fs.FileSystem, path: str, uri: str) -> TrainedCheckpoint | None:
    """The best checkpoint of a trial's folder, or of the trials in an experiment's; None where it is neither.

    Among trials that were evaluated and others, the evaluated ones come first.

    Raises:
        CheckpointError: it has results, but no checkpoints; or more of them than are read.
    """
    trials = [path] if is_file(filesystem, posixpath.join(path, RESULTS)) else _trials(filesystem, path)
    if not trials:
        return None
    reader = _Reader(filesystem)
    found = [scored for trial in trials for scored in reader.score(trial, reader.folders(trial))]
    for i in range(len(_RETURNS)):
        if any(math.isfinite(scored.returns[i]) for scored in found) or (found and i == len(_RETURNS) - 1):
            newest_first = found[::-1]
            ranked = sorted(newest_first, key=lambda scored: scored.returns[i], reverse=True)  # equals keep their order
            whole = first_whole(filesystem, (scored.path for scored in ranked))
            best = next((scored for scored in ranked if scored.path == whole), ranked[0])
            return TrainedCheckpoint(best.path, best.returns[i])
    raise CheckpointError(
        f"'{uri}' is a folder of Ray Tune without checkpoints. Let Tune write some: CheckpointConfig("
        "checkpoint_at_end=True), or --checkpoint-freq on the command line."
    )


def trained_return(filesystem: pyarrow.fs.FileSystem, path: str) -> float | None:
    """The mean return that Tune's results tell of a checkpoint; None where they do not."""
    for scored in _Reader(filesystem).score(path.rpartition("/")[0], [path]):
        return next((value for value in scored.returns if math.isfinite(value)), None)
    return None


def _trials(filesystem: pyarrow.fs.FileSystem, path: str) -> list[str]:
    entries = list_folder(filesystem, path)
    is_local = filesystem.type_name == "local"  # where links may lead anywhere, and to the same trial often
    folders = [folder for folder in folders_among(entries) if not (is_local and os.path.islink(folder))]
    files = [posixpath.join(folder, RESULTS) for folder in folders]
    kinds = file_types(filesystem, files)
    return [folder for folder, kind in zip(folders, kinds, strict=True) if kind == pyarrow.fs.FileType.File]


class _Reader(TrialReader):
    """Reads results and states, so many of all trials together."""

    def __init__(self, filesystem: pyarrow.fs.FileSystem):
        super().__init__(filesystem)
        self._budget = Budget(_MAX_OPCODES, limits.MAX_FILE)

    def score(self, trial: str, folders: Sequence[str]) -> list[_Scored]:
        """The checkpoints among folders of a trial."""
        results = posixpath.join(trial, RESULTS)
        if not is_file(self.filesystem, results):
            return []
        last = tuple(-math.inf for _ in _RETURNS)
        by_name: dict[str | None, tuple[float, ...]] = {}
        by_iteration: dict[int | None, tuple[float, ...]] = {}
        for row in self.rows(results):
            values = [_look_up(row, keys) for keys in _RETURNS]
            last = tuple(old if new is None else new for old, new in zip(last, values, strict=True))
            by_name[_name(row.get("checkpoint_dir_name"))] = by_iteration[_number(row.get(_ITERATION))] = last
        found = []
        for folder in folders:
            name = folder.rpartition("/")[2]
            if name in by_name:
                found.append(_Scored(folder, by_name[name]))
            elif name.startswith("checkpoint_"):  # Tune names it in no result if it is an Algorithm's
                iteration = self._iteration(posixpath.join(folder, _STATE))
                found.append(_Scored(folder, by_iteration.get(iteration, last)))
        return found

    def _iteration(self, path: str) -> int | None:
        """How many iterations an Algorithm had trained when this state was written; None where it does not say."""
        if self._budget.is_used_up:
            raise CheckpointError(f"'{path}' is one of too many, or too large, states to read. Name one checkpoint.")
        try:
            content = read_file(self.filesystem, path, max_bytes=limits.MAX_SMALL_FILE)
            self._budget.take(content, path)
            state = read_pickle(io.BytesIO(content), path, self._budget)
        except (CheckpointError, OSError):
            return None
        return _number(state.get(_ITERATION)) if isinstance(state, dict) else None


def _name(value: Any) -> str | None:
    return value if isinstance(value, str) and len(value) <= _MAX_NAME else None


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and abs(value) < 2**60 else None  # of larger ones many have the same hash


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
