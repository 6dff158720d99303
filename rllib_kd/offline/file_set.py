"""Recorded files that are read as one: what labelled and unlabelled ones have in common."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from pyarrow.fs import FileSystem

from rllib_kd.offline.schema import LabelledSchema

#: At most so many rows, and bytes of them, are read at once.
PIECE_ROWS, PIECE_BYTES = 65_536, 64 * 2**20


class Chunk(NamedTuple):
    """A row group of a file, or all of it: the part that is read as a whole.

    Args:
        file: index of the file.
        row_group: index of the row group in it; −1: the whole file.
        num_rows: its rows, at least 1.
    """

    file: int
    row_group: int
    num_rows: int


class FileSet(ABC):
    """Files with the same columns. Rows are read when they are asked for."""

    #: What the labels are, and of whom; None without labels.
    schema: LabelledSchema | None
    #: The names of the columns.
    columns: tuple[str, ...]
    #: The names of the columns that are not read.
    left_out: tuple[str, ...] = ()
    #: How many numbers an observation has.
    obs_numbers: int
    #: The most rows that `read()` yields at once.
    piece_rows: int

    def __init__(self, places: Sequence[tuple[FileSystem, str]]):
        self._places = places
        self._digests: list[str] = []  # of each file
        self.chunks: list[Chunk] = []

    @abstractmethod
    def read(self, chunk: Chunk, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield the rows of a chunk in pieces, with those of the named columns that the files have, and `ROW`.

        Raises:
            DataError: the file is no longer there, has changed, or cannot be read.
        """

    @property
    def num_rows(self) -> int:
        """Return the rows of all files."""
        return sum(chunk.num_rows for chunk in self.chunks)

    @property
    def first_path(self) -> str:
        """Return the path of the first file, for messages about all."""
        return self._places[0][1]

    def path_of(self, chunk: Chunk) -> str:
        """Return the path of a chunk's file."""
        return self._places[chunk.file][1]

    def fingerprint(self) -> str:
        """Return a text that is equal for files of equal names and contents, wherever the folder is."""
        names = [path.rsplit("/", 1)[-1] for _, path in self._places]
        return hashlib.sha256(repr((names, self._digests)).encode()).hexdigest()[:16]
