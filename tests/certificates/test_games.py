"""Episodes of validation and of certificates."""

import json
import random

import gymnasium as gym
import numpy as np
import pytest
import torch

from rllib_kd.certificates.games import Games, first_certificate_seed
from rllib_kd.observations.pipeline import ObservationPipeline
from rllib_kd.teachers.base import Teacher
from tests.conftest import make_q_module


class Unseeded(gym.Env):
    """An environment whose returns no seed determines."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (4,), np.float32)
    action_space = gym.spaces.Discrete(2)
    rng = np.random.default_rng(0)

    def reset(self, *, seed=None, options=None):
        return np.zeros(4, np.float32), {}

    def step(self, action):
        return np.zeros(4, np.float32), float(self.rng.normal()), True, False, {}


@pytest.mark.parametrize("make_env", [lambda: gym.make("CartPole-v1", max_episode_steps=20), Unseeded])
def test_baselines_of_an_interrupted_run_are_not_played_again(make_env):
    """Also where no seed determines an episode, all candidates have the same ones of teacher and random policy."""
    teacher, student = Teacher(make_q_module(), source="t"), Teacher(make_q_module(seed=1), source="s")
    games = Games(make_env, teacher, seed=2)
    first = games.certificate_episodes(student, 0, 6)
    resumed = Games(lambda: pytest.fail("played again"), teacher, seed=2)
    resumed.set_state(json.loads(json.dumps(games.get_state())))
    assert resumed.seconds_per_seed == games.seconds_per_seed > 0
    again = resumed._play_baselines(first_certificate_seed(2), 6, chooses=False)
    assert np.array_equal(again, first[1:])


def test_episodes_of_a_certificate_are_those_of_their_seeds_whatever_was_played_before():
    teacher, student = Teacher(make_q_module(), source="t"), Teacher(make_q_module(seed=1), source="s")
    whole = Games(lambda: gym.make("CartPole-v1", max_episode_steps=50), teacher, seed=0)
    parts = [whole.certificate_episodes(student, first, 5) for first in (0, 5)]
    late = Games(lambda: gym.make("CartPole-v1", max_episode_steps=50), teacher, seed=0)
    assert np.array_equal(late.certificate_episodes(student, 5, 5), parts[1])


def test_what_is_raised_after_a_step_ends_the_episodes():
    class StopError(Exception):
        pass

    def stop(num_ended):
        raise StopError

    class Endless(Unseeded):
        steps = 0

        def step(self, action):
            Endless.steps += 1
            return np.zeros(4, np.float32), 0.0, False, False, {}

    teacher, student = Teacher(make_q_module(), source="t"), Teacher(make_q_module(seed=1), source="s")
    games, pipeline = Games(Endless, teacher, seed=0, advance=stop), ObservationPipeline(teacher.observation_space)
    for play in (
        lambda: games.validation_baselines(0, 1),
        lambda: games.certificate_episodes(student, 0, 1),
        lambda: games.validate({"s": student.module}, pipeline, 0, 1),
    ):
        with pytest.raises(StopError):
            play()
    assert Endless.steps == 3
    assert games.seconds_per_seed == 0  # of no whole episode


class Careless(Unseeded):
    """An environment that takes no seed, and draws from the global generators."""

    def step(self, action):
        reward = np.random.normal() + random.random() + torch.rand(1).item()
        return np.zeros(4, np.float32), float(reward), True, False, {}


def test_a_process_that_begins_like_another_one_plays_other_episodes():
    """RLlib seeds the global generators with the run's seed in each process, and so in each that resumes the run."""
    teacher, student, batches = Teacher(make_q_module(), source="t"), Teacher(make_q_module(seed=1), source="s"), []
    for first in (0, 5, 5):
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(0)
        own = random.Random(0).random()
        batches.append(Games(Careless, teacher, seed=0).certificate_episodes(student, first, 5))
        assert random.random() == own  # training, which draws from them too, goes on as if nothing had been played
    assert not np.isin(batches[0], batches[1]).any()
    assert np.array_equal(batches[1], batches[2])
