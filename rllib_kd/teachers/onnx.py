"""Teachers from ONNX models, run by onnxruntime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rllib_kd import limits
from rllib_kd.checkpoints.pickles import CheckpointError, as_checkpoint_error
from rllib_kd.observations.masks import MASK
from rllib_kd.teachers.base import Teacher, in_parts
from rllib_kd.teachers.described import teacher_of
from rllib_kd.text import first_line, one_line

#: Types of observations.
_INPUT_TYPES: dict[str, Any] = {
    "tensor(double)": np.float64,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    **{f"tensor({kind.__name__})": kind for kind in (np.int8, np.int16, np.int32, np.int64)},
    **{f"tensor({kind.__name__})": kind for kind in (np.uint8, np.uint16, np.uint32, np.uint64)},
}
_OUTPUT_TYPES = {**_INPUT_TYPES, "tensor(bool)": np.bool_}
#: The operator that quantises with one scale for all rows of a batch. A model that has it gets them one at a time.
_ONE_SCALE = b"DynamicQuantizeLinear"


def load_onnx(content: bytes, uri: str) -> Teacher:
    """Load an ONNX model with one input, observations `[B, ...]`, whose first output are Q-values `[B, A]`.

    It is data: operators that do not come with onnxruntime, control flow, weights in other files, and models that take
    too much are refused. What runs is what was checked.

    Args:
        content: content of the file.
        uri: its path, for messages.

    Raises:
        ValueError: a package is missing, the file is broken, or it is no such function.
    """
    try:
        import onnxruntime  # noqa: F401

        from rllib_kd.teachers.onnx_model import check_model
    except ImportError as error:
        raise ValueError(f"ONNX needs the package '{error.name}'. pip install 'rllib-kd[onnx]'") from error
    with as_checkpoint_error(
        lambda error: f"'{uri}' cannot be read as ONNX: {first_line(error)}. Is the file complete?"
    ):
        model = check_model(content, uri)
        function = OnnxFunction(model.content, model.num_numbers, uri)
    if not all(isinstance(length, int) and length > 0 for length in function.shape):
        raise CheckpointError(f"'{uri}' takes observations of the shape {function.shape}. Expected fixed lengths.")
    return teacher_of(
        function,
        function.shape,
        uri,
        model.num_parameters,
        notes=model.notes,
        takes_bytes=function.takes_bytes,
    )


class OnnxFunction:
    """An ONNX model as a function, run by onnxruntime on the CPU.

    Args:
        content: content of an ONNX file, as it was checked.
        num_numbers: numbers that its operators make of one observation; 0 if it was not counted.
        uri: path of the file, for messages.

    Raises:
        ValueError: it has more than one input, apart from a mask of legal actions, or no output; or one of these has a
            type such as bfloat16, or the observations are bool.
    """

    def __init__(self, content: bytes, num_numbers: int = 0, uri: str = "the ONNX model"):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = max(1, torch.get_num_threads())
        options.log_severity_level = 4  # fatal; errors are raised
        # Otherwise a few bytes decide that it is read as another format, with another model in it.
        options.add_session_config_entry("session.load_model_format", "ONNX")
        self.content, self._num_numbers, self._uri = content, num_numbers, uri
        self._has_one_scale = _ONE_SCALE in content
        self._outline: Any = None
        self._checked: set[int] = set()  # numbers of observations
        self._session = onnxruntime.InferenceSession(
            content, options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        self._num_actions = _mask_size(inputs)  # of a mask, as second input; 0: there is none
        if self._num_actions:
            inputs.pop()
        if len(inputs) != 1 or not outputs:
            raise ValueError(f"it has {len(inputs)} inputs; one was expected: observations")
        self.shape = tuple(inputs[0].shape[1:])  # of one observation; texts where it is not fixed
        self._input, self._output = inputs[0].name, outputs[0].name
        self._dtype = _type_of(inputs[0], _INPUT_TYPES, "observations", uri)
        _type_of(outputs[0], _OUTPUT_TYPES, "outputs", uri)

    @property
    def takes_bytes(self) -> bool:
        """Return whether its observations are bytes."""
        return self._dtype is np.uint8

    def __call__(self, obs: Tensor) -> np.ndarray:
        """Return Q-values `[B, A]` of observations `[B, ...]`.

        Raises:
            ValueError: there are no observations, the model takes integers and they are none of their type, or it fails
                on them.
        """
        if len(obs) == 0:
            raise ValueError(f"'{self._uri}' got no observations. Expected at least one.")
        numbers = obs.cpu().numpy()
        with np.errstate(invalid="ignore"):
            inputs = numbers.astype(self._dtype)
        if np.issubdtype(self._dtype, np.integer) and (wrong := numbers[inputs != numbers]).size:
            kind, bounds = "bytes" if self.takes_bytes else self._dtype.__name__, np.iinfo(self._dtype)
            raise ValueError(
                f"'{self._uri}' takes {kind}, integers from {bounds.min} to {bounds.max}, and got {wrong[0]:.6g}."
            )
        if self._has_one_scale and len(inputs):
            return np.concatenate([self._run(inputs[[row]]) for row in range(len(inputs))])
        return in_parts(self._run, inputs, self._num_numbers)

    def _run(self, obs: np.ndarray) -> np.ndarray:
        if self._num_numbers and len(obs) not in self._checked:
            self._check(len(obs))
        try:
            masks = {MASK: np.ones((len(obs), self._num_actions), np.float32)} if self._num_actions else {}
            return self._session.run([self._output], {self._input: obs, **masks})[0]
        except Exception as error:
            raise CheckpointError(
                f"'{self._uri}' fails on {len(obs)} observations of the shape {list(obs.shape[1:])}: "
                f"{first_line(error)}. Expected a function of any observations. If it computes indices, axes or "
                "lengths of them, clip these before it is exported."
            ) from error

    def _check(self, num_observations: int) -> None:
        from rllib_kd.teachers.onnx_model import Outline

        if self._outline is None:
            self._outline = Outline(self.content, self._uri)
        self._outline.check(num_observations)
        self._checked.add(num_observations)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.content, self._num_numbers, self._uri)


def _type_of(value: Any, types: Mapping[str, Any], what: str, uri: str) -> Any:
    """Return the type of numpy of a model's input or output."""
    if value.type not in types:
        raise CheckpointError(
            f"'{uri}' has {what} of the type {one_line(value.type)}, expected floats of 16 to 64 bits, or integers. "
            "Convert them by a Cast inside the network."
        )
    return types[value.type]


def _mask_size(inputs: list[Any]) -> int:
    """Return how many actions a mask has, the second input of files that `export()` writes; 0 without a mask."""
    if len(inputs) != 2 or inputs[1].name != MASK or len(inputs[1].shape) != 2:
        return 0
    size = inputs[1].shape[1]
    return size if isinstance(size, int) and size <= limits.MAX_ONE_HOT else 0
