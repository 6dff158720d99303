"""Environments whose new ones play the same episode again and again are refused."""

import gymnasium as gym
import numpy as np
import pytest

from rllib_kd.certificates.fresh import check_fresh


class Guess(gym.Env):
    """The observation is a random number, and each step pays 1 for guessing its sign; action 2 is illegal."""

    observation_space = gym.spaces.Box(-9.0, 9.0, (4,), np.float32)
    action_space = gym.spaces.Discrete(3)
    is_shown_at_first = True

    def reset(self, *, seed=None, options=None):
        self.seed(seed)
        self.steps, self.number = 0, self.rng.normal() if self.is_shown_at_first else 0.0
        return self.looks()

    def looks(self):
        return np.full(4, self.number, np.float32), {"action_mask": np.array([1, 1, 0], np.int8)}

    def step(self, action):
        assert action < 2
        reward, self.steps, self.number = float((self.number > 0) == action), self.steps + 1, self.rng.normal()
        obs, info = self.looks()
        return obs, reward, self.steps == 5, False, info


class Seeded(Guess):
    def seed(self, seed):
        self.rng = np.random.default_rng(seed)


class SeededWhenMade(Guess):
    def __init__(self):
        self.rng = np.random.default_rng(7)

    def seed(self, seed):
        pass


class SeededWhenMadeFromTheSecondStepOn(SeededWhenMade):
    is_shown_at_first = False


class SeedsAllWhenMade(SeededWhenMade):
    rng = np.random.RandomState()  # as numpy's own global one

    def __init__(self):
        SeedsAllWhenMade.rng = np.random.RandomState(7)


class HarderEachTime(Seeded):
    """An episode depends on how many there were before."""

    level = 0

    def seed(self, seed):
        self.level += 1
        super().seed(self.level)


class Unseeded(SeededWhenMade):
    rng = np.random.default_rng(7)

    def __init__(self):
        pass


class AlwaysTheSame(Seeded):
    def seed(self, seed):
        super().seed(0)


@pytest.mark.parametrize(
    "env",
    [SeededWhenMade, SeededWhenMadeFromTheSecondStepOn, SeedsAllWhenMade, HarderEachTime],
    ids=lambda env: env.__name__,
)
def test_new_environments_that_repeat_one_episode_are_refused(env):
    with pytest.raises(ValueError, match="'it' each new environment begins with the same episode, whatever the seed"):
        check_fresh(env, "it")


@pytest.mark.parametrize(
    ("env", "note"),
    [
        (Seeded, ""),
        (Unseeded, "in 'it' equal seeds give different episodes"),
        (AlwaysTheSame, "in 'it' episodes begin alike whatever the seed"),
    ],
)
def test_other_environments_are_not_refused(capsys, env, note):
    check_fresh(env, "it")
    said = capsys.readouterr().err
    assert note in said
    assert said.count("note") == bool(note)
