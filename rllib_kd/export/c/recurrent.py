"""A recurrent layer in 32-bit floats as C: one step, from the state of the caller to the next one."""

from __future__ import annotations

import numpy as np

from rllib_kd.export.c.program import Value
from rllib_kd.text import filled

#: The C functions, as in floats.py.
RECURRENT_FUNCTIONS = {
    "gate": """\
static float p_gate(float x)
{
    return 1.0f / (1.0f + expf(-x));
}
""",
    "lstm": """\
/* x [inputs], state [2][units]: h and c, next: the same after this step. weight_ih [4][units][inputs], weight_hh
   [4][units][units] and bias [4][units] of the gates i, f, g and o. */
static void p_lstm(const float *x, float *next, const float *state, const float *weight_ih, const float *weight_hh,
        const float *bias, int32_t inputs, int32_t units)
{
    int32_t i, k;
    for (i = 0; i < units; i++) {
        float gates[4], c;
        for (k = 0; k < 4; k++) {
            int32_t row = k * units + i;
            gates[k] = bias[row] + p_dot(weight_ih + row * inputs, x, inputs);
            gates[k] += p_dot(weight_hh + row * units, state, units);
        }
        c = p_gate(gates[1]) * state[units + i] + p_gate(gates[0]) * tanhf(gates[2]);
        next[i] = p_gate(gates[3]) * tanhf(c);
        next[units + i] = c;
    }
}
""",
    "gru": """\
/* x [inputs], state [units]: h, next: the same after this step. weight_ih [3][units][inputs], weight_hh
   [3][units][units] and bias [4][units] of the gates r, z and n, the last one of n's part that r scales. */
static void p_gru(const float *x, float *next, const float *state, const float *weight_ih, const float *weight_hh,
        const float *bias, int32_t inputs, int32_t units)
{
    int32_t i, k;
    for (i = 0; i < units; i++) {
        float from_x[3], from_h[3], r, z, n;
        for (k = 0; k < 3; k++) {
            int32_t row = k * units + i;
            from_x[k] = bias[row] + p_dot(weight_ih + row * inputs, x, inputs);
            from_h[k] = p_dot(weight_hh + row * units, state, units);
        }
        r = p_gate(from_x[0] + from_h[0]);
        z = p_gate(from_x[1] + from_h[1]);
        n = tanhf(from_x[2] + r * (from_h[2] + bias[3 * units + i]));
        next[i] = n + z * (state[i] - n);
    }
}
""",
}

_POLICY = """\
#define P_STATE_SIZE SIZE

typedef struct {
    float numbers[P_STATE_SIZE];
} p_state;

static inline void p_begin(p_state *state)
{
    int32_t i;
    for (i = 0; i < P_STATE_SIZE; i++)
        state->numbers[i] = 0.0f;
}

static inline int p_q_values(p_state *state, const float *observation, float *q_values)
{
    const float *next = NEXT;
    int32_t i;
    if (!p_are_finite(observation, P_OBSERVATION_SIZE))
        return P_NOT_FINITE;
    STEPS
    if (!p_are_finite(q_values, P_NUM_ACTIONS) || !p_are_finite(next, P_STATE_SIZE))
        return P_OVERFLOW;
    for (i = 0; i < P_STATE_SIZE; i++)
        state->numbers[i] = next[i];
    return 0;
}

"""


def stored_biases(op: str, bias_ih: np.ndarray, bias_hh: np.ndarray) -> np.ndarray:
    """Return the biases of a layer as C has them, `[4 · units]`: PyTorch's pairs are summed where they can be."""
    if op == "lstm":
        return bias_ih + bias_hh
    units = len(bias_hh) // 3
    summed = (bias_ih + bias_hh)[: 2 * units]
    return np.concatenate([summed, bias_ih[2 * units :], bias_hh[2 * units :]])


def recurrent_policy(state: Value, steps: str, place: str) -> str:
    """Return the struct of a state, and the functions that begin it and take it one step further.

    Args:
        state: the next state, `[parts, units]`.
        steps: the calls of the layers.
        place: C expression of the next state's buffer.
    """
    return filled(_POLICY, {"SIZE": str(state.size), "NEXT": place, "STEPS": steps})
