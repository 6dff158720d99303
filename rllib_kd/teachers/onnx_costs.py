"""The cost of an ONNX model for a number of observations, known before it runs: numbers and multiply-adds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper, shape_inference

from rllib_kd import limits
from rllib_kd.networks.layers import CostMeter
from rllib_kd.teachers.onnx_operators import OPERATORS, Node, Shape, domain_of
from rllib_kd.teachers.onnx_parameters import check_lengths, check_parameters

_MAX_AXES = 32  # of a tensor
MAX_VALUES = 64  # numbers of a tensor that may be lengths, axes or scales
_EIGHT_BYTES = frozenset({TensorProto.DOUBLE, TensorProto.INT64, TensorProto.UINT64})

NUMBERS = _EIGHT_BYTES | {
    *(TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.BOOL),
    *(TensorProto.INT8, TensorProto.INT16, TensorProto.INT32),
    *(TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32),
}


def count_numbers(model: Any, num_observations: int) -> int:
    """Return how many numbers all operators make of `num_observations` observations.

    Raises:
        ValueError: these are too many, take too many multiply-adds, or are unknown.
    """
    graph = model.graph
    opsets = {domain_of(opset.domain): opset.version for opset in model.opset_import}
    types, values = _given(graph, num_observations)
    total, numbers = CostMeter(), 0
    for node in graph.node:
        if missing := [name for name in node.input if name and name not in types]:
            raise ValueError(f"its operator '{node.op_type}' takes '{missing[0]}', which no earlier operator makes")
        inputs = [_shape(types[name], node.op_type) for name in node.input if name]
        check_parameters(node, list(map(len, inputs)), types, values)
        made = _infer(model, node, opsets, types, values)
        shapes = [_shape(made.get(name), node.op_type) for name in node.output if name]
        what = f"its operator '{node.op_type}'"
        for name, shape in zip(filter(None, node.output), shapes, strict=True):
            _check_shape(shape, f"of {num_observations} observations {what}", num_observations)
            size = 2 if made[name].tensor_type.elem_type in _EIGHT_BYTES else 1  # in numbers of 32 bits
            numbers += size * math.prod(shape)
        check_lengths(node, inputs, shapes)
        call = Node(inputs, shapes, {attribute.name: attribute for attribute in node.attribute})
        steps, copies = OPERATORS[domain_of(node.domain), node.op_type](call)
        numbers += copies
        steps += sum(map(math.prod, (*inputs, *shapes)))
        # An even share for each observation, except for work that does not depend on them.
        total.add(what, 0, math.ceil(steps / num_observations))
        if numbers > num_observations * limits.MAX_NUMBERS:
            raise ValueError(
                f"of {num_observations} observations its operators up to '{node.op_type}' make {numbers:.3g} numbers. "
                f"Expected at most {limits.MAX_NUMBERS} of each"
            )
        types |= made
        _remember(node, inputs, values, types)
    rows = _shape(types.get(graph.output[0].name), "output") if graph.output else ()
    if rows[:1] != (num_observations,):
        raise ValueError(f"of {num_observations} observations it makes Q-values of the shape {list(rows)}")
    return numbers


def _check_shape(shape: Shape, what: str, num_observations: int) -> None:
    if -1 in shape:
        raise ValueError(
            f"{what} makes numbers of the shape {list(shape)}, where -1 is a length that is not known before it runs. "
            "Export the network again with torch.onnx.export(..., dynamo=True), or with fixed lengths after the first"
        )
    if math.prod(shape) > num_observations * limits.MAX_INPUTS:
        raise ValueError(
            f"{what} makes numbers of the shape {list(shape)}. Expected at most {limits.MAX_INPUTS} of each"
        )


def _given(graph: Any, num_observations: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return types of weights and inputs by name, and small weights themselves, which may be lengths."""
    types = {value.name: value.type for value in graph.input}
    values = {}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for name, value in types.items():
        if name not in weights and value.tensor_type.shape.dim:
            value = onnx.TypeProto.FromString(value.SerializeToString())
            value.tensor_type.shape.dim[0].dim_value = num_observations
            types[name] = value
    for name, tensor in weights.items():
        types[name] = onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
        if math.prod(tensor.dims) <= MAX_VALUES:
            values[name] = tensor
    return types, values


def _infer(
    model: Any, node: Any, opsets: Mapping[str, int], types: Mapping[str, Any], values: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the types of what an operator makes, by name."""
    domain = domain_of(node.domain)
    schema = onnx.defs.get_schema(node.op_type, opsets[domain], domain)
    own = [name for name in node.input if name]
    made = shape_inference.infer_node_outputs(
        schema,
        node,
        {name: types[name] for name in own},
        {name: values[name] for name in own if name in values},
        opset_imports=list(model.opset_import),
        ir_version=model.ir_version,
    )
    for name in filter(None, node.output):
        if name not in made or made[name].tensor_type.elem_type not in NUMBERS:
            raise ValueError(f"its operator '{node.op_type}' makes no numbers, or numbers of unknown shape")
    return made


def _shape(value: Any, operator: str) -> Shape:
    """Return the lengths of a tensor; −1 for one that depends on values."""
    if value is None or not value.tensor_type.HasField("shape"):
        return (-1,)
    dims = value.tensor_type.shape.dim
    if len(dims) > _MAX_AXES:
        raise ValueError(f"its operator '{operator}' makes tensors of {len(dims)} axes")
    return tuple(dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else -1 for dim in dims)


# --- Lengths that are computed ----------------------------------------------------------------------------------------


def _remember(node: Any, inputs: Sequence[Shape], values: dict[str, Any], types: Mapping[str, Any]) -> None:
    """Compute what an operator makes of shapes and small weights, which may be a shape; add it to `values`."""
    compute = _COMPUTED.get(node.op_type)
    if compute is None or domain_of(node.domain) != "" or len(node.output) != 1:
        return
    name = node.output[0]
    if math.prod(_shape(types[name], node.op_type)) > MAX_VALUES:
        return
    if node.op_type not in ("Shape", "Size") and not all(name in values for name in node.input if name):
        return
    if node.op_type in _ARITHMETIC and not all(_is_small(values[name]) for name in node.input if name):
        return
    if types[name].tensor_type.elem_type not in _LENGTHS and node.op_type != "Constant":
        return
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    arrays = [numpy_helper.to_array(values[name]) if name in values else None for name in node.input]
    try:
        with np.errstate(all="ignore"):
            array = np.asarray(compute(attributes, inputs[:1], *arrays))
    except (TypeError, ValueError, LookupError, ArithmeticError):
        return  # then it stays unknown
    expected = _shape(types[name], node.op_type)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(types[name].tensor_type.elem_type)
    # Libraries give different results if a number overflows or is rounded.
    is_small = node.op_type not in _ARITHMETIC or bool(np.all((array > -(2**31)) & (array < 2**31)))
    if array.shape == expected and is_small:
        values[name] = numpy_helper.from_array(array.astype(dtype), name)


def _is_small(tensor: Any) -> bool:
    """Return whether nothing that is computed from it could overflow, or be rounded."""
    array = numpy_helper.to_array(tensor)
    return tensor.data_type in _LENGTHS and bool(np.all((array > -(2**31)) & (array < 2**31)))


_LENGTHS = (TensorProto.INT32, TensorProto.INT64)
_ARITHMETIC = ("Add", "Cast", "Div", "Max", "Min", "Mul", "ReduceProd", "Sub")


def _slice(attributes: dict[str, Any], shapes: Any, data: Any, *others: Any) -> Any:
    given = dict(zip(("starts", "ends", "axes", "steps"), others, strict=False))
    given |= {name: value for name, value in attributes.items() if name in ("starts", "ends", "axes")}
    starts, ends = given["starts"], given["ends"]
    axes = range(len(starts)) if given.get("axes") is None else given["axes"]
    steps = [1] * len(starts) if given.get("steps") is None else given["steps"]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        data = data[(slice(None),) * (int(axis) % data.ndim) + (slice(int(start), int(end), int(step)),)]
    return data


def _axes(attributes: dict[str, Any], axes: Any) -> Any:
    given = attributes.get("axes") if axes is None else axes
    return None if given is None else tuple(int(axis) for axis in np.ravel(given))


def _shape_of(attributes: dict[str, Any], shapes: Sequence[Shape], *_: Any) -> np.ndarray:
    return np.array(shapes[0][attributes.get("start", 0) : attributes.get("end", len(shapes[0]))], np.int64)


def _constant(attributes: dict[str, Any], *_: Any) -> Any:
    (name, value), *_others = attributes.items()
    return numpy_helper.to_array(value) if name == "value" else np.array(value)


def _divide(_attributes: Any, _shapes: Any, a: Any, b: Any) -> Any:
    """Divide integers, rounding toward zero."""
    if not np.all(b):
        raise ZeroDivisionError
    return np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))


#: Functions of the attributes, the shape of the first input, and the inputs.
_COMPUTED: dict[str, Callable[..., Any]] = {
    "Add": lambda _a, _s, a, b: a + b,
    "Cast": lambda _a, _s, x: x,
    "Concat": lambda attributes, _s, *parts: np.concatenate(parts, attributes["axis"]),
    "Constant": _constant,
    "Div": _divide,
    "Gather": lambda attributes, _s, x, indices: np.take(x, indices, attributes.get("axis", 0)),
    "Identity": lambda _a, _s, x: x,
    "Max": lambda _a, _s, *x: np.max(np.broadcast_arrays(*x), 0),
    "Min": lambda _a, _s, *x: np.min(np.broadcast_arrays(*x), 0),
    "Mul": lambda _a, _s, a, b: a * b,
    "ReduceProd": lambda attributes, _s, x, axes=None: x.prod(
        _axes(attributes, axes), keepdims=bool(attributes.get("keepdims", 1))
    ),
    "Reshape": lambda _a, _s, x, shape: np.reshape(x, shape),
    "Shape": _shape_of,
    "Size": lambda _a, shapes, *_: np.array(math.prod(shapes[0])),
    "Slice": _slice,
    "Squeeze": lambda attributes, _s, x, axes=None: np.squeeze(x, _axes(attributes, axes)),
    "Sub": lambda _a, _s, a, b: a - b,
    "Unsqueeze": lambda attributes, _s, x, axes=None: np.expand_dims(x, _axes(attributes, axes)),
}
