"""The sizes of students that are tried, from linear up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from rllib_kd.networks.mixed_space import has_images
from rllib_kd.networks.trees.shape import TREE, TreeShape
from rllib_kd.observations.spaces import input_space
from rllib_kd.students.sizes import PRESETS, activation_for
from rllib_kd.teachers.base import Teacher

#: Hidden layers of students of vectors. Plain MLPs of one depth and activation learn side by side, padded to one width.
_TINY = ((), (2,), (4,), (2, 2), (4, 4), (8,))
_SMALL = ((11,), (16,), (23,), (32,), (45,), (64,))  # each is 1.4 times as wide as the one before
_TREES = (4, 8, 16, 32, 64)  # leaves
#: Shares of an image teacher's parameters, and the presets where its network cannot be scaled.
_COMPRESSIONS = (0.01, 0.03, 0.1, 0.3)
_PRESETS = ("rusu-net3", "rusu-net2", "rusu-net1")
#: Copies of each size. Students with convolutions learn one after the other, so that copies would multiply the time.
_COPIES, _COPIES_FOR_IMAGES = 8, 1


class Size(NamedTuple):
    """A size of student.

    Args:
        name: ID of its module.
        label: the size in words.
        shape: as a value of `.distillation(students=...)`.
    """

    name: str
    label: str
    shape: str | Mapping[str, Any]


def default_sizes(teacher: Teacher, observation_space: gym.Space, *, minimize: str = "parameters") -> list[Size]:
    """Return the sizes to try, smallest first; those with as many parameters as the teacher are left out.

    Args:
        teacher: the teacher.
        observation_space: of the environment.
        minimize: as in `Shrink`. By "int8_bytes" all have relu, since tanh has a table of 514 bytes.

    Raises:
        ValueError: no size is smaller than the teacher.
    """
    inputs = input_space(observation_space)
    num_actions = int(teacher.action_space.n)
    if has_images(inputs):
        return _image_sizes(teacher)
    num_inputs = int(np.prod(inputs.shape or ()))
    by_parameters = sorted((*_TINY, *_SMALL), key=lambda hidden: num_parameters(num_inputs, hidden, num_actions))
    sizes = [
        mlp(hidden, activation_for(hidden, minimize))
        for hidden in by_parameters
        if not num_parameters(num_inputs, hidden, num_actions) >= teacher.num_parameters  # NaN if it is not known
    ]
    if not sizes:
        raise ValueError(
            f"The teacher '{teacher.source}' has {teacher.num_parameters:g} parameters, and no smaller student is "
            f"known for {num_inputs} inputs and {num_actions} actions. Choose a larger teacher."
        )
    return sizes


def tree_sizes(teacher: Teacher, observation_space: gym.Space) -> list[Size]:
    """Return the trees to try, smallest first; those that store as many numbers as the teacher are left out.

    Args:
        teacher: the teacher.
        observation_space: of the environment.

    Raises:
        ValueError: observations are no vectors.
    """
    num_actions = int(teacher.action_space.n)
    TreeShape().check_fits(input_space(observation_space))
    return [
        Size(f"tree-{leaves}", f"tree of {leaves} leaves", {TREE: {"max_leaf_nodes": leaves}})
        for leaves in _TREES
        if not 4 * (leaves - 1) + leaves * num_actions >= teacher.num_parameters  # NaN if it is not known
    ]


def default_restarts(observation_space: gym.Space) -> int:
    """Return how many copies of each size are trained."""
    return _COPIES_FOR_IMAGES if has_images(input_space(observation_space)) else _COPIES


def mlp(hidden: Sequence[int], activation: str | None = None) -> Size:
    """Return a plain MLP with these hidden layers; none is a linear student. None: it has `activation_for()` them."""
    if not hidden:
        return Size("linear", "linear", dict(PRESETS["linear"]))
    name, label = "units-" + "x".join(map(str, hidden)), " × ".join(map(str, hidden)) + " units"
    activation = activation or activation_for(hidden)
    layers = {"fcnet_hiddens": list(hidden), "fcnet_activation": activation, "head_fcnet_hiddens": []}
    return Size(name, label, layers)


def num_parameters(num_inputs: int, hidden: Sequence[int], num_actions: int) -> int:
    """Return the number of weights and biases of an MLP."""
    widths = (num_inputs, *hidden, num_actions)
    return sum((before + 1) * after for before, after in pairwise(widths))


def _image_sizes(teacher: Teacher) -> list[Size]:
    if teacher.members[0].model_config is None:
        return [Size(name, name, name) for name in _PRESETS]
    return [
        Size(f"share-{share:g}".replace(".", "-"), f"{100 * share:g} % of teacher", {"compression": share})
        for share in _COMPRESSIONS
    ]
