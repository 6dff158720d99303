"""Trees as arrays: what they compute, and which arrays are refused."""

import numpy as np
import pytest

from rllib_kd.networks.trees.arrays import Forest, Tree, rounded_down
from rllib_kd.networks.trees.features import Features
from tests.networks.trees.trees import random_tree

#: x[0] <= 0 ? (x[1] <= 1 ? leaf 0 : leaf 1) : leaf 2
SMALL = {"feature": [0, 1], "threshold": [0.0, 1.0], "left": [1, 2], "right": [4, 3], "values": np.eye(3)}


def test_a_state_goes_left_up_to_and_with_the_threshold():
    tree = Tree(**SMALL, num_features=2)
    x = np.array(
        [[0, 1], [0, np.nextafter(np.float32(1), np.float32(2))], [np.nextafter(np.float32(0), np.float32(1)), 0]]
    )
    assert tree.leaves(x.astype(np.float32)).tolist() == [0, 1, 2]
    assert (tree.depth, tree.num_leaves, tree.num_parameters) == (2, 3, 4 * 2 + 9)
    assert tree.actions.tolist() == [0, 1, 2]


def test_what_is_no_number_goes_right():
    assert Tree(**SMALL, num_features=2).leaves(np.full((1, 2), np.nan, np.float32)).tolist() == [2]


def test_a_tree_of_one_leaf_has_its_values_everywhere():
    tree = Tree.of_leaf([1.0, 2.0], num_features=4)
    assert tree.leaves(np.zeros((3, 4), np.float32)).tolist() == [0, 0, 0]
    assert (tree.depth, tree.num_parameters) == (0, 2)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"left": [0, 2]}, "cycle"),  # the root leads to itself
        ({"left": [1, 1]}, "cycle"),
        ({"left": [1, 9]}, "outside of 0, ..., 4"),
        ({"left": [1, -1]}, "outside of 0, ..., 4"),
        ({"left": [1, 4]}, "two nodes lead to the same"),
        ({"feature": [0, 2]}, "feature outside of 0, ..., 1"),
        ({"feature": [-1, 0]}, "feature outside"),
        ({"threshold": [0.0, np.nan]}, "NaN or infinite"),
        ({"threshold": [0.0, np.inf]}, "NaN or infinite"),
        ({"values": np.full((3, 3), np.nan)}, "NaN or infinite"),
        ({"values": np.eye(3)[:2]}, "expected n, n, n, n and n"),
        ({"right": [4]}, "expected n, n, n, n and n"),
        ({"values": np.zeros(3)}, "expected n, n, n, n and n"),
    ],
)
def test_arrays_that_are_no_tree_are_refused(change, reason):
    with pytest.raises(ValueError, match=reason):
        Tree(**{**SMALL, **change}, num_features=2)


def test_trees_of_a_forest_act_as_they_do_alone():
    trees = [random_tree(leaves, 5, seed=leaves) for leaves in (1, 2, 7, 32)]
    x = np.random.default_rng(0).normal(size=(400, 5)).astype(np.float32)
    acting = np.random.default_rng(1).integers(4, size=400)
    forest = Forest(trees)
    q = forest.q_values(x[:, forest.used], acting)
    for place, tree in enumerate(trees):
        own = acting == place
        assert np.array_equal(q[own], tree.values[tree.leaves(x[own])])
    assert len(np.unique(trees[-1].leaves(x))) > 10  # it is a test of more than a few leaves


def test_thresholds_rounded_down_flip_no_comparison():
    rng = np.random.default_rng(0)
    x = rng.normal(size=2_000).astype(np.float32)
    near = np.nextafter(x, np.float32(np.inf)).astype(np.float64)
    thresholds = (x.astype(np.float64) + near) / 2 + rng.choice([-1e-12, 0.0, 1e-12], size=2_000)
    assert ((x <= rounded_down(thresholds)) == (x.astype(np.float64) <= thresholds)).all()
    assert ((near <= rounded_down(thresholds)) == (near <= thresholds)).all()
    assert (thresholds.astype(np.float32).astype(np.float64) > thresholds).any()  # where plain rounding would flip one


def test_features_are_entries_then_what_is_added_to_them():
    features = Features(3, ("products", "sums", "differences"))
    texts = [features[index].text(["a", "b", "c"]) for index in range(len(features))]
    pairs = [["a - b", "a - c", "b - c"], ["a + b", "a + c", "b + c"], ["a * b", "a * c", "b * c"]]
    assert texts == ["a", "b", "c", *pairs[0], *pairs[1], *pairs[2], "a * a", "b * b", "c * c"]
    values = features.values(np.array([[2.0, 3.0, 5.0]]))
    assert values.tolist() == [[2, 3, 5, -1, -3, -2, 5, 7, 8, 6, 10, 15, 4, 9, 25]]
    assert features.values(np.array([[2.0, 3.0, 5.0]]), np.array([10, 1, 7])).tolist() == [[10, 3, 7]]
    assert values.dtype == np.float32
