"""Files of labelled rows: found, checked by their footers, and read row group by row group."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow.fs import FileSystem, FileType
from ray.rllib.core.columns import Columns

from rllib_kd.checkpoints.uris import absolute_uri
from rllib_kd.offline.file_set import PIECE_BYTES, PIECE_ROWS, Chunk, FileSet
from rllib_kd.offline.listing import PARQUET, digest_of, files_below, filesystem_of, without_repeats
from rllib_kd.offline.reading import ROW, check_unchanged
from rllib_kd.offline.schema import FRAMES_BEFORE, DataError, LabelledSchema, open_parquet, to_columns

_FOOTERS_AT_ONCE = 16


class LabelledFiles(FileSet):
    """Files with one schema, whose footers have been read. Rows are read when they are asked for.

    Args:
        uris: a path or URI of a file, or of a folder with Parquet files, at any depth; or several. A file that is named
            more than once is read once.
        filesystem: filesystem of all paths; None: each path or URI determines it.

    Raises:
        DataError: there is no file, or one is not of labelled rows, or differs from those before it.
    """

    schema: LabelledSchema

    def __init__(self, uris: str | Sequence[str], filesystem: FileSystem | None = None):
        uris = [uris] if isinstance(uris, str) else list(uris)
        super().__init__(without_repeats(found for uri in uris for found in _find(uri, filesystem)))
        self._first_rows: dict[tuple[int, int], int] = {}  # of each row group, by file and index; and behind the last
        with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:  # which wait for a network, if there is one
            footers = pool.map(lambda place: _read_footer(*place), self._places)
            for index, (own, sizes, digest) in enumerate(footers):
                if index == 0:
                    self.schema = own
                self.schema.check_same(own, self._places[index][1])
                self._digests.append(digest)
                self.chunks += [Chunk(index, i, size) for i, size in enumerate(sizes) if size]
                self._first_rows |= {(index, i): first for i, first in enumerate(accumulate(sizes, initial=0))}
        if not self.chunks:
            raise DataError(f"The files in {', '.join(map(repr, uris))} have no rows. Expected at least one.")
        self.columns = self.schema.columns
        self.obs_numbers = math.prod(self.schema.obs_shape)
        self.piece_rows = rows_of_piece(self.schema)

    def read(self, chunk: Chunk, names: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
        """Yield the rows of a chunk in pieces, with those of the named columns that the files have, and `ROW`.

        Raises:
            DataError: the file is no longer there, has changed, is damaged, or has rows without a value.
        """
        filesystem, path = self._places[chunk.file]
        present = [name for name in names if name in self.schema.columns]
        if Columns.OBS in present and self.schema.num_frames > 1:
            present.append(FRAMES_BEFORE)
        first = self._first_rows[chunk.file, chunk.row_group]
        with open_parquet(filesystem, path) as file:
            try:
                for batch in file.iter_batches(self.piece_rows, row_groups=[chunk.row_group], columns=present):
                    rows = np.arange(first, first := first + batch.num_rows)
                    yield to_columns(batch, self.schema, file=path) | {ROW: rows}
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"cannot be read to its end: {error}", file=path) from error
        check_unchanged(first, self._first_rows[chunk.file, chunk.row_group + 1], path)


def rows_of_piece(schema: LabelledSchema) -> int:
    """Return how many rows of labelled files are read at once, at most. A row group of this package's has no more."""
    return max(1, min(PIECE_ROWS, PIECE_BYTES // schema.row_bytes))


def _read_footer(filesystem: FileSystem, path: str) -> tuple[LabelledSchema, list[int], str]:
    """Return the schema of a file, the rows of each of its row groups, and its digest."""
    with open_parquet(filesystem, path) as file:
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        return LabelledSchema.from_arrow(file.schema_arrow, path), sizes, digest_of(filesystem, path)


def absolute_uris(places: Any, filesystem: Any = None) -> Any:
    """Return a path of recorded rows, or a list of them, as absolute ones.

    URIs stay as they are, and so does what names no place: RLlib's "sampler", which is an environment, or something
    that the check of the config refuses.

    Args:
        places: the path or paths.
        filesystem: `input_filesystem` of the config. Unless it is this machine's, the paths are its own, and stay as
            they are.
    """
    if filesystem is not None and getattr(filesystem, "type_name", None) != "local":
        return places
    if isinstance(places, list | tuple):
        return [absolute_uris(place) for place in places]
    is_place = isinstance(places, str) and places.strip() and places != "sampler"
    return absolute_uri(places) if is_place else places


def with_absolute_uris(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings whose places of recorded rows, `input_` and `output`, are the same in any working folder."""
    filesystems = {"input_": settings.get("input_filesystem"), "output": None}
    given = {name: settings[name] for name in filesystems.keys() & settings.keys()}
    return {**settings, **{name: absolute_uris(places, filesystems[name]) for name, places in given.items()}}


def _find(uri: str, filesystem: FileSystem | None) -> list[tuple[FileSystem, str]]:
    """Return the Parquet files at a path or URI, by name: hidden ones, and those being written, are left out."""
    places, path = (filesystem, uri) if filesystem is not None else filesystem_of(absolute_uri(uri))
    try:
        kind = places.get_file_info(path).type
        found = files_below(places, path) if kind == FileType.Directory else [path]
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"The recorded data '{uri}' cannot be read: {error}") from error
    if kind == FileType.NotFound:
        raise DataError(f"There is nothing at '{uri}'. Expected a Parquet file, or a folder of them.")
    paths = [file for file in found if kind == FileType.File or file.endswith(PARQUET)]
    if not paths:
        raise DataError(f"The folder '{uri}' has no Parquet file. Expected files that end in '{PARQUET}'.")
    return [(places, each) for each in paths]
