"""The rows of labelled files as an endless stream, whose position can be saved: epochs, each in an order of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from rllib_kd.offline.file_set import Chunk, FileSet
from rllib_kd.offline.reading import num_rows, part_of
from rllib_kd.offline.subset import Subset

#: Files of recorded rows, with labels or without.
RecordedFiles = FileSet | Subset

_HELD_OUT_CHUNKS = 8  # of which the last rows are held out


class Piece(NamedTuple):
    """Some consecutive rows.

    Args:
        columns: by name, `[R, ...]`; observations of files without labels may be dicts of these.
        path: path of their file.
    """

    columns: dict[str, Any]
    path: str


class HeldOutRows:
    """Rows that are never learned from: the last ones of some row groups, so that few have neighbours that are.

    Args:
        files: the files.
        share: share of all rows, in [0, 1).
        most: at most so many rows.
    """

    def __init__(self, files: RecordedFiles, share: float, most: int):
        self._files = files
        wanted = min(most, int(share * files.num_rows))
        count = min(_HELD_OUT_CHUNKS, len(files.chunks), max(1, wanted))
        places = np.unique(np.linspace(0, len(files.chunks) - 1, count).round().astype(int)).tolist()
        largest = sorted(places, key=lambda place: files.chunks[place].num_rows)
        #: Number of rows at the end of a chunk, by the chunk.
        self.sizes: dict[Chunk, int] = {}
        for number, place in enumerate(largest):  # what a small chunk lacks, larger ones give
            chunk = files.chunks[place]
            due = -(-(wanted - self.num_rows) // (len(largest) - number))
            if size := min(due, chunk.num_rows // 2):
                self.sizes[chunk] = size

    @property
    def num_rows(self) -> int:
        """Return how many rows are held out."""
        return sum(self.sizes.values())

    def read(self, names: tuple[str, ...]) -> Iterator[Piece]:
        """Yield the rows."""
        for chunk, size in self.sizes.items():
            first = chunk.num_rows - size
            for columns in self._files.read(chunk, names):
                if first < (rows := num_rows(columns)):
                    yield Piece(part_of(columns, max(0, first), rows), self._files.path_of(chunk))
                first -= rows


class Stream:
    """All rows that are not held out, in pieces, epoch after epoch. Each epoch has the row groups in another order.

    Args:
        files: the files.
        names: names of the columns that are wanted, as far as the files have them.
        held_out: rows that are left out.
        seed: seed of the orders; None: a random one.
    """

    NOT_SAVED: ClassVar = frozenset({"_files", "_names", "_held_out", "_pieces", "_order"})

    def __init__(self, files: RecordedFiles, names: tuple[str, ...], held_out: HeldOutRows, seed: int | None):
        self._files = files
        self._names = names
        self._held_out = held_out
        self._seed = int(np.random.default_rng(seed).integers(2**31))
        self._epoch, self._chunk, self._piece = 0, 0, 0  # of the piece that comes next
        #: Rows that have passed.
        self.passed = 0
        self._pieces: Iterator[Piece] | None = None
        self._order: tuple[int, list[Chunk]] = (-1, [])  # of an epoch

    @property
    def num_rows(self) -> int:
        """Return the rows of an epoch."""
        return self._files.num_rows - self._held_out.num_rows

    def __next__(self) -> Piece:
        """Return the next piece. It has at least one row."""
        while True:
            if self._pieces is None:
                self._pieces = self._of_chunk(self._chunks()[self._chunk], skip=self._piece)
            if (piece := next(self._pieces, None)) is not None:
                self._piece += 1
                self.passed += num_rows(piece.columns)
                return piece
            self._pieces, self._piece, self._chunk = None, 0, self._chunk + 1
            if self._chunk == len(self._files.chunks):
                self._epoch, self._chunk = self._epoch + 1, 0

    def _chunks(self) -> list[Chunk]:
        """Return the chunks in the order of this epoch."""
        if self._order[0] != self._epoch:
            places = np.random.default_rng([self._seed, self._epoch]).permutation(len(self._files.chunks))
            self._order = self._epoch, [self._files.chunks[place] for place in places]
        return self._order[1]

    def _of_chunk(self, chunk: Chunk, *, skip: int) -> Iterator[Piece]:
        left = chunk.num_rows - self._held_out.sizes.get(chunk, 0)
        for number, columns in enumerate(self._files.read(chunk, self._names)):
            if left <= 0:
                return
            rows = min(left, num_rows(columns))
            left -= rows
            if number >= skip:
                yield Piece(part_of(columns, 0, rows), self._files.path_of(chunk))

    def get_state(self) -> dict[str, Any]:
        """Return the position."""
        return {
            "seed": self._seed,
            "epoch": self._epoch,
            "chunk": self._chunk,
            "piece": self._piece,
            "passed": self.passed,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue at a position of `get_state()`, in files of the same fingerprint."""
        self._seed, self._epoch = state["seed"], state["epoch"]
        self.passed = state.get("passed", 0)  # not of a version without
        self._chunk, self._piece, self._pieces = state["chunk"], state["piece"], None
        self._order = (-1, [])
