"""Teachers from Stable-Baselines3: zips of DQN and QR-DQN, back to version 1.0 and `gym`.

Neither Stable-Baselines3 nor `gym` is needed. `data` in the zip is JSON, whose pickles are read as data. The weights
are in a file of PyTorch.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from torch import Tensor

from rllib_kd.checkpoints.archives import Archive, as_tensors, read_weights
from rllib_kd.checkpoints.json_text import parse_json
from rllib_kd.checkpoints.pickles import CheckpointError, Name, Tag, read_pickle
from rllib_kd.checkpoints.values import build
from rllib_kd.networks.layers import Layer
from rllib_kd.observations.pipeline import Flatten, Images, Normalize, Stage
from rllib_kd.observations.spaces import check_size
from rllib_kd.teachers.base import Teacher
from rllib_kd.teachers.described import reason
from rllib_kd.teachers.layered import layered_teacher
from rllib_kd.teachers.normalization import is_vec_normalize
from rllib_kd.text import one_line

FILES = frozenset({"data", "policy.pth"})  # by which a zip is recognised


#: Prefixes of the Q-network's weights: DQN's, and QR-DQN's.
_NETWORKS = ("q_net.q_net.", "quantile_net.quantile_net.")


_EXTRACTOR = "features_extractor."


_ACTIVATIONS = {"ReLU": "relu", "Tanh": "tanh", "ELU": "elu", "SiLU": "silu", "Sigmoid": "sigmoid"}


_EXTRACTORS = ("FlattenExtractor", "NatureCNN")


_LIBRARIES = ("torch", "stable_baselines3", "sb3_contrib")  # whose classes have these names; others may share them


_NATURE_STRIDES = (4, 2, 1)


_FLOAT32 = np.finfo(np.float32)  # networks take no other numbers


#: Spaces that an MLP takes as vectors, discrete ones as one-hot.
_VECTORS = gym.spaces.Box | gym.spaces.Discrete | gym.spaces.MultiDiscrete | gym.spaces.MultiBinary


def load_sb3(content: bytes, uri: str, vec_normalize: tuple[str, bytes] | None = None) -> Teacher:
    """Load the Q-network of a zip that `DQN.save()` or `QRDQN.save()` wrote.

    Args:
        content: content of the zip.
        uri: its path, for messages.
        vec_normalize: name and content of its file of VecNormalize, if there is one.

    Raises:
        ValueError: it is not a whole zip, of another algorithm, or has a network that is not supported.
    """
    archive = Archive(content, uri)
    data = _read_data(archive, uri)
    weights = as_tensors(read_weights(archive.read("policy.pth"), f"{uri}/policy.pth"), uri)
    prefix = next((name for name in _NETWORKS if any(key.startswith(name) for key in weights)), None)
    if prefix is None:
        raise CheckpointError(
            f"'{uri}' is a zip of Stable-Baselines3 without a Q-network: its weights begin with "
            f"'{next(iter(weights))}'. Expected a DQN or a QR-DQN."
        )
    observation_space, action_space = (_read_pickle_in(data, key, uri) for key in ("observation_space", "action_space"))
    policy_kwargs = _read_policy_kwargs(data, uri)
    try:
        check_size(observation_space)
        layers, tensors, stages, shape = _read_network(weights, prefix, observation_space, action_space, policy_kwargs)
        if vec_normalize is not None:
            stages = [*_read_vec_normalize(*vec_normalize, observation_space), *stages]
        return layered_teacher(
            layers,
            tensors,
            observation_shape=shape,
            num_actions=int(action_space.n),
            observation_space=observation_space,
            stages=stages,
            source=uri,
        )
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"'{uri}' has a network that does not fit: {reason(error)}") from error


# --- The entries of `data` --------------------------------------------------------------------------------------------


def _read_data(archive: Archive, uri: str) -> dict[str, Any]:
    try:
        data = parse_json(archive.read("data"))
    except ValueError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"'{uri}' cannot be read: its 'data' is not JSON ({error}).") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"'{uri}' cannot be read: its 'data' is not a JSON object.")
    return data


def _read_pickle_in(data: Mapping[str, Any], key: str, uri: str) -> Any:
    """Read an entry that Stable-Baselines3 has written into the JSON as the text of a pickle."""
    where = f"{uri}/data/{key}"
    entry = data.get(key)
    try:
        content = base64.b64decode(entry[":serialized:"])  # type: ignore[index]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"'{where}' is missing or broken ({error!r}). Is the file complete?") from error
    return build(read_pickle(io.BytesIO(content), where), where)


def _read_policy_kwargs(data: Mapping[str, Any], uri: str) -> Mapping[str, Any]:
    policy_kwargs = data.get("policy_kwargs") or {}
    if isinstance(policy_kwargs, dict) and ":serialized:" in policy_kwargs:
        policy_kwargs = _read_pickle_in(data, "policy_kwargs", uri)
    if not isinstance(policy_kwargs, dict):
        raise CheckpointError(f"'{uri}' has a {type(policy_kwargs).__name__} as policy_kwargs, expected a dict.")
    return policy_kwargs


def _known(policy_kwargs: Mapping[str, Any], key: str, default: str, known: Any) -> str:
    value = policy_kwargs.get(key, Name("torch", default))
    module, name = (value.module, value.name) if isinstance(value, Name) else ("torch", str(value))
    if name not in known or module.partition(".")[0] not in _LIBRARIES:
        got = one_line(value, limit=100)
        raise ValueError(f"its {key} is {got}, expected one of {', '.join(known)}, of PyTorch or Stable-Baselines3")
    return name


# --- The network ------------------------------------------------------------------------------------------------------


def _read_network(
    weights: Mapping[str, Tensor],
    prefix: str,
    observation_space: gym.Space,
    action_space: gym.Space,
    policy_kwargs: Mapping[str, Any],
) -> tuple[list[Layer], dict[str, Tensor], list[Stage], tuple[int, ...]]:
    """Return layers, weights, preprocessing, and the shape of the inputs."""
    if not isinstance(action_space, gym.spaces.Discrete) or action_space.start != 0:
        raise ValueError(f"its action space is {action_space}")
    activation = _ACTIVATIONS[_known(policy_kwargs, "activation_fn", "ReLU", _ACTIVATIONS)]
    _known(policy_kwargs, "features_extractor_class", "FlattenExtractor", _EXTRACTORS)
    normalizes_images = bool(policy_kwargs.get("normalize_images", True))
    own_prefix = prefix.split(".")[0] + "."
    own = {name.removeprefix(own_prefix): value for name, value in weights.items() if name.startswith(own_prefix)}
    head = own_prefix.removesuffix(".")
    tensors = dict(own)
    is_box = isinstance(observation_space, gym.spaces.Box)
    is_image = is_box and len(observation_space.shape) == 3 and observation_space.dtype == np.uint8
    if f"{_EXTRACTOR}cnn.0.weight" in own:
        if not is_box or len(observation_space.shape) != 3 or (normalizes_images and not is_image):
            raise ValueError(f"it has convolutions, but its observations are {observation_space}")
        channels, height, width = _channels_first(observation_space.shape)
        shape: tuple[int, ...] = (height, width, channels)
        stages: list[Stage] = [Images((height, width, channels), scaled=normalizes_images)]
        layers = nature_cnn([f"{_EXTRACTOR}cnn.{i}" for i in (0, 2, 4)], f"{_EXTRACTOR}linear.0", tensors)
    else:
        if is_image:
            raise ValueError("it is an MLP with images as observations, which is not supported")
        layers, stages = [], []
        shape = tuple(observation_space.shape or ())
        if not isinstance(observation_space, _VECTORS):
            raise ValueError(f"its observations are {observation_space}, which is not supported")
        if not is_box or len(shape) != 1:
            stages = [Flatten(observation_space)]
            shape = (gym.spaces.flatdim(observation_space),)
    layers += mlp(f"{head}.", tensors, activation)
    if prefix == _NETWORKS[1]:
        _average_quantiles(layers[-1], tensors, int(action_space.n))
    used = {layer[key] for layer in layers for key in ("weight", "bias") if key in layer}
    if unknown := sorted(set(own) - used):
        raise ValueError(f"it has weights of unknown layers: {', '.join(unknown[:5])}")
    return layers, tensors, stages, shape


def mlp(prefix: str, tensors: Mapping[str, Tensor], activation: str) -> list[Layer]:
    """Return the linear layers of a `torch.nn.Sequential`, with the activation between them."""
    names = [name.removesuffix(".weight") for name in tensors if name.startswith(prefix) and name.endswith(".weight")]
    layers: list[Layer] = []
    for name in sorted(names, key=lambda name: int(name.removeprefix(prefix))):
        layers += [{"op": "linear", "weight": f"{name}.weight", "bias": f"{name}.bias"}, {"op": activation}]
    return layers[:-1]


def nature_cnn(convolutions: list[str], linear: str, tensors: dict[str, Tensor]) -> list[Layer]:
    """Return the network of Mnih et al. 2015 up to its last hidden layer, with rows after `flatten` in our order.

    Args:
        convolutions: names of the three convolutions.
        linear: name of the layer after them.
        tensors: all weights; the linear layer's is replaced.
    """
    layers: list[Layer] = []
    for name, stride in zip(convolutions, _NATURE_STRIDES, strict=True):
        conv = {"op": "conv2d", "weight": f"{name}.weight", "bias": f"{name}.bias", "stride": [stride, stride]}
        layers += [conv, {"op": "relu"}]
    weight = tensors[f"{linear}.weight"]
    channels = len(tensors[f"{convolutions[-1]}.weight"])
    # Theirs flattens channel by channel, ours pixel by pixel.
    weight = weight.unflatten(1, (channels, -1)).transpose(1, 2).flatten(1).contiguous()
    tensors[f"{linear}.weight"] = weight
    layers.append({"op": "flatten"})
    return [*layers, {"op": "linear", "weight": f"{linear}.weight", "bias": f"{linear}.bias"}, {"op": "relu"}]


def _average_quantiles(head: Layer, tensors: dict[str, Tensor], num_actions: int) -> None:
    """Replace the outputs by their means over quantiles, the Q-values: the mean of linear outputs is linear."""
    for key in ("weight", "bias"):
        rows = tensors[head[key]]  # [quantiles · actions, ...], the action changes fastest
        tensors[head[key]] = rows.double().unflatten(0, (-1, num_actions)).mean(0).float()


def _channels_first(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the shape with channels first, guessed as in Stable-Baselines3: the shortest axis, first or last."""
    a, b, c = shape
    return (a, b, c) if a == min(shape) else (c, a, b)


# --- VecNormalize -----------------------------------------------------------------------------------------------------


def _read_vec_normalize(where: str, content: bytes, space: gym.Space) -> list[Stage]:
    """Return the current statistics of a `VecNormalize`, as stages."""
    tag = read_pickle(io.BytesIO(content), where)
    if not is_vec_normalize(tag):
        raise CheckpointError(f"'{where}' beside the zip is not a VecNormalize. Move it away if it is not the zip's.")
    state = tag.state
    norm_obs = build(state.get("norm_obs", True), where)
    if not isinstance(norm_obs, bool | np.bool_):
        raise _unusable(where, "norm_obs", norm_obs, "True or False")
    if not norm_obs:
        return []
    statistics = state.get("obs_rms")
    if not isinstance(statistics, Tag) or not isinstance(statistics.state, dict):
        raise CheckpointError(f"'{where}' has statistics of several parts, expected those of one array.")
    if not isinstance(space, gym.spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        raise CheckpointError(f"'{where}' normalises {space}, expected a Box of floats.")
    mean, variance = (_numbers(build(statistics.state[key], where), f"obs_rms.{key}", where) for key in ("mean", "var"))
    epsilon, clip = (float(_numbers(build(state[key], where), key, where)) for key in ("epsilon", "clip_obs"))
    if mean.shape != space.shape or variance.shape != space.shape:
        raise CheckpointError(
            f"'{where}' normalises observations of the shape {mean.shape}, expected {space.shape}. Does it belong to "
            "another zip?"
        )
    with np.errstate(all="ignore"):  # whatever makes no sense is refused below
        std = np.sqrt(variance + epsilon)
    for name, values, makes_sense, expected in (
        ("obs_rms.mean", mean, np.abs(mean) <= _FLOAT32.max, "finite 32-bit numbers"),
        ("obs_rms.var", variance, (variance >= 0) & np.isfinite(variance), "finite numbers of at least 0"),
        ("epsilon", epsilon, 0 <= epsilon < np.inf, "a finite number of at least 0"),
        ("clip_obs", clip, clip > 0, "a number above 0"),
        ("sqrt(obs_rms.var + epsilon)", std, (std >= _FLOAT32.tiny) & (std <= _FLOAT32.max), "32-bit numbers above 0"),
    ):
        if not np.all(makes_sense):
            bad = np.ravel(values)[~np.ravel(makes_sense)][:10].tolist()
            raise _unusable(where, name, ", ".join(map(str, bad)), expected)
    return [Normalize(mean, std, None if clip == np.inf else clip)]


def _numbers(value: Any, name: str, where: str) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise _unusable(where, name, value, "numbers")
    return array.astype(np.float64)


def _unusable(where: str, name: str, got: Any, expected: str) -> CheckpointError:
    return CheckpointError(
        f"'{where}' beside the zip has {name} = {one_line(got, limit=300)}; expected {expected}. Save it again with "
        "VecNormalize.save(), or move it away if it does not belong to the zip."
    )
