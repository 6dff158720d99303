"""The choice of C headers among legal actions, for many observations."""

from __future__ import annotations

import ctypes

import numpy as np

from rllib_kd.export.runners.c_runner import CNetwork

_LIBRARY = """\
#include "network.h"

void run(const float *observations, const uint8_t *masks, int32_t count, int32_t *actions);

void run(const float *observations, const uint8_t *masks, int32_t count, int32_t *actions)
{
    int32_t i;
    for (i = 0; i < count; i++, observations += P_OBSERVATION_SIZE, masks += P_NUM_ACTIONS)
        actions[i] = p_act_legal(observations, masks);
}
"""

_RECURRENT_LIBRARY = """\
#include "network.h"

void run(const float *observations, const uint8_t *masks, int32_t count, int32_t *actions, p_state *states,
        int32_t stride);

void run(const float *observations, const uint8_t *masks, int32_t count, int32_t *actions, p_state *states,
        int32_t stride)
{
    int32_t i;
    for (i = 0; i < count; i++, observations += P_OBSERVATION_SIZE, masks += P_NUM_ACTIONS, states += stride)
        actions[i] = p_act_legal(states, observations, masks);
}
"""


def legal_actions(
    network: CNetwork, obs: np.ndarray, masks: np.ndarray, states: np.ndarray | None = None
) -> np.ndarray:
    """Return actions `[B]` (int32; negative: refused) among the legal ones.

    Args:
        network: the header.
        obs: observations `[B, ...]`.
        masks: `[B, A]`; 1: legal, 0: not.
        states: as in `CNetwork.run()`.
    """
    obs = np.ascontiguousarray(obs, np.float32).reshape(len(obs), network.size)
    masks = np.ascontiguousarray(masks, np.uint8).reshape(len(obs), network.num_actions)
    actions = np.zeros(len(obs), np.int32)
    library = network._built(_RECURRENT_LIBRARY if network.state_sizes else _LIBRARY)
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (obs, masks, actions)]
    library.run(*pointers[:2], ctypes.c_int32(len(obs)), pointers[2], *network._given(states, len(obs)))
    return actions
