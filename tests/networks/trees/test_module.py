"""The RLModule of a tree."""

import copy
import tracemalloc

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core.columns import Columns

from rllib_kd.networks.dqn_module import count_parameters, student_module_spec
from rllib_kd.networks.family import FamilyQValues
from rllib_kd.networks.trees.features import Features
from rllib_kd.networks.trees.layer import build_tree, describe_tree
from rllib_kd.networks.trees.shape import TreeShape
from tests.networks.trees.trees import ACTIONS, near_ties, tree_module

OBS = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))


def test_a_tree_of_many_entries_lists_no_pairs_that_it_does_not_compare():
    tracemalloc.start()
    try:
        assert len(Features(2_000)) == 2_000
        assert tracemalloc.get_traced_memory()[1] < 5e6  # two million pairs have 140 MB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("oblique", [False, True, ["differences"], ["sums"], ["products"]])
def test_q_values_are_those_of_the_leaves(oblique):
    module = tree_module(17, oblique=oblique)
    features = module.features.values(OBS.numpy())
    expected = module.tree.values[module.tree.leaves(features)]
    q = module.compute_q_values({"obs": OBS})["qf_preds"]
    assert np.array_equal(q.numpy(), expected)
    assert q.dtype == torch.float32
    for forward in (module.forward_inference, module.forward_exploration):
        assert forward({Columns.OBS: OBS})[Columns.ACTIONS].tolist() == q.argmax(-1).tolist()
    assert count_parameters(module) == 4 * 16 + 17 * 3
    assert list(module.parameters()) == []


def test_a_tree_comes_back_from_its_state_whatever_its_size_was_before():
    module, other = tree_module(9, max_leaf_nodes=16), tree_module(4, max_leaf_nodes=16, seed=1)
    other.set_state(module.get_state())
    for name in ("feature", "threshold", "left", "right", "values"):
        assert np.array_equal(getattr(other.tree, name), getattr(module.tree, name))
    assert torch.equal(
        other.compute_q_values({"obs": OBS})["qf_preds"], module.compute_q_values({"obs": OBS})["qf_preds"]
    )
    assert all(isinstance(array, np.ndarray) for array in module.get_state().values())


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("left", 0, "cycle"),
        ("feature", 3, "feature outside"),
        ("threshold", np.nan, "NaN"),
        ("num_leaves", 17, "leaves"),
        ("num_leaves", np.nan, "nan leaves, expected 1 to 16"),
        ("left", 1.5, "is no integer"),
    ],
)
def test_a_state_that_is_no_tree_is_refused_and_changes_nothing(name, value, reason):
    module = tree_module(9, max_leaf_nodes=16)
    before, state = copy.deepcopy(module.get_state()), copy.deepcopy(module.get_state())
    state[name] = state[name].astype(np.result_type(state[name], type(value)))
    state[name][0] = value
    with pytest.raises(ValueError, match=reason):
        module.set_state(state)
    assert all(np.array_equal(module.get_state()[key], before[key]) for key in before)


def test_the_layer_of_pytorch_is_the_same_tree():
    for oblique in (False, True):
        module = tree_module(33, oblique=oblique)
        tensors = {}
        layer = build_tree(describe_tree(module.tree, module.features, tensors), tensors)
        obs = torch.from_numpy(near_ties(module, 2_000))
        obs[:3] = torch.nan
        assert torch.equal(layer(obs), module.compute_q_values({"obs": obs})["qf_preds"])


def test_trees_and_networks_of_a_family_act_together():
    from tests.conftest import make_q_module
    from tests.networks.trees.trees import INPUTS

    students = {
        "net": make_q_module(INPUTS, ACTIONS),
        "a": tree_module(5),
        "oblique": tree_module(9, oblique=True),
        "b": tree_module(3, seed=2),
    }
    acting = np.random.default_rng(0).integers(4, size=len(OBS))
    q = FamilyQValues(students)(OBS, acting)
    for place, module in enumerate(students.values()):
        own = torch.from_numpy(acting == place)
        alone = module.compute_q_values({"obs": OBS[own]})["qf_preds"]
        assert torch.allclose(q[own], alone, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (8, "expected a dict"),
        ({"leaves": 8}, "has no setting 'leaves'"),
        ({"max_leaf_nodes": 1}, "an integer in 2, ..., 4,096, got 1"),
        ({"max_leaf_nodes": True}, "got True"),
        ({"max_leaf_nodes": 5_000}, "got 5000"),
        ({"oblique": "differences"}, "True, False, or a list"),
        ({"oblique": ["quotients"]}, "differences, sums, products"),
        ({"weighting": "loss"}, "gap, regret, uniform"),
        *[({"names": names}, "a list of a name for each entry") for names in ("xyz", 4, 0, True, {"x": 1})],
        ({"names": ["speed\nelse:", "x"]}, "in one line"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, reason):
    with pytest.raises(ValueError, match=reason):
        TreeShape.of(settings)


@pytest.mark.parametrize(
    ("space", "settings", "reason"),
    [
        (gym.spaces.Box(0, 1, (8, 8, 3)), {}, "Images are not supported"),
        (gym.spaces.Box(0, 1, (65,)), {"oblique": True}, "at most 64 entries"),
        (gym.spaces.Box(0, 1, (3,)), {"names": ["x"]}, "names of 1 entries, but observations have 3"),
    ],
)
def test_observations_that_do_not_suit_a_tree_are_refused(space, settings, reason):
    spec = student_module_spec({"tree": settings})
    spec.observation_space, spec.action_space, spec.inference_only = space, ACTIONS, True
    with pytest.raises(ValueError, match=reason):
        spec.build()
