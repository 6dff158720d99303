"""Grow a tree on labelled states: split, refine, and let each leaf take the action that costs least there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rllib_kd.networks.trees.arrays import Tree
from rllib_kd.networks.trees.features import Features
from rllib_kd.students.trees.bins import MAX_BINS, Bins
from rllib_kd.students.trees.refining import Structure, refined
from rllib_kd.students.trees.splitting import Splitter

#: Of more features, those that a first tree uses most are kept, and the others are not tried.
MAX_FEATURES = 24
#: Numbers that the first tree is grown on, states times features; of very many features, so many states.
_SCREENED_NUMBERS, _LEAST_SCREENED_STATES = 1_080_000, 2_000
#: The first tree is coarse: finer bins than of so many states show in part what is chance.
_SCREENED_STATES_PER_BIN, _LEAST_SCREENED_BINS, _SCREENED_LEAVES = 60, 16, 64

#: Regrets above this quantile of those above 0 count as that one: a few states, of which a failure is certain, would
#: take all leaves.
_CLIP_QUANTILE = 0.95
#: A larger tree is grown first, by so many times the leaves, and pruned by regret.
_LARGER = 2
_LARGEST = 1e30  # of a feature: products may be infinite, and thresholds lie between two numbers


def regrets(labels: np.ndarray) -> np.ndarray:
    """Return what each action costs, in units of the labels: the best label of a state − its own, `[N, A]`.

    Args:
        labels: the teacher's outputs `[N, A]`; −inf marks illegal actions, which cost as much as the worst legal one.
    """
    labels = np.asarray(labels, np.float64)
    worst = np.where(np.isneginf(labels), np.inf, labels).min(-1, keepdims=True)
    return labels.max(-1, keepdims=True) - np.where(np.isneginf(labels), worst, labels)


def clipped(costs: np.ndarray) -> np.ndarray:
    """Return regrets, of which the largest are clipped."""
    positive = costs[costs > 0]
    return costs if not len(positive) else np.minimum(costs, np.quantile(positive, _CLIP_QUANTILE))


class Grower:
    """Grows trees on the same labelled states. What several of them need is found once, such as features in bins.

    Args:
        obs: float32 `[N, inputs]`, N ≥ 1.
        labels: the teacher's outputs `[N, A]`; −inf marks illegal actions.
        seed: seed of the states by which, of many features, the most used are found.
    """

    def __init__(self, obs: np.ndarray, labels: np.ndarray, *, seed: int):
        self._obs, self._labels, self._seed = obs, labels, seed
        self._costs = _without_unit(clipped(regrets(labels)))
        self._added: tuple[str, ...] = ()  # to the entries: what was found is of these features
        self._found: dict[tuple[Any, ...], Any] = {}

    def grow(
        self, *, features: Features | None = None, max_leaf_nodes: int, weighting: str, refine: bool = True
    ) -> Tree:
        """Grow a tree.

        Args:
            features: what the tree may compare; None: the entries of the observations.
            max_leaf_nodes: the most leaves, ≥ 2.
            weighting: how states weigh while the tree is split: "gap", by the teacher's best minus worst output;
                "uniform"; or "regret", by which the costs of all actions are split, not the best action alone.
            refine: whether a larger tree is grown, pruned, and refined by regret; otherwise its tests are those that
                lower the impurity most.

        Returns:
            The tree. Its values are the means of the labels at each leaf, with the action of the least regret first.
        """
        features = Features(self._obs.shape[1]) if features is None else features
        if features.added != self._added:  # what was found takes a hundred MiB and more
            self._added, self._found = features.added, {}
        num_grown = (_LARGER if refine else 1) * max_leaf_nodes
        kept = np.arange(len(features))
        if len(features) > MAX_FEATURES:
            leaves = min(num_grown, _SCREENED_LEAVES)
            kept = self._once(("most used", leaves, weighting), lambda: self._most_used(features, leaves, weighting))
        bins = self._once(("bins", kept.tobytes()), lambda: Bins(_finite(features.values(self._obs, kept))))
        structure, _ = _split(bins, self._costs, num_grown, weighting)
        if refine:
            structure = refined(structure, bins, self._costs, max_leaf_nodes)
        values = _leaf_values(structure.leaves(bins.features), structure.num_leaves, self._costs, self._labels)
        return structure.with_features(kept).tree(values, len(features))

    def _most_used(self, features: Features, num_leaves: int, weighting: str) -> np.ndarray:
        """Return the indices of the features that a tree on some of the states uses most."""
        rows, bins = self._once(("sample",), lambda: self._sample(features))
        _, gains = _split(bins, self._costs[rows], num_leaves, weighting)
        return np.sort(np.argsort(-gains, kind="stable")[:MAX_FEATURES])

    def _sample(self, features: Features) -> tuple[np.ndarray, Bins]:
        """Return some of the states, and their features in bins."""
        count = min(len(self._obs), max(_LEAST_SCREENED_STATES, _SCREENED_NUMBERS // len(features)))
        rows = np.random.default_rng(self._seed).choice(len(self._obs), count, replace=False)
        num_bins = min(MAX_BINS, max(_LEAST_SCREENED_BINS, count // _SCREENED_STATES_PER_BIN))
        return rows, Bins(_finite(features.values(self._obs[rows])), num_bins)

    def _once(self, key: tuple[Any, ...], find: Callable[[], Any]) -> Any:
        if key not in self._found:
            self._found[key] = find()
        return self._found[key]


def _without_unit(costs: np.ndarray) -> np.ndarray:
    """Return regrets of about 1 at most: the refinement takes very small ones for rounding errors."""
    return np.ldexp(costs, -np.frexp(costs.max())[1])  # by a power of two, which rounds nothing


def _finite(compared: np.ndarray) -> np.ndarray:
    return np.nan_to_num(compared, nan=0.0, posinf=_LARGEST, neginf=-_LARGEST)


def numbers_read(num_states: int, num_features: int) -> int:
    """Return how many numbers, states times features, are read to grow a tree: the time is about proportional.

    With the first tree, many features take as long as three times those that are kept.
    """
    return num_states * min(num_features, 3 * MAX_FEATURES)


def _split(bins: Bins, costs: np.ndarray, num_leaves: int, weighting: str) -> tuple[Structure, np.ndarray]:
    """Return the tests of a tree of so many leaves, and what the tests of each feature gain in all."""
    if weighting == "regret":
        return Splitter(bins, costs, np.ones(len(costs))).split(num_leaves)
    weights = costs.max(-1) if weighting == "gap" else np.ones(len(costs))
    weights = np.maximum(weights, 1e-6 * max(weights.max(), 1e-30))  # states without a choice weigh next to nothing
    return Splitter(bins, costs.argmin(-1), weights).split(num_leaves)


def _leaf_values(place: np.ndarray, num_leaves: int, costs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the mean label of each action at each leaf, `[L, A]`, float32, such that the cheapest action is first."""
    num_actions = costs.shape[1]
    counts = np.bincount(place, minlength=num_leaves)
    legal = np.isfinite(labels)
    values = np.empty((num_leaves, num_actions))
    totals = np.empty((num_leaves, num_actions))
    lowest = labels[legal].min()
    for action in range(num_actions):
        seen = np.bincount(place, weights=legal[:, action], minlength=num_leaves)
        sums = np.bincount(place, weights=np.where(legal[:, action], labels[:, action], 0.0), minlength=num_leaves)
        values[:, action] = np.where(seen > 0, sums / np.maximum(seen, 1), lowest)
        totals[:, action] = np.bincount(place, weights=costs[:, action], minlength=num_leaves)
    best = np.where(counts > 0, totals.argmin(-1), 0)
    values = values.astype(np.float32)
    rows = np.arange(num_leaves)
    highest = values.max(-1)
    is_best = values[rows, best] == highest
    is_first = values.argmax(-1) == best
    # Regrets are clipped, and means are not: where another action has the higher mean, the cheapest is put above it.
    values[rows, best] = np.where(is_best & is_first, highest, np.nextafter(highest, np.float32(np.inf)))
    return values
