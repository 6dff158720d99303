"""Columns of Arrow as arrays, without executing anything in them: nothing is unpickled."""

from __future__ import annotations

import math
from typing import Any

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


def to_array(array: pa.Array | pa.ChunkedArray, *, file: str, column: str) -> Any:
    """Return a column as an array `[N, ...]`, without a copy where it can be; structs as dicts of arrays.

    Args:
        array: a column that has passed `check_type()`.
        file: path of the file, for messages.
        column: name of the column, for messages.

    Returns:
        Numbers, of fixed-size binary bytes, or `[N]` texts (an object array); dicts of these.

    Raises:
        DataError: rows have no value, or lists of different lengths.
    """
    array = in_one_piece(array)
    if array.null_count:
        row = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(f"has no value in row {row} of a batch. Leave out such rows.", file=file, column=column)
    kind = array.type
    if _extension_of(kind) is not None:
        values = to_array(array.storage, file=file, column=column)
        return _in_order(values.reshape(len(array), *kind.shape), kind)
    if pa.types.is_struct(kind):
        parts = zip(kind, array.flatten(), strict=True)
        return {field.name: to_array(part, file=file, column=f"{column}.{field.name}") for field, part in parts}
    if pa.types.is_dictionary(kind):
        return to_array(array.dictionary_decode(), file=file, column=column)
    if pa.types.is_fixed_size_binary(kind):
        return bytes_of(array)
    if pa.types.is_fixed_size_list(kind):
        size = kind.list_size
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        size = _size_of_lists(array, file=file, column=column)
    else:
        return numbers_or_texts(array, file=file, column=column)
    values = to_array(array.flatten(), file=file, column=column)
    return values.reshape(len(array), size, *values.shape[1:])


def _size_of_lists(array: Any, *, file: str, column: str) -> int:
    """Return the length that all lists of an array have."""
    lengths = np.diff(array.offsets.to_numpy())
    if len(lengths) == 0:
        return 0
    if (wrong := np.flatnonzero(lengths != lengths[0])).size:
        raise DataError(
            f"has {lengths[wrong[0]]} numbers in row {wrong[0]} of a batch, but {lengths[0]} in the first. Expected "
            "observations of one shape.",
            file=file,
            column=column,
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
