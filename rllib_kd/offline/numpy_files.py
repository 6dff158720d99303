"""Recorded rows in numpy's files: a `.npz` has an array for each column, a `.npy` the observations alone.

Arrays are read row by row, compressed or not, so that memory does not grow with the file. Arrays of objects are
pickles, and are refused by their headers.
"""

from __future__ import annotations

import math
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import IO, Any, NamedTuple

import numpy as np
from pyarrow.fs import FileSystem, FileType
from ray.rllib.core.columns import Columns

from rllib_kd import limits
from rllib_kd.checkpoints.archives import COMPRESSIONS
from rllib_kd.offline.columns import Place, rows_where
from rllib_kd.offline.reading import Contents, rows_at_once, used_columns
from rllib_kd.offline.schema import DataError


class _Array(NamedTuple):
    """An array in a file, whose header has been read."""

    stream: IO[bytes]
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def row_shape(self) -> tuple[int, ...]:
        return self.shape[1:]

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.row_shape)

    def read(self, rows: int) -> np.ndarray:
        content = self.stream.read(rows * self.row_bytes)
        if len(content) != rows * self.row_bytes:
            raise EOFError("it ends before its last row")
        return np.frombuffer(content, self.dtype).reshape(rows, *self.row_shape)


class NumpyReader:
    """Reads `.npz` and `.npy`.

    Args:
        obs_column: name of the array of observations in a `.npz`.
    """

    def __init__(self, obs_column: str = Columns.OBS):
        self._obs_column = obs_column

    def inspect(self, filesystem: FileSystem, path: str) -> Contents:
        """Return what a file contains: the headers of its arrays are read."""
        with self._opened(filesystem, path) as (arrays, left_out):
            return Contents(
                types={name: f"{array.dtype}{list(array.row_shape)}" for name, array in arrays.items()},
                sizes={name: math.prod(array.row_shape) for name, array in arrays.items()},
                num_rows=arrays[Columns.OBS].shape[0],
                left_out=left_out,
            )

    def batches(self, filesystem: FileSystem, path: str, batch_size: int) -> Iterator[dict[str, Any]]:
        """Yield the rows of a file."""
        with self._opened(filesystem, path) as (arrays, _):
            total = arrays[Columns.OBS].shape[0]
            rows = rows_at_once(batch_size, sum(array.row_bytes for array in arrays.values()))
            for start in range(0, total, rows):
                count = min(rows, total - start)
                place = Place(path, start)
                yield {name: _native(array.read(count), name, place) for name, array in arrays.items()}

    @contextmanager
    def _opened(self, filesystem: FileSystem, path: str) -> Iterator[tuple[Mapping[str, _Array], tuple[str, ...]]]:
        """Open the arrays that are read, by RLlib's names; with the names of the others."""
        try:
            with ExitStack() as stack:
                if filesystem.get_file_info(path).type != FileType.File:
                    raise DataError("is missing, or not a plain file", file=path)
                file = stack.enter_context(filesystem.open_input_file(path))
                if path.endswith(".npy"):
                    yield {Columns.OBS: _array(file, path, Columns.OBS)}, ()
                    return
                archive = stack.enter_context(zipfile.ZipFile(file))
                if len(archive.infolist()) > limits.MAX_ARCHIVE_ENTRIES:
                    raise DataError(f"has more than {limits.MAX_ARCHIVE_ENTRIES} arrays", file=path)
                names = [name.removesuffix(".npy") for name in archive.namelist()]
                used = used_columns(names, self._obs_column, path)
                for entry in used.values():
                    if archive.getinfo(f"{entry}.npy").compress_type not in COMPRESSIONS:
                        raise DataError("is packed in an uncommon way. Save it by numpy", file=path, column=entry)
                arrays = {
                    name: _array(stack.enter_context(archive.open(f"{entry}.npy")), path, entry)
                    for name, entry in used.items()
                }
                _check_lengths(arrays, path)
                yield arrays, tuple(name for name in names if name not in used.values())
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"cannot be read as numpy's file: {error}", file=path) from error


def _array(stream: Any, file: str, column: str) -> _Array:
    """Read the header of an array.

    Raises:
        DataError: it has objects, is not in the order of C, or has too large rows.
    """
    version = np.lib.format.read_magic(stream)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise DataError(f"has the version {version} of numpy's format, expected 1.0 or 2.0", file=file, column=column)
    shape, is_fortran, dtype = read(stream)
    if dtype.kind not in "biufU":
        what = "objects: pickles, which are code that would run" if dtype.hasobject else f"the type {dtype}"
        raise DataError(f"has {what}. Expected numbers or texts.", file=file, column=column)
    if is_fortran and len(shape) > 1:
        raise DataError(
            "is in Fortran's order, in which its rows do not follow each other. Save numpy.ascontiguousarray() of it.",
            file=file,
            column=column,
        )
    if len(shape) < 1 or min(shape) < 0:
        raise DataError(f"has the shape {list(shape)}; expected rows", file=file, column=column)
    size = math.prod(shape[1:])
    if size > limits.MAX_INPUTS or len(shape) > limits.MAX_RANK + 1 or size * dtype.itemsize > 8 * limits.MAX_INPUTS:
        raise DataError(f"has rows of the shape {list(shape[1:])}, which are too large", file=file, column=column)
    return _Array(stream, tuple(map(int, shape)), dtype)


def _check_lengths(arrays: Mapping[str, _Array], file: str) -> None:
    expected = arrays[Columns.OBS].shape[0]
    for name, array in arrays.items():
        if array.shape[0] != expected:
            raise DataError(f"has {array.shape[0]} rows, but '{Columns.OBS}' {expected}", file=file, column=name)


def _native(values: np.ndarray, column: str, place: Place) -> np.ndarray:
    """Return values in this machine's byte order; texts as objects, as from the other readers.

    Raises:
        DataError: a text has what is no character of Unicode, which cannot be written.
    """
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if values.dtype.kind != "U":
        return values
    codes = values.view(np.uint32).reshape(len(values), -1)
    is_surrogate = (codes >= 0xD800) & (codes <= 0xDFFF)
    if (wrong := rows_where(is_surrogate | (codes > sys.maxunicode))).size:
        raise place.error(
            "has a text that is not Unicode: half of a surrogate pair, or no character", column, row=wrong[0]
        )
    return values.astype(object)
