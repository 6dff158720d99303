"""Parameters of ONNX operators at which a library crashes, hangs, or counts wrongly.

onnx computes the shapes that a model is judged by, in integers of 64 bits and without a check: some parameters overflow
them, and onnxruntime then makes gigabytes of what was counted as nothing. Other parameters end its process.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from rllib_kd import limits

_INTEGERS = frozenset(getattr(TensorProto, f"{kind}INT{bits}") for kind in ("", "U") for bits in (8, 16, 32, 64))

#: Attributes that are 0 or 1. onnx and onnxruntime read other numbers differently.
_FLAGS = frozenset(
    {
        *("allowzero", "antialias", "ceil_mode", "count_include_pad", "detect_negative", "detect_positive"),
        *("exclude_outside", "exclusive", "fmod", "input_forget", "keepdims", "largest", "layout"),
        *("linear_before_reset", "noop_with_empty_axes", "reverse", "saturate", "select_last_index", "sorted"),
        *("spatial", "storage_order", "training_mode", "transA", "transB", "upper"),
    }
)

#: Attributes that may be any integer: numbers, and ends of slices, which are often the largest one.
_ANY = frozenset({"end", "ends", "seed", "start", "starts", "value_int", "value_ints"})

#: Inputs that are lengths, counts, axes or steps: their places.
_LENGTHS: Mapping[str, Sequence[int]] = {
    "ConstantOfShape": (0,),
    "Pad": (1, 3),
    "Resize": (3,),
    "Slice": (3, 4),
    **dict.fromkeys(("CumSum", "Expand", "OneHot", "Reshape", "Split", "Squeeze"), (1,)),
    **dict.fromkeys(("Tile", "TopK", "Trilu", "Unsqueeze"), (1,)),
}

_MAX_LENGTH = 2**31  # of what is computed of lengths; the largest tensor of a batch has no more numbers
_MAX_SCALE = 2.0**20  # of an image

#: Operators that compute lengths, or put tensors together: only these may take or make tensors without numbers.
_MAY_BE_EMPTY = frozenset(
    {
        *("Add", "And", "Cast", "CastLike", "Concat", "Constant", "ConstantOfShape", "Div", "Equal", "Expand"),
        *("Flatten", "Gather", "Greater", "Identity", "Less", "Max", "Min", "Mul", "Not", "Or", "Range", "ReduceProd"),
        *(
            "ReduceSum",
            "Reshape",
            "Shape",
            "Size",
            "Slice",
            "Split",
            "Squeeze",
            "Sub",
            "Tile",
            "Transpose",
            "Unsqueeze",
            "Where",
        ),
    }
)

#: Operators whose inputs after the first one are lists, which exporters leave empty.
_TAKE_LISTS = ("Pad", "Reduce", "Resize")


def check_parameters(node: Any, ranks: Sequence[int], types: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Refuse an operator with parameters that no network needs.

    Args:
        node: the operator.
        ranks: numbers of axes of what it takes.
        types: types of all tensors before it, by name.
        values: values of small weights, and what is computed of them, by name.

    Raises:
        ValueError: a parameter is outside of its range.
    """
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    inputs = [numpy_helper.to_array(values[name]) if name in values else None for name in node.input]
    _check_attributes(node, attributes, ranks)
    for place in _LENGTHS.get(node.op_type, ()):
        array = _at(inputs, place)
        if array is not None and array.dtype.kind in "iu" and np.any(np.abs(array.astype(float)) > _MAX_LENGTH):
            raise _refusal(node, f"input {place + 1}", array, f"integers up to {_MAX_LENGTH}")
    if node.op_type in ("Div", "Mod"):
        _check_division(node, types, values)
    elif node.op_type == "Range":
        _check_range(node, inputs)
    elif node.op_type in ("Resize", "Upsample"):
        _check_scales(node, attributes, inputs)
    elif node.op_type == "ConvTranspose" and "output_shape" in attributes:
        raise _refusal(node, "output_shape", attributes["output_shape"], "none: onnx derives another shape from it")
    elif node.op_type == "Slice":
        _check_slice(node, inputs)
    elif node.op_type == "Split":
        _check_split(node, attributes, inputs)
    elif node.op_type == "Squeeze" and any(np.size(axes) == 0 for axes in (attributes.get("axes", 0), *inputs[1:])):
        raise _refusal(node, "axes", (), "at least one, or no list")  # onnxruntime then takes all of length 1


def check_lengths(node: Any, inputs: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]]) -> None:
    """Refuse tensors without numbers, except where lengths are computed: some of them crash onnxruntime.

    Args:
        node: the operator.
        inputs: shapes of what it takes.
        outputs: shapes of what it makes.

    Raises:
        ValueError: one of them has an axis of length 0.
    """
    if node.op_type in _MAY_BE_EMPTY:
        return
    taken = inputs[:1] if node.op_type.startswith(_TAKE_LISTS) else inputs
    for verb, shapes in (("takes", taken), ("makes", outputs)):
        for shape in shapes:
            if 0 in shape:
                raise ValueError(
                    f"its operator '{node.op_type}' {verb} no numbers: a tensor of the shape {list(shape)}. Expected "
                    "lengths of at least 1"
                )


def _check_attributes(node: Any, attributes: Mapping[str, Any], ranks: Sequence[int]) -> None:
    for name, value in attributes.items():
        if isinstance(value, int) and name in _FLAGS and value not in (0, 1):
            raise _refusal(node, name, value, "0 or 1")
        is_length = isinstance(value, int) or (isinstance(value, list) and all(isinstance(n, int) for n in value))
        if is_length and name not in _ANY and np.any(np.abs(np.array(value, float)) > limits.MAX_ONNX_ATTRIBUTE):
            raise _refusal(node, name, value, f"integers up to {limits.MAX_ONNX_ATTRIBUTE}")
    if abs(axis := attributes.get("axis", 0)) > max(ranks, default=0) + 1:
        raise _refusal(node, "axis", axis, f"one of {max(ranks, default=0)} axes")
    if not 0 <= (num_axes := attributes.get("batch_dims", 0)) < max(1, min(ranks, default=0)):
        raise _refusal(node, "batch_dims", num_axes, f"fewer than {min(ranks, default=0)}, and at least 0")


def _check_division(node: Any, types: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Refuse divisions of integers that may end the process: by 0, and of the least number by −1."""
    if types[node.input[0]].tensor_type.elem_type not in _INTEGERS:
        return
    divisor = values.get(node.input[1])
    if divisor is None or np.isin(numpy_helper.to_array(divisor), (0, -1)).any():
        raise ValueError(f"its operator '{node.op_type}' divides integers by what may be 0 or −1")


def _check_range(node: Any, inputs: Sequence[Any]) -> None:
    """Refuse a Range of too many numbers, counted here: onnx computes limit − start in 32 bits, if they have 32."""
    if any(array is None for array in inputs):
        return  # then the number is unknown, and the operator is refused for that
    start, limit, delta = (np.ravel(array).tolist() for array in inputs)
    if not (len(start) == len(limit) == len(delta) == 1 and all(map(math.isfinite, (*start, *limit, *delta)))):
        raise ValueError(f"its operator '{node.op_type}' takes {start}, {limit}, {delta}; expected finite numbers")
    if delta[0] == 0 or (limit[0] - start[0]) / delta[0] > limits.MAX_INPUTS:
        raise ValueError(
            f"its operator '{node.op_type}' counts from {start[0]} to {limit[0]} in steps of {delta[0]}. Expected at "
            f"most {limits.MAX_INPUTS} numbers"
        )


def _check_slice(node: Any, inputs: Sequence[Any]) -> None:
    """Refuse backward slices with large ends: to onnx they are past the end, to onnxruntime they are the start."""
    ends, steps = _at(inputs, 2), _at(inputs, 4)
    if ends is not None and steps is not None and np.any(steps < 0) and np.any(ends > limits.MAX_INPUTS):
        raise _refusal(node, "ends", ends, f"integers up to {limits.MAX_INPUTS} where it steps backwards")


def _check_split(node: Any, attributes: Mapping[str, Any], inputs: Sequence[Any]) -> None:
    sizes, expected = attributes.get("split", _at(inputs, 1)), len(node.output)
    for count in (attributes.get("num_outputs", expected), expected if sizes is None else np.size(sizes)):
        if count != expected:
            raise _refusal(node, "num_outputs", count, f"its {expected} outputs")


def _check_scales(node: Any, attributes: Mapping[str, Any], inputs: Sequence[Any]) -> None:
    scales = attributes.get("scales", _at(inputs, 2 if node.op_type == "Resize" and len(inputs) > 2 else 1))
    if scales is not None and not np.all((np.array(scales) > 0) & (np.array(scales) <= _MAX_SCALE)):
        raise _refusal(node, "scales", scales, f"numbers above 0, up to {_MAX_SCALE:.0f}")
    if attributes.get("coordinate_transformation_mode") == b"tf_crop_and_resize":
        raise ValueError(f"its operator '{node.op_type}' crops an image at places that are not checked")


def _at(inputs: Sequence[Any], place: int) -> Any:
    return inputs[place] if place < len(inputs) else None


def _refusal(node: Any, name: str, value: Any, expected: str) -> ValueError:
    shown = str(np.ravel(value)[:8].tolist()).strip("[]") or "no numbers"
    return ValueError(f"its operator '{node.op_type}' has {name} = {shown}; expected {expected}")
