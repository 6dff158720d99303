"""Spaces: their parts, which of them become one vector, checks that a Q-network suits them, and comparisons."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import gymnasium as gym
import numpy as np

from rllib_kd import limits
from rllib_kd.networks.mixed_space import MixedBox
from rllib_kd.observations.texts import TEXT_SIZE
from rllib_kd.text import one_line

logger = logging.getLogger(__name__)

#: Keys and indices that lead to a part of an observation; empty for the whole.
Path = tuple[Any, ...]
#: Images of floats in [0, 1] are never above this, but for rounding; bytes that became floats are.
MOST_OF_FLOATS = 1.001
_SMALLEST_IMAGE = 16  # pixels of the shorter side; less is a grid of numbers, if it stands beside other parts


def parts_of(space: gym.Space, path: Path = ()) -> Iterator[tuple[Path, gym.Space]]:
    """Yield the parts of a space, with the paths that lead to them: those of a Dict in the order of its sorted keys.

    This is the order of RLlib's connectors; and of gymnasium's `flatten()`, except for `Dict(z=..., a=...)` and a Dict
    of an OrderedDict, which keep their own order. Checkpoints do not record that order.
    """
    if isinstance(space, gym.spaces.Dict):
        for key in sorted(space.spaces, key=lambda key: (type(key).__name__, key)):
            yield from parts_of(space.spaces[key], (*path, key))
    elif isinstance(space, gym.spaces.Tuple):
        for index, part in enumerate(space.spaces):
            yield from parts_of(part, (*path, index))
    else:
        yield path, space


def named(path: Path) -> str:
    """Return a path as Python writes it: "['sensors'][0]"; empty for the whole."""
    return "".join(f"[{key!r}]" for key in path)


def check_spaces(observation_space: gym.Space, action_space: gym.Space) -> None:
    """Check that a Q-network suits the spaces.

    Raises:
        ValueError: it does not; the message has the remedy.
    """
    check_actions(action_space)
    if is_box_of_floats(observation_space):
        if 0 in observation_space.shape:
            raise ValueError(
                f"The networks need at least one number to see, got {observation_space}. Return an observation that is "
                "not empty, such as np.zeros(1, np.float32)."
            )
        return
    remedy = (
        "Wrap the environment, or use a connector of your own: return an array of fixed size, such as one that is "
        "filled up with zeros."
    )
    for path, part in parts_of(observation_space):
        if path and not _is_flat_part(part):
            raise ValueError(
                f"The observation's part {named(path)} is {part}, which has no fixed number of numbers. {remedy}"
            )
    raise ValueError(
        "The networks need observations in a Box of floats of 32 or 64 bits; or "
        "images of bytes, other Boxes, discrete ones, texts, and Dicts and Tuples of these. They get "
        f"{observation_space}. {remedy}"
    )


def is_box_of_floats(space: Any) -> bool:
    """Return whether networks take the observations as they are: a Box of floats of 32 or 64 bits."""
    return isinstance(space, gym.spaces.Box) and has_floats(space)


def has_floats(space: gym.spaces.Box) -> bool:
    """Return whether a Box has floats of 32 or 64 bits: RLlib gives networks others as they are, and they fail."""
    return np.issubdtype(space.dtype, np.floating) and np.dtype(space.dtype).itemsize >= 4


def is_text(space: gym.Space | None) -> bool:
    """Return whether the values of a space are texts: of a Text, and of other spaces that sample them."""
    if isinstance(space, gym.spaces.Text):
        return True
    if not isinstance(space, gym.Space) or type(space).__module__.startswith("gymnasium.") or space.shape is not None:
        return False
    if space.dtype is not None:
        return space.dtype.kind == "U"
    return isinstance(copy.deepcopy(space).sample(), str)  # a copy keeps its random state


def has_texts(space: gym.Space) -> bool:
    """Return whether a space is of texts, or has parts that are."""
    return any(is_text(part) for _, part in parts_of(space))


def is_byte_image(space: gym.Space | None) -> bool:
    """Return whether a space has images of bytes or truth values, with channels first or last."""
    return isinstance(space, gym.spaces.Box) and len(space.shape) == 3 and space.dtype in (np.uint8, np.bool_)


def image_shape(part: gym.Space) -> tuple[int, int, int] | None:
    """Return height, width and channels of a part that has images; None for other parts, and small grids of numbers.

    Channels are the first or the last axis, by `channels_last()`. Floats outside of [0, 1] are images only if it is the
    last one.
    """
    if not isinstance(part, gym.spaces.Box) or len(part.shape) != 3 or sorted(part.shape)[1] < _SMALLEST_IMAGE:
        return None
    height, width, channels = channels_last(part.shape)
    is_any_float = np.issubdtype(part.dtype, np.floating) and part.shape == (height, width, channels)
    return (height, width, channels) if is_byte_image(part) or is_float_image(part) or is_any_float else None


def bytes_of_0_and_1(space: gym.Space) -> list[Path]:
    """Return the paths to images of bytes that are never above 1: networks get them divided by 255, as other bytes."""
    return [
        path
        for path, part in parts_of(space)
        if is_byte_image(part) and part.dtype == np.uint8 and part.high.max(initial=0) <= 1
        if not path or image_shape(part) is not None
    ]


@lru_cache(maxsize=1_000)
def channels_last(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the shape of an image, or of a grid of numbers, with its channels last.

    They are the first axis if that is shorter than the last one, and the others are the sides of an image; of a smaller
    grid, unless the first two axes are alike, and more so than the last two: (3, 10, 60), but not (8, 8, 111).
    """
    first, middle, last = shape
    if first >= last:
        return first, middle, last
    is_image = first < middle and min(middle, last) >= _SMALLEST_IMAGE
    are_sides = _ratio(first, middle) < 2 and _ratio(first, middle) < _ratio(middle, last)  # the first two
    is_first = is_image or not are_sides
    if not is_first or 2 * first > min(middle, last):
        logger.info(
            "Observations of the shape %s are taken to have their channels %s. If that is wrong, return them with "
            "another order of axes, or as a vector.",
            list(shape),
            "first" if is_first else "last",
        )
    return (middle, last, first) if is_first else (first, middle, last)


def _ratio(one: int, other: int) -> float:
    """Return the ratio of the longer side to the shorter one."""
    return max(one, other) / max(1, min(one, other))


def is_discrete(space: gym.Space | None) -> bool:
    """Return whether a space has discrete numbers, one or several, which networks take as one-hot vectors."""
    return isinstance(space, gym.spaces.Discrete | gym.spaces.MultiDiscrete | gym.spaces.MultiBinary)


def one_hot_lengths(space: gym.Space) -> tuple[int, ...] | None:
    """Return the lengths of the one-hot vectors of discrete numbers, side by side; None of other spaces."""
    if isinstance(space, gym.spaces.Discrete):
        return (int(space.n),)
    if isinstance(space, gym.spaces.MultiDiscrete):
        return tuple(np.ravel(space.nvec).tolist())
    return None


def discrete_space(shape: tuple[int, ...], lengths: np.ndarray, starts: np.ndarray) -> gym.Space:
    """Return the space of discrete numbers of a shape, with the numbers of cases and first cases of each, `[N]`."""
    if not shape:
        return gym.spaces.Discrete(int(lengths.item()), start=int(starts.item()))
    return gym.spaces.MultiDiscrete(lengths.reshape(shape), start=starts.reshape(shape))


def is_flattened(space: gym.Space | None) -> bool:
    """Return whether networks take observations of a space as one vector that is made of them.

    These are all but vectors of floats of 32 bits or more, which are taken as they are, images alone, and parts that
    have no fixed size.
    """
    if isinstance(space, gym.spaces.Box):
        has_float_pixels = len(space.shape) == 3 and np.issubdtype(space.dtype, np.floating)
        is_vector = len(space.shape) == 1 and has_floats(space)
        return not (is_byte_image(space) or has_float_pixels or is_vector)
    if not isinstance(space, gym.Space):
        return False
    parts = list(parts_of(space))
    return bool(parts) and all(_is_flat_part(part) for _, part in parts)


def _is_flat_part(space: gym.Space) -> bool:
    """Return whether a part of a space can stand in a vector."""
    return isinstance(space, gym.spaces.Box) or is_discrete(space) or is_text(space)


def is_float_image(space: gym.Space | None) -> bool:
    """Return whether a space has images of floats in [0, 1]."""
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 3 or not np.issubdtype(space.dtype, np.floating):
        return False
    return bool(np.all(space.low >= 0) and np.all(space.high <= 1))


def has_undivided_pixels(space: gym.Space | None) -> bool:
    """Return whether a space has images of floats up to a bound above 1, such as 255: they are not divided."""
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 3 or not np.issubdtype(space.dtype, np.floating):
        return False
    return bool(1 < space.high.max() < np.inf)


def input_space(space: gym.Space) -> gym.Space:
    """Return the input space of a network for observations.

    Images of bytes become floats in [0, 1], channels last, by `channels_last()`.
    What `is_flattened()` becomes one vector: with images among its parts, of a `MixedBox`.
    """
    if is_flattened(space):
        check_size(space)
        if images := image_places(space):
            return MixedBox(flat_size(space), images)
        low, high = (0.0, 1.0) if is_discrete(space) else (-np.inf, np.inf)
        return gym.spaces.Box(low, high, (flat_size(space),), np.float32)
    if not is_byte_image(space):
        return space
    return gym.spaces.Box(0.0, 1.0, channels_last(space.shape), np.float32)


def image_places(space: gym.Space) -> list[tuple[int, int, int, int]]:
    """Return the images among the parts of a space, as a `MixedBox` takes them."""
    places, start = [], 0
    for path, part in parts_of(space):
        if path and (shape := image_shape(part)) is not None:
            places.append((start, *shape))
        start += flat_size(part)
    return places


def check_actions(action_space: gym.Space) -> None:
    """Check that a Q-network can choose among the actions.

    Raises:
        ValueError: it cannot; the message has the remedy.
    """
    if not isinstance(action_space, gym.spaces.Discrete) or action_space.start != 0:
        raise ValueError(
            f"A Q-network needs discrete actions 0 to A − 1, but this environment's action space is {action_space}. "
            "Wrap the environment: gymnasium.wrappers.TransformAction."
        )


def same_space(one: gym.Space, other: gym.Space) -> bool:
    """Return whether two spaces have equal kind and shape.

    Bounds, types of numbers, which texts there are, and where the channels of images beside other parts are, do not
    matter to a network.
    """
    if is_text(one) and is_text(other):
        return True
    if isinstance(one, gym.spaces.Box) and isinstance(other, gym.spaces.Box):
        return one.shape == other.shape
    if type(one) is not type(other):
        return False
    if isinstance(one, gym.spaces.Dict):
        return one.keys() == other.keys() and all(_same_part(one[key], other[key]) for key in one)
    if isinstance(one, gym.spaces.Tuple):
        return len(one) == len(other) and all(map(_same_part, one, other))
    if not np.array_equal(getattr(one, "start", 0), getattr(other, "start", 0)):
        return False
    if isinstance(one, gym.spaces.MultiDiscrete):
        return np.array_equal(one.nvec, other.nvec)
    return one.shape == other.shape and getattr(one, "n", None) == getattr(other, "n", None)


def _same_part(one: gym.Space, other: gym.Space) -> bool:
    shape = image_shape(one)
    return shape == image_shape(other) if shape is not None else same_space(one, other)


def brief(space: gym.Space) -> str:
    """Return a short text of a space, without the bounds of a Box."""
    return f"Box{space.shape}" if isinstance(space, gym.spaces.Box) else str(space)


def told_apart(space: gym.Space, other: gym.Space) -> str:
    """Return a short text of a space; with bounds and type if another one differs in its type alone."""
    differs_in_type = brief(space) == brief(other) and space.dtype != other.dtype
    return one_line(str(space), limit=100) if differs_in_type else brief(space)


def check_size(space: gym.Space) -> None:
    """Check that observations of a space fit into memory, also as a vector with discrete parts as one-hot.

    Raises:
        ValueError: they do not.
    """
    if (size := flat_size(space)) > limits.MAX_INPUTS:
        raise ValueError(f"a space of {size:.6g} numbers, expected at most {limits.MAX_INPUTS}")


def flat_size(space: gym.Space) -> int:
    """Return the length of the vector that is made of an observation, without an overflow at 64 bits.

    Raises:
        ValueError: it has too many discrete parts.
    """
    return sum(_size_of_part(part) for _, part in parts_of(space))


def _size_of_part(space: gym.Space) -> int:
    if is_text(space):
        return TEXT_SIZE
    if isinstance(space, gym.spaces.MultiDiscrete) and space.nvec.size > limits.MAX_ONE_HOT:
        raise ValueError(f"a space of {space.nvec.size} discrete parts, expected at most {limits.MAX_ONE_HOT}")
    lengths = one_hot_lengths(space)
    return math.prod(map(int, space.shape or ())) if lengths is None else sum(lengths)
