"""ONNX models of others: only what was checked is run, and its cost is known before it runs.

Two libraries read a model: onnx, which checks it, and onnxruntime, which runs it. They read some files differently
(bytes 4 to 8 `ORTM` make a file another model to onnxruntime; it reads metadata, and fields of its own). So onnxruntime
gets a new file that contains only the checked model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import onnx
from onnx import TensorProto

from rllib_kd import limits
from rllib_kd.checkpoints.pickles import CheckpointError
from rllib_kd.teachers.described import NOTES
from rllib_kd.teachers.onnx_costs import MAX_VALUES, NUMBERS, count_numbers
from rllib_kd.teachers.onnx_operators import OPERATORS, domain_of

#: Numbers of observations that the package itself asks for: one; two, when a teacher is loaded; the episodes that are
#: played at once; the states that are compared at once. Whatever depends on the number mostly shows between them.
BATCHES = (1, 1_000, 50, 2)


class CheckedModel(NamedTuple):
    """A model that may be run."""

    content: bytes  # as it is to be run
    num_parameters: int
    num_numbers: int  # that its operators make of one observation
    notes: dict[str, str]  # those of `NOTES` that the file has


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
    model = onnx.load_model_from_string(content)
    notes = {note.key: note.value for note in model.metadata_props if note.key in NOTES}
    model = _plain(model, uri)
    domains = [domain_of(opset.domain) for opset in model.opset_import]
    if len(set(domains)) != len(domains):
        raise CheckpointError(f"'{uri}' was refused: it has several versions of the same operators.")
    _check_nodes(model.graph, uri)
    _check_inputs(model.graph, uri)
    try:
        num_numbers = max(math.ceil(count_numbers(model, size) / size) for size in BATCHES)
    except ValueError as error:
        raise CheckpointError(f"'{uri}' was refused: {error}.") from error
    return CheckedModel(model.SerializeToString(), _num_parameters(model.graph), num_numbers, notes)


#: Places of the inputs of an operator that are scales and zero points of 8-bit numbers.
_QUANTIZATION = {
    "ConvInteger": (2, 3),
    "DequantizeLinear": (1, 2),
    "MatMulInteger": (2, 3),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "QuantizeLinear": (1, 2),
}


def _num_parameters(graph: Any) -> int:
    """Return the number of weights of a model, without shapes, and scales and zero points of 8-bit numbers."""
    scales = {node.output[1] for node in graph.node if node.op_type == "DynamicQuantizeLinear"}
    names = {
        name
        for node in graph.node
        if not (node.op_type == "Mul" and scales & {*node.input})  # of a scale that is set at run time and a weight's
        for i, name in enumerate(node.input)
        if i not in _QUANTIZATION.get(node.op_type, ())
    }
    weights = (tensor for tensor in graph.initializer if tensor.name in names and tensor.data_type != TensorProto.INT64)
    return sum(math.prod(tensor.dims) for tensor in weights)


class Outline:
    """A model without its large weights: it shows the cost of any number of observations.

    Lengths may be computed of the number of observations, and be huge for one number only: each number is checked.

    Args:
        content: of a checked model.
        uri: path of its file, for messages.
    """

    def __init__(self, content: bytes, uri: str):
        self._uri = uri
        self._model = onnx.load_model_from_string(content)
        for tensor in self._model.graph.initializer:
            if math.prod(tensor.dims) > MAX_VALUES:
                for field in _DATA:
                    tensor.ClearField(field)

    def check(self, num_observations: int) -> None:
        """Refuse this number of observations if it costs too much.

        Raises:
            CheckpointError: they do.
        """
        try:
            count_numbers(self._model, num_observations)
        except ValueError as error:
            raise CheckpointError(f"'{self._uri}' was refused: {error}.") from error


# --- The file ---------------------------------------------------------------------------------------------------------

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types of protobuf


def _check_fields(content: bytes, uri: str) -> None:
    """Count the fields of a file before each takes memory: two bytes are enough for a field."""
    num_fields = num_packed = 0
    view = memoryview(content)
    parts = [(0, len(content), onnx.ModelProto.DESCRIPTOR, 0)]
    while parts:
        start, end, kind, depth = parts.pop()
        while start < end:
            tag, start = _varint(view, start, end)
            number, wire_type = tag >> 3, tag & 7
            num_fields += 1
            if num_fields > limits.MAX_ONNX_FIELDS or num_packed > limits.MAX_ONNX_PACKED or depth > limits.MAX_DEPTH:
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
                raise ValueError("it has parts of a kind that ONNX does not have")
        if start != end:
            raise ValueError("it ends in the middle of a part")


_INTEGERS = (1, 2, 3, 4, 8)  # cpp_type of int32, int64, uint32, uint64, enum


def _varint(view: memoryview, start: int, end: int) -> tuple[int, int]:
    """Return an integer, and where it ends."""
    value = shift = 0
    while start < end and shift < 70:
        byte = view[start]
        value |= (byte & 127) << shift
        start, shift = start + 1, shift + 7
        if byte < 128:
            return value, start
    raise ValueError("it has a broken integer")


def _plain(model: Any, uri: str) -> Any:
    """Return a model with what it computes alone, without fields that libraries may read differently."""
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
    if max(widths, default=0) > limits.MAX_ONNX_ENDS or sum(widths) > limits.MAX_ONNX_ALL_ENDS:
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
        if (domain_of(node.domain), node.op_type) not in OPERATORS:
            raise CheckpointError(
                f"'{uri}' was refused: its operator '{node.domain}.{node.op_type}' is not one of ONNX's operators "
                "whose work is known beforehand. Export the network with others, or as safetensors."
            )
        _check_attributes(node, uri)
        for name in filter(None, node.output):
            if name in names:
                raise CheckpointError(f"'{uri}' was refused: two of its operators make '{name}'.")
            names.add(name)
    for tensor in _tensors(graph):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            raise CheckpointError(
                f"'{uri}' was refused: its weight '{tensor.name}' lies in another file. Save all in one file: "
                "torch.onnx.export(..., external_data=False)."
            )
        if tensor.data_type not in NUMBERS:
            raise CheckpointError(f"'{uri}' was refused: its weight '{tensor.name}' holds no numbers.")
        if math.prod(tensor.dims) > max(len(getattr(tensor, field)) for field in _DATA):
            raise CheckpointError(f"'{uri}' was refused: its weight '{tensor.name}' claims {list(tensor.dims)[:9]}.")


def _check_attributes(node: Any, uri: str) -> None:
    """Refuse attributes of which one library may read another value than the other one."""
    names = [attribute.name for attribute in node.attribute]
    for attribute in node.attribute:
        held = {field.name for field, _ in attribute.ListFields()} - {"name", "type", "doc_string"}
        if names.count(attribute.name) > 1 or not held <= {_VALUES.get(attribute.type)}:
            raise CheckpointError(
                f"'{uri}' was refused: '{node.op_type}' has several values of its attribute '{attribute.name}'."
            )


_VALUES = {
    onnx.AttributeProto.FLOAT: "f",
    onnx.AttributeProto.FLOATS: "floats",
    onnx.AttributeProto.INT: "i",
    onnx.AttributeProto.INTS: "ints",
    onnx.AttributeProto.STRING: "s",
    onnx.AttributeProto.STRINGS: "strings",
    onnx.AttributeProto.TENSOR: "t",
    onnx.AttributeProto.TENSORS: "tensors",
}

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


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (*[attribute.t][: attribute.HasField("t")], *attribute.tensors)
