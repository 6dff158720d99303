"""Shared code of the readers of recorded files: what is known before a file's rows are read, and sizes of batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from pyarrow.fs import FileSystem
from ray.rllib.core.columns import Columns

from rllib_kd.offline.schema import RECORDED, DataError
from rllib_kd.terminal import say
from rllib_kd.text import did_you_mean

#: Column that files add to those that are read: the index of each row in its file, `[R]`, for messages.
ROW = "row in its file"
_MAX_BATCH = 2**26  # bytes of a batch in memory
_MAX_SHOWN = 12  # names, in a message


@dataclass(frozen=True)
class Contents:
    """What a file contains, known without reading its rows.

    Args:
        types: kinds of the columns that are read, as text, by name.
        sizes: numbers in one row of a column, where they are known.
        num_rows: number of rows; None if it is known at the end alone.
        ranges: smallest and largest number of a column, where they are known.
        left_out: names of the columns that are not read.
    """

    types: Mapping[str, str]
    sizes: Mapping[str, int] = field(default_factory=dict)
    num_rows: int | None = None
    ranges: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    def check_same(self, other: Contents, file: str) -> None:
        """Check that another file has the same columns.

        Raises:
            DataError: it does not; the message has the column, and what was found in both.
        """
        for name in dict.fromkeys((*self.types, *other.types)):
            mine, others = self.types.get(name), other.types.get(name)
            sizes = {size for size in (self.sizes.get(name), other.sizes.get(name)) if size is not None}
            if mine != others or len(sizes) > 1:
                before = _shown(mine, self.sizes.get(name))
                raise DataError(
                    f"{_shown(others, other.sizes.get(name))}; in the files before it: {before}. All files need the "
                    "same columns: label those that differ apart.",
                    file=file,
                    column=name,
                )


def _shown(kind: str | None, size: int | None) -> str:
    if kind is None:
        return "is missing"
    return kind if size is None else f"{kind} of {size} numbers"


def note_left_out(names: Sequence[str]) -> None:
    """Print a note of the columns that are not read, if there are some."""
    if names:
        say(f"note: columns left out: {_first(names)}.")


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_MAX_SHOWN]) + (", ..." if len(names) > _MAX_SHOWN else "")


class Reader(Protocol):
    """Reads files of one kind."""

    def inspect(self, filesystem: FileSystem, path: str) -> Contents:
        """Return what a file contains, without reading its rows.

        Raises:
            DataError: it cannot be read, has no observations, or contains more than data.
        """

    def batches(self, filesystem: FileSystem, path: str, batch_size: int) -> Iterator[dict[str, Any]]:
        """Yield the rows of a file, in their order, in batches of at most `batch_size`.

        A batch has columns `[N, ...]` by RLlib's names, `obs` among them: an array, or dicts of arrays for a
        composed observation; texts are object arrays.

        Raises:
            DataError: a row has no value, or another shape than those before.
        """


def used_columns(names: list[str], obs_column: str, file: str) -> dict[str, str]:
    """Return the columns of a file that are read: their names there, by RLlib's names.

    Raises:
        DataError: there is no column of observations.
    """
    if obs_column not in names:
        shown = _first([f"'{name}'" for name in names])
        remedy = did_you_mean(obs_column, names) or " Name the column of observations: --obs-column."
        raise DataError(f"is missing; the file has {shown or 'no columns'}.{remedy}", file=file, column=obs_column)
    return {Columns.OBS: obs_column} | {name: name for name in RECORDED if name in names and name != obs_column}


def rows_at_once(batch_size: int, row_bytes: int) -> int:
    """Return how many rows are read at once: `batch_size`, or fewer if they would take too much memory."""
    return max(1, min(batch_size, _MAX_BATCH // max(1, row_bytes)))


def part_of(columns: Mapping[str, Any], start: int, stop: int) -> dict[str, Any]:
    """Return some consecutive rows of a batch."""
    return rows_of_columns(columns, slice(start, stop))


def rows_of_columns(columns: Mapping[str, Any], rows: slice | np.ndarray) -> dict[str, Any]:
    """Return some rows of a batch.

    Args:
        columns: the batch.
        rows: a slice, or indices.
    """

    def cut(values: Any) -> Any:
        return {key: cut(part) for key, part in values.items()} if isinstance(values, dict) else values[rows]

    return {name: cut(values) for name, values in columns.items()}


def num_rows(columns: Mapping[str, Any]) -> int:
    """Return the number of rows of a batch."""
    values = columns[Columns.OBS]
    while isinstance(values, dict):
        values = next(iter(values.values()))
    return len(values)


def check_unchanged(end: int, expected: int, file: str) -> None:
    """Check that what was read of a file ends at the row at which it ended when the files were opened.

    Raises:
        DataError: it does not.
    """
    if end != expected:
        raise DataError(
            f"ends at row {end:,}, but at row {expected:,} when it was opened: it has changed. Start again, or resume.",
            file=file,
        )
