"""Some of the rows of recorded files: whole episodes, or blocks of rows, whose hash is in a range.

Which rows are learned from, and which ones judge, must depend neither on their content nor on how files are cut. So
each *unit* has a place in [0, 1) that is a hash of its name alone: an episode has the name in `eps_id`, over all row
groups and files. Rows without `eps_id` are in blocks of consecutive rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from ray.rllib.core.columns import Columns

from rllib_kd.offline.columns import Place, recorded
from rllib_kd.offline.file_set import Chunk, FileSet
from rllib_kd.offline.reading import ROW, rows_of_columns
from rllib_kd.offline.schema import DataError, LabelledSchema

#: Consecutive rows that count as one unit where files do not name episodes.
BLOCK_ROWS = 64


def has_episodes(files: FileSet) -> bool:
    """Return whether the rows of files name their episodes: then these are the units, otherwise blocks of rows."""
    return Columns.EPS_ID in files.columns


def place_of(unit: str) -> float:
    """Return the place of a unit in [0, 1), which its name alone determines."""
    return int.from_bytes(hashlib.blake2b(unit.encode(), digest_size=8).digest(), "big") / 2**64


class UnitPiece(NamedTuple):
    """Rows of a subset, from one piece of a file.

    Args:
        columns: by name, `[R, ...]`.
        units: names of the units that have rows here.
        unit_of_row: index in `units` of each row, `[R]`.
    """

    columns: dict[str, Any]
    units: list[str]
    unit_of_row: np.ndarray


class Subset:
    """Those rows of files whose units have a place in [`low`, `high`); used as the files are.

    The column `eps_id` of all rows is read once to count them, when the number of rows is first asked for. Files
    without labels are read as a whole for that.

    Args:
        files: the files.
        low: in [0, 1).
        high: in (0, 1].
    """

    def __init__(self, files: FileSet, low: float, high: float):
        self._files = files
        self._low, self._high = low, high
        self._chunks: list[Chunk] | None = None
        self.schema: LabelledSchema | None = files.schema
        self.columns, self.left_out = files.columns, files.left_out
        self.obs_numbers, self.piece_rows = files.obs_numbers, files.piece_rows
        self.first_path, self.path_of = files.first_path, files.path_of

    @property
    def chunks(self) -> list[Chunk]:
        """Return the chunks that have such rows, each with their number.

        Raises:
            DataError: there is none.
        """
        if self._chunks is None:
            counted = (chunk._replace(num_rows=self._count(chunk)) for chunk in self._files.chunks)
            self._chunks = [chunk for chunk in counted if chunk.num_rows]
            if not self._chunks:
                what = "episode" if has_episodes(self._files) else f"block of {BLOCK_ROWS} rows"
                raise DataError(
                    f"has no {what} in the share from {self._low:g} to {self._high:g} of all. Record more of them, or "
                    "set `set_aside` (of `rllib shrink` and `rllib sweep`: `held_out`) to another share",
                    file=self._files.first_path,
                )
        return self._chunks

    @property
    def num_rows(self) -> int:
        """Return the number of these rows."""
        return sum(chunk.num_rows for chunk in self.chunks)

    def fingerprint(self) -> str:
        """Return a text that is equal for the same subset of files of equal names and sizes."""
        return f"{self._files.fingerprint()} {self._low:g} {self._high:g}"

    def read(self, chunk: Chunk, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield the rows of a chunk in pieces, with those of the named columns that the files have."""
        for piece in self.read_units(chunk, names):
            extra = {Columns.EPS_ID} - set(names)
            yield {name: column for name, column in piece.columns.items() if name not in extra}

    def read_units(self, chunk: Chunk, names: Sequence[str]) -> Iterator[UnitPiece]:
        """Yield the rows of a chunk in pieces, with their units; those of the named columns, and `eps_id`."""
        for columns, units, unit_of_row in self._all(chunk, (*names, Columns.EPS_ID)):
            is_in = np.array(list(map(self._has, units)), dtype=bool)
            if (rows := np.flatnonzero(is_in[unit_of_row])).size:
                new_places = np.cumsum(is_in) - 1
                own = [unit for unit, is_own in zip(units, is_in, strict=True) if is_own]
                yield UnitPiece(rows_of_columns(columns, rows), own, new_places[unit_of_row[rows]])

    def _count(self, chunk: Chunk) -> int:
        if not has_episodes(self._files):  # blocks need no reading
            names = [_block(chunk, block) for block in range(-(-chunk.num_rows // BLOCK_ROWS))]
            sizes = np.diff([*range(0, chunk.num_rows, BLOCK_ROWS), chunk.num_rows])
            return sum(int(size) for name, size in zip(names, sizes, strict=True) if self._has(name))
        return sum(len(piece.unit_of_row) for piece in self.read_units(chunk, ()))

    def _has(self, unit: str) -> bool:
        return self._low <= place_of(unit) < self._high

    def _all(self, chunk: Chunk, names: Sequence[str]) -> Iterator[tuple[dict[str, Any], list[str], np.ndarray]]:
        """Yield all rows of a chunk, the names of their units, and the index of each row's unit."""
        first = 0
        for columns in self._files.read(chunk, names):
            if Columns.EPS_ID in columns:
                found: dict[str, int] = {}
                place = Place(self._files.path_of(chunk), columns[ROW])
                ids = recorded(Columns.EPS_ID, columns[Columns.EPS_ID], len(columns[ROW]), 0, place)
                of_row = np.fromiter((found.setdefault(name, len(found)) for name in ids), np.int64, len(ids))
                yield columns, list(found), of_row
            else:
                blocks = np.arange(first, first + len(columns[ROW])) // BLOCK_ROWS
                first += len(blocks)
                start = int(blocks[0]) if len(blocks) else 0
                units = [_block(chunk, block) for block in range(start, int(blocks[-1]) + 1)] if len(blocks) else []
                yield columns, units, blocks - start


def _block(chunk: Chunk, block: int) -> str:
    return f"{chunk.file}/{chunk.row_group}/{block}"
