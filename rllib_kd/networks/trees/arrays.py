"""A decision tree as arrays, checked before it acts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Tree:
    """A binary tree of I inner nodes and I + 1 leaves.

    Nodes are numbered from the root, 0: first the inner nodes, each after the one that leads to it, then the leaves,
    from I on. At an inner node, a state goes left if its feature is at most the threshold, and otherwise right.

    Args:
        feature: index of the feature that each inner node compares, `[I]`.
        threshold: `[I]`, in units of the feature.
        left: number of the node to the left, `[I]`, larger than the node's own.
        right: the same to the right.
        values: values of the actions at each leaf, `[I + 1, A]`.
        num_features: how many features there are.

    Raises:
        ValueError: these arrays are no tree; the message has what is wrong, without a subject.
    """

    def __init__(
        self,
        feature: np.ndarray,
        threshold: np.ndarray,
        left: np.ndarray,
        right: np.ndarray,
        values: np.ndarray,
        *,
        num_features: int,
    ):
        self.feature, self.left, self.right = (np.array(array, np.int64) for array in (feature, left, right))
        for whole, given in zip((self.feature, self.left, self.right), (feature, left, right), strict=True):
            if not np.array_equal(whole, given):
                raise ValueError("a feature, or the number of a node, is no integer")
        self.threshold, self.values = (np.array(array, np.float32) for array in (threshold, values))
        self.num_features = num_features
        self._check()
        self.depth = int(self.depths().max())  # the most comparisons that a state passes

    @classmethod
    def of_leaf(cls, values: np.ndarray, *, num_features: int) -> Tree:
        """Return a tree of one leaf, with these values of the actions `[A]`."""
        return cls([], [], [], [], np.reshape(values, (1, -1)), num_features=num_features)  # type: ignore[arg-type]

    @classmethod
    def full(cls, num_leaves: int, num_actions: int, *, num_features: int) -> Tree:
        """Return a tree of so many leaves that is as flat as possible, to measure what one of this size costs."""
        inner = np.arange(num_leaves - 1)
        values = np.zeros((num_leaves, num_actions))
        return cls(inner * 0, inner * 0.0, 2 * inner + 1, 2 * inner + 2, values, num_features=num_features)

    @property
    def num_inner(self) -> int:
        """Return the number of inner nodes, I."""
        return len(self.feature)

    @property
    def num_leaves(self) -> int:
        """Return the number of leaves, I + 1."""
        return len(self.values)

    @property
    def num_parameters(self) -> int:
        """Return how many numbers must be stored: four of each inner node, and the values of each leaf."""
        return 4 * self.num_inner + self.values.size

    @property
    def actions(self) -> np.ndarray:
        """Return the action of each leaf, `[I + 1]`: of equal values the first."""
        return self.values.argmax(-1)

    def leaves(self, features: np.ndarray) -> np.ndarray:
        """Return the leaf, from 0, that each row of features `[B, F]` reaches: `[B]`."""
        forest = Forest([self])
        return forest.leaves(features[:, forest.used])

    def depths(self) -> np.ndarray:
        """Return how many comparisons lead to each node, `[2 I + 1]`."""
        depths = np.zeros(self.num_inner + self.num_leaves, np.int64)
        for node in range(self.num_inner):  # children come later
            depths[[self.left[node], self.right[node]]] = depths[node] + 1
        return depths

    def _check(self) -> None:
        num_inner, num_nodes = len(self.feature), len(self.feature) + len(self.values)
        lengths = [len(array) for array in (self.threshold, self.left, self.right)]
        if lengths != [num_inner] * 3 or self.values.ndim != 2 or len(self.values) != num_inner + 1:
            raise ValueError(
                f"{num_inner} features, {lengths[0]} thresholds, {lengths[1]} and {lengths[2]} children and "
                f"{len(self.values)} leaves; expected n, n, n, n and n + 1"
            )
        if not (np.isfinite(self.threshold).all() and np.isfinite(self.values).all()):
            raise ValueError("a threshold, or a value of an action, is NaN or infinite")
        if ((self.feature < 0) | (self.feature >= self.num_features)).any():
            raise ValueError(f"a node compares a feature outside of 0, ..., {self.num_features - 1}")
        children = np.concatenate([self.left, self.right])
        if ((children < 0) | (children >= num_nodes)).any():
            raise ValueError(f"a node leads to one outside of 0, ..., {num_nodes - 1}")
        if (children <= np.tile(np.arange(num_inner), 2)).any():
            raise ValueError("a node leads to itself or to an earlier one: a cycle")
        if len(np.unique(children)) != len(children):  # so that each but the root is led to, by one node
            raise ValueError("two nodes lead to the same one")


class Forest:
    """Several trees that act side by side: a pass through all of them costs hardly more than a pass through one.

    Args:
        trees: trees of the same features and actions, at least one.
    """

    def __init__(self, trees: Sequence[Tree]):
        features, thresholds, children, leaves, values = [], [], [], [], []
        roots, first, first_leaf = [], 0, 0
        for tree in trees:
            num_nodes = tree.num_inner + tree.num_leaves
            own = np.arange(
                tree.num_inner, num_nodes
            )  # leaves lead to themselves, so that all rows descend equally far
            sides = [np.concatenate([side, own]) for side in (tree.left, tree.right)]
            features.append(np.concatenate([tree.feature, np.zeros_like(own)]))
            thresholds.append(np.concatenate([tree.threshold, np.zeros(len(own), np.float32)]))
            children.append(np.stack(sides, axis=1) + first)
            leaves.append(np.arange(num_nodes) - tree.num_inner + first_leaf)
            values.append(tree.values)
            roots.append(first)
            first, first_leaf = first + num_nodes, first_leaf + tree.num_leaves
        self._used, self._feature = np.unique(np.concatenate(features), return_inverse=True)
        self._threshold, self._children = np.concatenate(thresholds), np.concatenate(children).ravel()
        self._leaf, self._values = np.concatenate(leaves), np.concatenate(values)
        self._roots = np.array(roots)
        self._depth = max(tree.depth for tree in trees)

    @property
    def used(self) -> np.ndarray:
        """Return the indices of the features that are compared, in rising order."""
        return self._used

    def q_values(self, used: np.ndarray, acting: np.ndarray | None = None) -> np.ndarray:
        """Return the values of the actions, float32 `[B, A]`, for features as `leaves()` takes them."""
        return self._values[self.leaves(used, acting)]

    def leaves(self, used: np.ndarray, acting: np.ndarray | None = None) -> np.ndarray:
        """Return the leaf that each row reaches, counted over all trees: `[B]`.

        Args:
            used: the features that are compared, as `used` lists them, `[B, U]`.
            acting: index of the tree of each row, `[B]`; None: the first.
        """
        rows = np.arange(len(used))
        nodes = np.zeros(len(used), np.int64) if acting is None else self._roots[acting]
        for _ in range(self._depth):
            is_left = used[rows, self._feature[nodes]] <= self._threshold[nodes]
            nodes = self._children[2 * nodes + 1 - is_left]
        return self._leaf[nodes]


def rounded_down(threshold: np.ndarray) -> np.ndarray:
    """Return the largest 32-bit floats that are not above these 64-bit ones.

    A 32-bit number is at most a threshold exactly if it is at most the rounded one.
    """
    threshold = np.asarray(threshold, np.float64)
    nearest = threshold.astype(np.float32)
    return np.where(nearest > threshold, np.nextafter(nearest, np.float32(-np.inf)), nearest).astype(np.float32)
