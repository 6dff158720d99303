"""Convert images of bytes to the inputs of networks: as tensors, and by an RLlib connector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core.columns import Columns
from ray.rllib.utils.annotations import override

from rllib_kd.observations.spaces import input_space
from rllib_kd.observations.written import change_written


def as_input(obs: torch.Tensor, shape: Sequence[int] | None, *, contiguous: bool = False) -> torch.Tensor:
    """Convert observations `[B, ...]` to a network's inputs, float32: bytes are divided by 255, channels come last.

    Args:
        obs: observations of the environment.
        shape: shape of one input of the network. Images of another shape have their channels first.
        contiguous: whether channels come last in memory, too. This makes the backward pass of a CNN 1.4 to 1.8 times as
            fast, and has no effect on the forward pass.
    """
    if len(shape or ()) == 3 and obs.shape[1:] != torch.Size(shape or ()):
        obs = obs.movedim(1, -1)
    if contiguous:
        obs = _contiguous(obs)
    floats = obs.to(torch.float32)
    # In place: `obs / 255` takes fresh pages for its result, which cost five times what the division does.
    return floats.div_(255.0) if obs.dtype == torch.uint8 else floats


def _contiguous(obs: torch.Tensor) -> torch.Tensor:
    """Return observations that are contiguous in memory: on a CPU channel by channel, three times as fast."""
    if obs.is_contiguous() or obs.device.type != "cpu" or obs.ndim != 4:
        return obs.contiguous()
    contiguous = torch.empty(obs.shape, dtype=obs.dtype)
    for i in range(obs.shape[-1]):
        contiguous[..., i] = obs[..., i]
    return contiguous


class ImagesToFloats(ConnectorV2):
    """An env-to-module connector that converts images of bytes by `as_input()`. The episodes keep the bytes.

    Images that an earlier connector has written to the batch are converted there.
    """

    @override(ConnectorV2)
    def recompute_output_observation_space(
        self, input_observation_space: gym.Space, input_action_space: gym.Space
    ) -> gym.Space:
        return input_space(input_observation_space)

    @override(ConnectorV2)
    def __call__(self, *, batch: dict[str, Any], episodes: list[Any], **kwargs: Any) -> dict[str, Any]:
        if change_written(batch, self._convert):
            return batch
        for episode in self.single_agent_episode_iterator(episodes):
            item = self._convert(episode.get_observations(-1))
            self.add_batch_item(batch, Columns.OBS, item_to_add=item, single_agent_episode=episode)
        return batch

    def _convert(self, image: Any) -> np.ndarray:
        return as_input(torch.as_tensor(image).unsqueeze(0), self.observation_space.shape)[0].numpy()
