"""What a trial reports; its students are stand-ins."""

from types import SimpleNamespace

import pytest

from rllib_kd.sweeps import trial as module_of_trial
from rllib_kd.sweeps.trial import NUM_REPORTS, StudentTrial, Task
from rllib_kd.teachers.base import Teacher
from tests.conftest import make_q_module
from tests.networks.trees.trees import tree_module


class Student:
    """Trains one env step at a time; its network is a tree with as many leaves as its number."""

    def __init__(self, num_leaves):
        self.num_env_steps = self.num_gradient_steps = 0
        self.network = Teacher(tree_module(num_leaves, max_leaf_nodes=8), source="student")

    def train(self):
        self.num_env_steps += 1


@pytest.fixture
def trial_of(monkeypatch):
    def make(env_steps, num_leaves=(2, 3)):
        trial = StudentTrial.__new__(StudentTrial)
        trial._task = Task("CartPole-v1", {}, env_steps, len(num_leaves), 0, 500.0, 20.0)
        trial._students = list(map(Student, num_leaves))
        trial._teacher = SimpleNamespace(num_parameters=100)
        trial._iteration = 0
        return trial

    monkeypatch.setattr(module_of_trial, "open_source", lambda one: SimpleNamespace(network=lambda: one.network))
    monkeypatch.setattr(StudentTrial, "_return_ratios", lambda self, networks, is_done: ([1.0] * len(networks), {}))
    return make


@pytest.mark.parametrize("env_steps", [1, 3, 8, 1_000])
def test_a_trial_ends_at_its_last_report(trial_of, env_steps):
    trial, are_done = trial_of(env_steps), []
    for iteration in range(NUM_REPORTS):
        trial._iteration = iteration
        result = trial.step()
        are_done.append(result["done"])
    assert are_done == [False] * 7 + [True]
    assert result["num_env_steps_sampled_lifetime"] == env_steps


def test_a_tree_counts_with_all_leaves_that_it_may_have(trial_of):
    """The students of a setting grow to different sizes, and `rllib shrink` counts them so as well."""
    result = trial_of(8).step()
    most = 4 * 7 + 8 * 3
    assert (result["student_params"], result["student_cost"], result["compression"]) == (most, most, most / 100)


def test_it_reports_the_extreme_returns_of_its_episodes(monkeypatch):
    """By which the certificate knows how low a return can be."""
    returns = iter([[500.0, 480.0], [-30.0, 510.0]])
    monkeypatch.setattr(module_of_trial, "play", lambda make_env, policy, seeds: (next(returns), None))
    trial = StudentTrial.__new__(StudentTrial)
    trial._task = Task("CartPole-v1", {}, 8, 2, 0, 500.0, 20.0)
    trial._students = [SimpleNamespace(config=SimpleNamespace(env_config={}))]
    networks = [Teacher(make_q_module()), Teacher(make_q_module())]
    ratios, more = trial._return_ratios(networks, is_done=True)
    assert ratios == pytest.approx([470 / 480, 220 / 480])
    assert more == {"extreme_returns": [-30.0, 510.0]}
