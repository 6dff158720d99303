"""A network in integers as C: functions of the layers, and their calls."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from rllib_kd.export.c.floats import FUNCTIONS as FLOAT_FUNCTIONS
from rllib_kd.export.c.floats import FloatSteps, at_offsets, conv_sizes, linear_sizes, pad_sizes
from rllib_kd.export.c.integers import IntegerProgram, IntegerStep
from rllib_kd.export.c.program import OBSERVATION, place
from rllib_kd.export.c.text import Arrays, Body, act_function, literal

_LINEAR = """\
/* x [rows][inputs], y [rows][outputs], weight [outputs][inputs]. */
static void p_NAME(const int16_t *x, TYPE *y, const int8_t *weight, const int32_t *bias, const int32_t *multiplier,
        const int8_t *shift, int32_t limit, int32_t rows, int32_t inputs, int32_t outputs)
{
    int32_t row, i;
    for (row = 0; row < rows; row++, x += inputs)
        for (i = 0; i < outputs; i++) {
            int32_t sum = p_add_products(bias[i], weight + i * inputs, x, inputs);
            *y++ = (TYPE)p_rescale(sum, multiplier[i], shift[i], limit);
        }
}
"""

#: The C functions, each after those that it calls.
_FUNCTIONS = {
    "quantize": """\
/* Observations to integers: x * factor to the nearest integer, halves away from zero, between -limit and limit.
   stride: 1 for a factor for each number, 0 for one factor. */
static void p_quantize(const float *x, int16_t *y, const float *factor, int32_t stride, int32_t limit, int32_t count)
{
    int32_t i;
    for (i = 0; i < count; i++) {
        float scaled = x[i] * factor[i * stride];
        if (scaled >= (float)limit)
            y[i] = (int16_t)limit;
        else if (scaled <= (float)-limit)
            y[i] = (int16_t)-limit;
        else
            y[i] = (int16_t)(scaled < 0.0f ? scaled - 0.5f : scaled + 0.5f);
    }
}
""",
    "rescale": """\
/* sum * multiplier / 2^shift to the nearest integer, halves away from zero, between -limit and limit. */
static int32_t p_rescale(int32_t sum, int32_t multiplier, int32_t shift, int32_t limit)
{
    int64_t product = (int64_t)sum * multiplier, half = (int64_t)1 << (shift - 1);
    int64_t result = product < 0 ? -((half - product) >> shift) : (half + product) >> shift;
    return result > limit ? limit : result < -limit ? -limit : (int32_t)result;
}
""",
    "add_products": """\
/* Fits 32 bits for any x: the limits of the activations are chosen for it. */
static int32_t p_add_products(int32_t sum, const int8_t *weight, const int16_t *x, int32_t count)
{
    int32_t i;
    for (i = 0; i < count; i++)
        sum += (int32_t)weight[i] * x[i];
    return sum;
}
""",
    "linear": _LINEAR.replace("NAME", "linear").replace("TYPE", "int16_t"),
    "lastlinear": _LINEAR.replace("NAME", "lastlinear").replace("TYPE", "int32_t"),
    "conv2d": """\
/* x [height][width][channels], row = width * channels; y [y_height][y_width][filters].
   weight [filters][patch_height][patch], patch = the patch's width * channels; down and along: strides in numbers. */
static void p_conv2d(const int16_t *x, int16_t *y, const int8_t *weight, const int32_t *bias, const int32_t *multiplier,
        const int8_t *shift, int32_t limit, int32_t row, int32_t y_height, int32_t y_width,
        int32_t filters, int32_t patch_height, int32_t patch, int32_t down, int32_t along)
{
    int32_t i, j, k, line;
    for (i = 0; i < y_height; i++)
        for (j = 0; j < y_width; j++)
            for (k = 0; k < filters; k++) {
                const int16_t *corner = x + i * down + j * along;
                int32_t sum = bias[k];
                for (line = 0; line < patch_height; line++)
                    sum = p_add_products(sum, weight + (k * patch_height + line) * patch, corner + line * row, patch);
                *y++ = (int16_t)p_rescale(sum, multiplier[k], shift[k], limit);
            }
}
""",
    "zero_pad": FLOAT_FUNCTIONS["zero_pad"].replace("float", "int16_t").replace("0.0f", "(int16_t)0"),
    "relu": """\
static void p_relu(const int16_t *x, int16_t *y, int32_t count)
{
    int32_t i;
    for (i = 0; i < count; i++)
        y[i] = x[i] > 0 ? x[i] : 0;
}
""",
    "table": """\
/* A function by its values at -32768, -32512, ..., 32768, and straight lines between them. */
static void p_table(const int16_t *x, int16_t *y, const int16_t *table, int32_t count)
{
    int32_t i;
    for (i = 0; i < count; i++) {
        int32_t place = (x[i] + 32768) / 256, part = (x[i] + 32768) % 256;
        int32_t rise = ((int32_t)table[place + 1] - table[place]) * part;
        y[i] = (int16_t)(table[place] + (rise < 0 ? rise - 128 : rise + 128) / 256);
    }
}
""",
    "layer_norm": """\
/* The largest integer whose square is at most n. */
static int64_t p_root(int64_t n)
{
    int64_t root = 0, bit = (int64_t)1 << 62;
    for (; bit > 0; bit >>= 2)
        if (n >= root + bit) {
            n -= root + bit;
            root = (root >> 1) + bit;
        } else
            root >>= 1;
    return root;
}

/* weight and bias in units of 2^-shift outputs, epsilon in units of the squares. */
static void p_layer_norm(const int16_t *x, int16_t *y, const int32_t *weight, const int32_t *bias, int32_t shift,
        int64_t epsilon, int32_t limit, int32_t rows, int32_t count)
{
    int32_t row, i;
    for (row = 0; row < rows; row++, x += count, y += count) {
        int64_t squares = 0, root, half = (int64_t)1 << (shift - 1);
        int32_t sum = 0;
        for (i = 0; i < count; i++)
            sum += x[i];
        for (i = 0; i < count; i++) {
            int64_t centered = (int64_t)count * x[i] - sum;
            squares += centered * centered;
        }
        root = p_root(squares / count + epsilon);
        for (i = 0; i < count; i++) {
            int64_t total = ((int64_t)count * x[i] - sum) * weight[i] / root + bias[i];
            int64_t result = total < 0 ? -((half - total) >> shift) : (half + total) >> shift;
            y[i] = (int16_t)(result > limit ? limit : result < -limit ? -limit : result);
        }
    }
}
""",
    "dueling": """\
/* The mean to the nearest integer, halves away from zero. */
static void p_dueling(const int32_t *value, const int32_t *advantage, int32_t *y, int32_t count)
{
    int64_t sum = 0;
    int32_t i, mean;
    for (i = 0; i < count; i++)
        sum += advantage[i];
    mean = (int32_t)((sum < 0 ? sum - count / 2 : sum + count / 2) / count);
    for (i = 0; i < count; i++)
        y[i] = value[0] + advantage[i] - mean;
}
""",
}

_POLICY = """\
/* Q-values in units of P_Q_UNIT. */
static int p_integers(const float *observation, int32_t *q)
{
    if (!p_are_finite(observation, P_OBSERVATION_SIZE))
        return P_NOT_FINITE;
    STEPS
    return 0;
}

static inline int p_q_values(const float *observation, float *q_values)
{
    int32_t q[P_NUM_ACTIONS];
    int action, code = p_integers(observation, q);
    for (action = 0; code == 0 && action < P_NUM_ACTIONS; action++)
        q_values[action] = (float)q[action] * P_Q_UNIT;
    return code;
}

"""


class _Calls:
    def __init__(self, arrays: Arrays, places: Mapping[int, str], last: set[int]):
        self._arrays, self._places, self._last = arrays, places, last
        self.functions: set[str] = set()
        self.lines: list[str] = []

    def add(self, each: IntegerStep) -> None:
        step = each.step
        function = "lastlinear" if step.target.buffer in self._last and each.function == "linear" else each.function
        self.functions.add(function)
        if function in ("linear", "lastlinear", "conv2d"):
            self.functions |= {"rescale", "add_products"}
        arguments = [self._places[value.buffer] for value in (*step.sources, step.target)]
        arguments += [self._arrays.add(numbers) for numbers in each.arrays.values()]
        self.lines.append(f"p_{function}({', '.join([*arguments, *map(str, self._numbers(each))])});")

    def _numbers(self, each: IntegerStep) -> list[int]:
        step = each.step
        if each.function == "linear":
            return [each.limit, *linear_sizes(step)]
        if each.function == "conv2d":
            kernel = (each.numbers["patch_height"], each.numbers["patch_width"])
            return [each.limit, *conv_sizes(step, kernel)]
        if each.function == "zero_pad":
            return pad_sizes(step)
        if each.function == "layer_norm":
            count = step.target.shape[-1]
            return [each.numbers["shift"], each.numbers["epsilon"], each.limit, step.target.size // count, count]
        if each.function == "quantize":
            return [int(len(each.arrays["factor"]) > 1), each.limit, step.target.size]
        return [step.target.size]


def integer_body(network: IntegerProgram, tensors: Mapping[str, Tensor]) -> Body:
    """Return a network in integers as C."""
    steps = [*network.before, *(each.step for each in network.steps)]
    output = network.program.output.buffer
    final = steps[-1].sources if steps[-1].op == "dueling" else (network.program.output,)
    last = {value.buffer for value in final}
    floats = {step.target.buffer for step in network.before}
    shorts = {step.target.buffer for step in steps} - floats - last - {output}
    kinds = {"float p_floats": (floats, 4), "int16_t p_shorts": (shorts, 2), "int32_t p_longs": (last - {output}, 4)}
    places, buffers, ram_bytes = {OBSERVATION: "observation", output: "q"}, "", 0
    for name, (members, num_bytes) in kinds.items():
        offsets, length = place(steps, members)
        places |= at_offsets(name.split()[1], offsets)
        buffers += f"static {name}[{length}];\n" if length else ""
        ram_bytes += num_bytes * length
    arrays = Arrays()
    before, calls = FloatSteps(tensors, arrays, places), _Calls(arrays, places, last)
    for step in network.before:
        before.add(step)
    for each in network.steps:
        calls.add(each)
    functions = [text for name, text in FLOAT_FUNCTIONS.items() if name in before.functions]
    functions += [text for name, text in _FUNCTIONS.items() if name in calls.functions]
    unit = f"#define P_Q_UNIT {literal(np.float32(network.q_unit))} /* a power of two */\n\n"
    lines = "\n    ".join([*before.lines, *calls.lines])
    policy = _POLICY.replace("STEPS", lines) + act_function("int32_t", "p_integers")
    return Body("int8", False, arrays, functions, f"{unit}{buffers}\n{policy}", ram_bytes)
