"""Rules as text."""

import numpy as np

from rllib_kd.networks.trees.arrays import Tree
from rllib_kd.networks.trees.features import Features
from rllib_kd.students.trees.rules import names_of_entries, rules

TREE = Tree([0, 3], [0.1, -2.0], [1, 2], [4, 3], [[0.0, 1.0], [1.0, 0.0], [0.0, 2.0]], num_features=4)


def test_rules_read_from_the_root_to_the_leaves():
    text = rules(TREE, Features(3, ("differences",)), ["height", "speed", "angle"])
    assert text.splitlines() == [
        "if height <= 0.1:",
        "    if height - speed <= -2.0:",
        "        action 1",
        "    else:",
        "        action 0",
        "else:",
        "    action 1",
    ]


def test_entries_have_numbers_without_names():
    text = rules(TREE, Features(3, ("differences",)), note=lambda leaf: f" (leaf {leaf})")
    assert text.splitlines()[:3] == ["if x[0] <= 0.1:", "    if x[0] - x[1] <= -2.0:", "        action 1 (leaf 0)"]


def test_a_tree_may_be_deeper_than_python_calls():
    inner = np.arange(1_200)  # each node has a leaf on its left
    right = np.append(inner[1:], 2_400)
    tree = Tree(0 * inner, inner, 1_200 + inner, right, np.zeros((1_201, 2)), num_features=3)
    lines = rules(tree, Features(3)).splitlines()
    assert len(lines) == 3 * 1_200 + 1
    assert lines[-1] == f"{1_200 * '    '}action 0"


def test_entries_with_one_name_have_numbers():
    assert names_of_entries(["a", "b", "a"], 3) == ["a[0]", "b", "a[2]"]
    assert names_of_entries((), 2) == ["x[0]", "x[1]"]
