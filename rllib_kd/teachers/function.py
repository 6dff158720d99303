"""Any function, or an ensemble, with the interface of a Q-module."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import torch
from ray.rllib.core.columns import Columns
from torch import Tensor, nn
from torch.nn import functional as F

from rllib_kd.networks.dqn_module import QF_PREDS
from rllib_kd.networks.trees.layer import TreeLayer
from rllib_kd.observations.masks import MASK
from rllib_kd.wire import LOG_PROBS

if TYPE_CHECKING:
    from rllib_kd.teachers.base import Teacher


class QNetwork(nn.Module):
    """Any function of observations, with the methods of an RLModule that a `Teacher` needs.

    Args:
        function: from observations `[B, ...]` (a float32 tensor) to Q-values or logits `[B, A]`, as tensor or numpy
            array. A `torch.nn.Module` is copied.
        observation_space: space of one observation.
        action_space: space of the actions.
        num_parameters: number of the function's parameters; None: those of a `torch.nn.Module` are counted.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Any],
        observation_space: gym.Space,
        action_space: gym.spaces.Discrete,
        num_parameters: float | None = None,
    ):
        super().__init__()
        self.function = copy.deepcopy(function) if isinstance(function, nn.Module) else function
        self.observation_space, self.action_space = observation_space, action_space
        self._num_parameters = num_parameters

    @property
    def num_parameters(self) -> float:
        """Return the number of the function's parameters, of a tree of what it stores; NaN if unknown or none."""
        if self._num_parameters is None and isinstance(self.function, nn.Module):
            trees = (layer.num_parameters for layer in self.function.modules() if isinstance(layer, TreeLayer))
            return sum(parameter.numel() for parameter in self.parameters()) + sum(trees) or math.nan
        return self._num_parameters or math.nan

    def to(self, device: torch.device | str) -> QNetwork:  # type: ignore[override]  # all that is needed
        """Move to a device, with the function if it can move."""
        if not isinstance(self.function, nn.Module) and hasattr(self.function, "to"):
            self.function.to(device)
        return super().to(device)

    def compute_q_values(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the function's outputs as RLlib's `QNetAPI` returns Q-values.

        An ensemble also takes the legal actions, as "action_mask".
        """
        obs = batch[Columns.OBS].clone()  # a function may write into it, as `x /= 255` does
        outputs = self.function(obs, batch[MASK]) if MASK in batch else self.function(obs)  # type: ignore[call-arg]
        return {QF_PREDS: as_numbers(outputs).to(device=obs.device, dtype=torch.float32)}

    def is_stateful(self) -> bool:
        """Return False, as a stateless RLModule does."""
        return False

    def get_ctor_args_and_kwargs(self) -> tuple[tuple, dict[str, Any]]:
        """Return the constructor's arguments, as an RLModule does."""
        kwargs = {
            "function": self.function,
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "num_parameters": self._num_parameters,
        }
        return (), kwargs

    def get_state(self, **kwargs: Any) -> dict[str, Any]:
        """Return nothing: the function is one of the constructor's arguments."""
        return {}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Do nothing: there is no state."""


def as_numbers(outputs: Any) -> Tensor:
    """Return what a function has returned as a tensor.

    Raises:
        ValueError: it is several outputs.
    """
    if isinstance(outputs, Mapping | tuple):
        keys = f" with the keys {', '.join(map(str, outputs))}" if isinstance(outputs, Mapping) else ""
        raise ValueError(f"it returns a {type(outputs).__name__}{keys:.100}, expected a tensor [batch, actions] alone")
    return torch.as_tensor(outputs)


class Members:
    """The function of an ensemble: from its members' inputs to the mean of their outputs.

    Args:
        teachers: the members.
        policy_temperature: temperature of `mean_policy()`, at which the softmax of Q-values is a policy; actor-critics
            have one by themselves. None: `mean_q()`, for Q-values alone.
        splits: whether the members' inputs are side by side in one vector; otherwise all take the same input.
    """

    def __init__(self, teachers: Sequence[Teacher], *, policy_temperature: float | None, splits: bool):
        self.teachers = tuple(teachers)
        self._policy_temperature = policy_temperature
        self._splits = splits

    @property
    def policy_temperature(self) -> float | None:
        """Return the temperature of `mean_policy()`; None for `mean_q()`."""
        return self._policy_temperature

    def __call__(self, obs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the mean outputs `[B, A]` of inputs `[B, ...]`; each member's are of the legal actions, `[B, A]`."""
        shapes = [teacher.input_space.shape or () for teacher in self.teachers]
        parts = obs.split([math.prod(shape) for shape in shapes], dim=1) if self._splits else [obs] * len(shapes)
        outputs = [
            teacher.q_values(part.reshape(-1, *shape), mask)
            for teacher, part, shape in zip(self.teachers, parts, shapes, strict=True)
        ]
        temperature = self._policy_temperature
        if temperature is None:
            return mean_q(torch.stack(outputs))
        # Scaled so that the softmax at this temperature is the actor-critic's policy, as it is for Q-values.
        scaled = [
            own * temperature if teacher.outputs == LOG_PROBS else own
            for teacher, own in zip(self.teachers, outputs, strict=True)
        ]
        return mean_policy(torch.stack(scaled), temperature=temperature)

    def to(self, device: torch.device | str) -> Members:
        """Move to a device."""
        for teacher in self.teachers:
            teacher.to(device)
        return self


def mean_q(members_q: Tensor) -> Tensor:
    """Return mean Q-values `[B, A]` of the members' `[M, B, A]`, whose rewards must have equal scale and discount."""
    return members_q.mean(0)


def mean_policy(members_q: Tensor, *, temperature: float) -> Tensor:
    """Return outputs whose softmax at this temperature is the mean of the members' softmaxes at it.

    Unlike Q-values, policies have the same scale. For one member the outputs are its Q-values, minus a constant in each
    state. Rusu et al. 2015, arXiv 1511.06295, distil policies of several teachers likewise.

    Args:
        members_q: `[M, B, A]`, return units; −inf for an illegal action.
        temperature: above 0, return units.

    Returns:
        `[B, A]`, return units, ≤ 0; −inf if an action is illegal for all members.
    """
    log_policies = F.log_softmax(members_q / temperature, dim=-1)
    return temperature * (torch.logsumexp(log_policies, dim=0) - math.log(len(members_q)))
