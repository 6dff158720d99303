"""Environments that fail beside what they play: results count, and the environment is named."""

import gymnasium as gym
import numpy as np
import pytest

from rllib_kd.environments.video import check_renders
from rllib_kd.evaluation.comparing import check_fit
from rllib_kd.evaluation.playing import RandomActions, play
from rllib_kd.evaluation.validation import validate
from rllib_kd.observations.pipeline import ObservationPipeline
from tests.conftest import make_q_module


class Unclosable(gym.Wrapper):
    """CartPole, which counts how often it is closed."""

    closed = 0

    def __init__(self):
        super().__init__(gym.make("CartPole-v1", render_mode="rgb_array"))

    def close(self):
        type(self).closed += 1
        raise OSError("the simulator is gone")


class Unplayable(Unclosable):
    def step(self, action):
        raise KeyError("map")


@pytest.fixture(autouse=True)
def _count_from_zero(monkeypatch):
    for env in (Unclosable, Unplayable):
        monkeypatch.setattr(env, "closed", 0)


def assert_warned_once(caplog):
    (record,) = (record for record in caplog.records if record.name.startswith("rllib_kd"))
    said = "The environment 'CartPole-v1' raised in close(): OSError: the simulator is gone"
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith(f"{said} ({__file__}:")
    assert record.getMessage().endswith(", in close)")


def test_an_environment_that_cannot_be_closed_is_played_and_named(caplog):
    returns, _ = play(Unclosable, RandomActions(2, seed=0), [0, 1, 2])
    assert returns == play(lambda: gym.make("CartPole-v1"), RandomActions(2, seed=0), [0, 1, 2])[0]
    assert Unclosable.closed == 3  # each, once
    assert_warned_once(caplog)


def test_an_environment_that_cannot_be_closed_is_validated_and_named(caplog):
    students = {"student": make_q_module(fcnet_hiddens=[8])}
    pipeline = ObservationPipeline(gym.make("CartPole-v1").observation_space)
    returns = validate(Unclosable, students, pipeline, num_episodes=2).returns
    assert returns == validate(lambda: gym.make("CartPole-v1"), students, pipeline, num_episodes=2).returns
    assert Unclosable.closed == 2
    assert_warned_once(caplog)


def test_an_error_of_close_does_not_hide_that_of_the_episode(caplog):
    with pytest.raises(RuntimeError, match=r"'CartPole-v1' raised in step\(\): KeyError: 'map'"):
        play(Unplayable, RandomActions(2, seed=0), [0])
    assert_warned_once(caplog)


@pytest.mark.parametrize(
    "check", [lambda: check_fit(Unclosable, {}), lambda: check_renders(Unclosable, "rgb_array")], ids=["fit", "renders"]
)
def test_an_environment_that_cannot_be_closed_passes_the_checks_before_it_plays(caplog, check):
    check()
    assert_warned_once(caplog)


def test_an_episode_without_an_end_names_the_environment(monkeypatch):
    class Endless(gym.Env):
        observation_space = gym.spaces.Box(0, 1, (1,), np.float32)
        action_space = gym.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return np.zeros(1, np.float32), {}

        def step(self, action):
            return np.zeros(1, np.float32), 0.0, False, False, {}

    monkeypatch.setattr("rllib_kd.evaluation.playing._MAX_EPISODE_STEPS", 5)
    with pytest.raises(
        ValueError, match=r"^An episode of the environment 'Endless' has not ended after 5 steps\. Give"
    ):
        play(Endless, RandomActions(2, seed=0), [0])
