"""Policies as players, whoever trained them: Q-networks take the best action, other RLModules the likeliest."""

from __future__ import annotations

import os
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tree
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.utils.spaces.space_utils import get_base_struct_from_space, unsquash_action
from torch import Tensor

from rllib_kd.checkpoints.connectors import normalizes_actions_of, pipeline_of
from rllib_kd.checkpoints.rllib import open_checkpoint
from rllib_kd.checkpoints.tune import resolve
from rllib_kd.checkpoints.uris import is_folder
from rllib_kd.evaluation.playing import Act
from rllib_kd.networks.dqn_module import count_parameters
from rllib_kd.observations.pipeline import ObservationPipeline, Shown
from rllib_kd.teachers.base import Teacher
from rllib_kd.teachers.loading import load_teacher
from rllib_kd.teachers.names import PACKAGED_TEACHERS, absolute_teacher_uri
from rllib_kd.teachers.recognition import find
from rllib_kd.teachers.rllib import is_q_network


class GreedyQ:
    """A Q-network, which takes the best action."""

    def __init__(self, network: Teacher):
        self.network = network
        self.observation_space, self.action_space = network.observation_space, network.action_space
        self.num_parameters = network.num_parameters

    def takes(self, space: gym.Space) -> bool:
        """Whether it can look at an environment that shows this space."""
        return self.network.takes(space)

    def player(self) -> Act:
        """Plays one vector env."""
        view, q_values = self.network.start(), self.network.q_values
        return lambda shown: q_values(torch.from_numpy(view(shown))).argmax(-1).numpy()


class LikeliestAction:
    """Any RLModule with an inference pass: its deterministic action, recurrent or not.

    Args:
        module: with `forward_inference()`.
        pipeline: that its observations go through.
        normalize_actions: whether actions in a Box are taken from [−1, 1] to its bounds.
    """

    def __init__(self, module: Any, pipeline: ObservationPipeline, *, normalize_actions: bool):
        self._module = module.eval()
        self._pipeline = pipeline
        self._normalize_actions = normalize_actions
        self.observation_space, self.action_space = pipeline.observation_space, module.action_space
        self.num_parameters = count_parameters(module)

    def takes(self, space: gym.Space) -> bool:
        """Whether it can look at an environment that shows this space."""
        return self._pipeline.takes(space)

    def player(self) -> Act:
        """Plays one vector env."""
        module, view = self._module, self._pipeline.start()
        initial = tree.map_structure(torch.as_tensor, module.get_initial_state() if module.is_stateful() else {})
        state: Any = None  # nested, `[N, ...]`

        def restart(value: Tensor, start: Tensor, first: np.ndarray) -> Tensor:
            return torch.where(torch.from_numpy(first).reshape(-1, *[1] * start.ndim), start, value)

        @torch.inference_mode()
        def act(shown: Shown) -> np.ndarray:
            nonlocal state
            obs = torch.from_numpy(view(shown))
            batch: dict[str, Any] = {Columns.OBS: obs}
            if module.is_stateful():
                if state is None:
                    state = tree.map_structure(lambda start: start.expand(len(obs), *start.shape), initial)
                state = tree.map_structure(lambda value, start: restart(value, start, shown.first), state, initial)
                batch = {Columns.OBS: obs[:, None], Columns.STATE_IN: state}  # one step in time
            outputs = module.forward_inference(batch)
            state = outputs.get(Columns.STATE_OUT)
            actions = self._actions(outputs)
            return actions[:, 0] if module.is_stateful() else actions

        return act

    def _actions(self, outputs: dict[str, Any]) -> np.ndarray:
        if Columns.ACTIONS in outputs:
            actions = outputs[Columns.ACTIONS]
        else:
            distribution = self._module.get_inference_action_dist_cls().from_logits(outputs[Columns.ACTION_DIST_INPUTS])
            actions = distribution.to_deterministic().sample()
        actions = actions.numpy()
        if self._normalize_actions:
            return unsquash_action(actions, get_base_struct_from_space(self.action_space))
        return actions


def as_policy(source: Any, *, trust_checkpoint: bool = False) -> GreedyQ | LikeliestAction:
    """A player of any origin.

    Args:
        source: a `Teacher`, an RLModule, the Algorithm that trains it, or name, path or URI of a checkpoint.
        trust_checkpoint: whether what a checkpoint holds may be executed.

    Raises:
        ValueError: it cannot be loaded.
    """
    if isinstance(source, str | os.PathLike):
        uri = absolute_teacher_uri(source)
        if uri not in PACKAGED_TEACHERS and (found := find(uri)).origin == "rllib":
            checkpoint = open_checkpoint(found.uri, trust_checkpoint=trust_checkpoint)
            module = checkpoint.load_module()
            if not is_q_network(module):
                pipeline = checkpoint.load_observation_pipeline(module)
                if pipeline is not None:
                    pipeline.check_feeds(module.observation_space, uri)
                normalize = checkpoint.normalizes_actions()
                return LikeliestAction(module, pipeline or _plain(module), normalize_actions=normalize)
    elif isinstance(source, Algorithm | RLModule) and not is_q_network(_module_of(source)):
        module, pipeline = _module_of(source), _pipeline_of(source)
        return LikeliestAction(module, pipeline or _plain(module), normalize_actions=_normalizes_actions(source))
    return GreedyQ(as_q_network(source, trust_checkpoint=trust_checkpoint))


def as_q_network(source: Any, *, trust_checkpoint: bool = False) -> Teacher:
    """A Q-network of any origin, as a frozen copy with its connectors.

    Args:
        source: a `Teacher`, an RLModule with `compute_q_values()`, the Algorithm that trains it, or name, path or URI
            of a checkpoint. A list of teachers is an ensemble.
        trust_checkpoint: whether what a checkpoint holds may be executed.

    Raises:
        ValueError: it cannot be loaded, or has no Q-values.
    """
    if isinstance(source, Teacher):
        return source
    if isinstance(source, str | os.PathLike | list | tuple):
        return load_teacher(source, trust_checkpoint=trust_checkpoint)
    module = _module_of(source)
    if not hasattr(module, "compute_q_values"):
        raise ValueError(
            f"Expected an RLModule with Q-values, an Algorithm, or the path of a checkpoint, got a "
            f"{type(module).__name__} without compute_q_values()."
        )
    return Teacher(module, pipeline=_pipeline_of(source), source=type(source).__name__)


def algorithm_of(path: str) -> str | None:
    """Name of the algorithm that trained a checkpoint; None where it does not say."""
    uri = absolute_teacher_uri(path)
    if uri in PACKAGED_TEACHERS:
        return "DQN"
    found = find(uri)
    return open_checkpoint(found.uri).algorithm() if found.origin == "rllib" else None


def environment_of(source: Any, *, trust_checkpoint: bool = False) -> tuple[Any, dict[Any, Any]]:
    """In which environment a policy was trained, and its config; None where it does not say.

    Nothing of it is checked: `resolve_environment()` does that.

    Args:
        source: as for `as_policy()`.
        trust_checkpoint: whether what a checkpoint holds may be executed.

    Raises:
        ValueError: there is no such checkpoint.
    """
    if isinstance(source, Algorithm):
        return source.config.env, dict(source.config.env_config)
    if not isinstance(source, str | os.PathLike):
        return None, {}
    uri = absolute_teacher_uri(source)
    if uri in PACKAGED_TEACHERS:
        return PACKAGED_TEACHERS[uri].env, {}
    checkpoint = resolve(uri)
    if not is_folder(checkpoint.filesystem, checkpoint.path):
        return None, {}  # files of other libraries do not say it
    return open_checkpoint(checkpoint.uri, trust_checkpoint=trust_checkpoint).environment()


def _module_of(source: Any) -> Any:
    return source.get_module() if isinstance(source, Algorithm) else source


def _pipeline_of(source: Any) -> ObservationPipeline | None:
    if not isinstance(source, Algorithm) or source.env_runner is None:
        return None
    return pipeline_of(source.env_runner._env_to_module, source.get_module())


def _normalizes_actions(source: Any) -> bool:
    if not isinstance(source, Algorithm) or source.env_runner is None:
        return True
    return normalizes_actions_of(source.env_runner._module_to_env)


def _plain(module: RLModule) -> ObservationPipeline:
    return ObservationPipeline(module.observation_space)
