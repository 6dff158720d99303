"""The header of a network, and a program that plays it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence

from rllib_kd.export.c.text import Body
from rllib_kd.export.runners.c_runner import with_prefix

DEFAULT_PREFIX = "student"


_HEADER = """\
/* rllib_kd C export. Prefix: PREFIX. Arithmetic: ARITHMETIC. Observation shape: SHAPE. */
/*
   A greedy policy in C99. Include this file in one C file of your program:

       int action = p_act(observation);

   - p_act() returns the action with the largest Q-value, from 0; of equal ones the first.
   - p_act_legal(observation, action_mask) returns the legal one; the mask is P_NUM_ACTIONS bytes, not 0 if legal. If no
     action is, it returns P_NO_LEGAL.
   - p_q_values() writes the Q-values of all actions, and returns 0.
   - All return P_NOT_FINITE if the observation has a NaN or an infinity, and P_OVERFLOW if a Q-value has.
   - An observation is P_OBSERVATION_SIZE floats, as the environment shows them, row by row.
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


_MAIN = """\
/* Reads observations from stdin, each P_OBSERVATION_SIZE 32-bit floats in this machine's byte order.
   Prints a line for each: the action, or a negative code (see HEADER); with -q, the Q-values behind the action.

       cc -std=c99 -O2 -o PREFIX MAIN MATH_LIBRARY
*/
#include <stdio.h>
#include <string.h>

#include "HEADER"

int main(int argc, char **argv)
{
    static float observation[P_OBSERVATION_SIZE];
    static float q_values[P_NUM_ACTIONS];
    int with_q_values = argc == 2 && strcmp(argv[1], "-q") == 0;
    size_t length;
    if (argc > 1 && !with_q_values) {
        fprintf(stderr, "usage: %s [-q] < OBSERVATIONS\\n", argv[0]);
        return 2;
    }
    while ((length = fread(observation, 1, sizeof observation, stdin)) == sizeof observation) {
        int i, action = p_act(observation);
        printf("%d", action);
        if (with_q_values && action >= 0 && p_q_values(observation, q_values) == 0)
            for (i = 0; i < P_NUM_ACTIONS; i++)
                printf(" %.9g", (double)q_values[i]);
        printf("\\n");
        fflush(stdout);
    }
    if (length != 0) {
        fprintf(stderr, "The last observation has %lu bytes, expected %lu.\\n", (unsigned long)length,
                (unsigned long)sizeof observation);
        return 1;
    }
    return 0;
}
"""


def header(body: Body, *, prefix: str, shape: Sequence[int], num_actions: int, multiply_adds: int) -> str:
    """Return the text of a header.

    Args:
        body: the network.
        prefix: a `checked_prefix()`.
        shape: shape of one observation.
        num_actions: number of Q-values.
        multiply_adds: multiply-adds of one observation.
    """
    values = {
        "ARITHMETIC": body.arithmetic,
        "SHAPE": json.dumps(list(shape)),
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


def main_program(*, header_name: str, main_name: str, prefix: str, needs_math: bool) -> str:
    """Return the text of the program beside a header.

    Args:
        header_name: file name of the header, a `checked_header_name()`.
        main_name: file name of the program.
        prefix: the header's prefix.
        needs_math: whether the header calls functions of `math.h`.
    """
    values = {
        "HEADER": header_name,
        "MAIN": main_name,
        "PREFIX": prefix,
        "MATH_LIBRARY": "-lm" if needs_math else "",
    }
    return filled(with_prefix(_MAIN, prefix), values).replace(f"{main_name} \n", f"{main_name}\n")


def filled(text: str, values: Mapping[str, str]) -> str:
    """Return a text with values in place of the words that name them, in one pass: values are not filled themselves."""
    return re.sub(rf"\b({'|'.join(values)})\b", lambda match: values[match[1]], text)
