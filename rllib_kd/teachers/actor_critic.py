"""Policies of RLlib's actor-critics as networks: PPO, APPO, IMPALA, SAC with discrete actions, BC and MARWIL."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import torch
import tree
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModule
from torch import Tensor, nn

from rllib_kd import _rllib
from rllib_kd.networks.dqn_module import QF_PREDS
from rllib_kd.networks.parts import is_known, leaves_of
from rllib_kd.networks.recurrent import initial_state, run_sequences
from rllib_kd.teachers.dqn_copy import are_same, dqn_module_with
from rllib_kd.teachers.function import QNetwork

#: Where encoder and head of the policy are: with a critic beside them, with a shared encoder, of SAC, and of BC.
_PARTS = (
    ("encoder.actor_encoder", "pi"),
    ("encoder.encoder", "pi"),
    ("pi_encoder", "pi"),
    ("_encoder", "_pi_head"),
)


class Logits(nn.Module):
    """The function from observations `[B, ...]` to the logits `[B, A]` of an RLModule's policy."""

    def __init__(self, module: Any):
        super().__init__()
        self.module = module

    def forward(self, obs: Tensor) -> Tensor:  # noqa: D102
        return self.module.forward_inference({Columns.OBS: obs})[Columns.ACTION_DIST_INPUTS]


def policy_network(module: RLModule) -> RLModule | QNetwork:
    """Return the network of a policy, whose outputs are its logits; its critic is left out.

    It is RLlib's DQN module if that can have the same layers, and no code of the user's is between them. Then the
    policy has an architecture that can be made narrower, features, and weights to begin with.

    Args:
        module: an RLModule that computes the logits of a policy, in eval mode.

    Raises:
        ValueError: its actions are not discrete, or it is recurrent and no DQN module can have its layers.
    """
    kind, space = type(module).__name__, module.action_space
    if not isinstance(space, gym.spaces.Discrete):
        raise ValueError(f"it is a {kind} with the action space {space}, expected Discrete")
    network = _as_dqn_module(module)
    if network is None and module.is_stateful():
        raise ValueError(f"it is a recurrent {kind} with layers or code that RLlib's DQN module cannot have")
    return network or QNetwork(Logits(module), module.observation_space, space)


def _as_dqn_module(module: RLModule) -> RLModule | None:
    """Return RLlib's DQN module with the layers of a policy; None if it cannot compute the same function.

    Equal logits for a few observations do not show that: code of the user's may act on others alone.
    """
    parts = _known_parts(module)
    if not _rllib.has_default_logits(module) or not parts:
        return None
    model_config = module.model_config
    if not isinstance(model_config, Mapping) or not isinstance(module.observation_space, gym.spaces.Box):
        return None
    own = [weight for part in parts for weight in part.parameters()]
    defaults = dataclasses.asdict(DefaultModelConfig())
    plain = {key: value for key, value in model_config.items() if key in defaults}
    fixed = {"dueling": False, "double_q": True, "num_atoms": 1, "v_min": -10.0, "v_max": 10.0, "epsilon": 0.0}
    try:
        network = dqn_module_with(own, {**defaults, **plain, **fixed}, module.observation_space, module.action_space)
    except Exception:  # a model config of the user's own
        return None
    if network is None or _settings([network]) != _settings(parts):
        return None
    return network if are_same(*_both_logits(network, module)) else None


def _known_parts(module: RLModule) -> list[nn.Module]:
    """Return encoder and head of a policy; none if their places, or classes in them, are not known.

    Critics and other parts of the user's, which do not make the logits, may be of any class.
    """
    named = dict(module.named_modules(remove_duplicate=False))
    names = next((names for names in _PARTS if all(name in named for name in names)), ())
    parts = [named[name] for name in names]
    containers = [named[name.partition(".")[0]] for name in names]
    inner = [part for container in parts for part in container.modules()]
    return parts if all(map(is_known, (*containers, *inner))) else []


def _settings(parts: Sequence[nn.Module]) -> list[tuple[type, str]]:
    """Return class and settings of each layer, in order, with those that have no weights."""
    return [(type(leaf), leaf.extra_repr()) for part in parts for leaf in leaves_of(part)]


@torch.no_grad()
def _both_logits(network: RLModule, module: RLModule) -> tuple[Tensor, Tensor]:
    """Return the logits of a DQN module and of a policy for the same observations, or sequences of these."""
    shape, generator = module.observation_space.shape, torch.Generator().manual_seed(0)
    if not module.is_stateful():
        obs = torch.randn(3, *shape, generator=generator)
        return network.compute_q_values({Columns.OBS: obs})[QF_PREDS], Logits(module)(obs)
    obs = torch.randn(3, 4, *shape, generator=generator)  # three sequences of four steps
    start = tree.map_structure(torch.as_tensor, module.get_initial_state())
    state = tree.map_structure(lambda part: part.expand(3, *part.shape), start)
    expected = module.forward_inference({Columns.OBS: obs, Columns.STATE_IN: state})[Columns.ACTION_DIST_INPUTS]
    return run_sequences(network, obs, initial_state(network, 3))[0], expected
