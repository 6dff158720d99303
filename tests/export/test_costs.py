"""What sizes cost, and which is the smallest."""

import json

import gymnasium as gym
import numpy as np
import pytest
from safetensors import safe_open

from rllib_kd.export import costs as module_of_costs
from rllib_kd.export.artifact import latencies_ms
from rllib_kd.export.c.write import write_c
from rllib_kd.export.costs import Cost, measure, ranked
from rllib_kd.export.formats import write_safetensors
from rllib_kd.observations.pipeline import ObservationPipeline
from rllib_kd.teachers.base import Teacher
from tests.conftest import CARTPOLE_OBS, make_q_module, states
from tests.networks.test_mixed import mixed
from tests.networks.trees.trees import tree_module

PIPELINE = ObservationPipeline(CARTPOLE_OBS, ())


def test_bytes_are_those_of_the_exported_weights(tmp_path):
    modules = {"small": make_q_module(fcnet_hiddens=[2]), "large": make_q_module(fcnet_hiddens=[16])}
    costs = measure(modules, PIPELINE, "bytes")
    for name, module in modules.items():
        write_safetensors(Teacher(module, pipeline=PIPELINE, source="student"), tmp_path / name)
        with safe_open(tmp_path / name, "np") as file:
            num_bytes = sum(file.get_tensor(key).nbytes for key in file.keys())  # noqa: SIM118 (not a dict)
        assert costs[name].num_bytes == num_bytes == 4 * costs[name].num_parameters
        assert costs[name].latency_ms is None


def test_bytes_of_integers_and_multiply_adds_are_those_of_the_exported_header(tmp_path):
    modules = {
        "small": make_q_module(fcnet_hiddens=[2], fcnet_activation="tanh"),
        "large": make_q_module(fcnet_hiddens=[16]),
    }
    costs = measure(modules, PIPELINE, "int8_bytes")
    for name, module in modules.items():
        student, obs = Teacher(module, pipeline=PIPELINE, source="student"), states(50, seed=1)
        write_c(student, tmp_path / f"{name}.h", prefix="student", int8_obs=obs)
        text = (tmp_path / f"{name}.h").read_text()
        assert f"STUDENT_WEIGHT_BYTES {costs[name].num_int8_bytes}\n" in text
        assert f"STUDENT_MULTIPLY_ADDS {costs[name].multiply_adds}\n" in text
    assert costs["small"].multiply_adds == 4 * 2 + 2 * 2
    assert ranked(costs, "multiply_adds") == ["small", "large"]
    assert ranked(costs, "int8_bytes") == ["large", "small"]  # tanh is a table
    assert measure(modules, PIPELINE, "parameters")["small"].num_int8_bytes is None


def test_what_cannot_be_exported_has_parameters_alone(monkeypatch):
    def fail(student, file):
        raise ValueError("it is recurrent")

    monkeypatch.setattr(module_of_costs, "write_safetensors", fail)
    modules = {"small": make_q_module(fcnet_hiddens=[2])}
    assert measure(modules, PIPELINE, "parameters") == {"small": Cost(4 * 2 + 2 + 2 * 2 + 2)}
    for minimize in ("bytes", "latency"):
        with pytest.raises(ValueError, match=f"To minimize {minimize}, .* exportable to safetensors: it is recurrent"):
            measure(modules, PIPELINE, minimize)


def test_a_recurrent_size_costs_the_multiply_adds_of_its_gates_and_has_no_integers():
    modules = {"lstm": make_q_module(use_lstm=True, lstm_cell_size=8, fcnet_hiddens=[6])}
    costs = measure(modules, PIPELINE, "multiply_adds")
    assert costs["lstm"].multiply_adds == 4 * 6 + 4 * 8 * (6 + 8) + 8 * 2
    with pytest.raises(ValueError, match="exportable to C with integers: C with int8 cannot hold the layer 'lstm'"):
        measure(modules, PIPELINE, "int8_bytes")


def test_what_c_cannot_hold_has_bytes_and_no_multiply_adds():
    """Images beside other numbers, which safetensors holds."""
    module = mixed(conv_filters=[[3, 5, 4, "valid"]], fcnet_hiddens=[6])
    pipeline = ObservationPipeline(module.observation_space, ())
    cost = measure({"mixed": module}, pipeline, "bytes")["mixed"]
    assert (cost.num_bytes, cost.multiply_adds) == (4 * cost.num_parameters, None)
    for minimize, kind in (("multiply_adds", "C"), ("int8_bytes", "C with integers")):
        with pytest.raises(ValueError, match=f"exportable to {kind}: C cannot hold images beside other numbers"):
            measure({"mixed": module}, pipeline, minimize)


def test_artifacts_take_turns_in_a_process_of_their_own(tmp_path):
    files = []
    for width in (2, 1_024):
        files.append(tmp_path / f"{width}.safetensors")
        module = make_q_module(fcnet_hiddens=[width, width])
        write_safetensors(Teacher(module, pipeline=PIPELINE, source="student"), files[-1])
    small, large = latencies_ms(files)
    assert len(small) == len(large) >= 10
    assert np.median(large) > np.median(small) > 0
    costs = {"large": Cost(9, 9, tuple(large)), "small": Cost(99, 99, tuple(small))}
    assert ranked(costs, "latency") == ["small", "large"]


# --- Ranking ----------------------------------------------------------------------------------------------------------

REPEATS = 15


def noisy(latency, seed, spread=0.02):
    rng = np.random.default_rng(seed)
    load = np.where(np.arange(REPEATS) % 5 == 0, 3.0, 1.0)  # other programs slow down all alike
    return tuple(latency * load * (1 + spread * rng.uniform(-1, 1, REPEATS)))


def test_parameters_and_bytes():
    costs = {"a": Cost(30, 100), "b": Cost(10, 120), "c": Cost(20, 100)}
    assert ranked(costs, "parameters") == ["b", "c", "a"]
    assert ranked(costs, "bytes") == ["c", "a", "b"]
    for minimize in ("int8_bytes", "latency"):  # which were not measured: nothing is the smallest
        with pytest.raises(AssertionError, match=minimize):
            ranked(costs, minimize)


def test_latencies_within_the_noise_are_ordered_by_parameters():
    costs = {
        "wide": Cost(400, 1, noisy(0.0100, 1)),
        "deep": Cost(100, 1, noisy(0.0200, 2)),
        "linear": Cost(10, 1, noisy(0.0102, 3)),
        "deeper": Cost(50, 1, noisy(0.0203, 4)),
    }
    for seed in range(20):
        names = list(np.random.default_rng(seed).permutation(list(costs)))
        assert ranked({name: costs[name] for name in names}, "latency") == ["linear", "wide", "deeper", "deep"]


def test_bursts_of_load_hide_no_difference_since_sizes_take_turns():
    rng = np.random.default_rng(0)
    load = rng.uniform(1, 10, REPEATS)  # far more than the difference, but of all alike
    costs = {"slow": Cost(1, 1, tuple(0.012 * load)), "fast": Cost(2, 1, tuple(0.010 * load))}
    assert ranked(costs, "latency") == ["fast", "slow"]


def test_a_difference_in_few_repeats_is_noise():
    fast = noisy(0.01, 0, spread=0.0)
    slow = tuple(1.5 * value if i % 2 else 0.9 * value for i, value in enumerate(fast))
    costs = {"slow": Cost(1, 1, slow), "fast": Cost(2, 1, fast)}
    assert ranked(costs, "latency") == ["slow", "fast"]


def test_a_cost_comes_back_from_json():
    cost = Cost(10, 40, (0.1, 0.2))
    assert Cost.of(json.loads(json.dumps(vars(cost)))) == cost


def test_images():
    space = gym.spaces.Box(0, 255, (84, 84, 4), np.uint8)
    pipeline = ObservationPipeline(space, ())
    module = make_q_module(
        gym.spaces.Box(0.0, 1.0, (84, 84, 4), np.float32), conv_filters=[[4, 8, 4], [8, 4, 2]], fcnet_hiddens=[8]
    )
    assert measure({"a": module}, pipeline, "bytes")["a"].num_bytes == 4 * sum(p.numel() for p in module.parameters())


def test_a_tree_costs_what_it_may_grow_to():
    small, large = tree_module(1, max_leaf_nodes=8), tree_module(1, max_leaf_nodes=64)
    costs = measure({"small": small, "large": large}, ObservationPipeline(small.observation_space), "bytes")
    assert costs["small"].num_parameters == small.max_parameters == 4 * 7 + 8 * 3
    assert costs["large"].num_parameters == 4 * 63 + 64 * 3
    assert costs["large"].num_bytes == 4 * costs["large"].num_parameters
    assert small.tree.num_leaves == 1  # it has not changed
