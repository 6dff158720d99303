"""Labelled files, written whole: one under its own name has all of its rows."""

from __future__ import annotations

import contextlib
import posixpath
import re
import time
import uuid
from collections.abc import Collection, Iterable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileSelector, FileSystem
from ray.rllib.core.columns import Columns

from rllib_kd.offline.schema import LabelledSchema, to_table

_ROWS, _BYTES = 2**16, 2**25  # of a row group; a shuffling reader takes whole ones
_PART = re.compile(r"\.(.*\.parquet)\.[0-9a-f]{32}\.part")  # names of files that are not whole
_ABANDONED = 15 * 60  # seconds without a write, after which nobody writes an unfinished file any more
_OBJECT_STORES = ("s3", "gcs", "abfs")  # they have no folders, but would keep empty objects for them


def write_file(
    filesystem: FileSystem, path: str, batches: Iterable[Mapping[str, np.ndarray]], schema: LabelledSchema
) -> int:
    """Write a labelled file under another name, and rename it once it is whole.

    Args:
        filesystem: filesystem of the path.
        path: path of the file, whose folder is made if it is missing.
        batches: its rows, by column.
        schema: their schema.

    Returns:
        The number of rows.

    Raises:
        DataError: rows do not fit the schema.
        OSError: it cannot be written.
    """
    folder, name = posixpath.split(path)
    if filesystem.type_name not in _OBJECT_STORES:
        filesystem.create_dir(folder, recursive=True)
    part = f"{folder}/.{name}.{uuid.uuid4().hex}.part"
    try:
        with filesystem.open_output_stream(part) as stream:
            count = _write(stream, batches, schema)
        filesystem.move(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            filesystem.delete_file(part)
        raise
    return count


def rows_of_group(schema: LabelledSchema) -> int:
    """Return how many rows a row group has. Of stacks stored frame by frame, write as many at once."""
    return max(1, min(_ROWS, _BYTES // max(1, schema.row_bytes)))


def remove_parts(filesystem: FileSystem, folder: str, names: Collection[str]) -> None:
    """Remove what killed jobs have left of some files. What was written to lately may be of a job that runs: it stays.

    Args:
        filesystem: filesystem of the folder.
        folder: path of the folder.
        names: names of the files below the folder.
    """
    latest = time.time_ns() - _ABANDONED * 10**9
    for entry in filesystem.get_file_info(FileSelector(folder, allow_not_found=True, recursive=True)):
        if not entry.is_file or (match := _PART.fullmatch(entry.base_name)) is None:
            continue
        name = posixpath.join(posixpath.dirname(entry.path), match.group(1)).removeprefix(f"{folder}/")
        if name in names and entry.mtime_ns is not None and entry.mtime_ns < latest:
            with contextlib.suppress(OSError):
                filesystem.delete_file(entry.path)


def _write(stream: pa.NativeFile, batches: Iterable[Mapping[str, np.ndarray]], schema: LabelledSchema) -> int:
    """Write rows in row groups of a size that suits shuffling readers."""
    arrow, count = schema.to_arrow(), 0
    rows = rows_of_group(schema)
    repeated = [name for name in (Columns.EPS_ID, Columns.ACTIONS, Columns.REWARDS) if name in schema.recorded]
    statistics = [name for name in (Columns.ACTIONS, Columns.T) if name in schema.recorded]
    waiting: list[pa.Table] = []

    with pq.ParquetWriter(
        stream, arrow, compression="zstd", compression_level=1, use_dictionary=repeated, write_statistics=statistics
    ) as writer:

        def write() -> None:
            if waiting:
                writer.write_table(pa.concat_tables(waiting), row_group_size=rows)
                waiting.clear()

        for batch in batches:
            waiting.append(to_table(batch, schema))
            count += waiting[-1].num_rows
            if sum(table.num_rows for table in waiting) >= rows:
                write()
        write()
    return count
