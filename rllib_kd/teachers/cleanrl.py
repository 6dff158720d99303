"""Teachers from CleanRL: the `.cleanrl_model` files of dqn.py, dqn_atari.py and c51.py, which contain only weights.

The rest is known from CleanRL's code: ReLU between the layers; for images the strides of Mnih et al. 2015, and frames
of 84 × 84 bytes with the channels first, divided by 255. Weights of a `torch.nn.Sequential` of this form load, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from rllib_kd.checkpoints.archives import as_tensors, read_weights
from rllib_kd.checkpoints.pickles import CheckpointError
from rllib_kd.networks.layers import Layer
from rllib_kd.observations.pipeline import Images
from rllib_kd.teachers.base import Teacher
from rllib_kd.teachers.described import reason
from rllib_kd.teachers.layered import layered_teacher
from rllib_kd.teachers.sb3 import mlp, nature_cnn
from rllib_kd.text import one_line

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
        expectation = [{"op": "expectation", **_support(atoms, uri)}]
    prefix = "network." if all(name.startswith("network.") for name in tensors) else ""
    if not all(_is_numbered(name.removeprefix(prefix)) for name in tensors):
        raise CheckpointError(
            f"'{uri}' has the weights {', '.join(sorted(tensors)[:4])}, ... Expected those of CleanRL's DQN: "
            "network.0.weight, network.0.bias, ... Load other networks yourself, and use Teacher.from_callable()."
        )
    convolutions = sorted((name for name in tensors if tensors[name].ndim == 4), key=_number)
    if not convolutions:
        first = tensors[f"{prefix}0.weight"]
        layers = [*mlp(prefix, tensors, "relu"), *expectation]
        _check_all_are_used(layers, tensors, uri)
        return layered_teacher(layers, tensors, observation_shape=first.shape[1:], source=uri)
    kernels = tuple(tuple(tensors[name].shape[2:]) for name in convolutions)
    if kernels != tuple((size, size) for size in _NATURE_KERNELS):
        raise CheckpointError(
            f"'{uri}' has convolutions of the sizes {kernels}, expected CleanRL's: {_NATURE_KERNELS}."
        )
    channels = int(tensors[convolutions[0]].shape[1])
    names = [name.removesuffix(".weight") for name in convolutions]
    linear, *head = sorted(
        (name.removesuffix(".weight") for name, value in tensors.items() if value.ndim == 2),
        key=lambda name: _number(f"{name}.weight"),
    )
    layers = nature_cnn(names, linear, tensors)
    rest = {name: tensors[name] for part in head for name in (f"{part}.weight", f"{part}.bias")}
    layers += [*mlp(prefix, rest, "relu"), *expectation]
    _check_all_are_used(layers, tensors, uri)
    return layered_teacher(
        layers,
        tensors,
        observation_shape=(_PIXELS, _PIXELS, channels),
        observation_space=gym.spaces.Box(0, 255, (channels, _PIXELS, _PIXELS), np.uint8),
        stages=[Images((_PIXELS, _PIXELS, channels))],
        source=uri,
    )


def _support(atoms: Tensor, uri: str) -> dict[str, Any]:
    """Return the support of a C51, whose atoms have equal distances."""
    v_min, v_max, num_atoms = float(atoms[0]), float(atoms[-1]), len(atoms)
    expected = torch.linspace(v_min, v_max, num_atoms, dtype=torch.float64)
    if not v_min < v_max or not torch.allclose(atoms.double(), expected, rtol=0.0, atol=1e-4 * abs(v_max - v_min)):
        raise CheckpointError(f"'{uri}' has atoms at different distances, expected those of a C51, from low to high.")
    return {"v_min": v_min, "v_max": v_max, "num_atoms": num_atoms}


def _check_all_are_used(layers: list[Layer], tensors: Mapping[str, Tensor], uri: str) -> None:
    used = {layer[key] for layer in layers for key in ("weight", "bias") if key in layer}
    if unknown := sorted(set(tensors) - used):
        shown = one_line(", ".join(unknown[:5]), limit=200)
        raise CheckpointError(
            f"'{uri}' has weights of layers that CleanRL's DQN does not have: {shown}. Load this network yourself, and "
            "use Teacher.from_callable()."
        )


def _is_numbered(name: Any) -> bool:
    number, _, kind = name.partition(".")
    return number.isdecimal() and kind in ("weight", "bias")


def _number(name: str) -> int:
    """Return the place of a layer in its Sequential, from the name of its weight: "network.2.weight" is 2."""
    return int(name.split(".")[-2])
