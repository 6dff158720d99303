"""The space of vectors in which images stand beside other numbers, and which inputs are images. It needs no Ray."""

from __future__ import annotations

from collections.abc import Sequence

import gymnasium as gym
import numpy as np


class MixedBox(gym.spaces.Box):
    """The space of vectors in which images stand beside other numbers: the inputs of a network for both.

    The places of the images are part of the space, so that they are known wherever a network is built: by RLlib, from
    a checkpoint, or to count its parameters.

    Args:
        size: length of a vector.
        images: of each image, in their order in the vector: the index of its first number, and its height, width and
            channels. There it stands row by row, with the channels last.
    """

    def __init__(self, size: int, images: Sequence[tuple[int, ...]]):
        super().__init__(-np.inf, np.inf, (size,), np.float32)
        self.images = tuple(images)

    def __eq__(self, other: object) -> bool:
        """Return whether the other space has equal images at equal places, too."""
        return isinstance(other, MixedBox) and self.images == other.images and super().__eq__(other)


def has_images(space: gym.Space) -> bool:
    """Return whether the inputs of a network are images, alone or beside other numbers."""
    return isinstance(space, MixedBox) or len(space.shape or ()) == 3
