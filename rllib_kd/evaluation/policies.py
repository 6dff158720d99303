"""Policies of any algorithm as players: Q-networks take the best action, other RLModules the likeliest."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tree
from ray.rllib.core.columns import Columns
from ray.rllib.utils.spaces.space_utils import get_base_struct_from_space
from torch import Tensor

from rllib_kd.checkpoints.connectors import ToEnv
from rllib_kd.evaluation.playing import Act
from rllib_kd.networks.dqn_module import count_parameters
from rllib_kd.networks.recurrent import Memory
from rllib_kd.observations.pipeline import ObservationPipeline, Shown
from rllib_kd.teachers.base import Teacher

_CHOICES = (Columns.ACTIONS, Columns.ACTION_DIST_INPUTS)  # outputs of a module that choose an action


def as_mask(mask: np.ndarray | None) -> Tensor | None:
    """Return a mask of legal actions as a tensor."""
    return None if mask is None else torch.from_numpy(mask)


class GreedyQ:
    """A Q-network that takes the best action."""

    def __init__(self, network: Teacher):
        self.network = network
        self.observation_space, self.action_space = network.observation_space, network.action_space
        self.num_parameters = network.num_parameters

    def takes(self, space: gym.Space) -> bool:
        """Return whether it can look at an environment that shows this space."""
        return self.network.takes(space)

    def for_space(self, space: gym.Space) -> GreedyQ:
        """Return this policy, or one that makes the vectors that it takes of the observations."""
        network = self.network.for_space(space)
        return self if network is self.network else GreedyQ(network)

    def player(self) -> Act:
        """Plays one vector env."""
        view, q_values = self.network.start(), self.network.q_values
        return lambda shown: q_values(torch.from_numpy(view(shown)), as_mask(shown.mask)).argmax(-1).numpy()


class LikeliestAction:
    """Any RLModule with an inference pass: its deterministic action, recurrent or not.

    Args:
        module: a module with `forward_inference()`.
        pipeline: pipeline of its observations.
        to_env: what is done with actions before the environment gets them.
    """

    def __init__(self, module: Any, pipeline: ObservationPipeline, *, to_env: ToEnv):
        self._module = module.eval()
        self._pipeline = pipeline
        self._to_env = to_env
        self.observation_space, self.action_space = pipeline.observation_space, module.action_space
        self.num_parameters = count_parameters(module)

    def takes(self, space: gym.Space) -> bool:
        """Return whether it can look at an environment that shows this space."""
        return self._pipeline.takes(space)

    def for_space(self, space: gym.Space) -> LikeliestAction:
        """Return this policy, or one that makes the vectors that it takes of the observations."""
        pipeline = self._pipeline.for_space(space)
        if pipeline is self._pipeline:
            return self
        return LikeliestAction(self._module, pipeline, to_env=self._to_env)

    def player(self) -> Act:
        """Plays one vector env."""
        module, view = self._module, self._pipeline.start()
        memory = Memory()

        @torch.inference_mode()
        def act(shown: Shown) -> Any:
            obs = torch.from_numpy(view(shown))
            batch: dict[str, Any] = {Columns.OBS: obs}
            if module.is_stateful():
                memory.begin(module, shown.first)
                batch = {Columns.OBS: obs[:, None], Columns.STATE_IN: memory.state}  # one step in time
            outputs = module.forward_inference(batch)
            if module.is_stateful():
                memory.state = outputs.get(Columns.STATE_OUT, {})
                chosen = {name: outputs[name] for name in _CHOICES if name in outputs}
                outputs = tree.map_structure(lambda part: part[:, 0], chosen)
            return self._actions(outputs, as_mask(shown.mask))

        return act

    def _actions(self, outputs: dict[str, Any], mask: Tensor | None) -> Any:
        if Columns.ACTIONS in outputs:
            actions = outputs[Columns.ACTIONS]
            if mask is not None:  # nothing ranks the others
                is_legal = mask.gather(-1, actions.long().unsqueeze(-1)).squeeze(-1)
                actions = torch.where(is_legal, actions, mask.int().argmax(-1))
        else:
            inputs = outputs[Columns.ACTION_DIST_INPUTS]
            inputs = inputs if mask is None else inputs.masked_fill(~mask, -torch.inf)
            distribution = self._module.get_inference_action_dist_cls().from_logits(inputs)
            actions = distribution.to_deterministic().sample()
        actions = tree.map_structure(Tensor.numpy, actions)
        return self._to_env(actions, get_base_struct_from_space(self.action_space))
