"""The size of a student: presets by name, and layer widths for a compression."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import gymnasium as gym
import torch
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from rllib_kd.networks.dqn_module import count_parameters, student_module_spec
from rllib_kd.networks.mixed import default_filters
from rllib_kd.networks.mixed_space import has_images
from rllib_kd.networks.recurrent import CELL_SIZE, USE_LSTM

#: Keys of a model config that set the widths of a student's layers.
WIDTH_KEYS = frozenset({"fcnet_hiddens", "head_fcnet_hiddens", "conv_filters"})

#: Keys of a model config that shape the network (the others belong to the algorithm that trains it).
_ARCHITECTURE_KEYS = tuple(
    field.name
    for field in dataclasses.fields(DefaultModelConfig)
    if field.name.startswith(("fcnet_", "conv_", "head_fcnet_"))
)


#: He et al. 2015, arXiv 1502.01852. With PyTorch's own weights, a few pixels change the outputs by a hundredth as much
#: as with these (on Pong nothing was learned in 1,500 steps at any learning rate; with these it took 600).
_DEEP_INITIALIZERS = {
    f"{part}_kernel_initializer{suffix}": value
    for part in ("conv", "head_fcnet")
    for suffix, value in (("", "kaiming_uniform_"), ("_kwargs", {"nonlinearity": "relu"}))
}


def _nature_cnn(channels: Sequence[int], units: int) -> dict[str, Any]:
    """Return the model config of the network of Mnih et al. 2015 for images of 84 × 84, with other widths."""
    kernels_and_strides = ((8, 4), (4, 2), (3, 1))
    return _DEEP_INITIALIZERS | {
        "conv_filters": [[n, *sizes, "valid"] for n, sizes in zip(channels, kernels_and_strides, strict=True)],
        "conv_activation": "relu",
        "fcnet_hiddens": [],  # between convolutions and outputs, if there are other numbers beside the images
        "head_fcnet_hiddens": [units],
        "head_fcnet_activation": "relu",
    }


#: Model configs by name: Q-values that are linear in the observation, and the networks of Rusu et al. 2015, arXiv
#: 1511.06295. With the 18 actions of a joystick these have 1,693,362, 427,874, 113,346 and 61,954 parameters.
PRESETS: dict[str, dict[str, Any]] = {
    "linear": {"conv_filters": None, "fcnet_hiddens": [], "head_fcnet_hiddens": []},
    "rusu-teacher": _nature_cnn((32, 64, 64), 512),
    "rusu-net1": _nature_cnn((16, 32, 32), 256),
    "rusu-net2": _nature_cnn((16, 16, 16), 128),
    "rusu-net3": _nature_cnn((16, 16, 16), 64),
}


#: Settings of the activations of dense layers, and of the widths of these layers.
DENSE_ACTIVATIONS = {"fcnet_activation": "fcnet_hiddens", "head_fcnet_activation": "head_fcnet_hiddens"}

#: Layers of up to so many units keep more of the return with tanh on some tasks, and as much on others: 4 × 4 units
#: 1.02 instead of 0.40 on MountainCar, 16 units 0.95 instead of 0.90 on highway-fast (docs/results/studies.md,
#: "Activations of small students"). With 64 units, relu is as good, and takes less time.
_MOST_FOR_TANH = 32

#: Share of the budget below which a student's layers are widened one by one.
_LEAST_USED = 0.9


def activation_for(hiddens: Sequence[int], minimize: str = "parameters") -> str:
    """Return "relu", or "tanh" if one of these layers has few units and no "int8_bytes" are minimized.

    Among integers, the table of tanh takes 514 bytes: more than the weights of most students that would have it.
    """
    return "tanh" if hiddens and min(hiddens) <= _MOST_FOR_TANH and minimize != "int8_bytes" else "relu"


def compress(
    teacher_model_config: Mapping[str, Any],
    *,
    head_config: Mapping[str, Any],
    compression: float,
    teacher_parameters: float,
    observation_space: gym.Space,
    action_space: gym.Space,
    keeps: Collection[str] = (),
) -> dict[str, Any]:
    """Return the model config of the largest student with at most this share of the teacher's parameters.

    All hidden widths (units, or channels of convolutions) are scaled by one factor and rounded up, so that a layer of
    few channels is no narrower than the others allow. If that leaves more than a tenth of the parameters of
    convolutions, the narrowest layer gets a unit more, as often as it fits. Depth, kernels, strides and activations are
    the teacher's; but instead of relu an MLP has `activation_for()` its widths. (Behind convolutions tanh is worse: a
    head of 9 units has 0.81 of the return on MinAtar's Breakout, 0.91 with relu.)

    Args:
        teacher_model_config: RLlib's model config of the teacher.
        head_config: the rest of the student's model config, apart from its architecture (`dueling`, `num_atoms`, ...).
        compression: student parameters / teacher parameters, in (0, 1].
        teacher_parameters: number of the teacher's acting parameters.
        observation_space: the student's observation space.
        action_space: action space of both.
        keeps: activations that stay as they are, by their settings' names.

    Raises:
        ValueError: one unit in each layer already exceeds this share.
    """
    architecture = _architecture(teacher_model_config, observation_space)
    architecture |= _cell_size(teacher_model_config, head_config)

    def size(shape: Mapping[str, Any]) -> int:
        spec = student_module_spec({**head_config, **shape}, observation_space, action_space)
        spec.inference_only = True
        with torch.device("meta"):  # shapes without memory
            return count_parameters(spec.build())

    budget = compression * teacher_parameters
    if (smallest := size(_scale_widths(architecture, 0.0))) > budget:
        raise ValueError(
            f"compression={compression:g} allows {budget:.0f} of the teacher's {teacher_parameters} parameters, but "
            f"its architecture with one unit in each layer has {smallest} already "
            f"(compression={smallest / teacher_parameters:.2g}). Choose a larger compression, another network with "
            "rl_module(model_config={'fcnet_hiddens': [...]}), or student='linear'."
        )
    shape = _largest_shape(architecture, size, budget)
    for activation in set(DENSE_ACTIVATIONS) - set(keeps):
        if shape[activation] == "relu" and not shape["conv_filters"]:
            shape[activation] = activation_for(shape[DENSE_ACTIVATIONS[activation]])
    return shape


def _architecture(teacher_model_config: Mapping[str, Any], observation_space: gym.Space) -> dict[str, Any]:
    """Return the layers of a teacher, as a student of these observations has them if it is as large."""
    architecture = dataclasses.asdict(DefaultModelConfig()) | dict(teacher_model_config)
    architecture = {key: architecture[key] for key in _ARCHITECTURE_KEYS}
    if not has_images(observation_space):
        architecture["conv_filters"] = None  # as RLlib leaves them out of networks of vectors
    elif not architecture["conv_filters"]:
        architecture["conv_filters"] = default_filters(observation_space)
    if architecture["conv_filters"] and architecture["conv_kernel_initializer"] is None:
        architecture |= _DEEP_INITIALIZERS
    return architecture


def _cell_size(teacher_model_config: Mapping[str, Any], head_config: Mapping[str, Any]) -> dict[str, int]:
    """Return the size of a recurrent layer, to be scaled like the others; nothing if the user sets it, or has none."""
    if not head_config.get(USE_LSTM) or CELL_SIZE in head_config:
        return {}
    return {CELL_SIZE: teacher_model_config.get(CELL_SIZE, DefaultModelConfig().lstm_cell_size)}


def _scale_widths(architecture: Mapping[str, Any], factor: float) -> dict[str, Any]:
    return _with_widths(architecture, [max(1, math.ceil(factor * width)) for width in _widths(architecture)])


def _widths(shape: Mapping[str, Any]) -> list[int]:
    """Return the widths of all hidden layers: channels, units, and the size of a recurrent layer."""
    channels = [filter_[0] for filter_ in shape["conv_filters"] or ()]
    cell = [shape[CELL_SIZE]] if CELL_SIZE in shape else []
    return [*channels, *shape["fcnet_hiddens"], *shape["head_fcnet_hiddens"], *cell]


def _with_widths(shape: Mapping[str, Any], widths: Sequence[int]) -> dict[str, Any]:
    """Return a shape with other `_widths()`."""
    left = iter(widths)
    return dict(shape) | {
        "conv_filters": [[next(left), *filter_[1:]] for filter_ in shape["conv_filters"] or ()] or None,
        "fcnet_hiddens": [next(left) for _ in shape["fcnet_hiddens"]],
        "head_fcnet_hiddens": [next(left) for _ in shape["head_fcnet_hiddens"]],
        **({CELL_SIZE: next(left)} if CELL_SIZE in shape else {}),
    }


def _largest_shape(
    architecture: Mapping[str, Any], size: Callable[[Mapping[str, Any]], int], budget: float
) -> dict[str, Any]:
    """Return an architecture with widths whose size is within the budget."""
    factor = _largest(lambda factor: size(_scale_widths(architecture, factor)) <= budget)
    shape = _scale_widths(architecture, factor)
    if size(shape) >= _LEAST_USED * budget or not architecture["conv_filters"]:
        return shape
    return _filled(shape, architecture, size, budget)


def _filled(
    shape: Mapping[str, Any], architecture: Mapping[str, Any], size: Callable[[Mapping[str, Any]], int], budget: float
) -> dict[str, Any]:
    """Widen the layer that is narrowest beside the architecture's by a unit, until that would exceed the budget."""
    widths, full = _widths(shape), _widths(architecture)
    filled, layers = dict(shape), [i for i in range(len(widths)) if widths[i] < full[i]]
    while layers:
        narrowest = min(layers, key=lambda i: widths[i] / full[i])
        wider = _with_widths(shape, [*widths[:narrowest], widths[narrowest] + 1, *widths[narrowest + 1 :]])
        if size(wider) > budget:
            break
        if size(wider) == size(filled) or widths[narrowest] + 1 == full[narrowest]:
            layers.remove(narrowest)  # the network lacks this layer, or it is as wide as it may be
        widths[narrowest], filled = widths[narrowest] + 1, wider
    return filled


def _largest(fits: Callable[[float], bool]) -> float:
    """Return the largest factor in [0, 1] that fits, to 1e-4, for a condition that fails from some factor on."""
    low, high = 0.0, 1.0
    if fits(high):
        return high
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
