"""What is told of a student that is a tree."""

import json

import numpy as np
import pytest

from rllib_kd.evaluation.trees import tree_figures
from rllib_kd.networks.trees.arrays import Tree
from rllib_kd.observations.pipeline import Normalize, ObservationPipeline
from rllib_kd.teachers.base import Teacher
from tests.conftest import make_q_module
from tests.networks.trees.trees import ACTIONS, INPUTS, tree_module

TEACHER = Teacher(make_q_module(INPUTS, ACTIONS))
STATES = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)


def student(**settings):
    module = tree_module(max_leaf_nodes=4, **settings)
    values = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    module.tree = Tree([0, 1], [0.0, 50.0], [1, 2], [4, 3], values, num_features=len(module.features))
    return module


def test_each_leaf_has_its_share_of_states_and_the_regret_there():
    figures = tree_figures(TEACHER, Teacher(student()), STATES, STATES)
    q = TEACHER.q_values(Teacher(student()).module.threshold.new_tensor(STATES)).numpy()
    left = STATES[:, 0] <= 0.0
    regret = q.max(-1) - q[:, 0]
    first, never, last = figures["leaves"]
    assert [leaf["action"] for leaf in figures["leaves"]] == [0, 1, 2]
    assert first["share"] == pytest.approx(left.mean())
    assert first["regret"] == pytest.approx(regret[left].mean(), rel=1e-5)
    assert never == {"action": 1, "share": 0.0, "regret": None}
    assert first["share"] + last["share"] == pytest.approx(1.0)
    assert figures["nodes"][0] == {"compared": "x[0]", "threshold": "0.0", "left": 1, "right": 4}
    assert (figures["num_leaves"], figures["depth"]) == (3, 2)
    assert f"action 0  # {100 * left.mean():.1f} % of states, regret" in figures["rules"]
    json.dumps(figures, allow_nan=False)


def test_names_of_the_user_stand_in_the_rules():
    figures = tree_figures(TEACHER, Teacher(student(names=["height", "speed", "angle"])), STATES, STATES)
    assert "if height <= 0.0:" in figures["rules"]
    assert figures["nodes"][1]["compared"] == "speed"


def test_thresholds_are_in_the_units_before_a_filter():
    pipeline = ObservationPipeline(INPUTS, (Normalize(np.array([7.0, 1.0, 0.0]), np.array([2.0, 0.5, 1.0]), None),))
    figures = tree_figures(TEACHER, Teacher(student(), pipeline=pipeline), STATES, STATES)
    assert [node["threshold"] for node in figures["nodes"]] == ["7.0", "26.0"]
    oblique = tree_figures(TEACHER, Teacher(student(oblique=True), pipeline=pipeline), STATES, STATES)
    assert [node["compared"] for node in oblique["nodes"]] == ["filtered x[0]", "filtered x[1]"]


def test_a_network_is_no_tree():
    assert tree_figures(TEACHER, TEACHER, STATES, STATES) is None
