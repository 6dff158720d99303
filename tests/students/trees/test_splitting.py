"""The tests of a tree are CART's: scikit-learn finds the same."""

import numpy as np
import pytest
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from rllib_kd.students.trees.bins import Bins
from rllib_kd.students.trees.splitting import Splitter


def impurity(leaves, targets, weights):
    """What the means of the leaves leave unexplained, by weight."""
    left = 0.0
    for leaf in np.unique(leaves):
        own, weight = targets[leaves == leaf], weights[leaves == leaf, None]
        left += float((weight * np.square(own - (weight * own).sum(0) / weight.sum())).sum())
    return left


@pytest.mark.parametrize("num_states", [60, 5_000])
@pytest.mark.parametrize("num_leaves", [2, 5, 40])
@pytest.mark.parametrize("is_class", [True, False])
def test_as_scikit_learns(num_states, num_leaves, is_class):
    rng = np.random.default_rng(num_leaves)
    x = rng.normal(size=(num_states, 6)).astype(np.float32)
    numbers = np.abs(x @ rng.normal(size=(6, 4)) + 0.3 * rng.normal(size=(num_states, 4)))
    weights = rng.exponential(size=num_states) if is_class else np.ones(num_states)
    bins = Bins(x, 32)
    given = numbers.argmax(-1) if is_class else numbers
    kind = DecisionTreeClassifier if is_class else DecisionTreeRegressor
    fitted = kind(max_leaf_nodes=num_leaves, random_state=0).fit(bins.numbers, given, sample_weight=weights)
    structure, gains = Splitter(bins, given, weights).split(num_leaves)
    targets = np.eye(4)[given] if is_class else numbers
    expected = impurity(fitted.apply(bins.numbers), targets, weights)
    assert impurity(structure.leaves(x), targets, weights) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    if num_states > 60:  # of few states, several tests gain the same
        assert structure.num_leaves == fitted.get_n_leaves()
        assert gains / gains.sum() == pytest.approx(fitted.feature_importances_, abs=1e-6)


@pytest.mark.parametrize("is_class", [True, False])
def test_two_tests_are_found_of_which_the_first_alone_gains_nothing(is_class):
    x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
    differs = (x[:, 0] != x[:, 1]).astype(int)
    structure, _ = Splitter(Bins(x), differs if is_class else np.eye(2)[differs], np.ones(4)).split(4)
    leaves = structure.leaves(x)
    assert len(set(leaves.tolist())) == structure.num_leaves == 4


@pytest.mark.parametrize("targets", [np.zeros(50, int), np.zeros((50, 2)), np.full((50, 2), 0.7)])
def test_what_does_not_differ_is_not_split(targets):
    x = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    structure, gains = Splitter(Bins(x), targets, np.full(50, 0.1)).split(8)
    assert structure.num_leaves == 1
    assert not gains.any()


def test_states_that_look_the_same_are_not_split():
    structure, _ = Splitter(Bins(np.ones((50, 2), np.float32)), np.arange(50) % 3, np.ones(50)).split(8)
    assert structure.num_leaves == 1


def test_weights_of_very_different_sizes_add_up_without_rounding():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3_000, 4)).astype(np.float32)
    actions = (x[:, 0] > 0).astype(int) + 2 * (x[:, 1] > 0.5)
    weights = np.where(rng.random(3_000) < 0.01, 1.0, 1e-6)
    structure, _ = Splitter(Bins(x), actions, weights).split(300)
    leaves = structure.leaves(x)
    assert len(np.unique(leaves)) == structure.num_leaves  # no test sends all states to one side
