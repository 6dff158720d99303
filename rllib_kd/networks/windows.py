"""Whether images are large enough for the windows of a network's convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym

from rllib_kd.networks.mixed_space import MixedBox


def check_windows(what: str, filters: Sequence[Sequence[Any]], space: gym.Space) -> None:
    """Check that observations are images which the convolutions of a network can take.

    Args:
        what: the network or its setting, for the message.
        filters: RLlib's `conv_filters`: `[channels, kernel, stride]`, and "same" (default) or "valid" as padding.
        space: space of the network's inputs: images `[height, width, channels]`, or vectors that contain some.

    Raises:
        ValueError: they are no images, or smaller than the windows of a convolution.
    """
    shape = tuple(space.shape or ())
    images = [image[1:] for image in space.images] if isinstance(space, MixedBox) else [shape]
    height, width = (_least_side(filters, axis) for axis in (0, 1))
    needs = f"{what} has convolutions, which need images of at least {height} × {width} pixels"
    for image in images:
        if len(image) != 3:
            raise ValueError(
                f"{needs}, but the observations have the shape {list(shape)}. Choose a network without them: "
                "student='linear', or student={'fcnet_hiddens': [32]}."
            )
        if image[0] < height or image[1] < width:
            raise ValueError(
                f"{needs}, but the images have {image[0]} × {image[1]}. Let the environment return larger ones, or set "
                "'conv_filters' with smaller kernels or strides."
            )


def _least_side(filters: Sequence[Sequence[Any]], axis: int) -> int:
    """Return of how many pixels along an axis the last convolution still makes one."""
    side = 1
    for _, kernel, stride, *padding in reversed(filters):
        window = 1 if (padding or ["same"])[0] == "same" else _along(kernel, axis)
        side = (side - 1) * _along(stride, axis) + window
    return side


def _along(size: int | Sequence[int], axis: int) -> int:
    return size if isinstance(size, int) else size[axis]
