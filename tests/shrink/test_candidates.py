"""Which sizes are tried."""

from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest

from rllib_kd.networks.dqn_module import count_parameters
from rllib_kd.shrink.candidates import default_restarts, default_sizes, mlp, num_parameters, tree_sizes
from rllib_kd.students.sizes import PRESETS
from tests.conftest import make_q_module

LUNAR_LANDER = gym.spaces.Box(-1.0, 1.0, (8,), np.float32)
FRAMES = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)


def teacher(num_parameters=70_000, num_actions=4, model_config=None):
    members = [SimpleNamespace(model_config=model_config)]
    space = gym.spaces.Discrete(num_actions)
    return SimpleNamespace(num_parameters=num_parameters, action_space=space, members=members, source="t")


def test_from_linear_up_by_parameters():
    sizes = default_sizes(teacher(), LUNAR_LANDER)
    counts = [num_parameters(8, size.shape["fcnet_hiddens"], 4) for size in sizes]
    assert counts == sorted(counts)
    by_name = dict(zip((size.name for size in sizes), counts, strict=True))
    assert by_name == {
        "units-2": 30,
        "linear": 36,
        "units-2x2": 36,
        "units-4": 56,
        "units-4x4": 76,
        "units-8": 108,
        "units-11": 147,
        "units-16": 212,
        "units-23": 303,
        "units-32": 420,
        "units-45": 589,
        "units-64": 836,
    }
    assert [size.label for size in sizes[:3]] == ["2 units", "linear", "2 × 2 units"]


@pytest.mark.parametrize("hidden", [(3,), (4, 4)])
def test_parameters_are_those_of_the_module(hidden):
    module = make_q_module(**mlp(hidden).shape)
    assert num_parameters(4, hidden, 2) == count_parameters(module)


def test_students_are_smaller_than_their_teacher():
    small = default_sizes(teacher(num_parameters=57), LUNAR_LANDER)
    assert [size.name for size in small] == ["units-2", "linear", "units-2x2", "units-4"]
    with pytest.raises(ValueError, match="'t' has 9 parameters, and no smaller student"):
        default_sizes(teacher(num_parameters=9), LUNAR_LANDER)


def test_small_ones_have_tanh():
    kinds = {size.name: size.shape.get("fcnet_activation") for size in default_sizes(teacher(), LUNAR_LANDER)}
    assert (kinds["units-8"], kinds["units-32"], kinds["units-45"], kinds["linear"]) == ("tanh", "tanh", "relu", None)


def test_the_table_of_an_activation_counts_by_int8_bytes():
    kinds = {
        size.shape.get("fcnet_activation") for size in default_sizes(teacher(), LUNAR_LANDER, minimize="int8_bytes")
    }
    assert kinds == {"relu", None}


def test_images():
    scaled = default_sizes(teacher(model_config={"conv_filters": []}), FRAMES)
    assert [size.shape for size in scaled] == [{"compression": share} for share in (0.01, 0.03, 0.1, 0.3)]
    assert scaled[0].name == "share-0-01"
    assert {size.shape for size in default_sizes(teacher(), FRAMES)} <= set(PRESETS)
    assert (default_restarts(FRAMES), default_restarts(LUNAR_LANDER)) == (1, 8)


def test_discrete_observations_count_as_one_hot():
    names = [size.name for size in default_sizes(teacher(num_parameters=70), gym.spaces.Discrete(16))]
    assert names == ["units-2", "units-2x2", "linear"]


def test_of_a_teacher_whose_parameters_are_not_known_all_sizes_are_smaller():
    assert len(default_sizes(teacher(num_parameters=float("nan")), LUNAR_LANDER)) == 12


def test_trees_from_4_to_64_leaves_that_are_smaller_than_the_teacher():
    sizes = tree_sizes(teacher(), LUNAR_LANDER)
    assert [size.shape["tree"]["max_leaf_nodes"] for size in sizes] == [4, 8, 16, 32, 64]
    assert [size.label for size in sizes[:2]] == ["tree of 4 leaves", "tree of 8 leaves"]
    assert [size.name for size in tree_sizes(teacher(num_parameters=4 * 7 + 8 * 4 + 1), LUNAR_LANDER)] == [
        "tree-4",
        "tree-8",
    ]
    with pytest.raises(ValueError, match="Images are not supported"):
        tree_sizes(teacher(), FRAMES)


def test_an_activation_may_be_named():
    names = (None, "relu", "tanh")
    assert [mlp((8,), name).shape["fcnet_activation"] for name in names] == ["tanh", "relu", "tanh"]
    assert [mlp((64,), name).shape["fcnet_activation"] for name in names] == ["relu", "relu", "tanh"]
