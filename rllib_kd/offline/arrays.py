"""Columns of Arrow as arrays, without executing anything in them: nothing is unpickled."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from rllib_kd import limits
from rllib_kd.offline.schema import DataError, bytes_of, in_one_piece, numbers_or_texts

#: Extension types whose arrays are tensors of one shape, with a `shape`: Arrow's own, and two of Ray Data.
_TENSORS = ("arrow.fixed_shape_tensor", "ray.data.arrow_tensor", "ray.data.arrow_tensor_v2")
_PICKLED = "ray.data.arrow_pickled_object"
_MAX_NESTING = 16  # lists and structs in each other


def check_type(kind: pa.DataType, *, file: str, column: str, depth: int = 0) -> None:
    """Check, before anything is read, that a column has numbers, texts, or lists and structs of these.

    Raises:
        DataError: it has anything else, such as pickles; or too large rows.
    """

    def refuse(what: str, expected: str) -> DataError:
        return DataError(f"has {what}. {expected}", file=file, column=column)

    if depth > _MAX_NESTING:
        raise refuse(f"more than {_MAX_NESTING} lists in lists", "Expected the shape of an observation.")
    name = _extension_of(kind)
    if name == _PICKLED:
        raise refuse(
            f"pickled objects ({name}), which are code that would run",
            "Write it as numbers: lists of a fixed size, or arrays of one shape.",
        )
    if name is not None and name not in _TENSORS:
        raise refuse(
            f"the extension type '{name}'", f"Expected numbers, lists of them, or one of {', '.join(_TENSORS)}."
        )
    if name is not None:
        if _size(kind.shape) > limits.MAX_INPUTS:
            raise refuse(f"rows of the shape {list(kind.shape)}", f"Expected at most {limits.MAX_INPUTS} numbers.")
        kind = kind.storage_type.value_type
    elif pa.types.is_fixed_size_list(kind):
        if kind.list_size > limits.MAX_INPUTS or kind.list_size < 1:
            raise refuse(f"lists of {kind.list_size}", f"Expected 1 to {limits.MAX_INPUTS} numbers.")
        return check_type(kind.value_type, file=file, column=column, depth=depth + 1)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return check_type(kind.value_type, file=file, column=column, depth=depth + 1)
    elif pa.types.is_struct(kind):
        for field in kind:
            check_type(field.type, file=file, column=f"{column}.{field.name}", depth=depth + 1)
        return None
    elif pa.types.is_fixed_size_binary(kind):
        if not 1 <= kind.byte_width <= limits.MAX_INPUTS:
            raise refuse(f"binaries of {kind.byte_width} bytes", f"Expected 1 to {limits.MAX_INPUTS}.")
        return None
    elif pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (_is_number(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        expected = "Expected numbers, texts, lists of a fixed size, or structs of these."
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            expected = "They may be pickles or packed images, which are not read. " + expected
        raise refuse(f"the type {kind}", expected)
    return None


def described(kind: pa.DataType) -> str:
    """Return a text of a type that is equal for types of the same rows, whoever wrote them."""
    if _extension_of(kind) is not None:
        return f"tensor{list(kind.shape)}<{described(kind.storage_type.value_type)}>"
    if pa.types.is_fixed_size_list(kind):
        return f"list[{kind.list_size}]<{described(kind.value_type)}>"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"list<{described(kind.value_type)}>"
    if pa.types.is_struct(kind):
        return f"struct<{', '.join(f'{field.name}: {described(field.type)}' for field in kind)}>"
    if pa.types.is_dictionary(kind):
        return described(kind.value_type)
    return "string" if pa.types.is_large_string(kind) else str(kind)


class _Place(NamedTuple):
    """The place of values, for messages.

    Args:
        file: path of the file.
        column: name of the column.
        start: index in the file of the row with the first values; None if it is unknown.
        per_row: number of values in a row.
    """

    file: str
    column: str
    start: int | None
    per_row: int = 1

    def row_of(self, index: Any) -> str:
        row = int(index) // self.per_row
        return f"row {row} of a batch" if self.start is None else f"row {self.start + row}"

    def of_part(self, name: str) -> _Place:
        return self._replace(column=f"{self.column}.{name}")

    def error(self, message: str) -> DataError:
        return DataError(message, file=self.file, column=self.column)


def to_array(array: pa.Array | pa.ChunkedArray, *, file: str, column: str, start: int | None = None) -> Any:
    """Return a column as an array `[N, ...]`, without a copy where it can be; structs as dicts of arrays.

    Args:
        array: a column that has passed `check_type()`.
        file: path of the file, for messages.
        column: name of the column, for messages.
        start: index of the first row in the file, for messages; None if it is unknown.

    Returns:
        Numbers, of fixed-size binary bytes, or `[N]` texts (an object array); dicts of these.

    Raises:
        DataError: rows have no value, or lists of different lengths.
    """
    return _values(in_one_piece(array), _Place(file, column, start))


def _values(array: pa.Array, place: _Place) -> Any:
    if array.null_count:
        row = place.row_of(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
        raise place.error(f"has no value in {row}. Leave out such rows.")
    kind = array.type
    if _extension_of(kind) is not None:
        values = _values(array.storage, place)
        return _in_order(values.reshape(len(array), *kind.shape), kind)
    if pa.types.is_struct(kind):
        parts = zip(kind, array.flatten(), strict=True)
        return {field.name: _values(part, place.of_part(field.name)) for field, part in parts}
    if pa.types.is_dictionary(kind):
        return _values(array.dictionary_decode(), place)
    if pa.types.is_fixed_size_binary(kind):
        return bytes_of(array)
    if pa.types.is_fixed_size_list(kind):
        size = kind.list_size
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        size = _size_of_lists(array, place)
    else:
        return numbers_or_texts(array, file=place.file, column=place.column)
    values = _values(array.flatten(), place._replace(per_row=place.per_row * size))
    return values.reshape(len(array), size, *values.shape[1:])


def _size_of_lists(array: Any, place: _Place) -> int:
    """Return the length that all lists of an array have."""
    lengths = np.diff(array.offsets.to_numpy())
    if len(lengths) == 0:
        return 0
    if (wrong := np.flatnonzero(lengths != lengths[0])).size:
        raise place.error(
            f"has a list of {lengths[wrong[0]]} in {place.row_of(wrong[0])}, but one of {lengths[0]} in "
            f"{place.row_of(0)}. Expected observations of one shape."
        )
    return int(lengths[0])


def _in_order(values: np.ndarray, kind: Any) -> np.ndarray:
    """Return tensors with the axes in the order in which they mean something: Arrow's may be stored in another."""
    permutation = getattr(kind, "permutation", None)
    return values if permutation is None else values.transpose(0, *(1 + index for index in permutation))


def _extension_of(kind: pa.DataType) -> str | None:
    """Return the name of an extension type; None of others."""
    return kind.extension_name if isinstance(kind, pa.BaseExtensionType) else None


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)


def _size(shape: Any) -> int:
    return math.prod(int(length) for length in shape)
