"""Teachers from CleanRL: the `.cleanrl_model` files of its DQN, C51 and PPO, which contain only weights.

The rest is known from CleanRL's code: ReLU between the layers, tanh in ppo.py; for images the strides of Mnih et al.
2015, and frames of 84 × 84 bytes with the channels first, divided by 255. Weights of a `torch.nn.Sequential` of this
form load, too.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from rllib_kd.checkpoints.archives import as_tensors
from rllib_kd.checkpoints.pickles import CheckpointError, as_checkpoint_error
from rllib_kd.networks.layers import Layer
from rllib_kd.observations.pipeline import Images
from rllib_kd.teachers.base import Teacher
from rllib_kd.teachers.described import description_name, reason
from rllib_kd.teachers.layered import layered_teacher
from rllib_kd.teachers.stacks import mlp, nature_cnn, numbered, unused
from rllib_kd.text import one_line
from rllib_kd.wire import LOG_PROBS, Q_VALUES, Outputs

logger = logging.getLogger(__name__)

_NATURE_KERNELS = (8, 4, 3)
_NATURE_NUMBERS = [0, 2, 4, 7, 9]  # of layers with weights in the Sequential: a flattening one stands before the 7th
_NATURE_WIDTHS = [32, 64, 64, 512]
_PIXELS = 84  # high and wide
_C51 = "model_weights"  # the entry of c51.py's weights, beside its arguments


class _Network(NamedTuple):
    """One of CleanRL's networks.

    Args:
        sequential: name of its Sequential with a dot, or nothing.
        last: name of the layer after it, if there is one.
        activation: between the layers; convolutions have ReLU.
        outputs: what it gives.
        others: beginning of the names of weights that are none of its layers.
        widths: of CleanRL's own hidden layers, without images.
    """

    sequential: str
    last: str | None
    activation: str
    outputs: Outputs
    others: str
    widths: tuple[int, ...] = (120, 84)


_NETWORKS = (
    _Network("network.", None, "relu", Q_VALUES, "atoms"),  # dqn.py, dqn_atari.py, c51.py
    _Network("", None, "relu", Q_VALUES, "atoms"),
    _Network("actor.", None, "tanh", LOG_PROBS, "critic.", (64, 64)),  # ppo.py
    _Network("network.", "actor", "relu", LOG_PROBS, "critic."),  # ppo_atari.py
)


def is_cleanrl(saved: Any) -> bool:
    """Return whether weights have the names of one of CleanRL's networks."""
    weights = _unwrapped(saved)
    return isinstance(weights, Mapping) and _acting(weights) is not None


def load_cleanrl(saved: Any, uri: str) -> Teacher:
    """Load a state dict of CleanRL's.

    Args:
        saved: the content of the file, for which `is_cleanrl()` is true.
        uri: its path, for messages.

    Raises:
        ValueError: it has the weights of another network.
    """
    weights = _unwrapped(saved)
    network = _acting(weights)
    assert network is not None
    tensors = as_tensors(weights, uri)
    with as_checkpoint_error(lambda error: f"'{uri}' has a network that does not fit: {reason(error)}"):
        return _load(network, tensors, uri)


def _unwrapped(saved: Any) -> Any:
    return saved[_C51] if isinstance(saved, Mapping) and _C51 in saved else saved


def _acting(names: Iterable[Any]) -> _Network | None:
    """Return the network to which all these names belong, except those of a critic; None if there is none."""
    texts = [name for name in names if isinstance(name, str)]
    for network in _NETWORKS:
        own = {name for name in texts if not name.startswith(network.others)}
        last = {f"{network.last}.weight", f"{network.last}.bias"} if network.last else set()
        pattern = re.compile(re.escape(network.sequential) + r"\d+\.(weight|bias)")
        if last < own and all(map(pattern.fullmatch, own - last)):
            return network
    return None


def _load(network: _Network, tensors: dict[str, Tensor], uri: str) -> Teacher:
    expectation: list[Layer] = []
    if "atoms" in tensors:
        expectation = [{"op": "expectation", **_support(tensors["atoms"], uri)}]
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(network.others)}
    names = [*numbered(network.sequential, tensors), *([network.last] if network.last else [])]
    convolutions = [name for name in names if tensors[f"{name}.weight"].ndim == 4]
    if not convolutions:
        _check_are_linear(network, names, tensors, uri)
        layers = [*mlp(names, network.activation), *expectation]
        _check_all_are_used(layers, tensors, uri)
        shape = tensors[f"{names[0]}.weight"].shape[1:]
        teacher = layered_teacher(layers, tensors, observation_shape=shape, outputs=network.outputs, source=uri)
        if not expectation:  # which is CleanRL's
            _check_activations(network, names, [len(tensors[f"{name}.weight"]) for name in names[:-1]], uri)
        return teacher
    kernels = tuple(tuple(tensors[f"{name}.weight"].shape[2:]) for name in convolutions)
    if kernels != tuple((size, size) for size in _NATURE_KERNELS):
        raise CheckpointError(
            f"'{uri}' has convolutions of the sizes {kernels}, expected CleanRL's: {_NATURE_KERNELS}."
        )
    channels = int(tensors[f"{convolutions[0]}.weight"].shape[1])
    linear, *head = [name for name in names if name not in convolutions]
    layers = [*nature_cnn(convolutions, linear, tensors), *mlp(head, "relu"), *expectation]
    _check_all_are_used(layers, tensors, uri)
    _check_is_nature_cnn(network, names, tensors, uri)
    return layered_teacher(
        layers,
        tensors,
        observation_shape=(_PIXELS, _PIXELS, channels),
        observation_space=gym.spaces.Box(0, 255, (channels, _PIXELS, _PIXELS), np.uint8),
        stages=[Images((_PIXELS, _PIXELS, channels))],
        outputs=network.outputs,
        source=uri,
    )


def _check_is_nature_cnn(network: _Network, names: Sequence[str], tensors: Mapping[str, Tensor], uri: str) -> None:
    """Check that convolutions are numbered as in CleanRL, with ReLU between layers, and warn if others are as likely.

    Raises:
        CheckpointError: they are not.
    """
    remedy = "load it by Teacher.from_callable(network, observation_space=..., action_space=...)"
    numbers = [int(name.removeprefix(network.sequential)) for name in names if name != network.last]
    expected = _NATURE_NUMBERS[: len(numbers)]
    if numbers != expected:
        raise CheckpointError(
            f"'{uri}' has the layers {one_line(', '.join(names), limit=200)}, expected the numbers {expected}, with "
            f"ReLU between them, as in CleanRL. If it has another origin, {remedy}"
        )
    widths = [len(tensors[f"{name}.weight"]) for name in names if name != network.last][:4]
    if widths != _NATURE_WIDTHS:
        logger.warning(
            "'%s' is read as weights of CleanRL: with bytes divided by 255, and ReLU between layers of the widths %s. "
            "If its network does something else, %s.",
            *(one_line(uri), widths, remedy),
        )


def _check_are_linear(network: _Network, names: Sequence[str], tensors: Mapping[str, Tensor], uri: str) -> None:
    """Check that all layers are linear, with a bias: a LayerNorm, or a layer without a bias, is not CleanRL's."""
    parts = {name: [f"{name}.{kind}" for kind in ("weight", "bias")] for name in names}
    dims = {name: [tensors[part].ndim for part in own if part in tensors] for name, own in parts.items()}
    if others := [name for name in names if dims[name] != [2, 1]]:
        shown = one_line(", ".join(others), limit=200)
        linears = [name for name in names if dims[name][0] == 2]
        raise CheckpointError(
            f"'{uri}' has weights of layers that CleanRL's networks do not have: {shown}. "
            f"Those are linear, with a bias. If all layers are linear here, {_description(network, linears, uri)}. "
            "Otherwise load the network by Teacher.from_callable(network, observation_space=..., action_space=...)"
        )


def _description(network: _Network, names: Sequence[str], uri: str) -> str:
    """Return how to describe a network of another origin, whose layers have these names."""
    described: dict[str, Any] = {"activation": "..."}
    if network.outputs == LOG_PROBS:
        described |= {"order": list(names), "outputs": "logits"}
    return f"describe the network in '{one_line(description_name(uri))}' beside it: {json.dumps(described)}"


def _check_activations(network: _Network, names: Sequence[str], widths: Sequence[int], uri: str) -> None:
    """Check that a Sequential has one activation between its linear layers, and warn of its kind.

    Layers of many other programs have the same names. No warning if they are as wide as CleanRL's.
    """
    remedy = _description(network, names, uri)
    numbers = [name.removeprefix(network.sequential) for name in names if name != network.last]
    if numbers != [str(2 * i) for i in range(len(numbers))]:
        raise CheckpointError(
            f"'{uri}' has the layers {one_line(', '.join(names), limit=200)}, expected every other number, with "
            f"{network.activation} between them, as in CleanRL. If it has another origin, {remedy}"
        )
    if tuple(widths) != network.widths:
        logger.warning(
            "'%s' is read as weights of CleanRL, with %s between its layers. If another activation is there, %s",
            one_line(uri),
            network.activation,
            remedy,
        )


def _support(atoms: Tensor, uri: str) -> dict[str, Any]:
    """Return the support of a C51, whose atoms have equal distances."""
    v_min, v_max, num_atoms = float(atoms[0]), float(atoms[-1]), len(atoms)
    expected = torch.linspace(v_min, v_max, num_atoms, dtype=torch.float64)
    if not v_min < v_max or not torch.allclose(atoms.double(), expected, rtol=0.0, atol=1e-4 * abs(v_max - v_min)):
        raise CheckpointError(f"'{uri}' has atoms at different distances, expected those of a C51, from low to high.")
    return {"v_min": v_min, "v_max": v_max, "num_atoms": num_atoms}


def _check_all_are_used(layers: list[Layer], tensors: Mapping[str, Tensor], uri: str) -> None:
    if unknown := unused(layers, tensors):
        shown = one_line(", ".join(unknown[:5]), limit=200)
        raise CheckpointError(
            f"'{uri}' has weights of layers that CleanRL's networks do not have: {shown}. Load this network yourself, "
            "and use Teacher.from_callable()."
        )
