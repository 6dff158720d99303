"""Trees are grown, pruned and refined by what a wrong action costs."""

import numpy as np
import pytest

from rllib_kd.networks.trees.features import Features
from rllib_kd.networks.trees.shape import WEIGHTINGS
from rllib_kd.students.trees import growing
from rllib_kd.students.trees.bins import MAX_BINS, Bins
from rllib_kd.students.trees.growing import Grower, _split, clipped, regrets
from rllib_kd.students.trees.refining import Structure, filled, pruned, refined


def data(count=3_000, num_features=3, num_actions=3, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, num_features)).astype(np.float32)
    hidden = np.tanh(x @ rng.normal(size=(num_features, 8)))
    return x, hidden @ rng.normal(size=(8, num_actions))


def regret_of(tree, x, labels):
    chosen = tree.actions[tree.leaves(x)]
    return float((labels.max(-1) - labels[np.arange(len(x)), chosen]).mean())


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("num_leaves", [2, 8, 32])
def test_a_tree_has_few_leaves_and_little_regret(num_leaves, weighting):
    x, labels = data()
    tree = Grower(x, labels, seed=0).grow(max_leaf_nodes=num_leaves, weighting=weighting)
    assert 2 <= tree.num_leaves <= num_leaves
    assert len(np.unique(tree.leaves(x))) == tree.num_leaves  # each is reached
    best_constant = float((labels.max(-1, keepdims=True) - labels).mean(0).min())
    assert regret_of(tree, x, labels) < {2: 0.9, 8: 0.5, 32: 0.2}[num_leaves] * best_constant


def test_what_can_be_split_exactly_is():
    x = np.random.default_rng(0).uniform(-1, 1, size=(2_000, 4)).astype(np.float32)
    right = (x[:, 2] > 0.25) ^ (x[:, 0] > -0.5)
    labels = np.stack([right, ~right], axis=1).astype(float)
    tree = Grower(x, labels, seed=0).grow(max_leaf_nodes=4, weighting="gap")
    assert regret_of(tree, x, labels) < 0.01
    for name, above in (("differences", x[:, 1] > x[:, 3]), ("sums", x[:, 1] + x[:, 3] > 0.5)):
        features, labels = Features(4, (name,)), np.stack([above, ~above], axis=1).astype(float)
        tree = Grower(x, labels, seed=0).grow(features=features, max_leaf_nodes=2, weighting="gap")
        assert regret_of(tree, features.values(x), labels) == 0.0


def test_of_many_features_those_that_matter_are_kept(monkeypatch):
    monkeypatch.setattr(growing, "_LEAST_SCREENED_STATES", 500)
    monkeypatch.setattr(growing, "_SCREENED_NUMBERS", 0)
    x = np.random.default_rng(0).normal(size=(2_000, 60)).astype(np.float32)
    right = (x[:, 57] > 0.25) ^ (x[:, 3] > -0.5)
    labels = np.stack([right, ~right], axis=1).astype(float)
    for refine in (False, True):
        tree = Grower(x, labels, seed=0).grow(max_leaf_nodes=6, weighting="gap", refine=refine)
        assert {3, 57} <= set(tree.feature.tolist())
        assert regret_of(tree, x, labels) < 0.1


def test_the_same_seed_grows_the_same_tree(monkeypatch):
    monkeypatch.setattr(growing, "_LEAST_SCREENED_STATES", 100)
    monkeypatch.setattr(growing, "_SCREENED_NUMBERS", 0)
    x, labels = data(num_features=40)
    first, again, other = (Grower(x, labels, seed=seed).grow(max_leaf_nodes=8, weighting="gap") for seed in (0, 0, 1))
    assert np.array_equal(first.threshold, again.threshold)
    assert not np.array_equal(first.threshold, other.threshold)


def test_values_are_mean_labels_with_the_cheapest_action_first():
    x, labels = data()
    tree = Grower(x, labels, seed=0).grow(max_leaf_nodes=8, weighting="gap")
    place = tree.leaves(x)
    for leaf in range(tree.num_leaves):
        own = labels[place == leaf]
        assert tree.actions[leaf] == clipped(regrets(labels))[place == leaf].sum(0).argmin()
        others = np.arange(3) != tree.actions[leaf]
        assert tree.values[leaf, others] == pytest.approx(own.mean(0)[others], abs=1e-5)


def test_illegal_actions_are_never_taken_where_others_are_legal():
    x, labels = data()
    labels[x[:, 0] > 0, 2] = -np.inf
    tree = Grower(x, labels, seed=0).grow(max_leaf_nodes=16, weighting="gap")
    assert np.isfinite(tree.values).all()
    illegal = np.isneginf(labels[np.arange(len(x)), tree.actions[tree.leaves(x)]])
    assert illegal.mean() < 0.02


@pytest.mark.parametrize("labels", [np.zeros((50, 2)), np.tile([1.0, 0.0], (50, 1))])
def test_where_there_is_nothing_to_choose_a_tree_is_one_leaf(labels):
    x = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    tree = Grower(x, labels, seed=0).grow(max_leaf_nodes=8, weighting="gap")
    assert (tree.num_leaves, tree.actions.tolist()) == (1, [0])


def test_one_state_and_numbers_that_are_none_are_no_obstacle():
    assert (
        Grower(np.ones((1, 2), np.float32), np.array([[0.0, 1.0]]), seed=0)
        .grow(max_leaf_nodes=4, weighting="gap")
        .actions
        == 1
    )
    x, labels = data()
    x[::7, 0], x[::11, 1], x[::13, 2] = np.nan, np.inf, -np.inf
    tree = Grower(x, labels, seed=0).grow(max_leaf_nodes=16, weighting="regret")
    assert np.isfinite(tree.threshold).all()


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("refine", [False, True])
def test_units_of_return_make_no_difference(weighting, refine):
    x, labels = data(count=500)
    trees = [
        Grower(x, labels * 2.0**unit, seed=0).grow(max_leaf_nodes=8, weighting=weighting, refine=refine)
        for unit in (0, -40, 40)
    ]
    assert trees[0].num_leaves == 8
    for tree in trees[1:]:
        assert np.array_equal(tree.feature, trees[0].feature)
        assert np.array_equal(tree.threshold, trees[0].threshold)


def total(structure, x, costs):
    place = structure.leaves(x)
    return sum(costs[place == leaf].sum(0).min() for leaf in range(structure.num_leaves) if (place == leaf).any())


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.filterwarnings("error")
def test_entries_of_huge_numbers_warn_of_nothing(weighting):
    x, labels = data(count=500)
    x = x * np.float32([1e8, 1e-6, 1e30])
    features = Features(3, ("differences", "sums", "products"))
    assert Grower(x, labels, seed=0).grow(features=features, max_leaf_nodes=8, weighting=weighting).num_leaves > 2


def test_refining_lowers_the_regret_and_pruning_leaves_out_what_saves_least():
    x, labels = data(num_features=6)
    costs = regrets(labels)
    bins = Bins(x)
    grown = _split(bins, costs, 40, "uniform")[0]
    small = pruned(grown, x, costs, 12)
    better = refined(grown, bins, costs, 12)
    assert small.num_leaves <= 12
    assert better.num_leaves <= 12
    assert total(better, x, costs) < 0.97 * total(small, x, costs)


def test_leaves_that_are_left_are_filled_where_they_save_most():
    x, labels = data(num_features=6)
    costs = regrets(labels)
    bins = Bins(x)
    small = pruned(_split(bins, costs, 10, "uniform")[0], x, costs, 4)
    more = filled(small, bins, costs, 12)
    assert small.num_leaves <= 4
    assert more.num_leaves == 12
    assert total(more, x, costs) < 0.8 * total(small, x, costs)
    assert filled(small, bins, np.zeros_like(costs), 12).num_leaves == small.num_leaves  # nothing can be saved


def test_without_refining_the_tests_are_those_of_scikit_learn():
    from sklearn.tree import DecisionTreeClassifier

    x, labels = data()
    x = x.round(1)  # so few values that each has a bin
    plain = Grower(x, labels, seed=0).grow(max_leaf_nodes=8, weighting="uniform", refine=False)
    fitted = DecisionTreeClassifier(max_leaf_nodes=8, random_state=0).fit(x, labels.argmax(-1))
    own = fitted.tree_.threshold[fitted.tree_.children_left >= 0]
    assert sorted(plain.threshold) == pytest.approx(sorted(own), abs=1e-6)
    assert (plain.actions[plain.leaves(x)] == fitted.predict(x)).mean() > 0.95


def test_the_best_test_of_some_states_is_found_among_all():
    rng = np.random.default_rng(0)
    x = rng.integers(5, size=(60, 3)).astype(np.float32)
    rows, gains = np.arange(20, 60), rng.normal(size=40)
    feature, threshold = Bins(x).best_test(rows, gains)
    all_gains = [gains[x[rows, f] <= t].sum() for f in range(3) for t in (0.5, 1.5, 2.5, 3.5)]
    assert gains[x[rows, feature] <= threshold].sum() == pytest.approx(max(all_gains))
    assert Bins(np.ones((60, 1), np.float32)).best_test(rows, gains) is None
    assert Bins(x).best_test(rows[:0], gains[:0]) is None


@pytest.mark.parametrize("edge", [-0.7, 0.123456, 2.3])
def test_a_test_is_exact_though_bins_are_coarse(edge):
    x = np.random.default_rng(0).normal(size=(5_000, 2)).astype(np.float32)
    rows = np.flatnonzero(x[:, 0] < 2.5)
    feature, threshold = Bins(x, 16).best_test(rows, np.where(x[rows, 1] <= edge, 1.0, -1.0))
    assert feature == 1
    assert np.array_equal(x[rows, 1] <= threshold, x[rows, 1] <= edge)


def test_bins_have_as_many_states_each_and_equal_values_share_one():
    rng = np.random.default_rng(0)
    x = np.stack([rng.normal(size=8_000), np.round(rng.exponential(size=8_000), 1), np.zeros(8_000)], 1)
    bins = Bins(x.astype(np.float32))
    counts = np.bincount(bins.numbers[:, 0])
    assert len(counts) == MAX_BINS
    assert counts.min() > 0.9 * counts.max()
    assert len(np.unique(bins.numbers[:, 1])) == len(np.unique(x[:, 1]))
    assert not bins.numbers[:, 2].any()
    for feature in range(3):
        for number in np.unique(bins.numbers[:, feature])[:-1]:
            is_left = x[:, feature] <= bins.thresholds[feature, number]
            assert np.array_equal(is_left, bins.numbers[:, feature] <= number)


def test_tests_without_effect_are_left_out():
    """Below the root's left branch, a test that all states pass to one side; its other side is a subtree."""
    x = np.linspace(-1, 1, 100, dtype=np.float32).reshape(-1, 1)
    costs = np.stack([x[:, 0] > 0, x[:, 0] <= 0], axis=1).astype(float)
    zero = np.zeros(1, np.float32)
    structure = Structure.of(
        np.array([0, 0, -1, -1, -1]),
        np.concatenate([zero + 5, zero, zero, zero, zero]),
        np.array([1, 2, 0, 0, 0]),
        np.array([4, 3, 0, 0, 0]),
    )
    slim = pruned(structure, x, costs, 8)
    assert slim.num_leaves == 2
    assert total(slim, x, costs) == 0.0
