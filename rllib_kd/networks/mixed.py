"""Networks for images beside other numbers in one vector: convolutions for each image, then an MLP for all."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.algorithms.dqn.dqn_catalog import DQNCatalog
from ray.rllib.core.columns import Columns
from ray.rllib.core.models.base import ENCODER_OUT, Encoder
from ray.rllib.core.models.configs import CNNEncoderConfig, MLPEncoderConfig, ModelConfig
from ray.rllib.core.models.torch.base import TorchModel
from ray.rllib.models.utils import get_filter_config
from ray.rllib.utils.annotations import override
from torch import nn

from rllib_kd.networks.mixed_space import MixedBox

_SMALL_ENOUGH = 6  # pixels of the longer side, at which no further convolution follows
_FEWEST_CHANNELS, _MOST_CHANNELS = 16, 128


def default_filters(space: gym.Space) -> list[list[Any]]:
    """Return channels, kernel and stride of the convolutions, for any size of images.

    Of images alone they are RLlib's defaults, if it has some for their size. Otherwise each halves the image, and
    doubles the channels, as RLlib's do for 64 pixels a side. Its others would not suit images beside numbers: those for
    42, 84 and 96 pixels are made to stand right before the outputs. Their last layer has 256 channels, and before an
    MLP as many as 31,000 numbers.
    """
    if isinstance(space, MixedBox):
        side = max(max(height, width) for _, height, width, _ in space.images)
    else:
        assert space.shape is not None
        if (of_rllib := _filters_of_rllib(space.shape)) is not None:
            return of_rllib
        side = max(space.shape[:2])
    channels = _FEWEST_CHANNELS
    filters: list[list[int]] = []
    while side > _SMALL_ENOUGH or not filters:
        filters.append([channels, 4, 2])
        side, channels = math.ceil(side / 2), min(2 * channels, _MOST_CHANNELS)
    return filters


def _filters_of_rllib(shape: tuple[int, ...]) -> list[list[Any]] | None:
    try:
        return get_filter_config(shape)
    except ValueError:
        return None


class VectorPart(NamedTuple):
    """A part of a vector.

    Args:
        place: where it stands.
        shape: shape of an image, or the number of other numbers.
        net: the layers that an image passes; None of other numbers.
    """

    place: slice
    shape: tuple[int, ...]
    net: nn.Module | None


class MixedEncoder(TorchModel, Encoder):
    """An encoder of vectors: images pass convolutions, and what they become, beside all other numbers, an MLP."""

    def __init__(self, config: MixedEncoderConfig):
        TorchModel.__init__(self, config)
        Encoder.__init__(self, config)
        self.images = nn.ModuleList(image.build(framework="torch").net for image in config.images)
        self.mlp = None if config.mlp is None else config.mlp.build(framework="torch").net

    def parts(self) -> Iterator[VectorPart]:
        """Yield the parts of a vector, in their order."""
        end = 0
        for start, image, net in zip(self.config.starts, self.config.images, self.images, strict=True):
            if start > end:
                yield VectorPart(slice(end, start), (start - end,), None)
            end = start + math.prod(image.input_dims)
            yield VectorPart(slice(start, end), tuple(image.input_dims), net)
        if (size := self.config.input_dims[0]) > end:
            yield VectorPart(slice(end, size), (size - end,), None)

    def _forward(self, inputs: dict, **kwargs: Any) -> dict:
        obs = inputs[Columns.OBS]
        seen = [
            obs[:, place] if net is None else net(obs[:, place].unflatten(1, shape))
            for place, shape, net in self.parts()
        ]
        features = torch.cat(seen, dim=1)
        return {ENCODER_OUT: features if self.mlp is None else self.mlp(features)}


@dataclasses.dataclass
class MixedEncoderConfig(ModelConfig):
    """Config of a `MixedEncoder`: of each image its first index in the vector and its convolutions; and of the MLP."""

    starts: Sequence[int] = ()
    images: Sequence[CNNEncoderConfig] = ()
    mlp: MLPEncoderConfig | None = None

    @property
    def num_features(self) -> int:
        """Return how many numbers the images become, with all other numbers."""
        pixels = sum(math.prod(image.input_dims) for image in self.images)
        return int(self.input_dims[0]) - pixels + sum(int(image.output_dims[0]) for image in self.images)

    @property
    @override(ModelConfig)
    def output_dims(self) -> tuple[int]:
        return (self.num_features if self.mlp is None else int(self.mlp.output_dims[0]),)

    @override(ModelConfig)
    def build(self, framework: str = "torch") -> MixedEncoder:
        return MixedEncoder(self)


class MixedDQNCatalog(DQNCatalog):
    """RLlib's DQN catalog for a `MixedBox`. All images have the same `conv_filters`, and weights of their own."""

    @classmethod
    @override(DQNCatalog)
    def _get_encoder_config(cls, observation_space, model_config_dict, action_space=None) -> ModelConfig:
        filters = model_config_dict.get("conv_filters") or default_filters(observation_space)
        of_images = {**model_config_dict, "conv_filters": filters}
        base = super()._get_encoder_config
        config = MixedEncoderConfig(
            input_dims=observation_space.shape,
            starts=[start for start, *_ in observation_space.images],
            images=[base(_box(shape), of_images, action_space) for _, *shape in observation_space.images],
        )
        if model_config_dict["fcnet_hiddens"]:
            config.mlp = base(_box([config.num_features]), model_config_dict, action_space)
        return config


def _box(shape: Sequence[int]) -> gym.spaces.Box:
    return gym.spaces.Box(-np.inf, np.inf, tuple(shape), np.float32)
