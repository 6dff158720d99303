"""Make a grown tree smaller and better by what its actions cost: pruning, and node by node a better test.

Tests are found by impurity, which is only related to the regret. Tree alternating optimization (Carreira-Perpiñán
and Tavallali 2018) then takes one node after the other, with all others fixed, and finds the test with the least total
regret: a state costs what the leaf costs that it reaches to the left, or to the right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rllib_kd.networks.trees.arrays import Tree
from rllib_kd.students.trees.bins import Bins

#: Rounds over all nodes. Most of the gain comes from the first two.
_ROUNDS = 3
#: States by which a better test is sought, of those whose cost depends on it. All states then check that it is better.
_MAX_SEARCHED = 4_000
#: The same for a further test in place of a leaf.
_MAX_SEARCHED_AT_LEAF = 1_500
#: Of a tree with more leaves too many than this, a share of them is pruned at once.
_EXCESS_AT_ONCE = 16


@dataclass
class Structure:
    """The tests of a tree, without values: arrays by node, in which children come after their parents.

    Args:
        feature: `[M]`; −1 at a leaf.
        threshold: `[M]`, float32.
        left: `[M]`.
        right: `[M]`.
    """

    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray

    @classmethod
    def of(cls, feature: np.ndarray, threshold: np.ndarray, left: np.ndarray, right: np.ndarray) -> Structure:
        """Return the structure of any arrays, numbered anew level by level: the inner nodes, then the leaves."""
        inner: list[int] = []
        leaves: list[int] = []
        level = [0]
        while level:
            inner += [node for node in level if feature[node] >= 0]
            leaves += [node for node in level if feature[node] < 0]
            level = [child for node in level if feature[node] >= 0 for child in (int(left[node]), int(right[node]))]
        order = [*inner, *leaves]
        place = {node: number for number, node in enumerate(order)}
        own = [[place[int(side[node])] for node in inner] + [0] * len(leaves) for side in (left, right)]
        chosen = np.array(order)
        return cls(
            np.asarray(feature)[chosen].astype(np.int64),
            np.asarray(threshold)[chosen].astype(np.float32),
            *(np.array(side, np.int64) for side in own),
        )

    @property
    def num_inner(self) -> int:
        """Return the number of inner nodes."""
        return int((self.feature >= 0).sum())

    @property
    def num_leaves(self) -> int:
        """Return the number of leaves."""
        return self.num_inner + 1

    def with_features(self, indices: np.ndarray) -> Structure:
        """Return the same tests of features that have other indices: `indices[i]` instead of i."""
        feature = np.where(self.feature >= 0, indices[self.feature], -1)
        return Structure(feature, self.threshold, self.left, self.right)

    def tree(self, values: np.ndarray, num_features: int) -> Tree:
        """Return the tree with these values of its leaves `[L, A]`."""
        n = self.num_inner
        arrays = self.feature[:n], self.threshold[:n], self.left[:n], self.right[:n]
        return Tree(*arrays, values, num_features=num_features)

    def leaves(self, features: np.ndarray) -> np.ndarray:
        """Return the leaf, from 0, that each row of features `[N, F]` reaches: `[N]`."""
        return self.tree(np.zeros((self.num_leaves, 1)), features.shape[1]).leaves(features)

    def rows(self, features: np.ndarray) -> list[np.ndarray]:
        """Return the rows of features `[N, F]` that pass each node, in rising order."""
        rows: list[np.ndarray] = [np.zeros(0, np.int64)] * (self.num_inner + self.num_leaves)
        rows[0] = np.arange(len(features))
        for node in range(self.num_inner):
            own = rows[node]
            is_left = features[own, self.feature[node]] <= self.threshold[node]
            rows[self.left[node]], rows[self.right[node]] = own[is_left], own[~is_left]
        return rows


def refined(structure: Structure, bins: Bins, costs: np.ndarray, max_leaf_nodes: int) -> Structure:
    """Return a tree of at most so many leaves, whose tests cost less regret.

    Args:
        structure: the grown tree.
        bins: the features of the states, in bins.
        costs: regret of each action `[N, A]`.
        max_leaf_nodes: the most leaves.
    """
    structure = _improved(pruned(structure, bins.features, costs, max_leaf_nodes), bins, costs)
    structure = pruned(structure, bins.features, costs, max_leaf_nodes)
    if structure.num_leaves < max_leaf_nodes:  # of leaves that had one action, one has been left
        structure = _improved(filled(structure, bins, costs, max_leaf_nodes), bins, costs)
        structure = pruned(structure, bins.features, costs, max_leaf_nodes)
    return structure


def _improved(structure: Structure, bins: Bins, costs: np.ndarray) -> Structure:
    for _ in range(_ROUNDS):
        if not _improve(structure, bins, costs):
            break
    return structure


def filled(structure: Structure, bins: Bins, costs: np.ndarray, max_leaf_nodes: int) -> Structure:
    """Return the tree with further tests in place of those leaves where they save most, up to so many leaves."""
    features = bins.features
    rows = structure.rows(features)
    feature, threshold = structure.feature.tolist(), structure.threshold.tolist()
    left, right = structure.left.tolist(), structure.right.tolist()
    found = {node: _test_at_leaf(bins, costs, rows[node]) for node in range(structure.num_inner, len(rows))}
    for _ in range(max_leaf_nodes - structure.num_leaves):
        node = max(found, key=lambda node: found[node].saved)
        test = found.pop(node)
        if test.saved <= 0:
            break
        feature[node], threshold[node] = test.feature, test.threshold
        left[node], right[node] = len(feature), len(feature) + 1
        feature, threshold = [*feature, -1, -1], [*threshold, 0.0, 0.0]
        left, right = [*left, 0, 0], [*right, 0, 0]
        own = rows[node]
        is_left = features[own, test.feature] <= np.float32(test.threshold)
        for child, reached in ((left[node], own[is_left]), (right[node], own[~is_left])):
            rows.append(reached)
            found[child] = _test_at_leaf(bins, costs, reached)
    arrays = (np.array(feature), np.array(threshold, np.float32), np.array(left), np.array(right))
    return Structure.of(*arrays)


class _LeafTest(NamedTuple):
    saved: float  # regret; −inf if there is no test
    feature: int = 0
    threshold: float = 0.0


def _test_at_leaf(bins: Bins, costs: np.ndarray, rows: np.ndarray) -> _LeafTest:
    """Return the test that saves most if the leaf's action stays on one side, and another is taken on the other."""
    best = _LeafTest(-np.inf)
    if len(rows) < 2 or costs[rows].sum(0).min() <= 0:
        return best
    action = _cheapest(costs, rows)
    searched = rows[:: max(1, -(-len(rows) // _MAX_SEARCHED_AT_LEAF))]
    for other in range(costs.shape[1]):
        for sign in (1.0, -1.0) if other != action else ():  # the leaf's action to the left, or to the right
            found = bins.best_test(searched, sign * (costs[searched, other] - costs[searched, action]))
            if found is None:
                continue
            is_left = bins.features[rows, found[0]] <= found[1]
            goes_over = ~is_left if sign > 0 else is_left
            saved = float((costs[rows, action] - costs[rows, other])[goes_over].sum())
            if saved > best.saved:
                best = _LeafTest(saved, found[0], float(found[1]))
    return best


def pruned(structure: Structure, features: np.ndarray, costs: np.ndarray, max_leaf_nodes: int) -> Structure:
    """Return the tree without the tests that save the least regret for each leaf that they need.

    Those that save none are left out in any case: of leaves with one action, and those that no state reaches.
    """
    n, rows = structure.num_inner, structure.rows(features)
    feature, threshold = structure.feature.copy(), structure.threshold.copy()
    left, right = structure.left.copy(), structure.right.copy()
    as_leaf = np.array([costs[own].sum(0).min(initial=np.inf) if len(own) else 0.0 for own in rows])
    nothing = 1e-12 * max(float(costs.sum()), 1e-30)
    while True:
        # Bottom up: what the tree below each node costs, and how many leaves it has.
        below, leaves = as_leaf.copy(), np.ones(len(rows), np.int64)
        for node in range(n - 1, -1, -1):
            if feature[node] >= 0:
                below[node] = below[left[node]] + below[right[node]]
                leaves[node] = leaves[left[node]] + leaves[right[node]]
        inner = np.array(_reachable(feature, left, right), np.int64)
        saved = (as_leaf[inner] - below[inner]) / (leaves[inner] - 1)
        left_out = _to_leave_out(inner, saved, leaves, int(leaves[0]) - max_leaf_nodes, nothing)
        if not len(left_out):
            break
        feature[left_out] = -1
    for node in range(n - 1, -1, -1):  # a test that all states pass to one side is no test
        for here, there in ((left, right), (right, left)):
            if feature[node] >= 0 and not len(rows[here[node]]):
                other = there[node]
                feature[node], threshold[node] = feature[other], threshold[other]
                left[node], right[node] = left[other], right[other]
                rows[node] = rows[other]
    return Structure.of(feature, threshold, left, right)


def _to_leave_out(inner: np.ndarray, saved: np.ndarray, leaves: np.ndarray, excess: int, nothing: float) -> np.ndarray:
    """Return the inner nodes that become leaves next: those that save nothing, or the weakest.

    Args:
        inner: inner nodes.
        saved: what each saves for each leaf that it needs.
        leaves: number of leaves below each node.
        excess: leaves that are too many.
        nothing: regret that counts as none.
    """
    is_last = leaves[inner] == 2  # both children are leaves, so that several can be left out at once
    if (useless := is_last & (saved <= nothing)).any():
        return inner[useless]
    if excess > _EXCESS_AT_ONCE:
        weakest = np.flatnonzero(is_last)[np.argsort(saved[is_last], kind="stable")]
        return inner[weakest[: excess // _EXCESS_AT_ONCE]]
    return inner[[int(saved.argmin())]] if excess > 0 else inner[:0]


def _reachable(feature: np.ndarray, left: np.ndarray, right: np.ndarray) -> list[int]:
    """Return the inner nodes that can be reached from the root."""
    found, open_nodes = [], [0]
    while open_nodes:
        node = open_nodes.pop()
        if feature[node] >= 0:
            found.append(node)
            open_nodes += [int(left[node]), int(right[node])]
    return sorted(found)


def _improve(structure: Structure, bins: Bins, costs: np.ndarray) -> bool:
    """Find a better test for each node, from the last to the root; return whether one was found."""
    features = bins.features
    rows = structure.rows(features)
    n = structure.num_inner
    has_improved = False
    actions = np.array([0] * n + [_cheapest(costs, own) for own in rows[n:]])
    paid = np.zeros(len(features))  # what each row costs where it comes to now
    for leaf, own in enumerate(rows[n:], start=n):
        paid[own] = costs[own, actions[leaf]]
    for node in range(n - 1, -1, -1):
        own = rows[node]
        if not len(own):
            continue
        is_left = features[own, structure.feature[node]] <= structure.threshold[node]
        left, right = paid[own], paid[own]
        left[~is_left] = _costs_below(structure, int(structure.left[node]), features, costs, own[~is_left], actions)
        right[is_left] = _costs_below(structure, int(structure.right[node]), features, costs, own[is_left], actions)
        gains = right - left
        matters = np.flatnonzero(gains)
        searched = matters[:: max(1, -(-len(matters) // _MAX_SEARCHED))]
        found = bins.best_test(own[searched], gains[searched])
        if found is None:
            continue
        goes_left = features[own, found[0]] <= found[1]
        now, new = float(gains[is_left].sum()), float(gains[goes_left].sum())
        if new > now + 1e-9 * max(1.0, abs(now)):
            structure.feature[node], structure.threshold[node] = found
            paid[own] = np.where(goes_left, left, right)
            has_improved = True
    return has_improved


def _cheapest(costs: np.ndarray, rows: np.ndarray) -> int:
    """Return the action that costs least in these rows."""
    return int(costs[rows].sum(0).argmin())


def _costs_below(
    structure: Structure,
    root: int,
    features: np.ndarray,
    costs: np.ndarray,
    rows: np.ndarray,
    actions: np.ndarray,
) -> np.ndarray:
    """Return what each of these rows would cost if it came to a node."""
    nodes = np.full(len(rows), root)
    n = structure.num_inner
    while (is_inner := nodes < n).any():
        here = nodes[is_inner]
        is_left = features[rows[is_inner], structure.feature[here]] <= structure.threshold[here]
        nodes[is_inner] = np.where(is_left, structure.left[here], structure.right[here])
    return costs[rows, actions[nodes]]
