"""Spaces: checks that a Q-network suits them, and comparisons."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np

from rllib_kd import limits


def check_spaces(observation_space: gym.Space, action_space: gym.Space) -> None:
    """Check that a Q-network suits the spaces.

    Raises:
        ValueError: it does not; the message has the remedy.
    """
    check_actions(action_space)
    if not isinstance(observation_space, gym.spaces.Box) or not np.issubdtype(observation_space.dtype, np.floating):
        raise ValueError(
            "The networks need observations in a Box of floats, discrete ones, or images of bytes (three dimensions, "
            f"no custom connectors), but get {observation_space}. Wrap the environment, or use a connector: "
            "env_runners(env_to_module_connector=lambda *args, **kwargs: FlattenObservations())."
        )


def is_byte_image(space: gym.Space | None) -> bool:
    """Return whether a space has images of bytes, with channels first or last."""
    return isinstance(space, gym.spaces.Box) and len(space.shape) == 3 and space.dtype == np.uint8


def is_matrix(space: gym.Space | None) -> bool:
    """Return whether a space has matrices of numbers, which RLlib's networks take as vectors only."""
    return isinstance(space, gym.spaces.Box) and len(space.shape) == 2


def is_discrete(space: gym.Space | None) -> bool:
    """Return whether a space has discrete numbers, one or several, which networks take as one-hot vectors."""
    return isinstance(space, gym.spaces.Discrete | gym.spaces.MultiDiscrete | gym.spaces.MultiBinary)


def is_float_image(space: gym.Space | None) -> bool:
    """Return whether a space has images of floats in [0, 1]."""
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 3 or not np.issubdtype(space.dtype, np.floating):
        return False
    return bool(np.all(space.low >= 0) and np.all(space.high <= 1))


def input_space(space: gym.Space) -> gym.Space:
    """Return the input space of a network for observations.

    Images of bytes become floats in [0, 1], channels last: their axis is the first or the last, whichever is shorter.
    Discrete numbers become one vector of one-hots.
    """
    if is_discrete(space):
        check_size(space)
        return gym.spaces.Box(0.0, 1.0, (gym.spaces.flatdim(space),), np.float32)
    if not is_byte_image(space):
        return space
    first, *middle, last = space.shape
    shape = (*middle, last, first) if first < last else space.shape
    return gym.spaces.Box(0.0, 1.0, shape, np.float32)


def check_actions(action_space: gym.Space) -> None:
    """Check that a Q-network can choose among the actions.

    Raises:
        ValueError: it cannot; the message has the remedy.
    """
    if not isinstance(action_space, gym.spaces.Discrete) or action_space.start != 0:
        raise ValueError(
            f"A Q-network needs discrete actions 0 to A − 1, but this environment's action space is {action_space}. "
            "Wrap the environment."
        )


def same_space(one: gym.Space, other: gym.Space) -> bool:
    """Return whether two spaces have equal kind and shape. Bounds and float types do not matter to a network."""
    if type(one) is not type(other):
        return False
    if isinstance(one, gym.spaces.Dict):
        return one.keys() == other.keys() and all(same_space(one[key], other[key]) for key in one)
    if isinstance(one, gym.spaces.Tuple):
        return len(one) == len(other) and all(map(same_space, one, other))
    if not np.array_equal(getattr(one, "start", 0), getattr(other, "start", 0)):
        return False
    if isinstance(one, gym.spaces.MultiDiscrete):
        return np.array_equal(one.nvec, other.nvec)
    return one.shape == other.shape and getattr(one, "n", None) == getattr(other, "n", None)


def brief(space: gym.Space) -> str:
    """Return a short text of a space, without the bounds of a Box."""
    return f"Box{space.shape}" if isinstance(space, gym.spaces.Box) else str(space)


def check_size(space: gym.Space) -> None:
    """Check that observations of a space fit into memory, also as a vector with discrete parts as one-hot.

    Raises:
        ValueError: they do not.
    """
    if (size := _num_inputs(space)) > limits.MAX_INPUTS:
        raise ValueError(f"a space of {size:.6g} numbers, expected at most {limits.MAX_INPUTS}")


def _num_inputs(space: gym.Space) -> int:
    """Return `gym.spaces.flatdim()` without its overflow at 64 bits."""
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
