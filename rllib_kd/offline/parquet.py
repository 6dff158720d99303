"""Recorded rows in Parquet: anybody's, and those that RLlib records."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data  # noqa: F401 (registers its types of columns, so that they are recognised)
from pyarrow.fs import FileSystem
from ray.rllib.core.columns import Columns

from rllib_kd import limits
from rllib_kd.offline.arrays import check_type, described, to_array
from rllib_kd.offline.labelled_files import rows_of_piece
from rllib_kd.offline.reading import Contents, num_rows, part_of, rows_at_once, used_columns
from rllib_kd.offline.schema import FRAMES_BEFORE, METADATA, DataError, LabelledSchema, open_parquet, to_columns

_EPISODES = "item"  # the column of whole episodes that RLlib records by default
_UNPACKED = "Record rows of numbers: .offline_data(output_write_episodes=False, output_compress_columns=[])."


class ParquetReader:
    """Reads Parquet.

    Args:
        obs_column: name of the column of observations.
    """

    def __init__(self, obs_column: str = Columns.OBS):
        self._obs_column = obs_column

    def inspect(self, filesystem: FileSystem, path: str) -> Contents:
        """Return what a file contains: its footer is read."""
        with open_parquet(filesystem, path) as file:
            return self._inspected(file, path)[0]

    def batches(self, filesystem: FileSystem, path: str, batch_size: int) -> Iterator[dict[str, Any]]:
        """Yield the rows of a file."""
        count = 0
        try:
            with open_parquet(filesystem, path) as file:
                contents, used = self._inspected(file, path)
                rows = rows_at_once(batch_size, 8 * sum(contents.sizes.values()))
                labelled = self._labelled(file.schema_arrow, path)
                for columns in _batches(file, used, rows, path, labelled):
                    count += num_rows(columns)
                    yield columns
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"cannot be read: {error}", file=path) from error
        if count != contents.num_rows:
            raise DataError(f"has {count:,} rows, but its footer counts {contents.num_rows:,}: it is broken", file=path)

    def _labelled(self, schema: pa.Schema, path: str) -> LabelledSchema | None:
        """Return the schema of a labelled file whose columns lack the shape of observations: images and stacks."""
        if METADATA not in (schema.metadata or {}) or self._obs_column != Columns.OBS:
            return None
        found = LabelledSchema.from_arrow(schema, path)
        return found if len(found.obs_shape) > 1 else None

    def _inspected(self, file: pq.ParquetFile, path: str) -> tuple[Contents, dict[str, str]]:
        """Return what an open file contains, and the columns that are read: their names there, by RLlib's names."""
        schema = file.schema_arrow
        check_is_not_packed(schema, self._obs_column, path)
        used = used_columns(schema.names, self._obs_column, path)
        _check_names(schema.names, path)
        for name in used.values():
            check_type(schema.field(name).type, file=path, column=name)
        sizes = _sizes(file, used, path)
        for name in sizes:
            kind = schema.field(used[name]).type
            sizes[name] *= kind.byte_width if pa.types.is_fixed_size_binary(kind) else 1
        types = {name: described(schema.field(column).type) for name, column in used.items()}
        if (labelled := self._labelled(schema, path)) is not None:
            types[Columns.OBS] = f"{labelled.obs_dtype}{list(labelled.obs_shape)}"
            sizes[Columns.OBS] = math.prod(labelled.obs_shape)
        read = (*used.values(), *([FRAMES_BEFORE] if labelled is not None and labelled.num_frames > 1 else ()))
        contents = Contents(
            types=types,
            sizes=sizes,
            num_rows=file.metadata.num_rows,
            ranges=_ranges(file.metadata, used),
            left_out=tuple(name for name in schema.names if name not in read),
        )
        return contents, used


def _batches(
    file: pq.ParquetFile, used: dict[str, str], rows: int, path: str, labelled: LabelledSchema | None
) -> Iterator[dict[str, Any]]:
    if labelled is not None:
        yield from _labelled_batches(file, list(used), rows, path, labelled)
        return
    start = 0
    for batch in file.iter_batches(rows, columns=list(used.values()), use_threads=False):
        yield {
            name: to_array(batch.column(column), file=path, column=column, start=start) for name, column in used.items()
        }
        start += batch.num_rows


def _labelled_batches(
    file: pq.ParquetFile, names: list[str], rows: int, path: str, schema: LabelledSchema
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a labelled file, observations with their shape: frames of whole row groups are joined."""
    names = [*names, FRAMES_BEFORE] if schema.num_frames > 1 else names
    for group in range(file.num_row_groups):
        for batch in file.iter_batches(rows_of_piece(schema), row_groups=[group], columns=names, use_threads=False):
            columns = to_columns(batch, schema, file=path)
            for start in range(0, batch.num_rows, rows):
                yield part_of(columns, start, start + rows)


def _check_names(names: list[str], file: str) -> None:
    if (twice := next((name for name in names if names.count(name) > 1), None)) is not None:
        raise DataError("is there twice", file=file, column=twice)


def check_is_not_packed(schema: pa.Schema, obs_column: str, file: str) -> None:
    """Refuse by name what RLlib records in forms that only unpickling could read, and rows of several agents."""
    names = schema.names
    if _EPISODES in names and obs_column not in names and _is_packed(schema.field(_EPISODES).type):
        raise DataError(
            "has whole episodes in msgpack, as RLlib records them by default: reading its object arrays would run code "
            f"in them. {_UNPACKED}",
            file=file,
            column=_EPISODES,
        )
    if not {obs_column, Columns.MODULE_ID, Columns.AGENT_ID} <= set(names):
        return
    if _is_packed(schema.field(obs_column).type):
        raise DataError(
            "has observations that RLlib packed: pickles, compressed by LZ4, which are code that would run. "
            + _UNPACKED,
            file=file,
            column=obs_column,
        )
    if not pa.types.is_null(schema.field(Columns.AGENT_ID).type):
        raise DataError(
            "has rows of several agents, whose observations may differ. Write those of one agent into files of their "
            "own, without this column.",
            file=file,
            column=Columns.AGENT_ID,
        )


def _is_packed(kind: pa.DataType) -> bool:
    return any(
        is_type(kind)
        for is_type in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_string, pa.types.is_large_string)
    )


def _sizes(file: pq.ParquetFile, used: dict[str, str], path: str) -> dict[str, int]:
    """Return how many numbers one row of each column has; the footer contains the sums.

    Raises:
        DataError: rows of a column differ in their size, or are too large.
    """
    metadata, leaves = file.metadata, dict[str, int]()
    for index, (top, *_) in enumerate(file.reader.column_paths):
        for name, column in used.items():
            if top == column:
                count = sum(
                    metadata.row_group(group).column(index).num_values for group in range(metadata.num_row_groups)
                )
                leaves[name] = leaves.get(name, 0) + count
    if not metadata.num_rows:
        return {}
    for name, count in leaves.items():
        if count % metadata.num_rows:
            raise DataError(
                f"has {count} numbers in {metadata.num_rows} rows. Expected observations of one shape, and a value in "
                "each row.",
                file=path,
                column=used[name],
            )
        if count > metadata.num_rows * limits.MAX_INPUTS:
            raise DataError(f"has more than {limits.MAX_INPUTS} numbers a row", file=path, column=used[name])
    return {name: count // metadata.num_rows for name, count in leaves.items()}


def _ranges(metadata: pq.FileMetaData, used: dict[str, str]) -> dict[str, tuple[Any, Any]]:
    """Return the range of the actions, if the footer has it."""
    ranges = {}
    for index in range(metadata.num_columns):
        if metadata.schema.column(index).path != used.get(Columns.ACTIONS):
            continue
        groups = [metadata.row_group(group).column(index).statistics for group in range(metadata.num_row_groups)]
        if groups and all(group is not None and group.has_min_max for group in groups):
            low, high = min(group.min for group in groups), max(group.max for group in groups)
            if all(isinstance(value, int | float) and math.isfinite(value) for value in (low, high)):
                ranges[Columns.ACTIONS] = (low, high)
    return ranges
