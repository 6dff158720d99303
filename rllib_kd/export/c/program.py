"""The layers of a network as straight-line steps between buffers, and where each buffer is in memory."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from rllib_kd.networks.layers import ELEMENTWISE, Layer, op_in_words

OBSERVATION = 0  # the buffer of the caller's observation
#: Recurrent layers, with the parts of their state: h, and of an LSTM c.
STATE_PARTS = {"lstm": 2, "gru": 1}
#: Steps whose output may overwrite their input.
_IN_PLACE = {*ELEMENTWISE, "normalize", "layer_norm"}
_LARGEST_ENTRY = 2**15 - 1  # that a tree compares


@dataclass(frozen=True)
class Value:
    """A buffer of numbers with a shape; images are `[height, width, channels]`. Flattening gives the same buffer."""

    buffer: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Return the number of numbers."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Step:
    """One layer: from its inputs to its output."""

    layer: Layer
    sources: tuple[Value, ...]
    target: Value

    @property
    def op(self) -> str:
        """Return the kind of the layer, as in docs/pages/numpy_runner.md."""
        return str(self.layer["op"])

    @property
    def source(self) -> Value:
        """Return the input of a layer with one input."""
        (source,) = self.sources
        return source


@dataclass(frozen=True)
class Program:
    """All steps of a network, in their order, from the observation to the Q-values."""

    shape: tuple[int, ...]  # of one observation; (1,) for a single number
    steps: tuple[Step, ...]
    output: Value
    multiply_adds: int  # of linear layers, recurrent layers and convolutions
    state: Value | None = None  # the state after a step of a recurrent network, `[parts, units]`


class _Lowering:
    def __init__(self, tensors: Mapping[str, Tensor]):
        self.tensors = tensors
        self.steps: list[Step] = []
        self.multiply_adds = 0
        self.state: Value | None = None

    def run(self, layers: Sequence[Layer], value: Value) -> Value:
        for layer in layers:
            value = self._layer(layer, value)
        return value

    def _layer(self, layer: Layer, value: Value) -> Value:
        op = layer["op"]
        if op == "flatten":
            return Value(value.buffer, (value.size,))
        if op == "dueling":
            advantage = self.run(layer["advantage"], value)
            baseline = self.run(layer["value"], value)
            if baseline.size != 1:
                raise ValueError(f"C takes one state value of a dueling network, got {baseline.size}.")
            return self._add(layer, (baseline, advantage), advantage.shape)
        if op in STATE_PARTS:
            return self._recurrent(layer, value)
        if op in ("linear", "conv2d"):
            weight = self.tensors[layer["weight"]]
            shape = self._shape(layer, value.shape)
            self.multiply_adds += math.prod(shape) * weight[0].numel()
            return self._add(layer, (value,), shape)
        return self._add(layer, (value,), self._shape(layer, value.shape))

    def _recurrent(self, layer: Layer, value: Value) -> Value:
        """Add a step of a recurrent layer; the first part of the state behind it, h, goes to the next layer."""
        weights = [self.tensors[layer[name]] for name in ("weight_ih", "weight_hh")]
        if self.state is not None:
            raise ValueError("C takes one recurrent layer, got two.")
        self.multiply_adds += sum(weight.numel() for weight in weights)
        units = weights[1].shape[1]
        self.state = self._add(layer, (value,), (STATE_PARTS[layer["op"]], units))
        return Value(self.state.buffer, (units,))

    def _add(self, layer: Layer, sources: tuple[Value, ...], shape: tuple[int, ...]) -> Value:
        target = Value(len(self.steps) + 1, shape)
        self.steps.append(Step(layer, sources, target))
        return target

    def _shape(self, layer: Layer, shape: tuple[int, ...]) -> tuple[int, ...]:
        op = layer["op"]
        if op in _IN_PLACE:
            return shape
        if op == "linear":
            return (*shape[:-1], len(self.tensors[layer["weight"]]))
        if op == "tree":
            if (largest := max(layer["first"], default=0)) > _LARGEST_ENTRY:
                raise ValueError(
                    f"C cannot hold a tree that compares entry {largest:,} of an observation: its tables have 16 bits, "
                    f"up to entry {_LARGEST_ENTRY:,}. Use format='onnx' or 'safetensors'."
                )
            return (self.tensors[layer["values"]].shape[1],)
        if op == "one_hot":
            return (sum(layer["lengths"]),)
        if op == "expectation":
            return (*shape[:-1], shape[-1] // layer["num_atoms"])
        if op == "pixels":
            return (*shape[1:], shape[0]) if layer["channels_first"] else shape
        if op == "zero_pad":
            left, right, top, bottom = layer["padding"]
            return (shape[0] + top + bottom, shape[1] + left + right, shape[2])
        if op == "conv2d":
            weight, (down, along) = self.tensors[layer["weight"]], layer["stride"]
            height, width = weight.shape[2:]
            return ((shape[0] - height) // down + 1, (shape[1] - width) // along + 1, len(weight))
        raise ValueError(f"C cannot hold {op_in_words(op)}. Use format='onnx' or 'torchscript'.")


def lower(layers: Sequence[Layer], tensors: Mapping[str, Tensor], shape: Sequence[int]) -> Program:
    """Return the steps of a described network.

    Args:
        layers: description of the layers, as `describe()` returns it.
        tensors: their tensors by name.
        shape: shape of one observation; `()` for a single number.

    Raises:
        ValueError: a layer has no step.
    """
    lowering = _Lowering(tensors)
    shape = tuple(shape) or (1,)
    output = lowering.run(layers, Value(OBSERVATION, shape))
    if output.buffer == OBSERVATION:
        raise ValueError("C cannot hold a network without layers.")
    return Program(shape, tuple(lowering.steps), output, lowering.multiply_adds, lowering.state)


def place(steps: Sequence[Step], buffers: Collection[int], kept: Collection[int] = ()) -> tuple[dict[int, int], int]:
    """Place buffers in one array, in which those that are not needed at the same time overlap.

    Args:
        steps: all steps.
        buffers: the buffers to place, outputs of steps.
        kept: those of them that are read after the last step, too.

    Returns:
        The first index of each buffer, and the length of the array.
    """
    last_use = {source.buffer: i for i, step in enumerate(steps) for source in step.sources}
    last_use |= dict.fromkeys(kept, len(steps))
    shared: dict[int, int] = {}  # buffer → the first one in its place
    lives: dict[int, list[int]] = {}  # first buffer of a place → its size, the steps of its first write and last read
    for i, step in enumerate(steps):
        buffer = step.target.buffer
        if buffer not in buffers:
            continue
        overwritten = step.sources[0].buffer
        if step.op in _IN_PLACE and last_use[overwritten] == i and overwritten in shared:
            shared[buffer] = shared[overwritten]
            lives[shared[buffer]][2] = last_use[buffer]
        else:
            shared[buffer] = buffer
            lives[buffer] = [step.target.size, i, last_use[buffer]]
    # The largest first: each goes to the first gap between those that live at the same time.
    offsets: dict[int, int] = {}
    for slot, (size, first, last) in sorted(lives.items(), key=lambda item: -item[1][0]):
        offset = 0
        for begin, other in sorted((offsets[other], other) for other in offsets):
            other_size, other_first, other_last = lives[other]
            if first <= other_last and other_first <= last and begin < offset + size:
                offset = max(offset, begin + other_size)
        offsets[slot] = offset
    length = max((offsets[each] + lives[each][0] for each in offsets), default=0)
    return {buffer: offsets[slot] for buffer, slot in shared.items()}, length
