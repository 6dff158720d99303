"""The header of a network, and a program that plays it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from rllib_kd.export.c.text import Body
from rllib_kd.export.runners.c_runner import with_prefix
from rllib_kd.text import filled

DEFAULT_PREFIX = "student"

_HEADER = """\
/* rllib_kd C export. Prefix: PREFIX. Arithmetic: ARITHMETIC. Observation shape: SHAPE.STATE */
/*
   A greedy policy in C99. Include this file in one C file of your program:

USAGE
   - p_act() returns the action with the largest Q-value, from 0; of equal ones the first.
   - p_act_legal(GIVEN, action_mask) returns the legal one; the mask is P_NUM_ACTIONS bytes, not 0 if legal. If no
     action is, it returns P_NO_LEGAL.
   - p_q_values() writes the Q-values of all actions, and returns 0.
   - All return P_NOT_FINITE if the observation has a NaN or an infinity, and P_OVERFLOW if a Q-value has.
EPISODES   - An observation is P_OBSERVATION_SIZE floats, as the environment shows them, row by row.
   - Memory: P_RAM_BYTES bytes of static buffers, so that only one thread may call at a time; no heap, no recursion.
*/
#ifndef P_H
#define P_H

#include <stdint.h>
MATH
#define P_OBSERVATION_SIZE OBSERVATION_SIZE
#define P_NUM_ACTIONS NUM_ACTIONS
#define P_NOT_FINITE (-1)
#define P_OVERFLOW (-2)
#define P_NO_LEGAL (-3)
#define P_RAM_BYTES RAM_BYTES
#define P_WEIGHT_BYTES WEIGHT_BYTES
#define P_MULTIPLY_ADDS COUNTED

ARRAYS
/* Whether no number is NaN or infinite, by their bits: also where a compiler assumes that there are none. */
static int p_are_finite(const float *x, int32_t count)
{
    union {
        float number;
        uint32_t bits;
    } u;
    int32_t i;
    for (i = 0; i < count; i++) {
        u.number = x[i];
        if ((u.bits & 0x7F800000u) == 0x7F800000u)
            return 0;
    }
    return 1;
}

FUNCTIONS
POLICY
#endif
"""

_USAGE = "       int action = p_act(observation);\n"

_RECURRENT_USAGE = """\
       p_state state;
       p_begin(&state);                          when an episode begins
       int action = p_act(&state, observation);  at each step of it
"""

_EPISODES = """\
   - It remembers: each call of one of these functions is a step of an episode, and changes the state. A negative code
     leaves the state as it was. A state is P_STATE_SIZE floats of your own, which can be copied; each episode that is
     played at the same time has one.
"""

_MAIN = """\
/* Reads observations from stdin, as 32-bit floats in this machine's byte order, and prints a line for each: the action,
   or a negative code (see HEADER). An observation has

FIRST   - P_OBSERVATION_SIZE floats, as p_act() takes them;
   - with -m, P_NUM_ACTIONS floats behind them, above 0.5 where an action is legal: the action is then a legal one.

   With -q, the Q-values of all actions follow the action.

       cc -std=c99 -O2 -o PREFIX MAIN MATH_LIBRARY
*/
#include <stdio.h>
#include <string.h>

#include "HEADER"

int main(int argc, char **argv)
{
    static float record[NUMBERS + P_NUM_ACTIONS];
    static float q_values[P_NUM_ACTIONS];
    static uint8_t action_mask[P_NUM_ACTIONS];
    const float *observation = SHOWN, *legal = observation + P_OBSERVATION_SIZE;
    size_t length, size = (NUMBERS) * sizeof(float);
    int i, action, with_mask = 0, with_q_values = 0;
STATES    for (i = 1; i < argc; i++) {
        with_mask = with_mask || strcmp(argv[i], "-m") == 0;
        with_q_values = with_q_values || strcmp(argv[i], "-q") == 0;
        if (strcmp(argv[i], "-m") != 0 && strcmp(argv[i], "-q") != 0) {
            fprintf(stderr, "usage: %s [-m] [-q] < OBSERVATIONS\\n", argv[0]);
            return 2;
        }
    }
    if (with_mask)
        size = sizeof record;
    while ((length = fread(record, 1, size, stdin)) == size) {
BEGINNING        for (i = 0; i < P_NUM_ACTIONS; i++)
            action_mask[i] = legal[i] > 0.5f;
        action = with_mask ? p_act_legal(GIVEN, action_mask) : p_act(GIVEN);
        printf("%d", action);
        if (with_q_values && action >= 0 && p_q_values(AGAIN, q_values) == 0)
            for (i = 0; i < P_NUM_ACTIONS; i++)
                printf(" %.9g", (double)q_values[i]);
        printf("\\n");
        fflush(stdout);
    }
    if (length != 0) {
        fprintf(stderr, "The last observation has %lu bytes, expected %lu.\\n", (unsigned long)length,
                (unsigned long)size);
        return 1;
    }
    return 0;
}
"""

#: What the program of a recurrent network has in the places of these words.
_RECURRENT_MAIN = {
    "FIRST": "   - one float, not 0 if an episode begins with it;\n",
    "NUMBERS": "1 + P_OBSERVATION_SIZE",
    "SHOWN": "record + 1",
    "STATES": "    static p_state state, before;\n    p_begin(&state);\n",
    "BEGINNING": "        if (record[0] != 0.0f)\n            p_begin(&state);\n        before = state;\n",
    "GIVEN": "&state, observation",
    "AGAIN": "&before, observation",
}
_PLAIN_MAIN = dict.fromkeys(_RECURRENT_MAIN, "") | {
    "NUMBERS": "P_OBSERVATION_SIZE",
    "SHOWN": "record",
    "GIVEN": "observation",
    "AGAIN": "observation",
}


def header(body: Body, *, prefix: str, shape: Sequence[int], num_actions: int, multiply_adds: int) -> str:
    """Return the text of a header.

    Args:
        body: the network.
        prefix: a `checked_prefix()`.
        shape: shape of one observation.
        num_actions: number of Q-values.
        multiply_adds: multiply-adds of one observation.
    """
    parts, units = body.state or (0, 0)
    values = {
        "ARITHMETIC": body.arithmetic,
        "SHAPE": json.dumps(list(shape)),
        "STATE": f" State: {json.dumps([units] * parts)}." if parts else "",
        "USAGE": _RECURRENT_USAGE if body.state else _USAGE,
        "GIVEN": "&state, observation" if body.state else "observation",
        "EPISODES": _EPISODES if body.state else "",
        "MATH": "#include <math.h>\n" if body.needs_math else "",
        "OBSERVATION_SIZE": str(math.prod(shape)),
        "NUM_ACTIONS": str(num_actions),
        "RAM_BYTES": str(body.ram_bytes),
        "WEIGHT_BYTES": str(body.arrays.num_bytes),
        "COUNTED": str(multiply_adds),
        "ARRAYS": str(body.arrays),
        "FUNCTIONS": "\n".join(body.functions),
        "POLICY": body.policy,
    }
    return filled(with_prefix(filled(_HEADER, values), prefix), {"PREFIX": prefix})


def main_program(*, header_name: str, main_name: str, prefix: str, needs_math: bool, is_recurrent: bool) -> str:
    """Return the text of the program beside a header.

    Args:
        header_name: file name of the header, a `checked_header_name()`.
        main_name: file name of the program.
        prefix: the header's prefix.
        needs_math: whether the header calls functions of `math.h`.
        is_recurrent: whether its functions take a state.
    """
    values = {
        "HEADER": header_name,
        "MAIN": main_name,
        "PREFIX": prefix,
        "MATH_LIBRARY": "-lm" if needs_math else "",
    }
    text = with_prefix(filled(_MAIN, _RECURRENT_MAIN if is_recurrent else _PLAIN_MAIN), prefix)
    return filled(text, values).replace(f"{main_name} \n", f"{main_name}\n")
