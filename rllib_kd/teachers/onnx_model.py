"""ONNX models of others: what is run is what was checked, and what it takes is known before it runs.

Two libraries read a model: onnx, which checks it, and onnxruntime, which runs it. They read some files differently
(bytes 4 to 8 `ORTM` make a file another model to onnxruntime; it reads metadata, and fields of its own). So the model
that was checked is written anew, without anything else, and onnxruntime gets that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper, shape_inference

from rllib_kd import limits
from rllib_kd.checkpoints.pickles import CheckpointError
from rllib_kd.networks.layers import Cost

_MAX_FIELDS = 500_000  # of the file: each takes memory, however few bytes it has


_MAX_PACKED = 2**20  # bytes of integers in as few bytes as they need, of which each takes eight


_MAX_ENDS = 64  # tensors that one operator takes and makes


_MAX_ALL_ENDS = 20_000  # of all operators


_MAX_AXES = 32  # of a tensor


_MAX_VALUES = 64  # numbers of a tensor that may be lengths, axes or scales


_BATCH = 1_000  # observations; what depends on their number shows between 1 and so many


_EIGHT_BYTES = frozenset({TensorProto.DOUBLE, TensorProto.INT64, TensorProto.UINT64})


_NUMBERS = _EIGHT_BYTES | {
    *(TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.BOOL),
    *(TensorProto.INT8, TensorProto.INT16, TensorProto.INT32),
    *(TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32),
}


class CheckedModel(NamedTuple):
    """A model that may be run."""

    content: bytes  # as it is to be run
    num_parameters: int
    num_numbers: int  # that its operators make of one observation


def check_model(content: bytes, uri: str) -> CheckedModel:
    """Check that a model is a function of data, whose operators are known and take a bounded time and memory.

    Args:
        content: of the file.
        uri: its path, for messages.

    Raises:
        CheckpointError: it is more than that.
        Exception: it is broken, in one of many ways.
    """
    _check_fields(content, uri)
    model = _plain(onnx.load_model_from_string(content), uri)
    domains = [_domain(opset.domain) for opset in model.opset_import]
    if len(set(domains)) != len(domains):
        raise CheckpointError(f"'{uri}' was refused: it has several versions of the same operators.")
    _check_nodes(model.graph, uri)
    _check_inputs(model.graph, uri)
    try:
        single, batch = (_costs(model, num_observations) for num_observations in (1, _BATCH))
    except ValueError as error:
        raise CheckpointError(f"'{uri}' was refused: {error}.") from error
    weights = (tensor for tensor in model.graph.initializer if tensor.data_type != TensorProto.INT64)  # shapes
    num_parameters = sum(math.prod(tensor.dims) for tensor in weights)
    return CheckedModel(model.SerializeToString(), num_parameters, max(single, math.ceil(batch / _BATCH)))


class Outline:
    """A model without its large weights: what it takes of any number of observations.

    Lengths may be computed of the number of observations, and be huge for one number only: each number is checked.

    Args:
        content: of a checked model.
    """

    def __init__(self, content: bytes):
        self._model = onnx.load_model_from_string(content)
        for tensor in self._model.graph.initializer:
            if math.prod(tensor.dims) > _MAX_VALUES:
                for field in _DATA:
                    tensor.ClearField(field)

    def check(self, num_observations: int) -> None:
        """Refuse so many observations if they take too much.

        Raises:
            CheckpointError: they do.
        """
        try:
            _costs(self._model, num_observations)
        except ValueError as error:
            raise CheckpointError(f"The ONNX model was refused: {error}") from error


# --- The file ---------------------------------------------------------------------------------------------------------

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types of protobuf


def _check_fields(content: bytes, uri: str) -> None:
    """Count the fields of a file, which two bytes each suffice for, before each takes memory."""
    num_fields = num_packed = 0
    view = memoryview(content)
    parts = [(0, len(content), onnx.ModelProto.DESCRIPTOR, 0)]
    while parts:
        start, end, kind, depth = parts.pop()
        while start < end:
            tag, start = _varint(view, start, end)
            number, wire_type = tag >> 3, tag & 7
            num_fields += 1
            if num_fields > _MAX_FIELDS or num_packed > _MAX_PACKED or depth > limits.MAX_DEPTH:
                raise CheckpointError(f"'{uri}' was refused: it has more parts than any model, or nests them deeper.")
            if wire_type == _VARINT:
                _, start = _varint(view, start, end)
            elif wire_type == _BYTES:
                length, start = _varint(view, start, end)
                field = kind.fields_by_number.get(number)
                if start + length > end:
                    raise ValueError("it ends in the middle of a part")
                if field is not None and field.message_type is not None:
                    parts.append((start, start + length, field.message_type, depth + 1))
                elif field is not None and field.cpp_type in _INTEGERS:
                    num_packed += length
                start += length
            elif wire_type in (_FIXED32, _FIXED64):
                start += 4 if wire_type == _FIXED32 else 8
            else:
                raise ValueError("it has parts of a kind that ONNX has not")
        if start != end:
            raise ValueError("it ends in the middle of a part")


_INTEGERS = (1, 2, 3, 4, 8)  # cpp_type of int32, int64, uint32, uint64, enum


def _varint(view: memoryview, start: int, end: int) -> tuple[int, int]:
    """An integer, and where it ends."""
    value = shift = 0
    while start < end and shift < 70:
        byte = view[start]
        value |= (byte & 127) << shift
        start, shift = start + 1, shift + 7
        if byte < 128:
            return value, start
    raise ValueError("it has a broken integer")


def _plain(model: Any, uri: str) -> Any:
    """What a model computes, and nothing that anyone could read into the rest of it."""
    if model.functions:
        raise CheckpointError(f"'{uri}' was refused: it defines functions. Inline them with onnx.inliner.")
    model.DiscardUnknownFields()
    plain = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    plain.graph.name = "graph"
    for field in ("node", "initializer", "sparse_initializer", "input", "output"):
        getattr(plain.graph, field).extend(getattr(model.graph, field))
    for node in plain.graph.node:
        for field in ("doc_string", "metadata_props", "device_configurations"):
            if field in node.DESCRIPTOR.fields_by_name:
                node.ClearField(field)
    return plain


# --- Operators --------------------------------------------------------------------------------------------------------


def _check_nodes(graph: Any, uri: str) -> None:
    if len(graph.node) > limits.MAX_ONNX_NODES:
        raise CheckpointError(f"'{uri}' was refused: it has {len(graph.node)} operators.")
    widths = [len(node.input) + len(node.output) for node in graph.node]
    if max(widths, default=0) > _MAX_ENDS or sum(widths) > _MAX_ALL_ENDS:
        raise CheckpointError(f"'{uri}' was refused: its operators take and make more tensors than any network's.")
    names = {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
    is_sparse = any(
        attr.HasField("sparse_tensor") or attr.sparse_tensors for node in graph.node for attr in node.attribute
    )
    if graph.sparse_initializer or is_sparse:
        raise CheckpointError(f"'{uri}' was refused: it has sparse weights.")
    if len({tensor.name for tensor in graph.initializer}) != len(graph.initializer):
        raise CheckpointError(f"'{uri}' was refused: two of its weights have the same name.")
    for node in graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise CheckpointError(f"'{uri}' was refused: '{node.op_type}' is control flow, which no Q-network needs.")
        if (_domain(node.domain), node.op_type) not in _OPERATORS:
            raise CheckpointError(
                f"'{uri}' was refused: its operator '{node.domain}.{node.op_type}' is none of those of ONNX whose work "
                "is known beforehand."
            )
        for name in filter(None, node.output):
            if name in names:
                raise CheckpointError(f"'{uri}' was refused: two of its operators make '{name}'.")
            names.add(name)
    for tensor in _tensors(graph):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            raise CheckpointError(
                f"'{uri}' was refused: its weight '{tensor.name}' lies in another file. Save it in one file."
            )
        if tensor.data_type not in _NUMBERS:
            raise CheckpointError(f"'{uri}' was refused: its weight '{tensor.name}' holds no numbers.")
        if math.prod(tensor.dims) > max(len(getattr(tensor, field)) for field in _DATA):
            raise CheckpointError(f"'{uri}' was refused: its weight '{tensor.name}' claims {list(tensor.dims)[:9]}.")


_DATA = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data")


def _check_inputs(graph: Any, uri: str) -> None:
    weights = {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name not in weights and dims and dims[0].HasField("dim_value"):
            raise CheckpointError(
                f"'{uri}' takes {dims[0].dim_value} observations at once. Expected any number: export it with a "
                "dynamic first axis."
            )


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (*[attribute.t][: attribute.HasField("t")], *attribute.tensors)


# --- What they take ---------------------------------------------------------------------------------------------------

_Shape = tuple[int, ...]


class _Node(NamedTuple):
    """An operator with the shapes of what it takes and makes."""

    inputs: list[_Shape]
    outputs: list[_Shape]
    attributes: dict[str, Any]

    def attribute(self, name: str, default: Any) -> Any:
        return onnx.helper.get_attribute_value(self.attributes[name]) if name in self.attributes else default


def _costs(model: Any, num_observations: int) -> int:
    """How many numbers all operators make of so many observations.

    Raises:
        ValueError: these are too many, take too many multiply-adds, or nobody can know.
    """
    graph = model.graph
    opsets = {_domain(opset.domain): opset.version for opset in model.opset_import}
    types, values = _given(graph, num_observations)
    total, numbers = Cost(), 0
    for node in graph.node:
        made = _infer(model, node, opsets, types, values)
        shapes = [_shape(made.get(name), node.op_type) for name in node.output if name]
        inputs = [_shape(types.get(name), node.op_type) for name in node.input if name]
        what = f"its operator '{node.op_type}'"
        for name, shape in zip(filter(None, node.output), shapes, strict=True):
            if -1 in shape or math.prod(shape) > num_observations * limits.MAX_INPUTS:
                raise ValueError(
                    f"of {num_observations} observations {what} makes numbers of the shape {list(shape)}. Expected at "
                    f"most {limits.MAX_INPUTS} of each, and lengths that do not depend on values (-1)"
                )
            size = 2 if made[name].tensor_type.elem_type in _EIGHT_BYTES else 1  # in numbers of 32 bits
            numbers += size * math.prod(shape)
        call = _Node(inputs, shapes, {attribute.name: attribute for attribute in node.attribute})
        steps, copies = _OPERATORS[_domain(node.domain), node.op_type](call)
        numbers += copies
        steps += sum(map(math.prod, (*inputs, *shapes)))
        # An even share of each observation, but for what does not depend on them.
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


def _given(graph: Any, num_observations: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Types of weights and inputs by name, and small weights themselves, which may be lengths."""
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
        if math.prod(tensor.dims) <= _MAX_VALUES:
            values[name] = tensor
    return types, values


def _infer(
    model: Any, node: Any, opsets: Mapping[str, int], types: Mapping[str, Any], values: Mapping[str, Any]
) -> dict[str, Any]:
    """Types of what an operator makes, by name."""
    domain = _domain(node.domain)
    if missing := [name for name in node.input if name and name not in types]:
        raise ValueError(f"its operator '{node.op_type}' takes '{missing[0]}', which nothing makes before")
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
        if name not in made or made[name].tensor_type.elem_type not in _NUMBERS:
            raise ValueError(f"its operator '{node.op_type}' makes no numbers, or nobody knows of which shape")
    return made


def _shape(value: Any, operator: str) -> _Shape:
    """The lengths of a tensor; −1 for one that depends on values."""
    if value is None or not value.tensor_type.HasField("shape"):
        return (-1,)
    dims = value.tensor_type.shape.dim
    if len(dims) > _MAX_AXES:
        raise ValueError(f"its operator '{operator}' makes tensors of {len(dims)} axes")
    return tuple(dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else -1 for dim in dims)


# --- Lengths that are computed ----------------------------------------------------------------------------------------


def _remember(node: Any, inputs: Sequence[_Shape], values: dict[str, Any], types: Mapping[str, Any]) -> None:
    """What an operator makes of shapes and small weights: it may be the shape of something."""
    compute = _COMPUTED.get(node.op_type)
    if compute is None or _domain(node.domain) != "" or len(node.output) != 1:
        return
    name = node.output[0]
    if math.prod(_shape(types[name], node.op_type)) > _MAX_VALUES:
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
    # Libraries do not agree on what comes out where it overflows or is rounded.
    is_small = node.op_type not in _ARITHMETIC or bool(np.all((array > -(2**31)) & (array < 2**31)))
    if array.shape == expected and is_small:
        values[name] = numpy_helper.from_array(array.astype(dtype), name)


def _is_small(tensor: Any) -> bool:
    """Whether nothing that is computed of it could overflow, or be rounded."""
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


def _shape_of(attributes: dict[str, Any], shapes: Sequence[_Shape], *_: Any) -> np.ndarray:
    return np.array(shapes[0][attributes.get("start", 0) : attributes.get("end", len(shapes[0]))], np.int64)


def _constant(attributes: dict[str, Any], *_: Any) -> Any:
    (name, value), *_others = attributes.items()
    return numpy_helper.to_array(value) if name == "value" else np.array(value)


def _divide(_attributes: Any, _shapes: Any, a: Any, b: Any) -> Any:
    """Of integers, toward zero."""
    if not np.all(b):
        raise ZeroDivisionError
    return np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))


#: Of attributes, the shape of the first input, and the inputs.
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
    "ReduceProd": lambda attributes, _s, x, axes=None: np.prod(
        x, _axes(attributes, axes), keepdims=bool(attributes.get("keepdims", 1))
    ),
    "Reshape": lambda _a, _s, x, shape: np.reshape(x, shape),
    "Shape": _shape_of,
    "Size": lambda _a, shapes, *_: np.array(math.prod(shapes[0])),
    "Slice": _slice,
    "Squeeze": lambda attributes, _s, x, axes=None: np.squeeze(x, _axes(attributes, axes)),
    "Sub": lambda _a, _s, a, b: a - b,
    "Unsqueeze": lambda attributes, _s, x, axes=None: np.expand_dims(x, _axes(attributes, axes)),
}


# --- The table of operators -------------------------------------------------------------------------------------------

#: Steps beside one for each number that goes in and comes out, and numbers that are copied on the way.
_Work = Callable[[_Node], tuple[int, int]]


def _free(node: _Node) -> tuple[int, int]:
    return 0, 0


def _times(steps: int) -> _Work:
    """So many for each number that goes in or comes out."""
    return lambda node: (steps * sum(map(math.prod, (*node.inputs, *node.outputs))), 0)


def _matmul(node: _Node) -> tuple[int, int]:
    inner = node.inputs[0][-1] if node.inputs[0] else 1
    return math.prod(node.outputs[0]) * inner, 0


def _gemm(node: _Node) -> tuple[int, int]:
    return math.prod(node.outputs[0]) * max(node.inputs[0]), 0


def _convolution(weight: int) -> _Work:
    def work(node: _Node) -> tuple[int, int]:
        filters, *patch = node.inputs[weight]
        numbers = math.prod(node.outputs[0])
        return numbers * math.prod(patch), numbers * math.prod(patch) // max(1, filters)

    return work


def _transposed_convolution(node: _Node) -> tuple[int, int]:
    _, *patch = node.inputs[1]
    copied = math.prod(node.inputs[0]) * math.prod(patch)
    return copied, copied // max(1, node.inputs[0][1])


def _pool(node: _Node) -> tuple[int, int]:
    return math.prod(node.outputs[0]) * math.prod(map(abs, node.attribute("kernel_shape", [1]))), 0


def _local_response(node: _Node) -> tuple[int, int]:
    return math.prod(node.outputs[0]) * abs(node.attribute("size", 1)), 0


def _recurrent(node: _Node) -> tuple[int, int]:
    """Each step in time takes some of its own, however few numbers it has."""
    length, batch = node.inputs[0][:2]
    hidden = node.inputs[2][-1]
    work = length * batch * sum(map(math.prod, node.inputs[1:3]))
    return work + length * 1_000 * node.inputs[1][0] + length * batch * hidden * 20, 0


def _einsum(node: _Node) -> tuple[int, int]:
    """Letters stand for loops in loops; of more than two inputs, parts of the sum lie in memory."""
    terms = node.attribute("equation", b"").decode().replace(" ", "").partition("->")[0].split(",")
    lengths: dict[str, int] = {}
    for term, shape in zip(terms, node.inputs, strict=True):
        letters = term.replace("...", "." * (len(shape) - len(term.replace("...", ""))))
        for i, (letter, length) in enumerate(zip(letters, shape, strict=True)):
            key = f".{i - len(shape)}" if letter == "." else letter  # axes that no letter names are each their own
            lengths[key] = max(lengths.get(key, 1), length)
    work = len(terms) * math.prod(lengths.values())
    return work, work if len(terms) > 2 else 0


#: Some steps for each number that goes in or comes out.
_ELEMENTWISE = """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh BatchNormalization BitShift BitwiseAnd BitwiseNot
    BitwiseOr BitwiseXor Cast CastLike Ceil Celu Clip Concat Constant ConstantOfShape Cos Cosh CumSum DepthToSpace
    DequantizeLinear Div Dropout DynamicQuantizeLinear Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather
    GatherElements GatherND Gelu GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GroupNormalization
    HardSigmoid HardSwish Hardmax Identity InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu Less
    LessOrEqual Log LogSoftmax LpNormalization Max Mean MeanVarianceNormalization Min Mish Mod Mul Neg Not OneHot Or
    PRelu Pad Pow QuantizeLinear RMSNormalization Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp
    ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Round Scatter ScatterElements
    ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt
    Squeeze Sub Sum Swish Tan Tanh ThresholdedRelu Tile Transpose Trilu Unsqueeze Upsample Where Xor
"""


_OPERATORS: dict[tuple[str, str], _Work] = {
    **{("", name): _times(10) for name in _ELEMENTWISE.split()},
    ("", "AveragePool"): _pool,
    ("", "Conv"): _convolution(1),
    ("", "ConvInteger"): _convolution(1),
    ("", "ConvTranspose"): _transposed_convolution,
    ("", "Einsum"): _einsum,
    ("", "GRU"): _recurrent,
    ("", "Gemm"): _gemm,
    ("", "LRN"): _local_response,
    ("", "LSTM"): _recurrent,
    ("", "LpPool"): _pool,
    ("", "MatMul"): _matmul,
    ("", "MatMulInteger"): _matmul,
    ("", "MaxPool"): _pool,
    ("", "QLinearConv"): _convolution(3),
    ("", "QLinearMatMul"): _matmul,
    ("", "RNN"): _recurrent,
    ("", "Resize"): _times(100),
    ("", "TopK"): _times(50),
    **{("ai.onnx.ml", name): _times(10) for name in ("Binarizer", "Imputer", "Normalizer", "Scaler")},
}
