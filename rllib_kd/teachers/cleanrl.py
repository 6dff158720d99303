"""Teachers from CleanRL: the `.cleanrl_model` files of dqn.py, dqn_atari.py and c51.py, which contain only weights.

The rest is known from CleanRL's code: ReLU between the layers; for images the strides of Mnih et al. 2015, and frames
of 84 × 84 bytes with the channels first, divided by 255. Weights of a `torch.nn.Sequential` of this form load, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from torch import Tensor

from rllib_kd.checkpoints.archives import as_tensors, read_weights
from rllib_kd.checkpoints.pickles import CheckpointError
from rllib_kd.networks.layers import Layer
from rllib_kd.observations.pipeline import Images
from rllib_kd.teachers.base import Teacher
from rllib_kd.teachers.described import reason
from rllib_kd.teachers.layered import layered_teacher
from rllib_kd.teachers.sb3 import mlp, nature_cnn

_NATURE_KERNELS = (8, 4, 3)


_PIXELS = 84  # high and wide


def load_cleanrl(content: bytes, uri: str) -> Teacher:
    """Load a state dict of CleanRL's.

    Args:
        content: content of the file.
        uri: its path, for messages.

    Raises:
        ValueError: it is broken, contains more than data, or has the weights of another network.
    """
    saved = read_weights(content, uri)
    if isinstance(saved, Mapping) and "model_weights" in saved:  # c51.py adds its arguments
        saved = saved["model_weights"]
    tensors = as_tensors(saved, uri)
    try:
        return _load(tensors, uri)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"'{uri}' has a network that does not fit: {reason(error)}") from error


def _load(tensors: dict[str, Tensor], uri: str) -> Teacher:
    atoms = tensors.pop("atoms", None)
    expectation: list[Layer] = []
    if atoms is not None:
        support = {"v_min": float(atoms[0]), "v_max": float(atoms[-1]), "num_atoms": len(atoms)}
        expectation = [{"op": "expectation", **support}]
    prefix = "network." if all(name.startswith("network.") for name in tensors) else ""
    if not all(_is_numbered(name.removeprefix(prefix)) for name in tensors):
        raise CheckpointError(
            f"'{uri}' has the weights {', '.join(sorted(tensors)[:4])}, ... Expected those of CleanRL's DQN: "
            "network.0.weight, network.0.bias, ... Load other networks yourself, and use Teacher.from_callable()."
        )
    convolutions = sorted(name for name in tensors if tensors[name].ndim == 4)
    if not convolutions:
        first = tensors[f"{prefix}0.weight"]
        layers = [*mlp(prefix, tensors, "relu"), *expectation]
        return layered_teacher(layers, tensors, observation_shape=first.shape[1:], source=uri)
    kernels = tuple(tuple(tensors[name].shape[2:]) for name in convolutions)
    if kernels != tuple((size, size) for size in _NATURE_KERNELS):
        raise CheckpointError(
            f"'{uri}' has convolutions of the sizes {kernels}, expected CleanRL's: {_NATURE_KERNELS}."
        )
    channels = int(tensors[convolutions[0]].shape[1])
    names = [name.removesuffix(".weight") for name in convolutions]
    linear, *head = sorted(
        (name.removesuffix(".weight") for name, value in tensors.items() if value.ndim == 2), key=_number
    )
    layers = nature_cnn(names, linear, tensors)
    rest = {name: tensors[name] for part in head for name in (f"{part}.weight", f"{part}.bias")}
    layers += [*mlp(prefix, rest, "relu"), *expectation]
    return layered_teacher(
        layers,
        tensors,
        observation_shape=(_PIXELS, _PIXELS, channels),
        observation_space=gym.spaces.Box(0, 255, (channels, _PIXELS, _PIXELS), np.uint8),
        stages=[Images((_PIXELS, _PIXELS, channels))],
        source=uri,
    )


def _is_numbered(name: Any) -> bool:
    number, _, kind = name.partition(".")
    return number.isdecimal() and kind in ("weight", "bias")


def _number(name: str) -> int:
    return int(name.rpartition(".")[2])
