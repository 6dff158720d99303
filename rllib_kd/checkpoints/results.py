"""Read folders of Ray Tune's trials and their `result.json`, line by line, within limits for all trials together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import pyarrow.fs

from rllib_kd import limits
from rllib_kd.checkpoints.json_text import count_values, parse_json
from rllib_kd.checkpoints.pickles import CheckpointError
from rllib_kd.checkpoints.uris import list_folder, read_lines
from rllib_kd.numeric import is_finite

ITERATION, ENV_STEPS = "training_iteration", "num_env_steps_sampled_lifetime"
_MIN_VALUES = 600  # as which a line of results counts at least, for the time that it takes; RLlib's have as many

_T = TypeVar("_T")


def value_at(result: Any, keys: Iterable[str]) -> Any:
    """Return the value at nested keys of a result, which may contain anything; None if there is none."""
    for key in keys:
        result = result.get(key) if isinstance(result, Mapping) else None
    return result


class TrialReader:
    """Lists the folders of trials, and reads their results.

    Args:
        filesystem: their filesystem.
        is_own: whether they are this user's, who may have any number of results. Otherwise limits apply.
    """

    def __init__(self, filesystem: pyarrow.fs.FileSystem, *, is_own: bool = False):
        self.filesystem = filesystem
        self._is_own = is_own
        self._num_bytes, self._num_values = limits.MAX_RESULTS, limits.MAX_RESULTS_VALUES  # that may still be read
        self._num_entries = limits.MAX_ENTRIES

    def folders(self, path: str) -> list[str]:
        """Return the folders in a folder, sorted.

        Raises:
            CheckpointError: all folders together contain more entries than any folder of checkpoints.
        """
        entries = list_folder(self.filesystem, path)
        self._num_entries -= len(entries)
        if self._num_entries < 0:
            raise CheckpointError(
                f"'{path}' was refused: together with the trials before it, it contains more than {limits.MAX_ENTRIES} "
                "files and folders. Name one checkpoint."
            )
        return folders_among(entries)

    def rows(self, path: str) -> Iterator[dict[str, Any]]:
        """Yield the objects of a file, one per line; the last line of a running trial may be incomplete.

        Raises:
            CheckpointError: it cannot be read, or exceeds the limits of results.
        """
        max_bytes, max_line = (2**63, 2**63) if self._is_own else (self._num_bytes, limits.MAX_RESULT)
        for line in read_lines(self.filesystem, path, max_bytes=max_bytes, max_line=max_line):
            if not self._is_own:
                self._take(line, path)
            if not line.lstrip().startswith(b"{"):
                continue
            try:
                row = parse_json(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row

    def _take(self, line: bytes, path: str) -> None:
        self._num_bytes -= len(line) + 1
        num_values = count_values(line)
        self._num_values -= max(num_values, _MIN_VALUES)
        is_object = line.lstrip().startswith(b"{")
        if self._num_values < 0 or (is_object and num_values > limits.MAX_RESULT_VALUES):
            raise CheckpointError(f"'{path}' was refused: it has more values than any results. Name a checkpoint.")


def folders_among(entries: Iterable[pyarrow.fs.FileInfo]) -> list[str]:
    """Return the paths of the folders among entries, sorted."""
    return sorted(entry.path for entry in entries if entry.type == pyarrow.fs.FileType.Directory)


def finite_number(value: Any) -> float | None:
    """Return a number of a result as a float; None if it is not a number, or not finite."""
    return float(value) if is_finite(value) else None


def of_rows_that_count(rows: Iterable[Mapping[str, Any]], take: Callable[[Mapping[str, Any]], _T]) -> list[_T]:
    """Return what is taken of a trial's rows, without those that it has written again.

    A trial that begins again, or that resumes from a checkpoint, appends its rows to those of the lost attempt, of
    which only those before its first row count. Rows are compared by their iteration; without one, by their env steps.

    Args:
        rows: the results of a trial, in the order of its file.
        take: a function of a row.
    """
    taken: list[tuple[list[float | None], _T]] = []
    for row in rows:
        place = [finite_number(row.get(name)) for name in (ITERATION, ENV_STEPS)]
        while taken and _is_again(place, taken[-1][0]):
            taken.pop()
        taken.append((place, take(row)))
    return [own for _, own in taken]


def _is_again(place: Iterable[float | None], before: Iterable[float | None]) -> bool:
    both = zip(place, before, strict=True)
    return next((own <= old for own, old in both if own is not None and old is not None), False)
