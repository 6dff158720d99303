"""Spaces: which of them a Q-network suits, and whether two mean the same."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np

from rllib_kd import limits


def check_spaces(observation_space: gym.Space, action_space: gym.Space) -> None:
    """Whether a Q-network suits them.

    Raises:
        ValueError: it does not; the message says what to do.
    """
    check_actions(action_space)
    if not isinstance(observation_space, gym.spaces.Box) or not np.issubdtype(observation_space.dtype, np.floating):
        raise ValueError(
            "The networks need observations in a Box of floats, or images of bytes (three dimensions, no connectors of "
            f"your own), but get {observation_space}. Wrap the environment, or use a connector: env_runners("
            "env_to_module_connector=lambda *args, **kwargs: FlattenObservations())."
        )


def is_byte_image(space: gym.Space | None) -> bool:
    """Whether it shows images of bytes, with channels first or last."""
    return isinstance(space, gym.spaces.Box) and len(space.shape) == 3 and space.dtype == np.uint8


def is_matrix(space: gym.Space | None) -> bool:
    """Whether it shows numbers in rows and columns, which RLlib's networks take as vectors only."""
    return isinstance(space, gym.spaces.Box) and len(space.shape) == 2


def is_float_image(space: gym.Space | None) -> bool:
    """Whether it shows images of floats from 0 to 1."""
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 3 or not np.issubdtype(space.dtype, np.floating):
        return False
    return bool(np.all(space.low >= 0) and np.all(space.high <= 1))


def input_space(space: gym.Space) -> gym.Space:
    """What a network takes where an environment shows this: images of bytes become floats from 0 to 1, channels last.

    The channels' axis is the first or the last, whichever is shorter.
    """
    if not is_byte_image(space):
        return space
    first, *middle, last = space.shape
    shape = (*middle, last, first) if first < last else space.shape
    return gym.spaces.Box(0.0, 1.0, shape, np.float32)


def check_actions(action_space: gym.Space) -> None:
    """Whether a Q-network can choose among them.

    Raises:
        ValueError: it cannot; the message says what to do.
    """
    if not isinstance(action_space, gym.spaces.Discrete) or action_space.start != 0:
        raise ValueError(
            f"A Q-network needs discrete actions 0 to A − 1, but this environment's action space is {action_space}. "
            "Wrap the environment."
        )


def same_space(one: gym.Space, other: gym.Space) -> bool:
    """Equal kind and shape. Bounds and float types may differ: they do not change what a network takes."""
    if type(one) is not type(other):
        return False
    if isinstance(one, gym.spaces.Dict):
        return one.keys() == other.keys() and all(same_space(one[key], other[key]) for key in one)
    if isinstance(one, gym.spaces.Tuple):
        return len(one) == len(other) and all(map(same_space, one, other))
    if isinstance(one, gym.spaces.MultiDiscrete):
        return np.array_equal(one.nvec, other.nvec)
    return one.shape == other.shape and getattr(one, "n", None) == getattr(other, "n", None)


def brief(space: gym.Space) -> str:
    """A space in a few characters, without the bounds of a Box."""
    return f"Box{space.shape}" if isinstance(space, gym.spaces.Box) else str(space)


def check_size(space: gym.Space) -> None:
    """Whether what a space shows fits into memory, also as a vector, discrete parts as one-hot.

    Raises:
        ValueError: it does not.
    """
    if (size := _num_inputs(space)) > limits.MAX_INPUTS:
        raise ValueError(f"a space of {size:.6g} numbers, expected at most {limits.MAX_INPUTS}")


def _num_inputs(space: gym.Space) -> int:
    """As `gym.spaces.flatdim()`, whose 64 bits may overflow."""
    if isinstance(space, gym.spaces.Dict):
        return sum(map(_num_inputs, space.spaces.values()))
    if isinstance(space, gym.spaces.Tuple):
        return sum(map(_num_inputs, space.spaces))
    if isinstance(space, gym.spaces.Discrete):
        return int(space.n)
    if isinstance(space, gym.spaces.MultiDiscrete):
        if space.nvec.size > limits.MAX_ONE_HOT:
            raise ValueError(f"a space of {space.nvec.size} discrete parts, expected at most {limits.MAX_ONE_HOT}")
        return sum(np.ravel(space.nvec).tolist())
    return math.prod(map(int, space.shape or ()))
