"""The student: RLlib's own DQN module, its size, and the scale of its last layer.

Only a student without an encoder (a linear one) needs a catalog of ours, because RLlib's cannot build it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import torch
from ray.rllib.algorithms.dqn.default_dqn_rl_module import DefaultDQNRLModule
from ray.rllib.algorithms.dqn.dqn_catalog import DQNCatalog
from ray.rllib.algorithms.dqn.torch.default_dqn_torch_rl_module import DefaultDQNTorchRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.models.base import ENCODER_OUT, Encoder
from ray.rllib.core.models.configs import ModelConfig
from ray.rllib.core.models.torch.base import TorchModel
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModule, RLModuleSpec
from ray.rllib.models.utils import get_filter_config
from ray.rllib.utils.annotations import override
from torch import nn

from rllib_kd.statistics import QScale
from rllib_kd.teachers.base import last_linear

#: Keys of a model config that shape the network (the others belong to the algorithm that trains it).
_ARCHITECTURE_KEYS = tuple(
    field.name
    for field in dataclasses.fields(DefaultModelConfig)
    if field.name.startswith(("fcnet_", "conv_", "head_fcnet_"))
)


#: He et al. 2015, arXiv 1502.01852. With PyTorch's own weights, what a few pixels change in the outputs is a hundredth
#: of what it is with these (on Pong nothing was learned in 1,500 steps at any rate, where these took 600).
_DEEP_INITIALIZERS = {
    f"{part}_kernel_initializer{suffix}": value
    for part in ("conv", "head_fcnet")
    for suffix, value in (("", "kaiming_uniform_"), ("_kwargs", {"nonlinearity": "relu"}))
}


def _nature_cnn(channels: Sequence[int], units: int) -> dict[str, Any]:
    """Model config of the network of Mnih et al. 2015 for images of 84 × 84, with other widths."""
    kernels_and_strides = ((8, 4), (4, 2), (3, 1))
    return _DEEP_INITIALIZERS | {
        "conv_filters": [[n, *sizes, "valid"] for n, sizes in zip(channels, kernels_and_strides, strict=True)],
        "conv_activation": "relu",
        "head_fcnet_hiddens": [units],
        "head_fcnet_activation": "relu",
    }


#: Model configs by name: Q-values that are linear in the observation, and the networks of Rusu et al. 2015, arXiv
#: 1511.06295. With the 18 actions of a joystick these have 1,693,362, 427,874, 113,346 and 61,954 parameters.
PRESETS: dict[str, dict[str, Any]] = {
    "linear": {"fcnet_hiddens": []},
    "rusu-teacher": _nature_cnn((32, 64, 64), 512),
    "rusu-net1": _nature_cnn((16, 32, 32), 256),
    "rusu-net2": _nature_cnn((16, 16, 16), 128),
    "rusu-net3": _nature_cnn((16, 16, 16), 64),
}


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
    """RLlib's DQN catalog for `fcnet_hiddens=[]`: the Q-head sits on the observation. Linear, without head layers."""

    @classmethod
    @override(DQNCatalog)
    def _get_encoder_config(cls, observation_space, model_config_dict, action_space=None) -> ModelConfig:
        return FlattenEncoderConfig(input_dims=observation_space.shape)


def student_module_spec(model_config: Mapping[str, Any]) -> RLModuleSpec:
    """Spec of RLlib's DQN module; with the catalog that can build it where there is no encoder."""
    encoder_free = model_config.get("fcnet_hiddens") == [] and not model_config.get("conv_filters")
    return RLModuleSpec(
        module_class=DefaultDQNTorchRLModule,
        catalog_class=EncoderFreeDQNCatalog if encoder_free else None,
        model_config=dict(model_config),
    )


def count_parameters(module: RLModule) -> int:
    """Parameters that act: without target networks."""
    attributes = module.get_non_inference_attributes() if isinstance(module, InferenceOnlyAPI) else ()
    skipped = tuple(f"{attribute}." for attribute in attributes)
    return sum(parameter.numel() for name, parameter in module.named_parameters() if not name.startswith(skipped))


def compress(
    teacher_model_config: Mapping[str, Any],
    *,
    head_config: Mapping[str, Any],
    compression: float,
    teacher_parameters: int,
    observation_space: gym.Space,
    action_space: gym.Space,
) -> dict[str, Any]:
    """Model config of the largest student with the teacher's architecture and at most that share of its parameters.

    All hidden widths (units, or channels of convolutions) are scaled by one factor; depth, kernels, strides and
    activations are the teacher's.

    Args:
        teacher_model_config: RLlib's model config of the teacher.
        head_config: what the student's model config has beside its architecture (`dueling`, `num_atoms`, ...).
        compression: student parameters / teacher parameters, in (0, 1].
        teacher_parameters: the teacher's acting parameters.
        observation_space: of the student.
        action_space: of both.

    Raises:
        ValueError: even one unit a layer is more than that share.
    """
    architecture = dataclasses.asdict(DefaultModelConfig()) | dict(teacher_model_config)
    architecture = {key: architecture[key] for key in _ARCHITECTURE_KEYS}
    if len(observation_space.shape or ()) == 3 and not architecture["conv_filters"]:
        architecture["conv_filters"] = get_filter_config(observation_space.shape)
    if architecture["conv_filters"] and architecture["conv_kernel_initializer"] is None:
        architecture |= _DEEP_INITIALIZERS

    def size(factor: float) -> int:
        spec = student_module_spec(dict(head_config) | _scale_widths(architecture, factor))
        spec.observation_space, spec.action_space, spec.inference_only = observation_space, action_space, True
        with torch.device("meta"):  # shapes without memory
            return count_parameters(spec.build())

    budget = compression * teacher_parameters
    if (smallest := size(0.0)) > budget:
        raise ValueError(
            f"compression={compression:g} allows {budget:.0f} of the teacher's {teacher_parameters} parameters, but "
            f"its architecture with one unit a layer has {smallest} already "
            f"(compression={smallest / teacher_parameters:.2g}). Choose a larger compression, or a network of your "
            "own: rl_module(model_config={'fcnet_hiddens': [...]}), or student='linear'."
        )
    return _scale_widths(architecture, _largest(lambda factor: size(factor) <= budget))


def _scale_widths(architecture: Mapping[str, Any], factor: float) -> dict[str, Any]:
    def scaled(width: int) -> int:
        return max(1, round(factor * width))

    return dict(architecture) | {
        "fcnet_hiddens": [scaled(width) for width in architecture["fcnet_hiddens"]],
        "head_fcnet_hiddens": [scaled(width) for width in architecture["head_fcnet_hiddens"]],
        "conv_filters": [[scaled(f[0]), *f[1:]] for f in architecture["conv_filters"] or []] or None,
    }


def _largest(fits: Callable[[float], bool]) -> float:
    """The largest factor in [0, 1] that fits, to 1e-4, for a condition that fails from some factor on."""
    low, high = 0.0, 1.0
    if fits(high):
        return high
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


# --- The scale of the student's outputs -------------------------------------------------------------------------------
#
# A value loss is learned in normalised coordinates (statistics.QScale). What acts, syncs and is saved must put out
# Q-values. So the last layer holds normalised outputs inside an update only: `to_normalized` before the first step,
# `to_q_values` after the last one. Both preserve the function exactly, also when the scale has moved in between, as in
# PopArt (van Hasselt et al. 2016, arXiv 1602.07714).


def has_scalable_head(module: RLModule) -> bool:
    """Whether the last layer can be rescaled: RLlib's own module, with one output an action."""
    return isinstance(module, DefaultDQNRLModule) and module.num_atoms == 1


@torch.no_grad()
def to_q_values(module: Any, scale: QScale) -> None:
    """Rewrite the last layer, whose outputs are normalised, so that they are Q-values."""
    for layer, matrix, offset in _head_maps(module, scale):
        weight, bias = layer.weight.double(), layer.bias.double()
        layer.weight.copy_(matrix @ weight)
        layer.bias.copy_(matrix @ bias + offset)


@torch.no_grad()
def to_normalized(module: Any, scale: QScale) -> None:
    """Rewrite the last layer, whose outputs are Q-values, so that they are normalised."""
    for layer, matrix, offset in _head_maps(module, scale):
        weight, bias = layer.weight.double(), layer.bias.double()
        layer.weight.copy_(torch.linalg.solve(matrix, weight))
        layer.bias.copy_(torch.linalg.solve(matrix, bias - offset))


def _head_maps(module: Any, scale: QScale) -> list[tuple[nn.Linear, torch.Tensor, torch.Tensor]]:
    """(layer, M, m) for each output layer, so that M · output + m turns normalised outputs into Q-values."""
    head = last_linear(module.af)
    kwargs: dict[str, Any] = {"dtype": torch.float64, "device": head.weight.device}
    deviation_mean = torch.as_tensor(scale.deviation_mean, **kwargs)
    identity = torch.eye(len(deviation_mean), **kwargs)
    if module.uses_dueling:
        # RLlib adds the value to the centred advantages: the two parts have layers of their own.
        value_matrix = torch.full((1, 1), scale.value_scale, **kwargs)
        value_offset = torch.full((1,), scale.value_mean, **kwargs)
        return [
            (head, scale.deviation_scale * identity, deviation_mean),
            (last_linear(module.vf), value_matrix, value_offset),
        ]
    average = torch.full_like(identity, 1.0 / len(identity))
    matrix = scale.value_scale * average + scale.deviation_scale * (identity - average)
    return [(head, matrix, scale.value_mean + deviation_mean)]
