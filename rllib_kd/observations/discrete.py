"""Discrete observations as one-hot vectors: the connectors that networks need for a space, without the user's help."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.connectors.env_to_module import FlattenObservations
from ray.rllib.env import INPUT_ENV_SINGLE_SPACES
from ray.rllib.utils.annotations import override

from rllib_kd.observations.images import ImagesToFloats, InputConnector
from rllib_kd.observations.pipeline import Flatten, Shown
from rllib_kd.observations.spaces import is_byte_image, is_discrete, is_matrix


class OneHotObservations(InputConnector):
    """An env-to-module connector for discrete numbers from any start, and for grids of them: one vector of one-hots.

    For numbers from 0 in a row it equals RLlib's `FlattenObservations`, which cannot encode others. As that one, it
    writes the vectors into the episodes.
    """

    @override(ConnectorV2)
    def __call__(self, *, batch: dict[str, Any], episodes: list[Any], **kwargs: Any) -> dict[str, Any]:
        encode = Flatten(self.input_observation_space).start()
        for episode in self.single_agent_episode_iterator(episodes):
            obs = np.asarray(episode.get_observations(-1))[None]
            episode.set_observations(at_indices=-1, new_data=encode(Shown(obs, np.zeros(1, dtype=bool)))[0])
            episode.observation_space = self.observation_space  # or the episode would refuse the next vector
        return batch


def connector_for(space: gym.Space | None) -> ConnectorV2 | None:
    """Return the connector that makes a network's inputs of observations; None if it needs none, or none is known.

    Args:
        space: space of the environment's observations.
    """
    if is_byte_image(space):
        return ImagesToFloats()
    if is_matrix(space) or (is_discrete(space) and _is_plain(space)):
        return FlattenObservations()
    return OneHotObservations() if is_discrete(space) else None


def _is_plain(space: Any) -> bool:
    """Return whether RLlib's connector can encode discrete numbers: from 0, in a row."""
    return not np.any(getattr(space, "start", 0)) and (
        not isinstance(space, gym.spaces.MultiDiscrete) or space.nvec.ndim == 1
    )


def encode_discrete(env: Any, spaces: Any, device: Any) -> list[ConnectorV2]:
    """Return the connectors of discrete observations, as RLlib's `env_to_module_connector` does; none for others.

    Args:
        env: vector env, or None.
        spaces: spaces by name, if there is no vector env.
        device: not used.
    """
    space = env.single_observation_space if env is not None else (spaces or {}).get(INPUT_ENV_SINGLE_SPACES, [None])[0]
    connector = connector_for(space) if is_discrete(space) else None
    return [] if connector is None else [connector]
