"""A tree as a layer of PyTorch, and as a description in JSON and tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rllib_kd.networks.trees.arrays import Tree
from rllib_kd.networks.trees.features import Features
from rllib_kd.networks.trees.shape import MAX_LEAVES

#: By which number a layer knows an operation.
_CODES = {"": 0, "-": 1, "*": 2, "+": 3}


class TreeLayer(nn.Module):
    """From observations `[B, inputs]` to the values at the leaves that they reach, `[B, A]`.

    Args:
        first: entry that each inner node compares, ≥ 0.
        second: the other entry, of which the feature is a difference, sum or product.
        operation: "", "-", "+" or "*", of each inner node.
        tree: the tree; the features of its nodes are not read.
    """

    first: Tensor
    second: Tensor
    code: Tensor
    threshold: Tensor
    next: Tensor
    values: Tensor

    def __init__(self, first: Sequence[int], second: Sequence[int], operation: Sequence[str], tree: Tree):
        super().__init__()
        leaves = np.arange(tree.num_inner, tree.num_inner + tree.num_leaves)
        children = np.stack([np.concatenate([side, leaves]) for side in (tree.left, tree.right)], axis=1).ravel()
        arrays = {
            "first": np.array(first, np.int64),
            "second": np.array(second, np.int64),
            "code": np.array([_CODES[sign] for sign in operation], np.int64),
            "threshold": tree.threshold,
            "next": children,
            "values": tree.values,
        }
        for name, array in arrays.items():
            self.register_buffer(name, torch.tensor(array))  # on the default device, which may be without memory
        self.depth, self.num_parameters = tree.depth, tree.num_parameters

    def forward(self, obs: Tensor) -> Tensor:  # noqa: D102
        one, other = obs[:, self.first], obs[:, self.second]
        compared = torch.where(self.code == 2, one * other, one)
        compared = torch.where(self.code == 1, one - other, torch.where(self.code == 3, one + other, compared))
        is_right = nn.functional.pad(~(compared <= self.threshold), (0, len(self.values))).long()  # NaN goes right
        nodes = torch.zeros_like(obs[:, :1], dtype=torch.long)
        for _ in range(self.depth):
            nodes = self.next[2 * nodes + is_right.gather(1, nodes)]
        return self.values[nodes.squeeze(1) - len(self.threshold)]


def describe_tree(tree: Tree, features: Features, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Describe a tree; its thresholds and values are added to `tensors`."""
    compared = [features[index] for index in tree.feature]
    tensors |= {"tree.threshold": torch.tensor(tree.threshold), "tree.values": torch.tensor(tree.values)}
    return {
        "op": "tree",
        "first": [feature.first for feature in compared],
        "operation": [feature.operation for feature in compared],
        "second": [feature.second for feature in compared],
        "threshold": "tree.threshold",
        "left": tree.left.tolist(),
        "right": tree.right.tolist(),
        "values": "tree.values",
    }


def build_tree(layer: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TreeLayer:
    """Build the layer of a description.

    Raises:
        ValueError: it describes no tree.
    """
    threshold, values = tensors[layer["threshold"]], tensors[layer["values"]]
    if values.ndim != 2 or threshold.ndim != 1 or len(values) > MAX_LEAVES:
        raise ValueError(f"a tree with thresholds {list(threshold.shape)} and values {list(values.shape)}")
    lists = [layer[name] for name in ("first", "second", "left", "right")]
    if not all(isinstance(own, list) and all(type(number) is int for number in own) for own in lists):
        raise ValueError("a tree whose entries or children are not lists of integers")
    first, second, left, right = lists
    operation = layer["operation"]
    if not isinstance(operation, list) or not all(sign in _CODES for sign in operation):
        raise ValueError(f"a tree with the operations {str(operation)[:100]}; expected a list of '', '-', '+' and '*'")
    if not len(first) == len(second) == len(operation) == len(threshold) or min([0, *first, *second]) < 0:
        raise ValueError("a tree whose nodes lack an entry, an operation or a threshold")
    shapes_only = threshold.is_meta
    numbers = [np.zeros(own.shape) if shapes_only else own.numpy() for own in (threshold, values)]
    try:
        tree = Tree(np.zeros(len(first)), numbers[0], np.array(left), np.array(right), numbers[1], num_features=1)
    except ValueError as error:
        raise ValueError(f"a tree that is not valid: {error}") from error
    return TreeLayer(first, second, operation, tree)
