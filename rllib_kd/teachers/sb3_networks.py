"""Networks of Stable-Baselines3: which weights of a zip act, and as which layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from rllib_kd.checkpoints.pickles import Name
from rllib_kd.networks.layers import Layer
from rllib_kd.observations.pipeline import Flatten, Images, Stage
from rllib_kd.observations.spaces import flat_size, image_shape, is_flattened, is_float_image, parts_of
from rllib_kd.teachers.stacks import mlp, nature_cnn, numbered, unused
from rllib_kd.text import one_line
from rllib_kd.wire import LOG_PROBS, Q_VALUES, Outputs

_ACTIVATIONS = {"ReLU": "relu", "Tanh": "tanh", "ELU": "elu", "SiLU": "silu", "Sigmoid": "sigmoid"}
_EXTRACTORS = ("FlattenExtractor", "NatureCNN", "CombinedExtractor")
LIBRARIES = ("torch", "stable_baselines3", "sb3_contrib")  # whose classes have these names; others may share them
#: Spaces of one part that an MLP takes as vectors, discrete ones as one-hot.
_VECTORS = gym.spaces.Box | gym.spaces.Discrete | gym.spaces.MultiDiscrete | gym.spaces.MultiBinary


class ActingNetwork(NamedTuple):
    """The weights of a policy that act, by the beginnings of their names.

    Args:
        within: of all of them.
        without: of others among those.
        extractor: of the features extractor.
        sequentials: of the Sequentials after it, in order.
        last: name of the last layer, if it is not in a Sequential.
        outputs: what the network gives.
        activation: PyTorch's name of the activation, unless the zip names another one.
        has_quantiles: whether its outputs are the quantiles of QR-DQN.
    """

    within: str
    without: tuple[str, ...]
    extractor: str
    sequentials: tuple[str, ...]
    last: str | None
    outputs: Outputs
    activation: str
    has_quantiles: bool = False

    def of(self, weights: Mapping[str, Any]) -> dict[str, Any]:
        """Return the weights that act, without those of target networks and critics."""
        own = (name for name in weights if name.startswith(self.within) and not name.startswith(self.without))
        return {name: weights[name] for name in own}


def acting_network(names: Sequence[str]) -> ActingNetwork | None:
    """Return the network that acts, by the names of a policy's weights: of DQN, QR-DQN, A2C, PPO or MaskablePPO.

    None: it is the policy of another algorithm.
    """
    for kind in ("q_net", "quantile_net"):
        if any(name.startswith(f"{kind}.{kind}.") for name in names):
            return ActingNetwork(
                within=f"{kind}.",
                without=(),
                extractor=f"{kind}.features_extractor.",
                sequentials=(f"{kind}.{kind}.",),
                last=None,
                outputs=Q_VALUES,
                activation="ReLU",
                has_quantiles=kind == "quantile_net",
            )
    if "action_net.weight" not in names:
        return None
    # The policy's own extractor, if value and policy have one each. Before 1.7 all have the same, under one name.
    is_own = any(name.startswith("pi_features_extractor.") for name in names)
    of_critic = ("value_net.", "mlp_extractor.value_net.", "vf_features_extractor.")
    return ActingNetwork(
        within="",
        without=(*of_critic, "features_extractor.") if is_own else of_critic,
        extractor="pi_features_extractor." if is_own else "features_extractor.",
        sequentials=("mlp_extractor.shared_net.", "mlp_extractor.policy_net."),  # the first one before 1.7
        last="action_net",
        outputs=LOG_PROBS,
        activation="Tanh",
    )


def read_network(
    weights: Mapping[str, Tensor],
    acting: ActingNetwork,
    observation_space: gym.Space,
    action_space: gym.Space,
    policy_kwargs: Mapping[str, Any],
) -> tuple[list[Layer], dict[str, Tensor], list[Stage], tuple[int, ...]]:
    """Return layers, weights, preprocessing, and the shape of the inputs.

    Raises:
        ValueError: the network is not supported; the message begins with "it" or "its".
    """
    if not isinstance(action_space, gym.spaces.Discrete) or action_space.start != 0:
        raise ValueError(f"its action space is {action_space}, expected Discrete, from 0")
    if any(name.startswith("lstm_actor.") for name in weights):
        raise ValueError("it is recurrent (an LSTM), which is not supported")
    activation = _ACTIVATIONS[_known(policy_kwargs, "activation_fn", acting.activation, _ACTIVATIONS)]
    _known(policy_kwargs, "features_extractor_class", "FlattenExtractor", _EXTRACTORS)
    tensors = acting.of(weights)
    layers, stages, shape = _read_extractor(tensors, acting.extractor, observation_space, policy_kwargs)
    linears = [name for prefix in acting.sequentials for name in numbered(prefix, tensors)]
    linears += [] if acting.last is None else [acting.last]
    if isinstance(observation_space, gym.spaces.Dict):
        first = f"{linears[0]}.weight"
        tensors[first] = _in_order_of_parts(tensors[first], observation_space, layers, tensors)
    elif layers == [{"op": "flatten"}]:  # an MLP of images
        first = f"{linears[0]}.weight"
        columns = _channels_last(tensors[first], observation_space.shape, shape)
        tensors[first] = columns if policy_kwargs.get("normalize_images", True) else 255 * columns
    layers += mlp(linears, activation)
    if acting.has_quantiles:
        _average_quantiles(layers[-1], tensors, int(action_space.n))
    if unknown := unused(layers, tensors):
        raise ValueError(f"it has weights of unknown layers: {', '.join(unknown[:5])}")
    return layers, tensors, stages, shape


def _read_extractor(
    tensors: dict[str, Tensor], extractor: str, observation_space: gym.Space, policy_kwargs: Mapping[str, Any]
) -> tuple[list[Layer], list[Stage], tuple[int, ...]]:
    """Return the layers of the features extractor, preprocessing, and the shape of the inputs."""
    normalizes_images = bool(policy_kwargs.get("normalize_images", True))
    if isinstance(observation_space, gym.spaces.Dict):
        if not is_flattened(observation_space):
            raise ValueError("it is a multi-input policy with parts that are neither vectors nor images")
        layers = _read_branches(tensors, f"{extractor}extractors.", observation_space, normalizes_images)
        return layers, [Flatten(observation_space)], (flat_size(observation_space),)
    is_box = isinstance(observation_space, gym.spaces.Box)
    is_image = is_box and len(observation_space.shape) == 3 and observation_space.dtype == np.uint8
    if f"{extractor}cnn.0.weight" in tensors:
        if not is_box or len(observation_space.shape) != 3 or (normalizes_images and not is_image):
            raise ValueError(f"it has convolutions, but its observations are {observation_space}")
        channels, height, width = _channels_first(observation_space.shape)
        images = Images((height, width, channels), scaled=is_image or is_float_image(observation_space))
        if is_image and not normalizes_images:
            tensors[f"{extractor}cnn.0.weight"] = 255 * tensors[f"{extractor}cnn.0.weight"]
        layers = nature_cnn([f"{extractor}cnn.{i}" for i in (0, 2, 4)], f"{extractor}linear.0", tensors)
        return layers, [images], (height, width, channels)
    if is_image and np.all(observation_space.low == 0) and np.all(observation_space.high == 255):
        channels, height, width = _channels_first(observation_space.shape)
        return [{"op": "flatten"}], [Images((height, width, channels))], (height, width, channels)
    if not isinstance(observation_space, _VECTORS):
        raise ValueError(f"its observations are {observation_space}, which is not supported")
    shape = tuple(observation_space.shape or ())
    if is_box and len(shape) == 1:
        return [], [], shape
    return [], [Flatten(observation_space)], (gym.spaces.flatdim(observation_space),)


def _read_branches(
    tensors: dict[str, Tensor], extractors: str, space: gym.spaces.Dict, normalizes_images: bool
) -> list[Layer]:
    """Return the layers of a CombinedExtractor: a convolutional network for each image; none if there are no images."""
    branches, start = [], 0
    for (key,), part in parts_of(space):
        layers: list[Layer] = []
        shape: tuple[int, ...] = (flat_size(part),)
        if f"{extractors}{key}.cnn.0.weight" in tensors:
            own = f"{extractors}{key}"
            layers = nature_cnn([f"{own}.cnn.{i}" for i in (0, 2, 4)], f"{own}.linear.0", tensors)
            last = image_shape(part)
            shape = last or part.shape or ()
            if last is None:  # numbers like others, for vectors of ours
                layers.insert(0, {"op": "pixels", "channels_first": True, "divisor": 1.0})
            elif part.dtype == np.uint8 and not normalizes_images:  # bytes as they are
                layers.insert(0, {"op": "pixels", "channels_first": False, "divisor": 1 / 255})
        branches.append({"start": start, "shape": list(shape), "layers": layers})
        start += flat_size(part)
    return [{"op": "branches", "branches": branches}] if any(branch["layers"] for branch in branches) else []


def _in_order_of_parts(
    weight: Tensor, space: gym.spaces.Dict, layers: Sequence[Layer], tensors: Mapping[str, Tensor]
) -> Tensor:
    """Return the weight of a first layer for features in the order of sorted keys; its own is the order of the Dict.

    Args:
        weight: `[units, features]`.
        space: the space.
        layers: the layers before, as `_read_branches()` returns them.
        tensors: their weights.
    """
    keys = [key for (key,), _ in parts_of(space)]
    convolved = [branch["layers"] for branch in layers[0]["branches"]] if layers else [[]] * len(keys)
    widths = {key: len(tensors[own[-2]["weight"]]) for key, own in zip(keys, convolved, strict=True) if own}
    sizes = [widths.get(key, flat_size(part)) for key, part in space.spaces.items()]
    columns = dict(zip(space.spaces, weight.split(sizes, dim=1), strict=True))
    parts = [columns[key] if key in widths else _of_pixels(columns[key], space[key]) for key in keys]
    return torch.cat(parts, dim=1)


def _of_pixels(columns: Tensor, part: gym.Space) -> Tensor:
    """Return columns `[units, numbers]` of a part for the numbers of our vectors, which have images of another form."""
    shape = image_shape(part)
    if shape is None:
        return columns
    assert part.shape is not None
    columns = _channels_last(columns, part.shape, shape)
    return columns * 255 if part.dtype == np.uint8 else columns


def _channels_last(columns: Tensor, own: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    """Return columns `[units, numbers]` for images with channels last, of this shape.

    Args:
        columns: for images of the policy.
        own: shape of these, with channels first or last.
        shape: height, width, channels.
    """
    return columns if own == shape else columns.unflatten(1, own).movedim(1, -1).flatten(1)


def _known(policy_kwargs: Mapping[str, Any], key: str, default: str, known: Any) -> str:
    value = policy_kwargs.get(key, Name("torch", default))
    module, name = (value.module, value.name) if isinstance(value, Name) else ("torch", str(value))
    if name not in known or module.partition(".")[0] not in LIBRARIES:
        got = one_line(value, limit=100)
        raise ValueError(f"its {key} is {got}, expected one of {', '.join(known)}, of PyTorch or Stable-Baselines3")
    return name


def _average_quantiles(head: Layer, tensors: dict[str, Tensor], num_actions: int) -> None:
    """Replace the outputs by their means over quantiles, the Q-values: the mean of linear outputs is linear."""
    for key in ("weight", "bias"):
        rows = tensors[head[key]]  # [quantiles · actions, ...], the action changes fastest
        tensors[head[key]] = rows.double().unflatten(0, (-1, num_actions)).mean(0).float()


def _channels_first(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the shape with channels first, guessed as in Stable-Baselines3: the shortest axis, first or last."""
    a, b, c = shape
    return (a, b, c) if a == min(shape) else (c, a, b)
