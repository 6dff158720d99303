"""Teachers from described layers: as RLlib's own module if it can have these layers, otherwise as a plain network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModule
from torch import Tensor

from rllib_kd import limits
from rllib_kd.networks.dqn_module import QF_PREDS
from rllib_kd.networks.layers import Layer, build_layers, cost_of, count_layers, weights_in_order
from rllib_kd.observations.pipeline import Flatten, Images, Normalize, ObservationPipeline, Stage
from rllib_kd.observations.spaces import discrete_space
from rllib_kd.teachers.base import Teacher
from rllib_kd.teachers.described import checked_shape
from rllib_kd.teachers.dqn_copy import are_same, dqn_module_with
from rllib_kd.teachers.function import QNetwork
from rllib_kd.wire import Q_VALUES, Outputs

#: Activations that have the same names in RLlib.
_RLLIB_ACTIVATIONS = ("relu", "tanh", "silu", "elu")


def layered_teacher(
    layers: Sequence[Layer],
    tensors: Mapping[str, Tensor],
    *,
    observation_shape: Sequence[int],
    source: str,
    num_actions: int | None = None,
    observation_space: gym.Space | None = None,
    stages: Sequence[Stage] = (),
    outputs: Outputs = Q_VALUES,
    parts: list[dict[str, Any]] | None = None,
) -> Teacher:
    """Create a teacher from described layers.

    Args:
        layers: layers from inputs to Q-values or logits, as in networks/layers.py.
        tensors: their weights.
        observation_shape: shape of one input.
        source: source of the layers, for messages.
        num_actions: number of outputs that the layers must have; None: any number.
        observation_space: space of the environment's observations; None: they are the inputs.
        stages: stages from the environment's observations to the first layer.
        outputs: what the teacher gives: the layers' outputs are Q-values, or logits for "log_probs".
        parts: how vectors of inputs are made of the environment's observations, as in `ObservationPipeline`.

    Raises:
        ValueError: the layers do not fit each other, their inputs or the actions.
    """
    shape = checked_shape(observation_shape)
    if (num_layers := count_layers(layers)) > limits.MAX_LAYERS:
        raise ValueError(f"it has {num_layers} layers")
    used = [id(weight) for weight in weights_in_order(layers, tensors)]
    if len(used) != len(set(used)):
        raise ValueError("several of its layers have the same weights")
    num_outputs = _num_outputs(layers, tensors, shape)
    if num_actions not in (None, num_outputs):
        raise ValueError(f"it has {num_outputs} outputs, but there are {num_actions} actions")
    layers, own_stages, shape, shown_space = _split(layers, tensors, shape)
    action_space = gym.spaces.Discrete(num_outputs)
    stages = (*stages, *own_stages)
    low, high = (0, 1) if any(isinstance(stage, Images) and stage.scaled for stage in stages) else (-np.inf, np.inf)
    input_space = gym.spaces.Box(low, high, shape, np.float32)
    module = as_rllib_module(layers, tensors, input_space, action_space)
    network = module or QNetwork(build_layers(layers, tensors), input_space, action_space)
    pipeline = None
    if stages or parts is not None:
        pipeline = ObservationPipeline(observation_space or shown_space, stages, parts)
    return Teacher(network, pipeline=pipeline, outputs=outputs, source=source)


def _num_outputs(layers: Sequence[Layer], tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> int:
    """Count the outputs, without allocating memory for intermediate values."""
    meta = {name: tensor.to("meta") for name, tensor in tensors.items()}
    with torch.device("meta"):
        network = build_layers(layers, meta)
    _, outputs = cost_of(network, shape)
    if outputs.ndim != 2 or outputs.shape[0] != 1 or outputs.shape[1] == 0:
        raise ValueError(f"its outputs have the shape {list(outputs.shape)}, expected one for each action")
    return int(outputs.shape[1])


def _split(
    layers: Sequence[Layer], tensors: Mapping[str, Tensor], shape: tuple[int, ...]
) -> tuple[Sequence[Layer], tuple[Stage, ...], tuple[int, ...], gym.Space]:
    """Split off preprocessing layers as stages of a pipeline.

    Returns:
        The other layers, the stages, the shape of the other layers' inputs, and the space before the stages.
    """
    shown: gym.Space = gym.spaces.Box(-np.inf, np.inf, shape, np.float32)
    stages: list[Stage] = []
    starts = np.zeros(shape, np.int64)
    if [layer["op"] for layer in layers[:2]] == ["normalize", "one_hot"]:  # numbers that do not count from 0
        starts = np.round(tensors[layers[0]["mean"]].numpy()).astype(np.int64)
        build_layers(layers[:1], tensors)  # refuses numbers that make no sense
        layers = layers[1:]
    if layers and layers[0]["op"] == "one_hot":
        lengths = np.array([int(length) for length in layers[0]["lengths"]])
        shown = discrete_space(shape, lengths, starts)
        stages.append(Flatten(shown))
        layers, shape = layers[1:], (int(lengths.sum()),)
    if layers and layers[0]["op"] == "normalize":
        mean, std = (tensors[layers[0][name]].numpy() for name in ("mean", "std"))
        if not mean.shape == std.shape == shape:
            raise ValueError(f"a filter of the shape {list(mean.shape)} is for observations of the shape {list(shape)}")
        build_layers(layers[:1], tensors)  # refuses numbers that make no sense
        clip = layers[0]["clip"]
        stages.append(Normalize(mean, std, None if clip is None else float(clip)))
        layers = layers[1:]
    if layers and layers[0]["op"] == "pixels" and layers[0]["divisor"] == 255:
        shown = gym.spaces.Box(0, 255, shape, np.uint8)
        first, middle, last = shape
        images = Images((middle, last, first) if layers[0]["channels_first"] else (first, middle, last))
        stages.append(images)
        layers, shape = layers[1:], images.shape
    return layers, tuple(stages), shape, shown


def as_rllib_module(
    layers: Sequence[Layer],
    tensors: Mapping[str, Tensor],
    observation_space: gym.spaces.Box,
    action_space: gym.spaces.Discrete,
) -> RLModule | None:
    """Build RLlib's DQN module from these layers and weights; None if RLlib has no such network."""
    model_config = _model_config(layers, tensors)
    if model_config is None:
        return None
    weights = list(weights_in_order(layers, tensors))
    module = dqn_module_with(weights, model_config, observation_space, action_space)
    if module is None:
        return None
    obs = torch.randn(3, *observation_space.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        q, expected = module.compute_q_values({Columns.OBS: obs})[QF_PREDS], build_layers(layers, tensors)(obs)
    return module if are_same(q, expected) else None


def _model_config(layers: Sequence[Layer], tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Return the model config of convolutions, hidden layers and a head; None if there are other layers."""
    body, num_atoms, support = list(layers), 1, {"v_min": -10.0, "v_max": 10.0}  # unused with one atom
    if body and body[-1]["op"] == "expectation":
        support = {key: float(body[-1][key]) for key in support}
        num_atoms = int(body.pop()["num_atoms"])
    filters, body = _take_convolutions(body, tensors)
    if filters and body and body[0]["op"] == "flatten":
        body = body[1:]
    is_dueling = bool(body) and body[-1]["op"] == "dueling"
    if is_dueling:
        dueling = body.pop()
        streams = [_hidden_layers(dueling[name][:-1], tensors) for name in ("advantage", "value")]
        head = streams[0] if streams[0] == streams[1] else None
    else:
        body, head = body[:-1], []
    encoder = _hidden_layers(body, tensors)
    if encoder is None or head is None:
        return None
    if not is_dueling:
        # An encoder has one activation, and a head one: layers from a different activation on belong to the head.
        split = next((i for i, (_, name) in enumerate(encoder) if name != encoder[0][1]), len(encoder))
        encoder, head = ([], encoder) if filters else (encoder[:split], encoder[split:])
    activations = [{name for _, name in part} for part in (encoder, head, filters)]
    if any(len(names) > 1 for names in activations) or (filters and encoder):
        return None
    encoder_names, head_names, conv_names = activations
    return dataclasses.asdict(DefaultModelConfig()) | {
        "fcnet_hiddens": [width for width, _ in encoder],
        "fcnet_activation": next(iter(encoder_names), "relu"),
        "head_fcnet_hiddens": [width for width, _ in head],
        "head_fcnet_activation": next(iter(head_names), "relu"),
        "conv_filters": [item for item, _ in filters] or None,
        "conv_activation": next(iter(conv_names), "relu"),
        "dueling": is_dueling,
        "double_q": True,
        "num_atoms": num_atoms,
        **support,
        "epsilon": 0.0,
    }


def _take_convolutions(
    layers: list[Layer], tensors: Mapping[str, Tensor]
) -> tuple[list[tuple[list[Any], str]], list[Layer]]:
    """Return RLlib's filters, each with its activation, from the front of the layers; and the other layers."""
    filters = []
    while layers and layers[0]["op"] in ("zero_pad", "conv2d"):
        padding = "same" if layers[0]["op"] == "zero_pad" else "valid"
        convolution, activation, *rest = layers[1:] if padding == "same" else layers
        if convolution["op"] != "conv2d" or activation["op"] not in _RLLIB_ACTIVATIONS:
            break
        channels, _, *kernel = tensors[convolution["weight"]].shape
        sizes = [_side(pair) for pair in (kernel, convolution["stride"])]
        filters.append(([int(channels), *sizes, padding], activation["op"]))
        layers = rest
    return filters, layers


def _side(pair: Sequence[int]) -> int | list[int]:
    down, along = (int(pixels) for pixels in pair)
    return down if down == along else [down, along]


def _hidden_layers(layers: Sequence[Layer], tensors: Mapping[str, Tensor]) -> list[tuple[int, str]] | None:
    """Return the width and activation of each; None if there are other layers."""
    pairs = list(zip(layers[::2], layers[1::2], strict=False))
    if len(layers) % 2 or any(a["op"] != "linear" or b["op"] not in _RLLIB_ACTIVATIONS for a, b in pairs):
        return None
    return [(len(tensors[linear["weight"]]), activation["op"]) for linear, activation in pairs]
