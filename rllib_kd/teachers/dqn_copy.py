"""RLlib's DQN module with the weights of another network, if both compute the same function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import torch
from ray.rllib.core.rl_module.rl_module import RLModule
from torch import Tensor

from rllib_kd.networks.dqn_module import student_module_spec


def dqn_module_with(
    weights: Sequence[Tensor],
    model_config: Mapping[str, Any],
    observation_space: gym.spaces.Box,
    action_space: gym.spaces.Discrete,
) -> RLModule | None:
    """Return RLlib's DQN module with these weights, in the order of its own; None if theirs have other shapes.

    Raises:
        Exception: whatever RLlib raises at a model config that it does not understand.
    """
    spec = student_module_spec(dict(model_config), observation_space, action_space)
    spec.inference_only = True
    module = spec.build()
    parameters = list(module.parameters())
    if [weight.shape for weight in weights] != [parameter.shape for parameter in parameters]:
        return None
    with torch.no_grad():
        for parameter, weight in zip(parameters, weights, strict=True):
            parameter.copy_(weight)
    return module


def are_same(outputs: Tensor, expected: Tensor) -> bool:
    """Return whether outputs are the same but for rounding: RLlib interprets model configs, and pads in its own way."""
    tolerance = 1e-5 * float(expected.nan_to_num(0.0, 0.0, 0.0).abs().max())
    return outputs.shape == expected.shape and torch.allclose(
        outputs, expected, rtol=1e-4, atol=tolerance, equal_nan=True
    )
