"""The EnvRunner of recurrent students: both ways of sampling, states, resets, resuming."""

import numpy as np
import pytest
import torch

from rllib_kd import load_teacher
from rllib_kd.env_runner.capture import capture_sampling, put_back_sampling
from rllib_kd.env_runner.recurrent import RecurrentEnvRunner
from rllib_kd.env_runner.students import StudentsEnvRunner
from rllib_kd.networks.memories import StateLayout
from rllib_kd.networks.recurrent import initial_state, run_sequences
from tests.env_runner.runners import Silent, sample

NAMES = ("obs", "teacher_q")


@pytest.fixture
def recurrent_config(counting_config):
    model = {"use_lstm": True, "lstm_cell_size": 3, "fcnet_hiddens": [4], "max_seq_len": 4}
    return counting_config.rl_module(model_config=model).training(burn_in_len=1)


SHAPES = {"lstm": {"lstm_cell_size": 3}, "gru": {"recurrent_layer_type": "gru", "lstm_cell_size": 2}}


@pytest.fixture(params=["one student", "family"])
def any_config(recurrent_config, request):
    return recurrent_config.distillation(students=SHAPES if request.param == "family" else {})


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
def test_both_ways_give_the_same_sequences(any_config, teacher_fraction):
    direct = make_runner(any_config)
    rllibs = make_runner(any_config.copy(copy_frozen=False).callbacks(Silent))
    assert isinstance(direct, RecurrentEnvRunner)
    assert direct._samples_directly
    assert not rllibs._samples_directly
    # RLlib's way makes more steps in a call: it does not count those that only reset.
    one, other = (sequences(runner, 4, teacher_fraction=teacher_fraction, epsilon=0.2) for runner in (direct, rllibs))
    count = min(len(one["obs"]), len(other["obs"]))
    assert count > 12
    assert_alike(*({name: column[:count] for name, column in each.items()} for each in (one, other)))


def after_steps(module, count):
    """Q-values `[count, A]` of the first states of an episode, and the state after them."""
    state = initial_state(module, 1)
    if not count:
        return None, state
    with torch.no_grad():
        q, state = run_sequences(module, torch.arange(count, dtype=torch.float32).view(1, count, 1), state)
    return q[0], state


def test_states_are_those_of_the_whole_episode(any_config):
    """Whoever has acted in it."""
    runner = make_runner(any_config)
    shard = sequences(runner, 3, teacher_fraction=0.0)
    begins = [int(obs[0]) for obs in shard["obs"][..., 0]]  # the environment shows the number of the step
    assert set(begins) > {0}
    students = {"": runner.module} if runner.family is None else dict(runner.family.items())
    for row, begin in enumerate(begins):
        joined = {part: torch.from_numpy(shard[f"state_{part}"][row : row + 1]) for part in "hc"}
        for name, module in students.items():
            _, expected = after_steps(module, begin)
            given = joined if runner.family is None else StateLayout(students).of(name, joined)
            assert given.keys() == expected.keys()
            for part, value in expected.items():
                torch.testing.assert_close(given[part], value, atol=1e-6, rtol=0)


@pytest.mark.parametrize("through_rllib", [False, True])
def test_whoever_has_the_turn_acts_as_in_an_episode_of_its_own(recurrent_config, monkeypatch, through_rllib):
    config = recurrent_config.distillation(students=SHAPES)
    runner = make_runner(config.callbacks(Silent) if through_rllib else config)
    modules, seen = list(runner.family.values()), []
    for seed, module in enumerate(modules):
        torch.manual_seed(seed)
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter)
    best = [after_steps(module, 5)[0].argmax(-1).tolist() for module in modules]
    assert best[0] != best[1]
    step = runner._try_env_step

    def watched(actions):
        shown = runner._shown.obs[:, 0].astype(int)
        seen.extend(zip(runner._turns.acting.tolist(), shown.tolist(), np.asarray(actions).tolist(), strict=True))
        return step(actions)

    monkeypatch.setattr(runner, "_try_env_step", watched)
    sequences(runner, 4, teacher_fraction=0.0)
    inside = [(student, at, action) for student, at, action in seen if at < 5]  # in the last one, no action counts
    assert {student for student, _, _ in inside} == {0, 1}
    assert all(action == best[student][at] for student, at, action in inside)


def test_sampling_continues_where_it_was_captured(any_config):
    runner, other = make_runner(any_config), make_runner(any_config)
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


def test_another_student_begins_episodes_of_its_own_in_evaluations(recurrent_config):
    config = recurrent_config.distillation(students=SHAPES).evaluation(evaluation_interval=None)
    config.validate()
    runner = StudentsEnvRunner(config=config.get_evaluation_config_object(), worker_index=0)
    for name in (*SHAPES, *SHAPES):  # their states differ in size
        runner.let_act(name)
        (episode,) = runner.sample(num_timesteps=3, explore=False)
        assert episode.get_observations(0) == 0.0
    runner.let_act(name)  # the same one goes on
    assert runner.sample(num_timesteps=1, explore=False)[0].get_observations(0) == 3.0
