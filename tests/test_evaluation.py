import json
import math

import gymnasium as gym
import numpy as np
import pytest
import scipy.stats
import torch

from rllib_kd import compare, load_teacher
from rllib_kd.evaluation import agreement_and_regret, mean_and_ci95, play
from rllib_kd.teachers.base import Teacher
from tests.conftest import make_q_module, states


def test_play_gives_the_returns_that_a_plain_loop_gives():
    teacher, seeds, expected = load_teacher("cartpole"), range(40, 46), []
    noisy = np.random.default_rng(0).random((500, 1)) < 0.5

    def policy(obs):
        greedy = teacher.q_values(torch.as_tensor(obs)).argmax(-1).numpy()
        return np.where(obs[:, 0] > 0.05, 1 - greedy, greedy)  # bad enough to end early, in different steps

    for seed in seeds:
        env = gym.make("CartPole-v1")
        obs, _ = env.reset(seed=seed)
        total, done = 0.0, False
        while not done:
            obs, reward, terminated, truncated, _ = env.step(policy(obs[None])[0])
            total, done = total + reward, terminated or truncated
        expected.append(total)
    returns, visited = play(lambda: gym.make("CartPole-v1"), policy, seeds)
    assert returns == expected
    assert len(visited) == sum(expected)
    assert len(set(expected)) > 1
    assert noisy.any()


def test_agreement_and_regret_by_hand():
    class Table:
        def __init__(self, *rows):
            self.rows = torch.tensor(rows)

        def q_values(self, obs):
            return self.rows[: len(obs)]

    teacher, student = Table([1.0, 3.0], [5.0, 4.0]), Table([0.0, 1.0], [0.0, 1.0])
    assert agreement_and_regret(teacher, student, np.zeros((2, 1))) == (0.5, 0.5)


def test_the_interval_is_students():
    values = [3.0, 5.0, 4.0, 9.0]
    mean, half_width = mean_and_ci95(values)
    low, high = scipy.stats.t.interval(0.95, 3, loc=np.mean(values), scale=scipy.stats.sem(values))
    assert (mean - half_width, mean + half_width) == pytest.approx((low, high))
    assert mean_and_ci95([2.0]) == (2.0, math.inf)


def test_compares_two_policies_on_the_same_seeds():
    result = compare("cartpole", make_q_module(fcnet_hiddens=[4]), "CartPole-v1", num_episodes=6, seed=7)
    assert result.teacher.return_mean == np.mean(result.teacher.returns)
    assert len(result.teacher.returns) == len(result.student.returns) == len(result.random.returns) == 6
    assert result.teacher.return_mean > 450
    assert result.return_ratio < 0.5
    assert result.student.num_parameters == 4 * 4 + 4 + 4 * 2 + 2
    assert result.compression == result.student.num_parameters / result.teacher.num_parameters
    assert 0 <= result.agreement_on_teacher_states < 1
    assert result.q_regret_on_student_states > 0
    assert 0 < result.student.latency_ms < 100
    json.dumps(result.to_dict())
    assert max(map(len, str(result).splitlines())) <= 80


def test_a_teacher_compared_with_itself_is_equal():
    result = compare("cartpole", "cartpole", "CartPole-v1", num_episodes=3)
    assert result.return_ratio == 1.0
    assert result.agreement_on_teacher_states == result.agreement_on_student_states == 1.0
    assert result.q_regret_on_teacher_states == result.q_regret_on_student_states == 0.0
    assert result.student.returns == result.teacher.returns


def test_takes_algorithms_paths_modules_and_teachers(cartpole_config, build, small_teacher):
    students = [build(cartpole_config), small_teacher, make_q_module(), load_teacher(small_teacher)]
    for student in students:
        assert compare(small_teacher, student, "CartPole-v1", num_episodes=2).student.return_mean > 0


def test_takes_what_rllib_takes_for_an_env(cluster, small_teacher):
    from ray.tune.registry import register_env

    register_env("short_cartpole", lambda config: gym.make("CartPole-v1", max_episode_steps=config["steps"]))
    for env in ("short_cartpole", lambda config: gym.make("CartPole-v1", max_episode_steps=config["steps"])):
        result = compare("cartpole", small_teacher, env, num_episodes=2, env_config={"steps": 5})
        assert result.teacher.returns == [5.0, 5.0]
    assert math.isnan(result.return_ratio) or result.return_ratio <= 1


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_episodes": 0}, "at least 1"),
        ({"student": "/does/not/exist"}, "no checkpoint at"),
        ({"student": torch.nn.Linear(4, 2)}, "without compute_q_values"),
    ],
)
def test_bad_input(kwargs, message):
    arguments = {"teacher": "cartpole", "student": "cartpole", "env": "CartPole-v1", "num_episodes": 2} | kwargs
    with pytest.raises(ValueError, match=message):
        compare(**arguments)


def test_a_student_is_copied_not_changed():
    module = make_q_module(inference_only=False)
    module.train()
    compare("cartpole", module, "CartPole-v1", num_episodes=1)
    assert module.training
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert isinstance(load_teacher("cartpole"), Teacher)
    assert states(1).shape == (1, 4)
