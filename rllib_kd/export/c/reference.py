"""The integers that C computes, computed by numpy: both must be equal, bit by bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch import Tensor

from rllib_kd.export.c.integers import IntegerProgram, IntegerStep, quantized, rounded
from rllib_kd.export.c.program import OBSERVATION, Program
from rllib_kd.export.runners import numpy_runner
from rllib_kd.networks.layers import Layer

_CHUNK = 256  # observations at once
_EQUALIZATIONS = (0.0, 0.5, 1.0)
_MAX_COMPARED = 1_000  # observations


def closest_integers(
    layers: Sequence[Layer], program: Program, tensors: Mapping[str, Tensor], obs: np.ndarray
) -> IntegerProgram:
    """Return the network in integers with the equalization whose Q-values differ least between actions.

    Args:
        layers: the layers of the network.
        program: the same as steps.
        tensors: weights by name.
        obs: recorded observations `[N, ...]`, N ≥ 1.

    Raises:
        ValueError: as `quantized()`.
    """
    some = np.asarray(obs[:: -(-len(obs) // _MAX_COMPARED)], np.float32)
    arrays = {name: tensor.numpy().astype(np.float32) for name, tensor in tensors.items()}
    expected = numpy_runner.run(list(map(dict, layers)), arrays, some)
    found = quantized(program, tensors, obs, equalizations=_EQUALIZATIONS)
    errors = []
    for network in found:
        difference = integer_q_values(network, tensors)(some).astype(np.float64) - expected
        errors.append(float(np.square(difference - difference.mean(-1, keepdims=True)).mean()))
    return found[int(np.argmin(errors))]


def integer_q_values(network: IntegerProgram, tensors: Mapping[str, Tensor]) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function from observations `[B, ...]` to Q-values `[B, A]` that the C of a network in integers is."""
    arrays = {name: tensor.numpy().astype(np.float32) for name, tensor in tensors.items()}

    def q_values(obs: np.ndarray) -> np.ndarray:
        obs = np.asarray(obs, np.float32)
        parts = [_run(network, arrays, obs[first : first + _CHUNK]) for first in range(0, len(obs), _CHUNK)]
        return np.concatenate(parts).astype(np.float32) * np.float32(network.q_unit)

    return q_values


@np.errstate(over="ignore")  # an infinity is quantised as the largest integer
def _run(network: IntegerProgram, tensors: dict[str, np.ndarray], obs: np.ndarray) -> np.ndarray:
    values = {OBSERVATION: obs}
    for step in network.before:
        x = values[step.source.buffer].reshape(len(obs), *step.source.shape)
        values[step.target.buffer] = numpy_runner.run([dict(step.layer)], tensors, x)
    for integer_step in network.steps:
        step = integer_step.step
        inputs = [values[source.buffer].reshape(len(obs), *source.shape) for source in step.sources]
        values[step.target.buffer] = _FUNCTIONS[integer_step.function](integer_step, *inputs)
    return values[network.program.output.buffer].reshape(len(obs), -1)


def _quantize(step: IntegerStep, x: np.ndarray) -> np.ndarray:
    scaled = x.reshape(len(x), -1) * step.arrays["factor"]
    return np.clip(rounded(scaled), -step.limit, step.limit).astype(np.int64)


def _rescaled(step: IntegerStep, sums: np.ndarray) -> np.ndarray:
    """Multiply sums `[..., outputs]`, as `p_rescale()` does."""
    product = sums * step.arrays["multiplier"].astype(np.int64)
    shift = step.arrays["shift"].astype(np.int64)
    half = np.int64(1) << (shift - 1)
    whole = (np.abs(product) + half) >> shift
    return np.clip(np.sign(product) * whole, -step.limit, step.limit)


def _linear(step: IntegerStep, x: np.ndarray) -> np.ndarray:
    # Sums below 2^53 are exact in 64-bit floats, whose products are fast.
    sums = x.astype(np.float64) @ step.arrays["weight"].astype(np.float64).T
    return _rescaled(step, sums.astype(np.int64) + step.arrays["bias"])


def _conv2d(step: IntegerStep, x: np.ndarray) -> np.ndarray:
    down, along = step.step.layer["stride"]
    kernel = (step.numbers["patch_height"], step.numbers["patch_width"])
    patches = np.lib.stride_tricks.sliding_window_view(x, kernel, (1, 2))[:, ::down, ::along]  # [B, H, W, C, h, w]
    patches = patches.transpose(0, 1, 2, 4, 5, 3)
    return _linear(step, patches.reshape(*patches.shape[:3], -1))


def _zero_pad(step: IntegerStep, x: np.ndarray) -> np.ndarray:
    left, right, top, bottom = step.step.layer["padding"]
    return np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))


def _table(step: IntegerStep, x: np.ndarray) -> np.ndarray:
    table = step.arrays["table"].astype(np.int64)
    place, part = (x + 2**15) >> 8, (x + 2**15) & 255
    rise = (table[place + 1] - table[place]) * part
    return table[place] + np.sign(rise) * ((np.abs(rise) + 128) >> 8)


def _layer_norm(step: IntegerStep, x: np.ndarray) -> np.ndarray:
    count = x.shape[-1]
    centered = count * x - x.sum(-1, keepdims=True)
    squares = (centered**2).sum(-1, keepdims=True) // count + step.numbers["epsilon"]
    roots = np.array([math.isqrt(number) for number in squares.ravel().tolist()]).reshape(squares.shape)
    product = centered * step.arrays["weight"]
    total = np.sign(product) * (np.abs(product) // roots) + step.arrays["bias"]
    shift = step.numbers["shift"]
    return np.clip(np.sign(total) * ((np.abs(total) + (1 << (shift - 1))) >> shift), -step.limit, step.limit)


def _dueling(step: IntegerStep, value: np.ndarray, advantage: np.ndarray) -> np.ndarray:
    count = advantage.shape[-1]
    total = advantage.sum(-1, keepdims=True)
    mean = np.sign(total) * ((np.abs(total) + count // 2) // count)
    return value.reshape(len(value), 1) + advantage - mean


_FUNCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "quantize": _quantize,
    "linear": _linear,
    "conv2d": _conv2d,
    "zero_pad": _zero_pad,
    "relu": lambda step, x: np.maximum(x, 0),
    "table": _table,
    "layer_norm": _layer_norm,
    "dueling": _dueling,
}
