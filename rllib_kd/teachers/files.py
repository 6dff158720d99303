"""Teachers from files that map observations to Q-values, whoever wrote them: safetensors, ONNX, TorchScript."""

from __future__ import annotations

import io
import json
import math
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from rllib_kd.checkpoints.archives import Archive
from rllib_kd.checkpoints.pickles import CheckpointError
from rllib_kd.teachers.base import Teacher
from rllib_kd.teachers.networks import MAX_INPUTS, QNetwork, checked_shape, layered_teacher

SHAPE_FILE = "observation_shape.json"  # in a TorchScript archive that export() wrote


# --- safetensors ------------------------------------------------------------------------------------------------------


def load_safetensors(content: bytes, uri: str, description: bytes | None = None) -> Teacher:
    """Load weights with a description of their layers: in the file itself, as `export()` writes it, or beside it.

    Args:
        content: of the file.
        uri: its path, for messages.
        description: JSON with `layers` and `observation_shape`, as docs/numpy_runner.md has them; None where there is
            none beside the file.

    Raises:
        ValueError: there is no description, or it does not fit the weights.
    """
    try:
        tensors = {name: tensor.float() for name, tensor in _safetensors(content).items()}
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = {name: _parsed(text) for name, text in header.get("__metadata__", {}).items()}
        if "layers" not in metadata and description is not None:
            metadata |= _read_description(description)
    except Exception as error:  # of safetensors and of JSON
        raise CheckpointError(f"'{uri}' cannot be read as safetensors: {error}. Is the file complete?") from error
    if "layers" not in metadata or "observation_shape" not in metadata:
        raise CheckpointError(
            f"'{uri}' says nothing of its layers. Put a file '{description_name(uri)}' beside it, with `layers` and "
            "`observation_shape` as docs/numpy_runner.md describes them."
        )
    try:
        num_actions = metadata.get("num_actions")
        return layered_teacher(
            metadata["layers"],
            tensors,
            observation_shape=metadata["observation_shape"],
            num_actions=None if num_actions is None else int(num_actions),
            source=uri,
        )
    except Exception as error:  # whatever stands in the JSON
        raise CheckpointError(f"'{uri}' has a network that does not fit: {error}") from error


def description_name(uri: str) -> str:
    """Of the JSON file beside a file of weights."""
    return f"{uri.rpartition('/')[2].rpartition('.')[0]}.json"


def _safetensors(content: bytes) -> dict[str, Tensor]:
    import safetensors.torch

    return safetensors.torch.load(content)


def _parsed(text: str) -> Any:
    """Metadata of safetensors are texts; those that are read here are JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _read_description(content: bytes) -> dict[str, Any]:
    description = json.loads(content)
    if not isinstance(description, dict):
        raise ValueError("the JSON beside it is no object")
    return description


# --- ONNX -------------------------------------------------------------------------------------------------------------

#: Of ONNX's own operators. Others would need a library.
_ONNX_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})


class OnnxFunction:
    """A function that onnxruntime runs, on the CPU.

    Args:
        content: of the ONNX file.
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
        """Q-values `[B, A]` of observations `[B, ...]`."""
        return self._session.run([self._output], {self._input: obs.cpu().numpy().astype(self._dtype)})[0]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._content,)


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
        raise CheckpointError(f"'{uri}' cannot be read as ONNX: {_first_line(error)}. Is the file complete?") from error
    if not all(isinstance(length, int) and length > 0 for length in function.shape):
        raise CheckpointError(f"'{uri}' takes observations of the shape {function.shape}. Expected fixed lengths.")
    return _teacher_of(function, function.shape, uri, num_parameters)


def _check_onnx(model: Any, uri: str) -> int:
    """How many parameters it has.

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
            raise CheckpointError(f"'{uri}' was refused: '{node.op_type}' is control flow, which a Q-network has not.")
    for tensor in _onnx_tensors(model.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise CheckpointError(
                f"'{uri}' was refused: its weight '{tensor.name}' lies in another file. Save it in one file."
            )
    _check_onnx_sizes(model, uri)
    weights = (tensor for tensor in model.graph.initializer if tensor.data_type != onnx.TensorProto.INT64)  # shapes
    return sum(math.prod(tensor.dims) for tensor in weights)


def _check_onnx_sizes(model: Any, uri: str) -> None:
    """A few bytes of ONNX can make gigabytes of zeros: what comes out of each operator must be known, and small."""
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
    """What comes out of its operators, by name; −1 for a length that depends on values."""
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


# --- TorchScript ------------------------------------------------------------------------------------------------------


class TorchScriptFunction:
    """A TorchScript program, on the CPU: the weights of a frozen one are constants, which do not move.

    Args:
        content: of the archive, which is executed.
    """

    def __init__(self, content: bytes):
        self._content = content
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # newer torch announces the end of TorchScript each time
            self._script = torch.jit.load(io.BytesIO(content), map_location="cpu").eval()
        for parameter in self._script.parameters():
            parameter.requires_grad_(False)

    def __call__(self, obs: Tensor) -> Tensor:
        """Q-values `[B, A]` of observations `[B, ...]`."""
        return self._script(obs.cpu())

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._content,)


def load_torchscript(
    content: bytes, uri: str, description: bytes | None = None, *, trust_checkpoint: bool = False
) -> Teacher:
    """Load a TorchScript program from observations `[B, ...]` to Q-values `[B, A]`.

    TorchScript is no data: its programs run when they are loaded (`__setstate__`) and called, and can write files
    (`aten::save`, `aten::from_file`).

    Args:
        content: of the file.
        uri: its path, for messages.
        description: JSON with `observation_shape`; None where there is none beside the file, which is as well if
            `export()` wrote it.
        trust_checkpoint: whether it may be executed.

    Raises:
        ValueError: it is not trusted, is broken, or does not say what it takes.
    """
    if not trust_checkpoint:
        raise CheckpointError(
            f"'{uri}' is a TorchScript program, which is executed to be used, and can write files. If you trust its "
            "origin, say so with trust_checkpoint=True (--trust-checkpoint); or use ONNX or safetensors."
        )
    archive = Archive(content, uri)
    own = next((name for name in sorted(archive.names) if name.endswith(f"/extra/{SHAPE_FILE}")), None)
    try:
        if own is not None:
            shape = json.loads(archive.read(own))
        elif description is not None:
            shape = _read_description(description).get("observation_shape")
        else:
            raise CheckpointError(
                f"'{uri}' does not say what it takes. Put a file '{description_name(uri)}' beside it: "
                '{"observation_shape": [4]}.'
            )
        shape = checked_shape(shape)
        function = TorchScriptFunction(content)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"'{uri}' cannot be read as TorchScript: {_first_line(error)}.") from error
    # Of 32 bits each: those of a frozen program lie among its constants.
    weights = [name for name in archive.names if name.split("/")[1:2] in (["data"], ["constants"])]
    num_parameters = sum(map(archive.size, weights))
    return _teacher_of(function, shape, uri, num_parameters // 4)


# --- Both -------------------------------------------------------------------------------------------------------------


def _teacher_of(function: Any, shape: tuple[int, ...], uri: str, num_parameters: int | None = None) -> Teacher:
    """A teacher of a function, which is asked how many actions there are."""
    try:
        if math.prod(shape) > MAX_INPUTS:
            raise ValueError("these are too many numbers")
        q = torch.as_tensor(function(torch.zeros(2, *shape)))
    except Exception as error:
        raise CheckpointError(
            f"'{uri}' fails on two observations of the shape {list(shape)}: {_first_line(error)}. Expected a function "
            "of batches of any size."
        ) from error
    if q.ndim != 2 or len(q) != 2 or q.shape[1] == 0:
        raise CheckpointError(f"'{uri}' says {list(q.shape)} of two observations. Expected Q-values [2, actions].")
    observation_space = gym.spaces.Box(-np.inf, np.inf, shape, np.float32)
    network = QNetwork(function, observation_space, gym.spaces.Discrete(int(q.shape[1])), num_parameters)
    return Teacher(network, source=uri)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
