"""Files of recorded rows without labels, read file by file: their teacher labels them as they come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from pyarrow.fs import FileSystem
from ray.rllib.core.columns import Columns

from rllib_kd.offline.file_set import PIECE_BYTES, PIECE_ROWS, Chunk, FileSet
from rllib_kd.offline.files import find_inputs
from rllib_kd.offline.labelled_files import LabelledFiles
from rllib_kd.offline.listing import digest_of, filesystem_of, without_repeats
from rllib_kd.offline.parquet import ParquetReader
from rllib_kd.offline.reading import ROW, Contents, Reader, check_unchanged, num_rows
from rllib_kd.offline.schema import METADATA, DataError, LabelledSchema, open_parquet


class UnlabelledFiles(FileSet):
    """Files with the same columns, of any kind that `rllib label` reads. Each is a chunk by itself.

    Args:
        uris: a path or URI of a file or a folder, or several. A file that is named more than once is read once.

    Raises:
        DataError: there is no file, one cannot be read, or they differ.
    """

    schema: LabelledSchema | None = None

    def __init__(self, uris: Sequence[str]):
        found: list[tuple[Any, str, Reader]] = without_repeats(found for uri in uris for found in _find(uri))
        super().__init__([(filesystem, path) for filesystem, path, _ in found])
        self._readers = [reader for _, _, reader in found]
        self._num_rows: list[int] = []
        known: Contents | None = None  # of the first file that has rows: the sizes of others may be unknown
        for index, (filesystem, path, reader) in enumerate(found):
            contents = reader.inspect(filesystem, path)
            known = known or contents
            known.check_same(contents, path)
            rows = contents.num_rows
            if rows is None:  # it is known at the end alone
                rows = sum(map(num_rows, reader.batches(filesystem, path, PIECE_ROWS)))
            self._num_rows.append(rows)
            self._digests.append(digest_of(filesystem, path))
            if rows:
                known = known if self.chunks else contents
                self.chunks.append(Chunk(index, -1, rows))
        if known is None or not self.chunks:
            raise DataError(f"The files in {', '.join(map(repr, uris))} have no rows. Expected at least one.")
        self.columns, self.left_out = tuple(known.types), known.left_out
        self.obs_numbers = known.sizes.get(Columns.OBS, 1)
        numbers = sum(known.sizes.values()) or 1
        self.piece_rows = max(1, min(PIECE_ROWS, PIECE_BYTES // (8 * numbers)))

    def read(self, chunk: Chunk, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield the rows of a file in pieces, with those of the named columns that it has, and `ROW`.

        Raises:
            DataError: the file is no longer there, has changed, or cannot be read.
        """
        filesystem, path = self._places[chunk.file]
        first = 0
        for batch in self._readers[chunk.file].batches(filesystem, path, self.piece_rows):
            rows = np.arange(first, first := first + num_rows(batch))
            yield {name: column for name, column in batch.items() if name in names} | {ROW: rows}
        check_unchanged(first, self._num_rows[chunk.file], path)


def _find(uri: str) -> Iterator[tuple[FileSystem, str, Reader]]:
    inputs = find_inputs(uri)
    filesystem, _ = filesystem_of(inputs.uri)
    for file in inputs.files:
        yield filesystem, file.path, inputs.reader


def files_at(uris: Sequence[str]) -> FileSet:
    """Return the recorded files at some paths or URIs, labelled or not, as the first one is.

    Raises:
        DataError: there is no file, one cannot be read, or they differ.
    """
    return LabelledFiles(uris) if are_labelled(uris) else UnlabelledFiles(uris)


def are_labelled(uris: Sequence[str]) -> bool:
    """Return whether the first file at some paths or URIs is a labelled one.

    Raises:
        DataError: there is no file, or it cannot be read.
    """
    inputs = find_inputs(uris[0])
    if not isinstance(inputs.reader, ParquetReader):
        return False
    filesystem, _ = filesystem_of(inputs.uri)
    with open_parquet(filesystem, inputs.files[0].path) as file:
        return METADATA in (file.schema_arrow.metadata or {})
