"""Episodes that several actors share, without Ray."""

import gymnasium as gym
import numpy as np
import pytest

from rllib_kd.certificates.games import Games
from rllib_kd.environments.making import env_maker
from rllib_kd.observations.pipeline import ObservationPipeline
from rllib_kd.shrink.candidates import mlp
from rllib_kd.shrink.parts import divide
from rllib_kd.shrink.spread import SpreadGames, Task, Worker
from rllib_kd.teachers.base import Teacher
from tests.conftest import make_q_module

SPACE = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)


class HereCrew:
    """Does all jobs in this process; remembers them."""

    def __init__(self, teacher):
        (part,) = divide([mlp(())], 1, 1, seed=0)
        self.worker = Worker(teacher, Task("CartPole-v1", {}), part)
        self.jobs = []

    def share(self, method, jobs):
        self.jobs += [(method, job) for job in jobs]
        return [getattr(self.worker, method)(*job) for job in jobs]


@pytest.fixture
def teacher():
    return Teacher(make_q_module(SPACE), source="teacher")


def spread(teacher, seed=0):
    crew = HereCrew(teacher)
    return SpreadGames(crew, env_maker("CartPole-v1", {}), teacher, seed), crew


def test_every_seed_is_played_once_and_greedy_policies_as_without_actors(teacher):
    games, crew = spread(teacher)
    student = Teacher(make_q_module(SPACE), source="student")
    own = games.certificate_episodes(student, 50, 25)
    alone = Games(env_maker("CartPole-v1", {}), teacher, 0).certificate_episodes(student, 50, 25)
    assert own.shape == (3, 25)
    assert own[:2].tolist() == alone[:2].tolist()
    assert all(len(seeds) <= 10 for _, (_, seeds) in crew.jobs)
    assert len(crew.jobs) == 9


def test_the_teacher_is_not_sent_with_the_jobs_and_random_actions_differ_between_them(teacher):
    games, crew = spread(teacher)
    _, random = games.validation_baselines(0, 20)
    players = [player for _, (player, _) in crew.jobs]
    assert players[:2] == [None, None]
    assert random[:10].tolist() != random[10:].tolist()
    again, _ = spread(teacher)
    assert again.validation_baselines(0, 20)[1].tolist() == random.tolist()


@pytest.mark.parametrize("count", [3, 30, 100])
def test_validation_is_shared_by_students(teacher, count):
    games, crew = spread(teacher)
    modules = {f"m{i}": make_q_module(SPACE) for i in range(5)}
    pipeline = ObservationPipeline(SPACE)
    own = games.validate(modules, pipeline, 7, count)
    alone = Games(env_maker("CartPole-v1", {}), teacher, 0).validate(modules, pipeline, 7, count)
    assert own == alone
    assert list(own) == list(modules)
    assert len(crew.jobs) == {3: 1, 30: 3, 100: 5}[count]
