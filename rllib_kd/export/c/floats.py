"""A network in 32-bit floats: C functions of the layers, and their calls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from rllib_kd.export.c.program import OBSERVATION, STATE_PARTS, Program, Step, place
from rllib_kd.export.c.recurrent import RECURRENT_FUNCTIONS, recurrent_policy, stored_biases
from rllib_kd.export.c.text import Arrays, Body, act_function, literal
from rllib_kd.networks.layers import Layer

#: NaN stays NaN, so that an overflow is noticed at the end.
_ELEMENTWISE_C = {
    "relu": "x[i] < 0.0f ? 0.0f : x[i]",
    "tanh": "tanhf(x[i])",
    "sigmoid": "1.0f / (1.0f + expf(-x[i]))",
    "silu": "x[i] / (1.0f + expf(-x[i]))",
    "elu": "x[i] > 0.0f ? x[i] : expm1f(x[i])",
}

#: The C functions, each after those that it calls.
FUNCTIONS = {
    "dot": """\
/* Four sums, which a processor can add at the same time. */
static float p_dot(const float *a, const float *b, int32_t count)
{
    float s0 = 0.0f, s1 = 0.0f, s2 = 0.0f, s3 = 0.0f;
    int32_t i = 0;
    for (; i + 3 < count; i += 4) {
        s0 += a[i] * b[i];
        s1 += a[i + 1] * b[i + 1];
        s2 += a[i + 2] * b[i + 2];
        s3 += a[i + 3] * b[i + 3];
    }
    for (; i < count; i++)
        s0 += a[i] * b[i];
    return (s0 + s1) + (s2 + s3);
}
""",
    "linear": """\
/* x [rows][inputs], y [rows][outputs], weight [outputs][inputs]. */
static void p_linear(const float *x, float *y, const float *weight, const float *bias, int32_t rows, int32_t inputs,
        int32_t outputs)
{
    int32_t row, i;
    for (row = 0; row < rows; row++, x += inputs, y += outputs)
        for (i = 0; i < outputs; i++)
            y[i] = bias[i] + p_dot(weight + i * inputs, x, inputs);
}
""",
    "conv2d": """\
/* x [height][width][channels], row = width * channels; y [y_height][y_width][filters].
   weight [filters][patch_height][patch], patch = the patch's width * channels; down and along: strides in numbers. */
static void p_conv2d(const float *x, float *y, const float *weight, const float *bias, int32_t row, int32_t y_height,
        int32_t y_width, int32_t filters, int32_t patch_height, int32_t patch, int32_t down,
        int32_t along)
{
    int32_t i, j, k, line;
    for (i = 0; i < y_height; i++)
        for (j = 0; j < y_width; j++)
            for (k = 0; k < filters; k++) {
                const float *corner = x + i * down + j * along;
                float sum = bias[k];
                for (line = 0; line < patch_height; line++)
                    sum += p_dot(weight + (k * patch_height + line) * patch, corner + line * row, patch);
                *y++ = sum;
            }
}
""",
    "zero_pad": """\
/* x [height][row], y [top + height + bottom][left + row + right]; left, row and right in numbers. */
static void p_zero_pad(const float *x, float *y, int32_t height, int32_t row, int32_t left, int32_t right, int32_t top,
        int32_t bottom)
{
    int32_t i, j;
    for (i = -top; i < height + bottom; i++)
        for (j = -left; j < row + right; j++)
            *y++ = i >= 0 && i < height && j >= 0 && j < row ? x[i * row + j] : 0.0f;
}
""",
    "layer_norm": """\
static void p_layer_norm(const float *x, float *y, const float *weight, const float *bias, int32_t rows, int32_t count,
        float eps)
{
    int32_t row, i;
    for (row = 0; row < rows; row++, x += count, y += count) {
        float mean = 0.0f, variance = 0.0f, scale;
        for (i = 0; i < count; i++)
            mean += x[i];
        mean /= (float)count;
        for (i = 0; i < count; i++)
            variance += (x[i] - mean) * (x[i] - mean);
        scale = 1.0f / sqrtf(variance / (float)count + eps);
        for (i = 0; i < count; i++)
            y[i] = (x[i] - mean) * scale * weight[i] + bias[i];
    }
}
""",
    "normalize": """\
static void p_normalize(const float *x, float *y, const float *mean, const float *std, int32_t count)
{
    int32_t i;
    for (i = 0; i < count; i++)
        y[i] = (x[i] - mean[i]) / std[i];
}
""",
    "clip": """\
static void p_clip(float *x, int32_t count, float limit)
{
    int32_t i;
    for (i = 0; i < count; i++)
        x[i] = x[i] > limit ? limit : x[i] < -limit ? -limit : x[i];
}
""",
    "one_hot": """\
/* Numbers to one-hot vectors, side by side; a number that is not in 0, ..., length - 1 gives zeros. */
static void p_one_hot(const float *x, float *y, const int32_t *lengths, int32_t count)
{
    int32_t i, k;
    for (i = 0; i < count; i++)
        for (k = 0; k < lengths[i]; k++)
            *y++ = x[i] == (float)k ? 1.0f : 0.0f;
}
""",
    "pixels": """\
/* x [channels][pixels] to y [pixels][channels], divided. */
static void p_pixels(const float *x, float *y, int32_t pixels, int32_t channels, float divisor)
{
    int32_t i, k;
    for (i = 0; i < pixels; i++)
        for (k = 0; k < channels; k++)
            *y++ = x[k * pixels + i] / divisor;
}
""",
    "dueling": """\
static void p_dueling(const float *value, const float *advantage, float *y, int32_t count)
{
    float mean = 0.0f;
    int32_t i;
    for (i = 0; i < count; i++)
        mean += advantage[i];
    mean /= (float)count;
    for (i = 0; i < count; i++)
        y[i] = value[0] + (advantage[i] - mean);
}
""",
    "expectation": """\
/* x [count][num_atoms], logits; y [count], means of the distributions over the atoms. */
static void p_expectation(const float *x, float *y, const float *atoms, int32_t count, int32_t num_atoms)
{
    int32_t i, k;
    for (i = 0; i < count; i++, x += num_atoms) {
        float largest = x[0], total = 0.0f, sum = 0.0f;
        for (k = 1; k < num_atoms; k++)
            largest = x[k] > largest ? x[k] : largest;
        for (k = 0; k < num_atoms; k++) {
            float weight = expf(x[k] - largest);
            total += weight;
            sum += weight * atoms[k];
        }
        y[i] = sum / total;
    }
}
""",
    "plaintree": """\
/* A tree: at each node an entry of x and a threshold. Numbers are compared alone: no floating point is computed. */
static void p_plaintree(const float *x, float *y, const int16_t *first, const float *threshold, const int16_t *left,
        const int16_t *right, const float *values, int32_t inner, int32_t count)
{
    int32_t node = 0, i;
    while (node < inner)
        node = x[first[node]] <= threshold[node] ? left[node] : right[node];
    for (i = 0; i < count; i++)
        y[i] = values[(node - inner) * count + i];
}
""",
    "tree": """\
/* A tree: at each node a threshold, and an entry of x (operation 0), or the difference (1), product (2) or sum (3)
   of two. */
static void p_tree(const float *x, float *y, const int16_t *first, const float *threshold, const int16_t *left,
        const int16_t *right, const float *values, int32_t inner, int32_t count, const int16_t *second,
        const int8_t *operation)
{
    int32_t node = 0, i;
    while (node < inner) {
        float compared = x[first[node]];
        if (operation[node] == 1)
            compared = compared - x[second[node]];
        else if (operation[node] == 2)
            compared = compared * x[second[node]];
        else if (operation[node] == 3)
            compared = compared + x[second[node]];
        node = compared <= threshold[node] ? left[node] : right[node];
    }
    for (i = 0; i < count; i++)
        y[i] = values[(node - inner) * count + i];
}
""",
    **RECURRENT_FUNCTIONS,
    **{
        name: f"""\
static void p_{name}(const float *x, float *y, int32_t count)
{{
    int32_t i;
    for (i = 0; i < count; i++)
        y[i] = {expression};
}}
"""
        for name, expression in _ELEMENTWISE_C.items()
    },
}

NEEDS_MATH = {*STATE_PARTS, "layer_norm", "expectation", "tanh", "sigmoid", "silu", "elu"}


class FloatSteps:
    """Writes steps in floats.

    Args:
        tensors: weights by name.
        arrays: the header's arrays, to which the weights are added.
        places: C expressions of the buffers.
    """

    def __init__(self, tensors: Mapping[str, Tensor], arrays: Arrays, places: Mapping[int, str]):
        self._tensors, self._arrays, self._places = tensors, arrays, places
        self.functions: set[str] = set()
        self.lines: list[str] = []

    def add(self, step: Step) -> None:
        """Add the calls of a step."""
        buffers = [self._places[value.buffer] for value in (*step.sources, step.target)]
        is_plain = step.op == "tree" and not any(step.layer["operation"])
        self._call("plaintree" if is_plain else step.op, [*buffers, *self._arguments(step)])
        if step.op in ("linear", "conv2d"):
            self.functions.add("dot")
        if step.op in STATE_PARTS:
            self.functions |= {"dot", "gate"}
        if step.op == "normalize" and step.layer["clip"] is not None and np.isfinite(np.float32(step.layer["clip"])):
            self._call("clip", [self._places[step.target.buffer], step.target.size, np.float32(step.layer["clip"])])

    def _call(self, function: str, arguments: Sequence[object]) -> None:
        self.functions.add(function)
        shown = (literal(each) if isinstance(each, np.floating) else str(each) for each in arguments)
        self.lines.append(f"p_{function}({', '.join(shown)});")

    def _arguments(self, step: Step) -> Sequence[object]:
        """Return the arguments behind the buffers."""
        layer, shape = step.layer, step.sources[0].shape
        if step.op == "linear":
            return [*self._weights(layer), *linear_sizes(step)]
        if step.op in STATE_PARTS:
            weights = [self._arrays.add(self._numbers(layer[name])) for name in ("weight_ih", "weight_hh")]
            biases = stored_biases(step.op, *(self._numbers(layer[name]) for name in ("bias_ih", "bias_hh")))
            return ["state->numbers", *weights, self._arrays.add(biases), shape[-1], step.target.shape[-1]]
        if step.op == "conv2d":
            return [*self._weights(layer), *conv_sizes(step, self._tensors[layer["weight"]].shape[2:])]
        if step.op == "layer_norm":
            return [*self._weights(layer), math.prod(shape[:-1]), shape[-1], np.float32(layer["eps"])]
        if step.op == "normalize":
            return [*(self._arrays.add(self._numbers(layer[name])) for name in ("mean", "std")), step.target.size]
        if step.op == "tree":
            return self._tree(layer, step.target.size)
        if step.op == "zero_pad":
            return pad_sizes(step)
        if step.op == "one_hot":
            return [self._arrays.add(np.array(layer["lengths"], np.int32)), len(layer["lengths"])]
        if step.op == "pixels":
            channels = shape[0] if layer["channels_first"] else 1  # as they are, an image is one channel
            return [step.target.size // channels, channels, np.float32(layer["divisor"])]
        if step.op == "expectation":
            atoms = np.linspace(layer["v_min"], layer["v_max"], layer["num_atoms"], dtype=np.float32)
            return [self._arrays.add(atoms), step.target.size, layer["num_atoms"]]
        return [step.target.size]

    def _tree(self, layer: Layer, num_actions: int) -> list[object]:
        """Return the arguments of a tree; one that compares entries alone has no second ones and no operations."""
        tables = [
            np.array(layer["first"], np.int16),
            self._numbers(layer["threshold"]),
            np.array(layer["left"], np.int16),
            np.array(layer["right"], np.int16),
            self._numbers(layer["values"]),
        ]
        arguments: list[object] = [*map(self._table, tables), len(layer["first"]), num_actions]
        if any(layer["operation"]):
            codes = [("", "-", "*", "+").index(sign) for sign in layer["operation"]]
            arguments += [self._table(np.array(layer["second"], np.int16)), self._table(np.array(codes, np.int8))]
        return arguments

    def _table(self, numbers: np.ndarray) -> str:
        """Add an array, one number long at least: C has no empty arrays, of a tree of one leaf."""
        return self._arrays.add(np.resize(numbers, max(1, numbers.size)))

    def _weights(self, layer: Layer) -> list[str]:
        weight, bias = self._numbers(layer["weight"]), self._numbers(layer["bias"])
        return [self._arrays.add(as_stored(weight)), self._arrays.add(bias)]

    def _numbers(self, name: str) -> np.ndarray:
        return self._tensors[name].numpy().astype(np.float32)


def as_stored(weight: np.ndarray) -> np.ndarray:
    """Return weights in C's order: those of a convolution `[filters, height, width, channels]`, as images are."""
    return weight.transpose(0, 2, 3, 1) if weight.ndim == 4 else weight


def linear_sizes(step: Step) -> list[int]:
    """Return rows, inputs and outputs of a linear layer."""
    shape = step.source.shape
    return [math.prod(shape[:-1]), shape[-1], step.target.shape[-1]]


def conv_sizes(step: Step, kernel: Sequence[int]) -> list[int]:
    """Return the arguments of a convolution's C function from `row` on, for a kernel (height, width)."""
    (_, width, channels), (y_height, y_width, filters) = step.source.shape, step.target.shape
    down, along = step.layer["stride"]
    row = width * channels
    return [row, y_height, y_width, filters, kernel[0], kernel[1] * channels, down * row, along * channels]


def pad_sizes(step: Step) -> list[int]:
    """Return the arguments of zero padding's C function from `height` on."""
    height, width, channels = step.source.shape
    left, right, top, bottom = step.layer["padding"]
    return [height, width * channels, left * channels, right * channels, top, bottom]


def at_offsets(array: str, offsets: Mapping[int, int]) -> dict[int, str]:
    """Return C expressions of buffers in an array."""
    return {buffer: f"{array} + {offset}" if offset else array for buffer, offset in offsets.items()}


def float_body(program: Program, tensors: Mapping[str, Tensor]) -> Body:
    """Return a network in floats as C."""
    arrays = Arrays()
    outputs = {step.target.buffer for step in program.steps}
    kept = set() if program.state is None else {program.state.buffer}
    offsets, length = place(program.steps, outputs - {program.output.buffer}, kept)
    places = {OBSERVATION: "observation", program.output.buffer: "q_values"}
    places |= at_offsets("p_work", offsets)
    steps = FloatSteps(tensors, arrays, places)
    for step in program.steps:
        steps.add(step)
    functions = [text for name, text in FUNCTIONS.items() if name in steps.functions]
    work = f"static float p_work[{length}];\n\n" if length else ""
    calls = "\n    ".join(steps.lines)
    if program.state is None:
        policy = _POLICY.replace("STEPS", calls)
    else:
        policy = recurrent_policy(program.state, calls, places[program.state.buffer])
    return Body(
        arithmetic="float32",
        needs_math=bool(steps.functions & NEEDS_MATH),
        arrays=arrays,
        functions=functions,
        policy=work + policy + act_function("float", "p_q_values", is_recurrent=program.state is not None),
        ram_bytes=4 * length,
        state=() if program.state is None else program.state.shape,
    )


_POLICY = """\
static inline int p_q_values(const float *observation, float *q_values)
{
    if (!p_are_finite(observation, P_OBSERVATION_SIZE))
        return P_NOT_FINITE;
    STEPS
    return p_are_finite(q_values, P_NUM_ACTIONS) ? 0 : P_OVERFLOW;
}

"""
