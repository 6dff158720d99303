import itertools
import json
import math
import re

import gymnasium as gym
import numpy as np
import pytest
import scipy.stats
import torch

from rllib_kd import compare, compare_all, load_teacher
from rllib_kd.evaluation.comparing import evaluate
from rllib_kd.evaluation.intervals import mean_and_ci95
from rllib_kd.evaluation.measures import agreement, confusion_and_regret
from rllib_kd.evaluation.playing import EpsilonGreedy, play
from rllib_kd.observations.pipeline import Shown
from rllib_kd.teachers.base import Teacher
from tests.conftest import Reflex, make_q_module, states


def as_shown():
    return lambda shown: shown.obs


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
    returns, (visited,) = play(lambda: gym.make("CartPole-v1"), Reflex(policy), seeds, views=[as_shown])
    assert returns == expected
    assert len(visited) == sum(expected)
    assert len(set(expected)) > 1
    assert noisy.any()


def test_an_env_whose_episode_has_ended_is_left_alone():
    class Countdown(gym.Env):
        """As many steps as the seed says."""

        observation_space = gym.spaces.Box(0, 9, (1,), np.float32)
        action_space = gym.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            assert seed is not None  # of its episode: no other is begun
            self.left = seed
            return np.full(1, self.left, np.float32), {}

        def step(self, action):
            assert self.left > 0
            self.left -= 1
            return np.full(1, self.left, np.float32), 1.0, self.left == 0, False, {}

    policy = Reflex(lambda obs: np.zeros(len(obs), dtype=np.int64))
    returns, (visited,) = play(Countdown, policy, [2, 5, 3, 1], views=[as_shown], num_envs=3)
    assert returns == [2.0, 5.0, 3.0, 1.0]
    assert visited.ravel().tolist() == [2, 5, 3, 1, 4, 2, 3, 1, 2, 1, 1]


class Table:
    """A Q-network whose observation is the number of the row that it answers."""

    def __init__(self, *rows):
        self.rows = torch.tensor(rows)

    def q_values(self, obs, mask=None):
        return self.rows[obs[:, 0].long()]


@pytest.mark.parametrize("states_at_once", [1, 2, 1000])
def test_confusion_agreement_and_regret_by_hand(monkeypatch, states_at_once):
    monkeypatch.setattr("rllib_kd.evaluation.measures._STATES_AT_ONCE", states_at_once)
    teacher = Table([1.0, 3.0, 2.0], [5.0, 4.0, 0.0], [0.0, 0.0, 8.0])  # chooses 1, 0, 2
    student = Table([0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [9.0, 0.0, 0.0])  # chooses 1, 1, 0, which costs 0, 1, 8
    visited = np.array([[0], [1], [1], [2], [0]])
    confusion, regret = confusion_and_regret(teacher, student, visited, visited)
    assert confusion.tolist() == [[0, 2, 0], [0, 2, 0], [1, 0, 0]]
    assert agreement(confusion) == 2 / 5
    assert regret == pytest.approx((0 + 1 + 1 + 8 + 0) / 5)


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
    for whose, states_visited in (("teacher", result.teacher.returns), ("student", result.student.returns)):
        confusion = np.array(getattr(result, f"confusion_on_{whose}_states"))
        assert confusion.shape == (2, 2)
        assert confusion.sum() == sum(states_visited)  # CartPole's return counts its states
        assert agreement(confusion) == getattr(result, f"agreement_on_{whose}_states")
    assert json.loads(json.dumps(result.to_dict())) == result.to_dict()
    assert max(map(len, str(result).splitlines())) <= 80


def test_a_network_that_takes_images_as_they_are_is_compared_with_one_that_gets_them_in_0_to_1():
    class Snow(gym.Env):
        observation_space, action_space = gym.spaces.Box(0, 255, (2, 2, 3), np.uint8), gym.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.left = 5
            return self.step(0)[0], {}

        def step(self, action):
            self.left -= 1
            image = self.np_random.integers(256, size=(2, 2, 3), dtype=np.uint8)
            return image, float(action), self.left == 0, False, {}

    def network(high):
        def q_values(obs):
            corner = obs[:, 0, 0, 0] / high
            return torch.stack([corner, 1 - corner], dim=1)

        space = gym.spaces.Box(0, high, (2, 2, 3), np.float32)
        return Teacher.from_callable(q_values, observation_space=space, action_space=Snow.action_space)

    for teacher, student in itertools.permutations([network(255), network(1)]):
        result = compare(teacher, student, lambda config: Snow(), num_episodes=4)
        assert result.student.returns == result.teacher.returns
        assert result.agreement_on_student_states == result.agreement_on_teacher_states == 1.0
        assert result.q_regret_on_student_states == 0.0


def test_epsilon_is_the_share_of_random_actions():
    class Always:
        def player(self):
            return lambda shown: np.ones(len(shown.first), dtype=np.int64)

    shown = Shown(np.zeros((20_000, 1)), first=np.zeros(20_000, dtype=bool))
    actions = EpsilonGreedy(Always(), 4, epsilon=0.3, seed=0).player()(shown)
    shares = np.bincount(actions, minlength=4) / len(actions)
    assert shares == pytest.approx([0.075, 0.7 + 0.075, 0.075, 0.075], abs=0.01)


def test_a_teacher_equals_itself_and_both_play_with_epsilon():
    greedy, noisy, random = (
        compare("cartpole", "cartpole", "CartPole-v1", num_episodes=4, epsilon=epsilon) for epsilon in (0.0, 0.5, 1.0)
    )
    assert greedy.return_ratio == 1.0
    assert greedy.agreement_on_teacher_states == greedy.agreement_on_student_states == 1.0
    assert greedy.q_regret_on_teacher_states == greedy.q_regret_on_student_states == 0.0
    assert greedy.student.returns == greedy.teacher.returns
    assert greedy.teacher.return_mean > noisy.teacher.return_mean > random.teacher.return_mean
    assert random.teacher.return_mean < 60  # as a random policy
    assert noisy.student.returns == noisy.teacher.returns  # the same draws for everyone
    assert noisy.random.returns == greedy.random.returns
    assert "4 episodes each, same seeds, ε = 0.5" in str(noisy)
    assert "ε" not in str(greedy)
    report = evaluate("cartpole", "CartPole-v1", num_episodes=4, epsilon=0.5)
    assert report.returns == noisy.teacher.returns


def test_epsilon_is_checked_before_anything_is_played(monkeypatch):
    monkeypatch.setattr("rllib_kd.evaluation.comparing.play", None)
    with pytest.raises(ValueError, match=r"`epsilon` must be .*, got 5"):
        compare("cartpole", "cartpole", "CartPole-v1", epsilon=5)
    with pytest.raises(ValueError, match=r"`epsilon` must be .*, got -0.1"):
        evaluate("cartpole", "CartPole-v1", epsilon=-0.1)


@pytest.mark.slow
def test_several_students_are_compared_as_each_alone_while_the_teacher_plays_once(monkeypatch):
    played = []

    def counted(make_env, policy, seeds, **kwargs):
        played.append(seeds)
        return play(make_env, policy, seeds, **kwargs)

    monkeypatch.setattr("rllib_kd.evaluation.comparing.play", counted)
    students = {"b": make_q_module(fcnet_hiddens=[4]), "a": make_q_module(fcnet_hiddens=[8], seed=1)}
    together = compare_all("cartpole", students, "CartPole-v1", num_episodes=3, seed=5)
    assert len(played) == 2 + len(students)
    assert [result.student.name for result in together] == ["b", "a"]
    for result in together:
        alone = compare("cartpole", students[result.student.name], "CartPole-v1", num_episodes=3, seed=5)
        assert alone.student.name == "student"
        assert untimed(alone) == untimed(result)


def untimed(result):
    """All figures but names and latencies, which differ from run to run."""
    figures = result.to_dict()
    for policy in ("teacher", "student", "random"):
        del figures[policy]["latency_ms"], figures[policy]["name"]
    return figures


def test_a_student_of_another_environment_is_named():
    stranger = make_q_module(gym.spaces.Box(-1, 1, (3,)), gym.spaces.Discrete(2))
    with pytest.raises(ValueError, match=r"student 'lost' was made for .*\(3,\).*environment has .*\(4,\)"):
        compare_all("cartpole", {"fine": "cartpole", "lost": stranger}, "CartPole-v1", num_episodes=1)
    more_actions = make_q_module(action_space=gym.spaces.Discrete(3))
    with pytest.raises(ValueError, match=r"The teacher was made for .*Discrete\(3\).*Discrete\(2\)"):
        compare(Teacher(more_actions), "cartpole", "CartPole-v1", num_episodes=1)
    for students in ({}, ["cartpole"]):
        with pytest.raises(ValueError, match=f"students by name, such as .*, got {re.escape(repr(students))}"):
            compare_all("cartpole", students, "CartPole-v1")


def test_a_name_is_no_markup():
    students = {"[red]x[/red] [/]": "cartpole"}
    (result,) = compare_all("cartpole", students, "CartPole-v1", num_episodes=1)
    assert "[red]x" in str(result)


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
        ({"env": gym.make("CartPole-v1")}, "An environment is named, or made by a class or function, got <TimeLimit<"),
        ({"env_config": ["steps"]}, r"`env_config` must be a dict of the environment's settings, got \['steps'\]"),
        ({"epsilon": "0.1"}, r"`epsilon` must be in \[0, 1\], a share .*got '0\.1'"),
        ({"student": "/does/not/exist"}, "no checkpoint at"),
        ({"student": torch.nn.Linear(4, 2)}, "without compute_q_values"),
    ],
)
def test_bad_input(kwargs, message):
    arguments = {"teacher": "cartpole", "student": "cartpole", "env": "CartPole-v1", "num_episodes": 2} | kwargs
    with pytest.raises(ValueError, match=message):
        compare(**arguments)


def test_one_episode_and_a_useless_teacher_are_still_json(small_teacher):
    result = compare(small_teacher, "cartpole", "CartPole-v1", num_episodes=1)
    assert math.isnan(result.return_ratio) or result.return_ratio > 0
    content = json.dumps(result.to_dict(), allow_nan=False)
    assert json.loads(content)["student"]["return_ci95"] is None
    assert "1 episode each" in str(result)


def test_a_student_is_copied_not_changed():
    module = make_q_module(inference_only=False)
    module.train()
    compare("cartpole", module, "CartPole-v1", num_episodes=1)
    assert module.training
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert isinstance(load_teacher("cartpole"), Teacher)
    assert states(1).shape == (1, 4)


def test_a_teacher_that_plays_no_better_than_chance_is_named(caplog):
    compare(make_q_module(), make_q_module(seed=1), "CartPole-v1", num_episodes=5)
    (message,) = [r.getMessage() for r in caplog.records if r.name == "rllib_kd.evaluation.comparing"]
    assert "plays 'CartPole-v1' no better than a random policy: mean returns of" in message
    caplog.clear()
    compare("cartpole", make_q_module(), "CartPole-v1", num_episodes=2)
    assert not [r for r in caplog.records if r.name.startswith("rllib_kd")]
