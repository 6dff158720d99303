"""RLlib's DQN module: its spec, its head, its support and its acting parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import gymnasium as gym
import torch
from ray.rllib.algorithms.dqn.default_dqn_rl_module import QF_PREDS as QF_PREDS
from ray.rllib.algorithms.dqn.default_dqn_rl_module import QF_PROBS as QF_PROBS
from ray.rllib.algorithms.dqn.dqn_catalog import DQNCatalog
from ray.rllib.algorithms.dqn.torch.default_dqn_torch_rl_module import DefaultDQNTorchRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.models.base import ENCODER_OUT, Encoder
from ray.rllib.core.models.configs import ModelConfig
from ray.rllib.core.models.torch.base import TorchModel
from ray.rllib.core.models.torch.encoder import TorchMLPEncoder
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModule, RLModuleSpec
from ray.rllib.utils.annotations import override

from rllib_kd import _rllib
from rllib_kd.networks.mixed import MixedDQNCatalog, default_filters
from rllib_kd.networks.mixed_space import MixedBox
from rllib_kd.networks.parts import heads_of, is_chain, is_plain_linear, leaves_of
from rllib_kd.networks.recurrent import USE_LSTM, RecurrentDQNCatalog, catalog_of
from rllib_kd.networks.trees.module import TreeRLModule
from rllib_kd.networks.trees.shape import TREE
from rllib_kd.networks.windows import check_windows


class FlattenEncoder(TorchModel, Encoder):
    """An encoder without parameters: the observation itself, as a vector."""

    def __init__(self, config: FlattenEncoderConfig):
        TorchModel.__init__(self, config)
        Encoder.__init__(self, config)

    def _forward(self, inputs: dict, **kwargs: Any) -> dict:
        return {ENCODER_OUT: inputs[Columns.OBS].flatten(1)}


@dataclasses.dataclass
class FlattenEncoderConfig(ModelConfig):
    """Config of a `FlattenEncoder`."""

    @property
    @override(ModelConfig)
    def output_dims(self) -> tuple[int]:
        return (int(torch.Size(self.input_dims).numel()),)

    @override(ModelConfig)
    def build(self, framework: str = "torch") -> FlattenEncoder:
        return FlattenEncoder(self)


class EncoderFreeDQNCatalog(DQNCatalog):
    """RLlib's DQN catalog for `fcnet_hiddens=[]`: the Q-head takes the observation. Linear without head layers."""

    @classmethod
    @override(DQNCatalog)
    def _get_encoder_config(cls, observation_space, model_config_dict, action_space=None) -> ModelConfig:
        return FlattenEncoderConfig(input_dims=observation_space.shape)


def student_module_spec(
    model_config: Mapping[str, Any], observation_space: gym.Space | None = None, action_space: gym.Space | None = None
) -> RLModuleSpec:
    """Return the spec of a tree, or of RLlib's DQN module, with a catalog that can build it: see the catalogs.

    Args:
        model_config: its model config.
        observation_space: space of its inputs; None: RLlib sets it, and `suit_images()` then completes the spec.
        action_space: space of its actions; None likewise.
    """
    spec = _module_spec(model_config)
    spec.observation_space, spec.action_space = observation_space, action_space
    suit_images(spec)
    return spec


def suit_images(spec: RLModuleSpec) -> None:
    """Let RLlib's DQN module have convolutions for images of any size, alone or among the numbers of a vector.

    A linear one, and one with a catalog of the user's, stay as they are.

    Raises:
        ValueError: it has convolutions, and its observations are no images, or smaller than their windows.
    """
    known = (None, DQNCatalog, RecurrentDQNCatalog)
    if spec.module_class is not DefaultDQNTorchRLModule or spec.catalog_class not in known:
        return
    space, given = spec.observation_space, spec.model_config
    model_config = dataclasses.asdict(given) if isinstance(given, DefaultModelConfig) else given or {}
    if (filters := model_config.get("conv_filters")) and isinstance(space, gym.spaces.Box):
        check_windows("The network", filters, space)
    if isinstance(space, MixedBox) and spec.catalog_class is not RecurrentDQNCatalog:
        spec.catalog_class = MixedDQNCatalog
    elif len(getattr(space, "shape", None) or ()) == 3 and not filters:
        spec.model_config = {**model_config, "conv_filters": default_filters(space)}


def _module_spec(model_config: Mapping[str, Any]) -> RLModuleSpec:
    if TREE in model_config:
        return RLModuleSpec(module_class=TreeRLModule, model_config=dict(model_config))
    if model_config.get(USE_LSTM):
        return RLModuleSpec(
            module_class=DefaultDQNTorchRLModule,
            catalog_class=catalog_of(model_config),
            model_config=dict(model_config),
        )
    encoder_free = model_config.get("fcnet_hiddens") == [] and not model_config.get("conv_filters")
    return RLModuleSpec(
        module_class=DefaultDQNTorchRLModule,
        catalog_class=EncoderFreeDQNCatalog if encoder_free else None,
        model_config=dict(model_config),
    )


def count_parameters(module: RLModule) -> int:
    """Return the number of parameters that act, without target networks; of a tree the numbers that it stores."""
    if isinstance(module, TreeRLModule):
        return module.num_parameters
    attributes = module.get_non_inference_attributes() if isinstance(module, InferenceOnlyAPI) else ()
    skipped = tuple(f"{attribute}." for attribute in attributes)
    return sum(parameter.numel() for name, parameter in module.named_parameters() if not name.startswith(skipped))


class Support(NamedTuple):
    """The support of a distributional (C51) network: `num_atoms` returns, evenly from `v_min` to `v_max`."""

    v_min: float
    v_max: float
    num_atoms: int


def support_of(module: Any) -> Support | None:
    """Return the support of a Q-network's return distributions; None if it has one output for each action."""
    num_atoms = getattr(module, "num_atoms", 1)
    return Support(module.v_min, module.v_max, num_atoms) if num_atoms > 1 else None


def is_linear(module: Any) -> bool:
    """Return whether RLlib's DQN module has no hidden layer."""
    is_flat = type(getattr(module, "encoder", None)) is FlattenEncoder
    return is_flat and all(len(leaves_of(head)) == 1 for head in heads_of(module))


def first_linears(module: Any) -> list[Any]:
    """Return the layers that take the observation, if it is a vector and all are linear with a bias; else none.

    None of modules whose Q-values are computed in another way than RLlib's: what is before the first layer is unknown.
    """
    space, encoder = module.observation_space, getattr(module, "encoder", None)
    is_known = _rllib.has_default_q_values(module) and type(encoder) in (FlattenEncoder, TorchMLPEncoder)
    if not is_known or not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
        return []
    parts: list[Any] = heads_of(module) if isinstance(encoder, FlattenEncoder) else [encoder]
    layers = [leaves_of(part)[0] for part in parts]
    return layers if all(map(is_chain, parts)) and all(map(is_plain_linear, layers)) else []
