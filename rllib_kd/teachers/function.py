"""Any function as a Q-network, with what a `Teacher` asks of an RLModule."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import torch
from ray.rllib.core.columns import Columns
from torch import Tensor, nn

from rllib_kd.networks.dqn_module import QF_PREDS


class QNetwork(nn.Module):
    """Any function of observations, with what a `Teacher` asks of an RLModule.

    Args:
        function: from observations `[B, ...]` (a float32 tensor) to Q-values `[B, A]`, as tensor or numpy array. A
            `torch.nn.Module` is copied.
        observation_space: of one observation.
        action_space: of the actions.
        num_parameters: of the function, where it is no `torch.nn.Module`; None for not known.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Any],
        observation_space: gym.Space,
        action_space: gym.spaces.Discrete,
        num_parameters: int | None = None,
    ):
        super().__init__()
        self.function = copy.deepcopy(function) if isinstance(function, nn.Module) else function
        self.observation_space, self.action_space = observation_space, action_space
        self._num_parameters = num_parameters

    @property
    def num_parameters(self) -> float:
        """How many there are; NaN where nobody knows."""
        if isinstance(self.function, nn.Module):
            return sum(parameter.numel() for parameter in self.parameters())
        return math.nan if self._num_parameters is None else self._num_parameters

    def to(self, device: torch.device | str) -> QNetwork:  # type: ignore[override]  # all that is needed
        """Moved to a device, with a function that can move."""
        if not isinstance(self.function, nn.Module) and hasattr(self.function, "to"):
            self.function.to(device)
        return super().to(device)

    def compute_q_values(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As RLlib's `QNetAPI`."""
        obs = batch[Columns.OBS]
        return {QF_PREDS: torch.as_tensor(self.function(obs), dtype=torch.float32, device=obs.device)}

    def is_stateful(self) -> bool:
        """As an RLModule: never."""
        return False

    def get_ctor_args_and_kwargs(self) -> tuple[tuple, dict[str, Any]]:
        """As an RLModule."""
        kwargs = {
            "function": self.function,
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "num_parameters": self._num_parameters,
        }
        return (), kwargs

    def get_state(self, **kwargs: Any) -> dict[str, Any]:
        """Nothing: the function is one of the constructor's arguments."""
        return {}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Nothing to be done."""
