"""Teachers that are functions or PyTorch modules of one's own."""

import json
import threading

import gymnasium as gym
import numpy as np
import pytest
import ray.cloudpickle
import torch

from rllib_kd import DistillDQN, compare
from rllib_kd.evaluation.comparing import evaluate
from rllib_kd.observations.pipeline import Shown
from rllib_kd.teachers.base import Teacher
from tests.conftest import CARTPOLE_ACTIONS, CARTPOLE_OBS, make_q_module, states
from tests.formats import mlp, q_values


def test_any_function_is_a_teacher(tmp_path):
    def balance(obs):  # of arrays
        push_right = np.asarray(obs)[:, 2] + 0.5 * np.asarray(obs)[:, 3]
        return np.stack([-push_right, push_right], axis=-1)

    teacher = Teacher.from_callable(balance, observation_space=CARTPOLE_OBS, action_space=CARTPOLE_ACTIONS)
    assert evaluate(teacher, "CartPole-v1", num_episodes=5).return_mean > 150
    assert np.isnan(teacher.num_parameters)
    restored = Teacher()
    restored.restore_from_path(teacher.save_to_path(str(tmp_path / "teacher")))
    for copy in (ray.cloudpickle.loads(ray.cloudpickle.dumps(teacher)), restored):
        assert np.array_equal(q_values(copy, states(5)), q_values(teacher, states(5)))
    comparison = compare(teacher, make_q_module(), "CartPole-v1", num_episodes=2)
    assert np.isnan(comparison.compression)
    assert json.dumps(comparison.to_dict(), allow_nan=False)
    assert "balance" in teacher.source


def test_a_student_learns_from_a_function(build, cartpole_config, tmp_path):
    def lean(obs):
        return torch.stack([-obs[:, 2], obs[:, 2]], dim=-1)

    teacher = Teacher.from_callable(lean, observation_space=CARTPOLE_OBS, action_space=CARTPOLE_ACTIONS)
    algo = build(cartpole_config.distillation(teacher=teacher))
    result = algo.train()
    assert np.isfinite(result["learners"]["default_policy"]["kd_loss"])
    assert np.isnan(result["distillation"]["compression"])
    path = algo.save_to_path(str(tmp_path / "algo"))
    restored = DistillDQN.from_checkpoint(path)
    assert restored.train()["num_env_steps_sampled_lifetime"] > result["num_env_steps_sampled_lifetime"]
    restored.stop()


def test_a_function_that_cannot_be_pickled_is_named(build, cartpole_config):
    lock = threading.Lock()

    def balance(obs):
        with lock:
            return obs[:, :2]

    teacher = Teacher.from_callable(balance, observation_space=CARTPOLE_OBS, action_space=CARTPOLE_ACTIONS)
    with pytest.raises(
        ValueError, match=r"The teacher 'balance' cannot be pickled, .* '_thread.lock' object\. Let"
    ) as error:
        build(cartpole_config.distillation(teacher=teacher))
    assert "\n" not in str(error.value)


def test_actions_are_numbered_from_zero():
    actions = gym.spaces.Discrete(2, start=5)
    with pytest.raises(ValueError, match=r"Discrete\(2, start=5\), but actions are numbered from 0 here\. Wrap"):
        Teacher.from_callable(mlp(4, 8, 2), observation_space=CARTPOLE_OBS, action_space=actions)


def test_a_torch_module_is_copied_and_frozen():
    network = mlp(4, 8, 2)
    teacher = Teacher.from_callable(network, observation_space=CARTPOLE_OBS, action_space=CARTPOLE_ACTIONS)
    before = q_values(teacher, states(5))
    assert teacher.num_parameters == 58
    assert all(parameter.requires_grad for parameter in network.parameters())
    with torch.no_grad():
        network[0].weight.zero_()
    assert np.array_equal(q_values(teacher, states(5)), before)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda obs: obs, r"returns the shape \[2, 4\] for two observations, expected Q-values \[2, 2\]"),
        (lambda obs: obs[:, :2].squeeze(), r"returns the shape \[2\] for one observation, expected Q-values \[1, 2\]"),
        (lambda obs: obs[:, :2] / 0, "are not finite"),
        (lambda obs: obs @ torch.ones(3, 2), "fails on observations of the shape"),
        (mlp(4, 2).double(), "of 32-bit floats: RuntimeError: .*dtype"),
        (lambda obs: (obs[:, :2], None), r"it returns a tuple, expected a tensor \[batch, actions\]"),
        (lambda obs: {"q": obs[:, :2]}, "it returns a dict with the keys q, expected a tensor"),
        (lambda obs: torch.nn.BatchNorm1d(4)(obs)[:, :2], "more than 1 value per channel when training"),
    ],
)
def test_a_function_that_is_no_q_network_says_so(function, message):
    with pytest.raises(ValueError, match=message):
        Teacher.from_callable(function, observation_space=CARTPOLE_OBS, action_space=CARTPOLE_ACTIONS)


def test_a_function_of_parts_is_told_which_vector_it_gets():
    parts = {"speed": gym.spaces.Box(-1, 1, (1,)), "place": gym.spaces.Box(-4, 4, (2,)), "gear": gym.spaces.Discrete(3)}
    space = gym.spaces.Dict(parts)
    with pytest.raises(ValueError, match=r"sorted keys: pass .*flatten_space\(space\), and no"):
        Teacher.from_callable(lambda obs: obs, observation_space=space, action_space=CARTPOLE_ACTIONS)
    teacher = Teacher.from_callable(
        lambda obs: torch.stack([obs[:, 5], obs[:, 3] + obs[:, 4]], 1),
        observation_space=gym.spaces.flatten_space(space),
        action_space=CARTPOLE_ACTIONS,
    )
    taking = teacher.for_space(space)
    assert taking.takes(space)
    obs = {"speed": np.float32([[0.5]]), "place": np.float32([[3, 1]]), "gear": np.array([2])}
    shown = Shown(obs, np.ones(1, bool))
    assert taking.q_values(torch.from_numpy(taking.start()(shown))).tolist() == [[0.5, 4.0]]


def test_a_function_that_draws_random_numbers_is_reported(caplog):
    network = torch.nn.Sequential(torch.nn.Linear(4, 500), torch.nn.Dropout(0.5), torch.nn.Linear(500, 2))
    for is_in_training_mode in (True, False):
        caplog.clear()
        network.train(is_in_training_mode)  # whoever has only a function around it cannot change it
        Teacher.from_callable(lambda obs: network(obs), observation_space=CARTPOLE_OBS, action_space=CARTPOLE_ACTIONS)
        assert ("differ for two equal observations" in caplog.text) == is_in_training_mode


def test_how_much_smaller_than_none_a_student_is_is_unknown():
    spaces = {"observation_space": CARTPOLE_OBS, "action_space": CARTPOLE_ACTIONS}
    for function in (lambda obs: obs[:, :2], torch.nn.AvgPool1d(2)):
        rule = Teacher.from_callable(function, num_parameters=0, **spaces)
        assert np.isnan(rule.num_parameters)
    assert np.isnan(compare(rule, make_q_module(), "CartPole-v1", num_episodes=1).compression)


def test_a_number_of_parameters_that_is_given_counts():
    spaces = {"observation_space": CARTPOLE_OBS, "action_space": CARTPOLE_ACTIONS}
    table = torch.nn.BatchNorm1d(4, affine=False)  # a module of buffers alone
    for function in (lambda obs: obs[:, :2], torch.nn.Sequential(table, torch.nn.AvgPool1d(2))):
        assert Teacher.from_callable(function, num_parameters=777, **spaces).num_parameters == 777


@pytest.mark.parametrize("number", ["58", -1, 5.5, True])
def test_the_number_of_parameters_is_a_number(number):
    with pytest.raises(ValueError, match=r"`num_parameters` must be an integer of at least 0"):
        Teacher.from_callable(
            lambda obs: obs[:, :2],
            observation_space=CARTPOLE_OBS,
            action_space=CARTPOLE_ACTIONS,
            num_parameters=number,
        )
