"""Teachers from files that map observations to Q-values, whoever wrote them: safetensors, ONNX, TorchScript."""

from __future__ import annotations

import io
import json
import math
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from rllib_kd import limits
from rllib_kd.checkpoints.archives import Archive
from rllib_kd.checkpoints.json_text import parse_json
from rllib_kd.checkpoints.pickles import CheckpointError
from rllib_kd.teachers.base import Teacher, in_parts
from rllib_kd.teachers.networks import QNetwork, checked_shape, layered_teacher

_MAX_HEADER = 2**24  # bytes of JSON in safetensors
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
        header = parse_json(content[8 : 8 + int.from_bytes(content[:8], "little")], _MAX_HEADER)
        if len(header) > limits.MAX_WEIGHTS:
            raise ValueError(f"it has {len(header)} weights")
        tensors = {name: tensor.float() for name, tensor in _safetensors(content).items()}
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
    name = uri.rpartition("/")[2]
    return f"{name.rpartition('.')[0] or name}.json"


def _safetensors(content: bytes) -> dict[str, Tensor]:
    import safetensors.torch

    return safetensors.torch.load(content)


def _parsed(text: str) -> Any:
    """Metadata of safetensors are texts; those that are read here are JSON."""
    try:
        return parse_json(text.encode())
    except ValueError:
        return text


def _read_description(content: bytes) -> dict[str, Any]:
    description = parse_json(content)
    if not isinstance(description, dict):
        raise ValueError("the JSON beside it is no object")
    return description


# --- ONNX -------------------------------------------------------------------------------------------------------------


class OnnxFunction:
    """A function that onnxruntime runs, on the CPU.

    Args:
        content: of an ONNX file, as it was checked.
        num_numbers: that its operators make of one observation; 0 where nobody has counted.
    """

    def __init__(self, content: bytes, num_numbers: int = 0):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = max(1, torch.get_num_threads())
        options.log_severity_level = 4  # fatal; errors are raised
        # Otherwise a few bytes decide that it is read as another format, with another model in it.
        options.add_session_config_entry("session.load_model_format", "ONNX")
        self._content, self._num_numbers = content, num_numbers
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
        return in_parts(self._run, obs.cpu().numpy().astype(self._dtype), self._num_numbers)

    def _run(self, obs: np.ndarray) -> np.ndarray:
        return self._session.run([self._output], {self._input: obs})[0]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._content, self._num_numbers)


_ONNX_TYPES: dict[str, Any] = {
    "tensor(double)": np.float64,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
}


def load_onnx(content: bytes, uri: str) -> Teacher:
    """Load an ONNX model with one input, observations `[B, ...]`, whose first output are Q-values `[B, A]`.

    It is data: operators that do not come with onnxruntime, control flow, weights in other files, and models that take
    too much are refused. What runs is what was checked.

    Args:
        content: of the file.
        uri: its path, for messages.

    Raises:
        ValueError: a package is missing, the file is broken, or it is no such function.
    """
    try:
        import onnxruntime  # noqa: F401

        from rllib_kd.teachers.onnx_model import check_model
    except ImportError as error:
        raise ValueError(f"ONNX needs the package '{error.name}'. pip install 'rllib-kd[onnx]'") from error
    try:
        model = check_model(content, uri)
        function = OnnxFunction(model.content, model.num_numbers)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"'{uri}' cannot be read as ONNX: {_first_line(error)}. Is the file complete?") from error
    if not all(isinstance(length, int) and length > 0 for length in function.shape):
        raise CheckpointError(f"'{uri}' takes observations of the shape {function.shape}. Expected fixed lengths.")
    return _teacher_of(function, function.shape, uri, model.num_parameters)


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
        if len(shape) > limits.MAX_RANK or math.prod(shape) > limits.MAX_INPUTS:
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
