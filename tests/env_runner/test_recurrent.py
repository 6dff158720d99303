"""The EnvRunner of recurrent students: both ways of sampling, states, resets, resuming."""

import numpy as np
import pytest
import torch

from rllib_kd import load_teacher
from rllib_kd.env_runner.capture import capture_sampling, put_back_sampling
from rllib_kd.env_runner.recurrent import RecurrentEnvRunner
from rllib_kd.networks.recurrent import run_sequences
from tests.env_runner.runners import Silent, sample

NAMES = ("obs", "teacher_q")


@pytest.fixture
def recurrent_config(counting_config):
    model = {"use_lstm": True, "lstm_cell_size": 3, "fcnet_hiddens": [4], "max_seq_len": 4}
    return counting_config.rl_module(model_config=model).training(burn_in_len=1)


def make_runner(config):
    config = config.copy(copy_frozen=False)
    config.validate()
    torch.manual_seed(0)
    runner = config.env_runner_cls(config=config, worker_index=0)
    runner.set_teacher(load_teacher(config.teacher))
    return runner


def sequences(runner, num_calls, **kwargs):
    parts = [sample(runner, NAMES, **kwargs)[0][0] for _ in range(num_calls)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def assert_alike(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("teacher_fraction", [1.0, 0.5])
def test_both_ways_give_the_same_sequences(recurrent_config, teacher_fraction):
    direct = make_runner(recurrent_config)
    rllibs = make_runner(recurrent_config.copy(copy_frozen=False).callbacks(Silent))
    assert isinstance(direct, RecurrentEnvRunner)
    assert direct._samples_directly
    assert not rllibs._samples_directly
    # RLlib's way makes more steps in a call: it does not count those that only reset.
    one, other = (sequences(runner, 4, teacher_fraction=teacher_fraction, epsilon=0.2) for runner in (direct, rllibs))
    count = min(len(one["obs"]), len(other["obs"]))
    assert count > 12
    assert_alike(*({name: column[:count] for name, column in each.items()} for each in (one, other)))


def test_states_are_those_of_the_whole_episode(recurrent_config):
    runner = make_runner(recurrent_config)
    shard = sequences(runner, 3, teacher_fraction=0.0)
    begins = [int(obs[0]) for obs in shard["obs"][..., 0]]  # the environment shows the number of the step
    assert set(begins) > {0}
    for begin, h, c in zip(begins, shard["state_h"], shard["state_c"], strict=True):
        before = torch.arange(begin, dtype=torch.float32).view(1, begin, 1)
        state = {"h": torch.zeros(1, 1, 3), "c": torch.zeros(1, 1, 3)}
        if begin:
            with torch.no_grad():
                _, state = run_sequences(runner.module, before, state)
        np.testing.assert_allclose(state["h"][0].numpy(), h, atol=1e-6)
        np.testing.assert_allclose(state["c"][0].numpy(), c, atol=1e-6)


def test_sampling_continues_where_it_was_captured(recurrent_config):
    runner, other = make_runner(recurrent_config), make_runner(recurrent_config)
    sample(runner, NAMES, teacher_fraction=0.5, epsilon=0.5)
    state = capture_sampling(runner)
    (expected,), _ = sample(runner, NAMES, teacher_fraction=0.5, epsilon=0.5)
    put_back_sampling(other, state)
    (again,), _ = sample(other, NAMES, teacher_fraction=0.5, epsilon=0.5)
    assert expected.keys() == again.keys()
    for name in expected:
        np.testing.assert_array_equal(expected[name], again[name], err_msg=name)


def test_sequences_have_the_length_of_the_config_and_not_of_a_checkpoint(recurrent_config):
    runner, longer = make_runner(recurrent_config), recurrent_config.copy(copy_frozen=False)
    longer.rl_module(model_config={**longer.given_model_config, "max_seq_len": 6})
    other = make_runner(longer)
    sample(runner, NAMES, teacher_fraction=0.5)
    put_back_sampling(other, capture_sampling(runner))
    (shard,), _ = sample(other, NAMES, teacher_fraction=0.5)
    assert shard["obs"].shape[1:] == (6, 1)


def test_baselines_begin_new_episodes(recurrent_config):
    runner = make_runner(recurrent_config)
    sample(runner, NAMES, teacher_fraction=0.0)
    assert runner.play_episodes(4, teacher=True)["default_policy"] == [15.0] * 4
    (shard,), _ = sample(runner, NAMES, teacher_fraction=0.0)
    begins = shard["obs"][:, 0, 0] == 0
    assert begins.any()
    assert not shard["state_h"][begins].any()
