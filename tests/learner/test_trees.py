"""Trees in a Learner: when they are regrown, on which states, and what is kept of them."""

from collections import Counter

import numpy as np
import pytest
import torch

from rllib_kd.learner import trees
from rllib_kd.learner.replay import ColumnarReplay
from rllib_kd.learner.trees import VARIANTS, Trees, TreeStudent
from rllib_kd.students.restarts import names_of
from tests.learner.learners import config_of, fragment, group_of, make_learner
from tests.networks.trees.trees import tree_module

LABELS = np.random.default_rng(0).normal(size=(2_000, 3))
OBS = torch.from_numpy(np.random.default_rng(1).normal(size=(2_000, 3)).astype(np.float32))


def choose(rng, count):
    rows = rng.choice(len(OBS), min(count, 500), replace=False)
    return OBS[rows], torch.from_numpy(LABELS[rows])


def students(count=12, **settings):
    return [TreeStudent(name, tree_module(max_leaf_nodes=8, **settings)) for name in names_of("s", count)]


def thresholds(own):
    return [student.module.tree.threshold.tolist() for student in own]


def test_the_first_regrowth_is_of_all_and_further_ones_of_one_part_each():
    own = students()
    grove = Trees(own, seed=0)
    assert not grove.is_due(999)
    assert grove.regrow(1_000, choose) == names_of("s", 12)
    for part in (1, 2, 0):
        before = thresholds(own)
        regrown = grove.regrow(10_000, choose)
        assert regrown == [name for i, name in enumerate(names_of("s", 12)) if i % 3 == part]
        changed = [one != other for one, other in zip(before, thresholds(own), strict=True)]
        assert changed == [i % 3 == part for i in range(12)]


def test_the_copies_of_a_part_differ_and_every_weighting_comes_as_often_unless_the_user_chooses_one():
    own = students()
    variants = [(student.weighting, student.refine) for student in own]
    assert Counter(variants) == dict.fromkeys(VARIANTS, 3)
    assert all(set(variants[part::3]) == set(VARIANTS) for part in range(3))
    assert (own[0].weighting, own[0].refine) == ("uniform", True)
    assert {student.weighting for student in students(weighting="uniform")} == {"uniform"}


@pytest.mark.parametrize(("count", "settings"), [(12, {}), (16, {}), (12, {"weighting": "gap"})])
def test_no_two_copies_are_twins(count, settings):
    def draw(rng, most):
        rows = rng.choice(len(OBS), 200, replace=False)
        return OBS[rows], torch.from_numpy(LABELS[rows])

    own = students(count, **settings)
    grove = Trees(own, seed=0)
    for number in range(4):
        grove.regrow(1_000 * (number + 1), draw)
        assert len(set(map(str, thresholds(own)))) == count


def test_a_single_tree_is_regrown_each_time():
    grove = Trees(students(1), seed=0)
    assert [grove.regrow(count, choose) for count in (1_000, 2_000, 3_000)] == [["s"]] * 3


def test_regrowths_become_rarer_and_wait_for_what_they_cost():
    grove, at = Trees(students(1), seed=0), []
    for count in range(0, 100_000, 100):
        if grove.is_due(count):
            at.append(count)
            grove.regrow(count, choose)
    ratios = np.array(at[1:]) / np.array(at[:-1])
    assert at[0] == 1_000
    assert ((ratios > 1.3) & (ratios < 1.5)).all()
    dear = Trees(students(12, oblique=True), seed=0)
    dear.regrow(1_000, choose)
    cost = 12 * (trees._STATES_PER_TREE + trees._STATES_PER_NUMBER * 500 * 15)
    assert not dear.is_due(1_000 + int(cost) - 1)
    assert dear.is_due(max(1_350, 1_000 + int(cost)))


def test_a_restored_grove_grows_the_same_trees():
    one, other = students(), students()
    first, second = Trees(one, seed=None), Trees(other, seed=None)
    first.regrow(1_000, choose)
    for mine, theirs in zip(one, other, strict=True):
        theirs.module.set_state(mine.module.get_state())
    second.set_state(first.get_state())
    assert first.regrow(5_000, choose) == second.regrow(5_000, choose)
    assert thresholds(one) == thresholds(other)
    assert first.get_state() == second.get_state()


def test_states_are_drawn_from_a_replay_without_repetition_and_without_its_own_draws():
    replay = ColumnarReplay(100, seed=0)
    replay.add({"obs": np.arange(60, dtype=np.float32).reshape(-1, 1), "valid": np.arange(60) % 2 == 0})
    state = replay.get_state()["generator"]
    rows = replay.choose(10, np.random.default_rng(0))
    assert len(rows) == len(set(rows.tolist())) == 10
    assert all(row % 2 == 0 for row in rows.tolist())
    assert rows.tolist() == sorted(rows.tolist())
    assert len(replay.choose(1_000, np.random.default_rng(0))) == 30
    assert np.array_equal(replay.get_state()["generator"], state)


def tree_learner(**distillation):
    return make_learner(config_of(**distillation).rl_module(model_config={"tree": {"max_leaf_nodes": 4}}))


def test_a_learner_of_trees_makes_no_gradient_step_and_counts_regrowths(cluster):
    learner = tree_learner(restarts=1)
    results = learner.update([fragment(400)], num_gradient_steps=5)["default_policy"]
    assert results["num_regrowths"].peek() == 0
    assert learner.module["default_policy"].tree.num_leaves == 1
    results = learner.update([fragment(1_200, seed=1)], num_gradient_steps=5)["default_policy"]
    assert results["num_regrowths"].peek() == 1
    assert results["num_gradient_steps"].peek() == 0
    tree = learner.module["default_policy"].tree
    assert 2 <= tree.num_leaves <= 4
    assert results["num_leaves"].peek() == tree.num_leaves
    assert results["num_parameters"].peek() == tree.num_parameters
    assert results["depth"].peek() == tree.depth
    assert "kl_to_teacher" not in results
    assert "kd_loss" not in results


def test_a_learner_of_trees_without_finite_labels_says_so(cluster):
    columns = fragment(64)
    columns["valid"] = np.zeros(64, dtype=bool)
    with pytest.raises(ValueError, match="There is nothing to learn from"):
        tree_learner().update([columns], num_gradient_steps=1)


def test_trees_and_networks_learn_from_one_stream(cluster):
    config = config_of(students={"tree": {"tree": {"max_leaf_nodes": 4}}, "net": {"fcnet_hiddens": [8]}})
    learner = make_learner(config.rl_module(model_config={}))
    before = learner.module["net"].get_state()
    results = learner.update([fragment(1_500)], num_gradient_steps=3)
    assert learner.module["tree"].tree.num_leaves > 1
    assert any((value != before[name]).any() for name, value in learner.module["net"].get_state().items())
    assert "kl_to_teacher" in results["net"]
    assert results["net"]["num_gradient_steps"].peek() == 3
    state = learner.get_state()
    again = make_learner(config)
    again.set_state(state)
    assert np.array_equal(again.module["tree"].tree.threshold, learner.module["tree"].tree.threshold)
    assert group_of(again).trees.get_state() == group_of(learner).trees.get_state()


@pytest.mark.parametrize(("name", "value"), [("next", None), ("seed", -1), ("num_regrowths", 1.5)])
def test_a_state_of_other_values_is_refused(name, value):
    trees = Trees([], seed=0)
    with pytest.raises(ValueError, match=f"{name}=.*: expected an integer"):
        trees.set_state(trees.get_state() | {name: value})
