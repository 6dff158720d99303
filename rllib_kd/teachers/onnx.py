"""Teachers from ONNX models, run by onnxruntime on the CPU."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rllib_kd.checkpoints.pickles import CheckpointError
from rllib_kd.networks.layers import MAX_INPUTS
from rllib_kd.teachers.base import Teacher
from rllib_kd.teachers.described import first_line, teacher_of

#: The domains of ONNX's own operators. Others would need a library.
_ONNX_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})

_ONNX_TYPES: dict[str, Any] = {
    "tensor(double)": np.float64,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
}


def load_onnx(content: bytes, uri: str) -> Teacher:
    """Load an ONNX model with one input, observations `[B, ...]`, whose first output are Q-values `[B, A]`.

    It is data: operators that do not come with onnxruntime, control flow, and weights in other files are refused.

    Args:
        content: of the file.
        uri: its path, for messages.

    Raises:
        ValueError: a package is missing, the file is broken, or it is no such function.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ValueError(f"ONNX needs the package '{error.name}'. pip install 'rllib-kd[onnx]'") from error
    try:
        model = onnx.load_model_from_string(content)
        num_parameters = _check_onnx(model, uri)
        function = OnnxFunction(content)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"'{uri}' cannot be read as ONNX: {first_line(error)}. Is the file complete?") from error
    if not all(isinstance(length, int) and length > 0 for length in function.shape):
        raise CheckpointError(f"'{uri}' takes observations of the shape {function.shape}. Expected fixed lengths.")
    return teacher_of(function, function.shape, uri, num_parameters)


class OnnxFunction:
    """An ONNX model as a function, run by onnxruntime on the CPU.

    Args:
        content: of the ONNX file.

    Raises:
        ValueError: it has more than one input, or no output.
    """

    def __init__(self, content: bytes):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = max(1, torch.get_num_threads())
        options.log_severity_level = 4  # fatal; errors are raised
        self._content = content
        self._session = onnxruntime.InferenceSession(
            content, options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or not outputs:
            raise ValueError(f"it has {len(inputs)} inputs; one was expected: observations")
        self.shape = tuple(inputs[0].shape[1:])  # of one observation; texts where it is not fixed
        self._input, self._output = inputs[0].name, outputs[0].name
        self._dtype = _ONNX_TYPES.get(inputs[0].type, np.float32)

    def __call__(self, obs: Tensor) -> np.ndarray:
        """Return Q-values `[B, A]` of observations `[B, ...]`."""
        return self._session.run([self._output], {self._input: obs.cpu().numpy().astype(self._dtype)})[0]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._content,)


def _check_onnx(model: Any, uri: str) -> int:
    """Check that a model is a function of data alone, and count its parameters.

    Raises:
        CheckpointError: it is more than a function of data.
    """
    import onnx

    if model.functions:
        raise CheckpointError(f"'{uri}' was refused: it defines functions. Inline them with onnx.inliner.")
    for node in model.graph.node:
        if node.domain not in _ONNX_DOMAINS:
            raise CheckpointError(
                f"'{uri}' was refused: its operator '{node.domain}.{node.op_type}' is none of ONNX's."
            )
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise CheckpointError(f"'{uri}' was refused: '{node.op_type}' is control flow, which no Q-network needs.")
    for tensor in _onnx_tensors(model.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise CheckpointError(
                f"'{uri}' was refused: its weight '{tensor.name}' lies in another file. Save it in one file."
            )
    _check_onnx_sizes(model, uri)
    weights = (tensor for tensor in model.graph.initializer if tensor.data_type != onnx.TensorProto.INT64)  # shapes
    return sum(math.prod(tensor.dims) for tensor in weights)


def _check_onnx_sizes(model: Any, uri: str) -> None:
    """Check that the output of each operator is known and small: a few bytes of ONNX can make gigabytes of zeros."""
    for num_observations in (1, 1_000):  # so much of each, and no more of all together
        shapes = _onnx_shapes(model, num_observations)
        operators = {name: node.op_type for node in model.graph.node for name in node.output if name}
        for name, operator in operators.items():
            shape = shapes.get(name, [-1])
            if -1 in shape or math.prod(shape) > num_observations * MAX_INPUTS:
                raise CheckpointError(
                    f"'{uri}' was refused: of {num_observations} observations its operator '{operator}' makes numbers "
                    f"of the shape {shape}. Expected at most {MAX_INPUTS} of each, and lengths that do not depend on "
                    "values (-1)."
                )


def _onnx_shapes(model: Any, num_observations: int) -> dict[str, list[int]]:
    """Infer the shapes of all operators' outputs, by name; −1 for a length that depends on values."""
    import onnx

    inferred = type(model)()
    inferred.CopyFrom(model)
    del inferred.graph.value_info[:]  # which may say anything
    for value in inferred.graph.input:
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_value = num_observations
    inferred = onnx.shape_inference.infer_shapes(inferred, strict_mode=True, data_prop=True)
    return {
        value.name: [dim.dim_value if dim.HasField("dim_value") else -1 for dim in value.type.tensor_type.shape.dim]
        for value in (*inferred.graph.value_info, *inferred.graph.output)
        if value.type.tensor_type.HasField("shape")
    }


def _onnx_tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
