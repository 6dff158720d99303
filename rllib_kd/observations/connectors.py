"""Connectors that networks need for a space, without the user's help: one vector of all parts, and images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.connectors.env_to_module import (
    AddObservationsFromEpisodesToBatch,
    EnvToModulePipeline,
    FlattenObservations,
    MeanStdFilter,
)
from ray.rllib.env import INPUT_ENV_SINGLE_SPACES
from ray.rllib.utils.annotations import override

from rllib_kd.observations.flattening import Flattener
from rllib_kd.observations.images import ImagesToFloats
from rllib_kd.observations.masks import MASK, features_of, features_space, has_mask
from rllib_kd.observations.spaces import (
    has_floats,
    input_space,
    is_box_of_floats,
    is_byte_image,
    is_discrete,
    is_flattened,
)
from rllib_kd.observations.written import change_written


class UnfitConnectorsError(ValueError):
    """Connectors of the user's would not work; the message has the reason and the remedy."""


class OneVector(ConnectorV2):
    """An env-to-module connector for observations of any composition: one vector of all parts, as of a `Flattener`.

    It equals RLlib's `FlattenObservations`, which can encode neither texts, nor discrete numbers from any start, nor
    grids of them. As that one, it writes the vectors into the episodes; but what an earlier connector has written to
    the batch is encoded there.

    Args:
        input_observation_space: space of the observations; with several agents a Dict of their spaces.
        input_action_space: space of the actions.
        multi_agent: whether there are several agents, each with observations of its own. Those that need no encoding
            stay as they are.
    """

    def __init__(
        self,
        input_observation_space: gym.Space | None = None,
        input_action_space: gym.Space | None = None,
        *,
        multi_agent: bool = False,
        **kwargs: Any,
    ):
        self._is_multi_agent = multi_agent
        self._flatteners: dict[Any, Flattener] = {}  # by agent; of None without several
        super().__init__(input_observation_space, input_action_space, **kwargs)

    @override(ConnectorV2)
    def recompute_output_observation_space(
        self, input_observation_space: gym.Space, input_action_space: gym.Space
    ) -> gym.Space:
        shown = input_observation_space.spaces if self._is_multi_agent else {None: input_observation_space}
        self._flatteners = {agent: Flattener(space) for agent, space in shown.items() if is_flattened(space)}
        inputs = {agent: input_space(space) for agent, space in shown.items()}
        return gym.spaces.Dict(inputs) if self._is_multi_agent else inputs[None]

    @override(ConnectorV2)
    def __call__(self, *, batch: dict[str, Any], episodes: list[Any], **kwargs: Any) -> dict[str, Any]:
        if not self._is_multi_agent and change_written(batch, lambda obs: self._vector(obs, None)):
            return batch
        for episode in self.single_agent_episode_iterator(episodes):
            agent = episode.agent_id if self._is_multi_agent else None
            if agent not in self._flatteners:
                continue
            vector = self._vector(episode.get_observations(-1), agent)
            episode.set_observations(at_indices=-1, new_data=vector)
            # Or the episode would refuse the next vector.
            episode.observation_space = (
                self.observation_space[agent] if self._is_multi_agent else self.observation_space
            )
        return batch

    def _vector(self, obs: Any, agent: Any) -> np.ndarray:
        try:
            return self._flatteners[agent](obs, 1)[0]
        except (IndexError, KeyError, TypeError, ValueError) as error:
            space = self.input_observation_space[agent] if self._is_multi_agent else self.input_observation_space
            raise ValueError(
                f"An observation does not match its space {space}: {type(error).__name__}: {error}. If a connector of "
                "your own has made it, let its recompute_output_observation_space() return the space of what it makes."
            ) from error


class MaskApart(ConnectorV2):
    """An env-to-module connector that takes the mask of legal actions out of observations.

    As `OneVector`, it writes what is left into the episodes, or changes what an earlier connector has written.

    Args:
        input_observation_space: space of the observations; with several agents a Dict of their spaces.
        input_action_space: space of the actions.
        multi_agent: whether there are several agents. The masks in their observations go into the batch as
            "action_mask"; those of a single agent are known where its environment is stepped.
    """

    def __init__(
        self,
        input_observation_space: gym.Space | None = None,
        input_action_space: gym.Space | None = None,
        *,
        multi_agent: bool = False,
        **kwargs: Any,
    ):
        self._is_multi_agent = multi_agent
        super().__init__(input_observation_space, input_action_space, **kwargs)

    @override(ConnectorV2)
    def recompute_output_observation_space(
        self, input_observation_space: gym.Space, input_action_space: gym.Space
    ) -> gym.Space:
        if not self._is_multi_agent:
            return features_space(input_observation_space)
        spaces = input_observation_space.spaces
        return gym.spaces.Dict({agent: features_space(space) for agent, space in spaces.items()})

    @override(ConnectorV2)
    def __call__(self, *, batch: dict[str, Any], episodes: list[Any], **kwargs: Any) -> dict[str, Any]:
        whole = self.input_observation_space
        if not self._is_multi_agent and change_written(batch, lambda obs: features_of(whole, obs)):
            return batch
        for episode in self.single_agent_episode_iterator(episodes):
            space, shown = self.input_observation_space, self.observation_space
            if self._is_multi_agent:
                space, shown = space[episode.agent_id], shown[episode.agent_id]
            if not has_mask(space):
                continue
            obs = episode.get_observations(-1)
            if self._is_multi_agent:
                self.add_batch_item(batch, MASK, obs[MASK], single_agent_episode=episode)
            episode.set_observations(at_indices=-1, new_data=features_of(space, obs))
            episode.observation_space = shown
        return batch


def add_inputs(pipeline: EnvToModulePipeline, *, are_own: bool, multi_agent: bool) -> None:
    """Add to RLlib's pipeline the connectors that make a network's inputs, before it batches these.

    Args:
        pipeline: of the config. Without RLlib's default connectors it stays as it is.
        are_own: whether connectors of the user's come first. If they return Boxes of floats, these stay as they are.
        multi_agent: whether there are several agents.

    Raises:
        UnfitConnectorsError: the user's connectors make something of the observations that would not work.
    """
    batching = next((own for own in pipeline.connectors if isinstance(own, AddObservationsFromEpisodesToBatch)), None)
    if batching is None:
        return
    space = batching.input_observation_space
    if are_own:
        _check_filters(pipeline.connectors)
        _check_has_same_mask(pipeline.input_observation_space, space)
        if is_box_of_floats(space):
            return
    for connector in connectors_for(space, multi_agent=multi_agent):
        # RLlib's own would leave vectors in a batch as they are.
        added = (
            OneVector(multi_agent=multi_agent)
            if are_own and not isinstance(connector, MaskApart | ImagesToFloats)
            else connector
        )
        pipeline.insert_before(type(batching), added)


def _check_filters(connectors: Sequence[ConnectorV2]) -> None:
    """Check that RLlib's filters get Boxes of floats: it rounds its outputs for integers, and fails on other spaces."""
    for space in (own.input_observation_space for own in connectors if type(own) is MeanStdFilter):
        if space is not None and not is_box_of_floats(space):
            apart = "MaskApart() and " if has_mask(space) else ""
            raise UnfitConnectorsError(
                f"RLlib's MeanStdFilter takes observations in a Box of floats of 32 or 64 bits, but gets {space}. Put "
                f"{apart}OneVector() before it, of rllib_kd.observations.connectors, for one vector of all parts."
            )


def _check_has_same_mask(shown: gym.Space, returned: gym.Space) -> None:
    """Check that a mask of legal actions that connectors return is also in the environment's observation."""
    if has_mask(returned) and not has_mask(shown):
        raise UnfitConnectorsError(
            f"The env_to_module_connector returns a mask of legal actions, '{MASK}', but the environment's observation "
            "has no such part at its top, so that illegal actions would be taken. Return the mask there, or in "
            f"info['{MASK}']; and leave it out of what the connector returns."
        )


def connectors_for(space: gym.Space | None, *, multi_agent: bool = False) -> list[ConnectorV2]:
    """Return the connectors that make a network's inputs of observations, and take masks out of them.

    Args:
        space: as in `connector_for()`.
        multi_agent: as in `connector_for()`.
    """
    if space is None:
        return []
    if multi_agent and isinstance(space, gym.spaces.Dict):
        has_masks = any(map(has_mask, space.spaces.values()))
        space = gym.spaces.Dict({agent: features_space(own) for agent, own in space.spaces.items()})
    else:
        has_masks, space = has_mask(space), features_space(space)
    connector = connector_for(space, multi_agent=multi_agent)
    apart = [MaskApart(multi_agent=True) if multi_agent else MaskApart()] if has_masks else []
    return apart + ([] if connector is None else [connector])


def connector_for(space: gym.Space | None, *, multi_agent: bool = False) -> ConnectorV2 | None:
    """Return the connector that makes a network's inputs of observations; None if it needs none, or none is known.

    Args:
        space: space of the environment's observations; with several agents a Dict of their spaces.
        multi_agent: whether there are several agents. Their images are not converted.
    """
    if multi_agent:
        by_agent = space.spaces.values() if isinstance(space, gym.spaces.Dict) else ()
        return OneVector(multi_agent=True) if any(map(is_flattened, by_agent)) else None
    if is_byte_image(space):
        return ImagesToFloats()
    if not is_flattened(space):
        return None
    return FlattenObservations() if _is_plain(space) else OneVector()


def _is_plain(space: Any) -> bool:
    """Return whether RLlib's own connector can encode it: a matrix of floats, or discrete numbers from 0, in a row."""
    if not is_discrete(space):
        return isinstance(space, gym.spaces.Box) and len(space.shape) == 2 and has_floats(space)
    return not np.any(getattr(space, "start", 0)) and (
        not isinstance(space, gym.spaces.MultiDiscrete) or space.nvec.ndim == 1
    )


def flatten_observations(env: Any, spaces: Any, device: Any) -> list[ConnectorV2]:
    """Return the connectors that make one vector of observations, as RLlib's `env_to_module_connector` does, or none.

    Args:
        env: vector env, or None.
        spaces: spaces by name, if there is no vector env.
        device: not used.
    """
    space = env.single_observation_space if env is not None else (spaces or {}).get(INPUT_ENV_SINGLE_SPACES, [None])[0]
    connector = connector_for(space) if is_flattened(space) else None
    return [] if connector is None else [connector]
