"""Split a tree best first, as CART does (Breiman et al. 1984), on features in bins: tests are found by adding up."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np

from rllib_kd.students.trees.bins import Bins
from rllib_kd.students.trees.refining import Structure

#: Weights are whole numbers with about this sum. So nothing is rounded, also where float64 adds, and the cumulative
#: sums of integers take a fifth of the time.
_TOTAL = 2.0**50


class _Test(NamedTuple):
    """The best test of a node: the feature, and its last bin to the left."""

    gain: float
    feature: int = 0
    number: int = 0


_NO_TEST = _Test(-1.0)


class _Node(NamedTuple):
    rows: np.ndarray
    test: _Test
    sums: np.ndarray | None  # None: they are added up anew


class Splitter:
    """Splits labelled states where that lowers their impurity most, by the weight of the states.

    The sums of a node come from those of its parent and of the smaller child (as in LightGBM, Ke et al. 2017).

    Args:
        bins: the features of N states.
        targets: `[N]`, integers from 0: classes, whose Gini impurity counts. Or `[N, A]`, ≥ 0: numbers, whose variance
            does.
        weights: `[N]`, above 0.
    """

    def __init__(self, bins: Bins, targets: np.ndarray, weights: np.ndarray):
        self._bins = bins
        self._targets = targets.reshape(len(targets), -1)
        self._is_class = targets.ndim == 1
        self._num_outputs = int(targets.max()) + 1 if self._is_class else targets.shape[1]
        unit = weights.sum() / _TOTAL
        self._weights = np.maximum(np.rint(weights / unit), 1.0)
        if self._is_class:
            self._places = bins.places + bins.thresholds.size * self._targets
        else:
            unit *= max(float(targets.max()), 1e-30)
            self._weighted = np.rint(targets * (weights / unit)[:, None])

    def split(self, max_leaf_nodes: int) -> tuple[Structure, np.ndarray]:
        """Return the tests of a tree of at most so many leaves, and what each feature's tests gain in all, `[F]`."""
        rows = np.arange(len(self._weights))
        root = self._node(rows, self._sums(rows))
        queue = [(-root.test.gain, 0, root)]
        feature, threshold, left, right = [-1], [0.0], [0], [0]
        gains = np.zeros(len(self._bins.thresholds))
        while len(feature) < 2 * max_leaf_nodes - 1:
            _, place, node = heappop(queue)
            test = node.test
            if test is _NO_TEST:
                break
            gains[test.feature] += test.gain
            feature[place], threshold[place] = test.feature, self._bins.thresholds[test.feature, test.number]
            left[place], right[place] = len(feature), len(feature) + 1
            for child in self._children(node):
                heappush(queue, (-child.test.gain, len(feature), child))
                feature.append(-1)
                threshold.append(0.0)
                left.append(0)
                right.append(0)
        arrays = np.array(feature), np.array(threshold, np.float32), np.array(left), np.array(right)
        return Structure.of(*arrays), gains

    def _children(self, node: _Node) -> list[_Node]:
        is_left = self._bins.numbers[node.rows, node.test.feature] <= node.test.number
        sides = [node.rows[is_left], node.rows[~is_left]]
        smaller = int(len(sides[1]) < len(sides[0]))
        own = self._sums(sides[smaller])
        sums = [own, (self._sums(node.rows) if node.sums is None else node.sums) - own]
        return [self._node(rows, sums[side != smaller]) for side, rows in enumerate(sides)]

    def _sums(self, rows: np.ndarray) -> np.ndarray:
        """Return the weighted targets of states by output, feature and bin, and then their weights, `[A + 1, F, B]`."""
        shape, size = self._bins.thresholds.shape, self._bins.thresholds.size

        def added(places: np.ndarray, weights: np.ndarray, size: int) -> np.ndarray:
            return np.bincount(places.ravel(), np.repeat(weights, shape[0]), size).astype(np.int64)

        if self._is_class:
            sums = added(self._places[rows], self._weights[rows], self._num_outputs * size).reshape(-1, *shape)
            return np.concatenate([sums, sums.sum(0, keepdims=True)])
        columns = [*self._weighted[rows].T, self._weights[rows]]
        places = self._bins.places[rows]
        return np.stack([added(places, column, size).reshape(shape) for column in columns])

    def _node(self, rows: np.ndarray, sums: np.ndarray) -> _Node:
        # To add up the rows anew costs less than to keep the sums, if there are fewer rows than sums of each feature.
        kept = sums if len(rows) * len(self._bins.thresholds) > sums.size else None
        return _Node(rows, self._best_test(rows, sums), kept)

    def _best_test(self, rows: np.ndarray, sums: np.ndarray) -> _Test:
        if not (self._targets[rows] != self._targets[rows[0]]).any():
            return _NO_TEST
        left = sums.cumsum(axis=2).astype(np.float64)
        total = left[:, 0, -1]
        right = total[:, None, None] - left
        is_test = (left[-1] > 0) & (right[-1] > 0)
        if not is_test.any():
            return _NO_TEST
        with np.errstate(divide="ignore", invalid="ignore"):
            gains = sum(np.einsum("afb,afb->fb", side[:-1], side[:-1]) / side[-1] for side in (left, right))
        gains[~is_test] = -np.inf
        feature, number = divmod(int(gains.argmax()), gains.shape[1])
        gain = gains[feature, number] - np.square(total[:-1]).sum() / total[-1]
        return _Test(max(float(gain), 0.0), feature, number)
