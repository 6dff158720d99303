"""A network in integers: weights of 8 bits and activations of 16 bits, with scales fixed by recorded states.

A number r is stored as the integer nearest to r / unit, halves away from zero, at most `limit` in absolute value. Each
output of a layer with weights has a unit of its own for its weights (per channel). So can each channel of an activation
that only layers with weights read, through relu or not: their weights contain these units (`equalization`).

Sums fit 32 bits for every input: the limit of an activation is the largest that allows for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

from rllib_kd.export.c.floats import as_stored
from rllib_kd.export.c.program import OBSERVATION, STATE_PARTS, Program, Step, Value
from rllib_kd.export.runners import numpy_runner

#: Layers before the network, which stay in floats as the observation is: their output is quantised.
PREPROCESSING = {"normalize", "one_hot", "pixels"}
#: Layers without weights, whose output has the unit of their input.
_SAME_UNIT = {"relu", "zero_pad"}
_WEIGHTED = {"linear", "conv2d"}
_LARGEST = 2**15 - 1  # of an activation
_SMALLEST_LIMIT = 127  # of an activation whose sums would not fit otherwise
_MAX_BIAS = 2**29
_MAX_SUM = 2**31 - 1 - _MAX_BIAS  # of the products, without the bias
_Q_LIMIT = 2**22  # of the integers of Q-values, so that three of them added fit a 32-bit float exactly
_Q_EXPONENTS = (-126, 103)  # of their unit, so that it and they are normal 32-bit floats
_HEADROOM = 2.0  # activations up to twice the largest recorded one are in range
_MAX_RATIO = 2**29  # of the unit of a sum to the unit of the activation that it becomes
_SMALLEST_RANGE = 1e-30  # of an input; its factor is a finite 32-bit float
#: Where tables end: beyond these inputs, the outputs are constant to 16 bits.
_INPUT_CAPS = {"tanh": 8.0, "sigmoid": 16.0}
_OUTPUT_CAPS = {"tanh": 1.0, "sigmoid": 1.0}
_TABLE_STEP = 256  # between two entries of a table
_MAX_NORM = 1024  # numbers that a layer_norm takes the variance of, so that its sum fits 64 bits


@dataclass(frozen=True)
class IntegerStep:
    """One call of a C function.

    Args:
        function: its name.
        step: the layer.
        arrays: constant arrays by name, in the order of the function's arguments.
        limit: largest absolute value of the outputs.
        numbers: further constants by name.
    """

    function: str
    step: Step
    limit: int
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    numbers: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class IntegerProgram:
    """A network in integers.

    Args:
        program: the network in floats.
        before: its first layers, which stay in floats.
        steps: the integer steps behind them; the first one quantises.
        q_unit: the Q-value of the integer 1, a power of two.
    """

    program: Program
    before: tuple[Step, ...]
    steps: tuple[IntegerStep, ...]
    q_unit: float


def quantized(
    program: Program, tensors: Mapping[str, Tensor], obs: np.ndarray, *, equalizations: Sequence[float]
) -> list[IntegerProgram]:
    """Return a network in integers, for each equalization.

    Args:
        program: the network.
        tensors: its weights by name.
        obs: recorded observations `[N, ...]`, N ≥ 1, which give the ranges of all activations.
        equalizations: in [0, 1]. 0: all channels of an activation have one unit, that of the largest; 1: each has its
            own. High values keep small channels precise, at the expense of weights (SmoothQuant, arXiv 2211.10438).

    Raises:
        ValueError: it has a layer that integers cannot hold, or a weight that is NaN or infinite.
    """
    arrays = {name: tensor.numpy().astype(np.float32) for name, tensor in tensors.items()}
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise ValueError("The network has weights that are NaN or infinite, which C cannot hold.")
    seen = _Quantizer(program, arrays, 0.0).seen(obs)
    return [_Quantizer(program, arrays, equalization).run(seen) for equalization in equalizations]


def check_integers(program: Program) -> None:
    """Raise a ValueError with the reason if integers cannot hold a network."""
    count = _num_before(program)
    for step in program.steps[count:]:
        if step.op in PREPROCESSING or step.op in STATE_PARTS or step.op == "expectation":
            raise ValueError(f"C with int8 cannot hold the layer '{step.op}' in this place. Export it without int8.")
        if step.op == "layer_norm" and step.target.shape[-1] > _MAX_NORM:
            raise ValueError(
                f"C with int8 takes a layer_norm of up to {_MAX_NORM} numbers, got {step.target.shape[-1]}. Export it "
                "without int8."
            )
    for source in _final(program):
        if not any(step.target.buffer == source and step.op == "linear" for step in program.steps[count:]):
            raise ValueError("C with int8 expects a linear layer at the end of the network and of each dueling stream.")


def _num_before(program: Program) -> int:
    for i, step in enumerate(program.steps):
        if step.op not in PREPROCESSING:
            return i
    return len(program.steps)


def _final(program: Program) -> set[int]:
    """Return the buffers of Q-values, state values and advantages, whose integers have the unit of the Q-values."""
    last = program.steps[-1]
    return {source.buffer for source in last.sources} if last.op == "dueling" else {last.target.buffer}


class _Quantizer:
    def __init__(self, program: Program, tensors: Mapping[str, np.ndarray], equalization: float):
        check_integers(program)
        self.program, self.tensors, self.equalization = program, tensors, equalization
        count = _num_before(program)
        self.before = program.steps[:count]
        self.float_input = self.before[-1].target.buffer if self.before else OBSERVATION
        self.input = len(program.steps) + 1  # the buffer of the quantised input
        self.steps = tuple(map(self._after_input, program.steps[count:]))
        self.final = _final(program)
        self.readers: dict[int, list[Step]] = {}
        for step in self.steps:
            for source in step.sources:
                self.readers.setdefault(source.buffer, []).append(step)
        self.units: dict[int, np.ndarray] = {}  # of one number each, or of all

    def _after_input(self, step: Step) -> Step:
        """Return the step with the quantised input in place of the one in floats."""
        sources = (
            replace(each, buffer=self.input) if each.buffer == self.float_input else each for each in step.sources
        )
        return replace(step, sources=tuple(sources))

    def run(self, seen: Mapping[int, np.ndarray]) -> IntegerProgram:
        """Return the network in integers, with ranges from what `seen()` returns."""
        self.ranges = self._ranges(seen)
        self.limits = self._limits()
        done = [self._quantize()]
        for step in self.steps:
            if step.target.buffer not in self.final and step.op != "dueling":
                done.append(self._step(step))
        weights = {step.target.buffer: self._weights(step) for step in self.steps if step.target.buffer in self.final}
        largest = max(bounds.max() for *_, bounds in weights.values())
        exponent = math.ceil(math.log2(largest / _Q_LIMIT)) if largest > 0 else 0
        q_unit = 2.0 ** min(max(exponent, _Q_EXPONENTS[0]), _Q_EXPONENTS[1])
        for step in self.steps:
            if step.target.buffer in self.final:
                done.append(self._weighted(step, weights[step.target.buffer], np.array(q_unit), _Q_LIMIT))
            elif step.op == "dueling":
                done.append(IntegerStep("dueling", step, 3 * _Q_LIMIT))
        return IntegerProgram(self.program, self.before, tuple(done), q_unit)

    # --- Ranges of activations ----------------------------------------------------------------------------------------

    def seen(self, obs: np.ndarray) -> dict[int, np.ndarray]:
        """Return for each buffer the largest absolute value of each channel, on recorded observations."""
        seen: dict[int, np.ndarray] = {}
        for first in range(0, len(obs), 256):
            chunk = np.asarray(obs[first : first + 256], np.float32)
            for buffer, values in self._float_values(chunk):
                largest = np.abs(values).max(tuple(range(values.ndim - 1))).astype(np.float64)
                seen[buffer] = np.maximum(seen[buffer], largest) if buffer in seen else largest
        if not all(np.isfinite(largest).all() for largest in seen.values()):
            raise ValueError("The network's activations are NaN or infinite on the recorded observations.")
        for step in reversed(self.steps):
            if step.op == "relu" and len(self.readers[step.source.buffer]) == 1 and step.source.buffer != self.input:
                seen[step.source.buffer] = seen[step.target.buffer]  # what is negative becomes 0
        return seen

    def _ranges(self, seen: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
        """Return for each buffer the largest absolute value that has to be in range: of each channel, or of all."""
        ranges = {self.input: self._range(seen[self.input], channels=self._has_channels(self.input))}
        for step in self.steps:
            target = step.target.buffer
            if step.op in _SAME_UNIT:
                ranges[target] = ranges[step.source.buffer]
            elif target in seen:
                is_table = step.op in numpy_runner.ELEMENTWISE
                ranges[target] = self._range(seen[target], channels=not is_table and self._has_channels(target))
                ranges[target] = np.minimum(ranges[target], _OUTPUT_CAPS.get(step.op, np.inf))
                readers = self.readers.get(target, [])
                if len(readers) == 1:
                    ranges[target] = np.minimum(ranges[target], _INPUT_CAPS.get(readers[0].op, np.inf))
        return ranges

    def _range(self, seen: np.ndarray, *, channels: bool) -> np.ndarray:
        top = max(_HEADROOM * float(seen.max()), _SMALLEST_RANGE) if seen.any() else 1.0
        if not channels:
            return np.array(top)
        own = np.where(seen > 0, np.maximum(_HEADROOM * seen, _SMALLEST_RANGE), top)
        return top * (own / top) ** self.equalization

    def _has_channels(self, buffer: int) -> bool:
        """Return whether the readers of a buffer allow for a unit of its own for each channel."""
        readers = self.readers.get(buffer, [])
        if buffer == self.input:
            return all(step.op == "linear" and len(step.source.shape) == 1 for step in readers)
        return all(
            step.op in _WEIGHTED or (step.op in _SAME_UNIT and self._has_channels(step.target.buffer))
            for step in readers
        )

    def _float_values(self, obs: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the buffers from the quantised input on, with their values `[B, ...]` in floats."""
        values = {OBSERVATION: obs}
        for step in self.before:
            values[step.target.buffer] = self._outputs(step, values)
        values[self.input] = values[self.float_input]
        yield self.input, values[self.input].reshape(len(obs), -1)  # a flat one has a channel for each number
        for step in self.steps:
            if step.op != "dueling":
                values[step.target.buffer] = self._outputs(step, values)
                yield step.target.buffer, values[step.target.buffer]

    def _outputs(self, step: Step, values: Mapping[int, np.ndarray]) -> np.ndarray:
        x = values[step.source.buffer]
        return numpy_runner.run([dict(step.layer)], dict(self.tensors), x.reshape(len(x), *step.source.shape))

    def _limits(self) -> dict[int, int]:
        """Return the largest absolute integer of each buffer, from the last one to the first."""
        limits: dict[int, int] = {}
        for step in reversed(self.steps):
            source, target = step.sources[0].buffer, step.target.buffer
            limit = _LARGEST
            if step.op in _WEIGHTED:
                weight = _rows(self.tensors[step.layer["weight"]], self.ranges[source])
                units = np.maximum(np.abs(weight).max(1, keepdims=True) / 127, np.finfo(float).tiny)
                row_sums = np.abs(rounded(weight / units)).sum(1)
                limit = min(_LARGEST, int(_MAX_SUM / (1.01 * row_sums.max() + 1)))  # 1 %: units are rounded later
                if limit < _SMALLEST_LIMIT:
                    raise ValueError(
                        f"C with int8 cannot add {weight.shape[1]} products in 32 bits. Export it without int8."
                    )
            elif step.op in _SAME_UNIT:
                limit = limits.get(target, _LARGEST)
            limits[source] = min(limits.get(source, _LARGEST), limit)
        return limits

    # --- Steps --------------------------------------------------------------------------------------------------------

    def _quantize(self) -> IntegerStep:
        limit, ranges = self.limits[self.input], self.ranges[self.input]
        factors = (limit / ranges).astype(np.float32)
        self.units[self.input] = 1 / factors.astype(np.float64)
        size = self.before[-1].target.size if self.before else math.prod(self.program.shape)
        step = Step({"op": "quantize"}, (Value(self.float_input, (size,)),), Value(self.input, (size,)))
        return IntegerStep("quantize", step, limit, {"factor": factors.reshape(-1)})

    def _step(self, step: Step) -> IntegerStep:
        source, target = step.sources[0].buffer, step.target.buffer
        limit = self.limits[target]
        if step.op in _SAME_UNIT:
            self.units[target] = self.units[source]
            return IntegerStep(step.op, step, self.limits[source])
        self.units[target] = unit = self.ranges[target] / limit
        if step.op in _WEIGHTED:
            weights = self._weights(step)
            own = weights[2] if unit.ndim else weights[2].max()
            self.units[target] = unit = np.maximum(unit, own / _MAX_RATIO)
            return self._weighted(step, weights, unit, limit)
        if step.op == "layer_norm":
            return self._layer_norm(step, limit)
        inputs = np.arange(-128, 129) * _TABLE_STEP * self.units[source]
        outputs = numpy_runner.ELEMENTWISE[step.op](inputs)
        table = np.clip(rounded(outputs / unit), -limit, limit).astype(np.int16)
        return IntegerStep("table", step, limit, {"table": table})

    def _weights(self, step: Step) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return integer weights `[outputs, inputs]` and biases, the unit of each sum, and the bound of each output."""
        source, bias = step.source.buffer, self.tensors[step.layer["bias"]].astype(np.float64)
        real = _rows(self.tensors[step.layer["weight"]], self.units[source])
        units = np.maximum(np.abs(real).max(1) / 127, np.abs(bias) / _MAX_BIAS)
        units = np.where(units > 0, units, units.max() if units.any() else 1.0)  # a row of zeros has any unit
        weight, whole_bias = rounded(real / units[:, None]), rounded(bias / units)
        bounds = np.abs(weight).sum(1) * self.limits[source] + np.abs(whole_bias)
        assert bounds.max() < 2**31  # for any input
        return weight, whole_bias, units, units * bounds

    def _weighted(
        self, step: Step, weights: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], unit: np.ndarray, limit: int
    ) -> IntegerStep:
        weight, bias, units, _ = weights
        multipliers, shifts = zip(*(_multiplier(float(ratio)) for ratio in units / unit), strict=True)
        arrays: dict[str, np.ndarray] = {
            "weight": weight.astype(np.int8),
            "bias": bias.astype(np.int32),
            "multiplier": np.array(multipliers, np.int32),
            "shift": np.array(shifts, np.int8),
        }
        shape = self.tensors[step.layer["weight"]].shape
        patch = {"patch_height": shape[2], "patch_width": shape[3]} if step.op == "conv2d" else {}
        return IntegerStep(step.op, step, limit, arrays, patch)

    def _layer_norm(self, step: Step, limit: int) -> IntegerStep:
        count = step.target.shape[-1]
        weight, bias = (self.tensors[step.layer[name]] / self.units[step.target.buffer] for name in ("weight", "bias"))
        largest = max(np.abs(weight).max(), np.abs(bias).max(), 1e-30)
        shift = min(29, math.floor(29 - math.log2(largest)))
        if shift < 1:
            raise ValueError(
                "C with int8 cannot hold a layer_norm whose weights are that large. Export it without int8."
            )
        epsilon = float(step.layer["eps"]) * count**2 / float(self.units[step.source.buffer]) ** 2
        arrays: dict[str, np.ndarray] = {
            "weight": rounded(weight * 2.0**shift).astype(np.int32),
            "bias": rounded(bias * 2.0**shift).astype(np.int32),
        }
        return IntegerStep(
            "layer_norm", step, limit, arrays, {"shift": shift, "epsilon": max(1, round(min(epsilon, 2.0**61)))}
        )


def _rows(weight: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Return weights for inputs in these units (of all, or of each channel) as `[outputs, inputs]`, in C's order."""
    rows = as_stored(weight).reshape(len(weight), -1).astype(np.float64)
    return rows * np.resize(units, rows.shape[1])  # channels are the last axis of what is flattened


def rounded(numbers: np.ndarray) -> np.ndarray:
    """Return the nearest integers, halves away from zero, in floats of the same size."""
    return np.trunc(numbers + np.copysign(0.5, numbers))


def _multiplier(ratio: float) -> tuple[int, int]:
    """Return an integer below 2^31 and a shift from 1 to 62, with ratio ≈ integer / 2^shift.

    Ratios from 2^30 on, with which any sum but 0 is above every limit, become the largest one that fits. A dueling
    stream of zeros has one, if the Q-values of the other stream are tiny.
    """
    mantissa, exponent = math.frexp(ratio)  # ratio = mantissa · 2^exponent, mantissa in [0.5, 1)
    shift = 31 - exponent
    multiplier = round(mantissa * 2**31)
    if multiplier == 2**31:
        multiplier, shift = 2**30, shift - 1
    if shift < 1:
        return 2**31 - 1, 1
    return (multiplier, shift) if shift <= 62 else (multiplier >> min(shift - 62, 31), 62)
