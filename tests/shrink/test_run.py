"""Rounds of training and validation, and how Ctrl-C ends them; without training."""

import threading
from itertools import pairwise

import pytest

from rllib_kd.shrink.budget import Budget
from rllib_kd.shrink.candidates import mlp
from rllib_kd.shrink.games import first_certificate_seed
from rllib_kd.shrink.run import ROUNDS, Run
from rllib_kd.shrink.training import training_config
from rllib_kd.teachers.base import Teacher
from tests.conftest import make_q_module


class Trainer:
    """Counts env steps; `at_step` is called after each iteration."""

    def __init__(self, at_step=lambda env_steps: None):
        self.env_steps, self.at_step = 0, at_step

    def train(self, is_over, report):
        while not is_over():
            self.env_steps += 100
            self.at_step(self.env_steps)
            report()

    def copies(self):
        return {"linear": self.env_steps}


class Tournament:
    sizes = ("linear",)

    def __init__(self, settled_at=None):
        self.settled_at, self.rounds, self.finished = settled_at, [], None

    def round(self, number, copies, env_steps):
        assert copies == {"linear": env_steps}
        self.rounds.append((number, env_steps))

    def is_settled(self, number):
        return number == self.settled_at

    def finish(self, number, copies, env_steps):
        self.finished = number, env_steps

    def best(self, size):
        return None

    def ratio(self, snapshot):
        return 0.5


def trained(trainer, tournament, interrupted=None):
    run = Run(*[None] * 4, sizes=[mlp(())], settings={}, folder=None, asked=None)
    run._budget = Budget(minutes=None, env_steps=1_000, max_episodes=100)
    run._show = lambda text: None
    run._train(trainer, tournament, interrupted or threading.Event())
    return tournament


def test_rounds_are_spread_over_training():
    tournament = trained(Trainer(), Tournament())
    assert tournament.rounds == list(enumerate(round(1_000 * share) for share in ROUNDS))
    assert tournament.finished == (4, 1_000)


def test_training_ends_once_the_smallest_is_good_enough():
    tournament = trained(Trainer(), Tournament(settled_at=1))
    assert tournament.rounds == [(0, 100), (1, 200)]
    assert tournament.finished == (1, 200)


def test_after_ctrl_c_what_there_is_is_compared(capsys):
    interrupted = threading.Event()
    trainer = Trainer(lambda env_steps: interrupted.set() if env_steps == 300 else None)
    tournament = trained(trainer, Tournament(), interrupted)
    assert tournament.rounds == [(0, 100), (1, 200), (2, 300)]
    assert tournament.finished == (2, 300)
    assert "training ends, and what there is is tested" in capsys.readouterr().err


def test_before_the_first_iteration_there_is_nothing_so_that_one_is_made():
    interrupted = threading.Event()
    interrupted.set()
    assert trained(Trainer(), Tournament(), interrupted).rounds == [(0, 100)]


def test_a_slow_validation_is_not_repeated_without_training():
    class Instant(Trainer):
        def train(self, is_over, report):
            super().train(lambda: self.env_steps >= 500, report)

    assert trained(Instant(), Tournament()).rounds == [(0, 500)]


def test_each_seed_has_certificate_episodes_of_its_own():
    firsts = [first_certificate_seed(seed) for seed in range(1_000)]
    assert len(set(firsts)) == 1_000
    assert min(b - a for a, b in pairwise(firsts)) == 100_000
    assert max(firsts) + 100_000 < 2**31
    assert min(firsts) > 1_500_000_000 + 200_000  # beyond validation


def test_settings_that_a_checkpoint_would_lack_are_refused():
    teacher = Teacher(make_q_module())
    settings = {"env_to_module_connector": lambda *args, **kwargs: []}
    with pytest.raises(ValueError, match="Connectors of your own are not supported"):
        training_config(teacher, "CartPole-v1", settings, [mlp(())], restarts=1, seed=0)
    config = training_config(teacher, "CartPole-v1", {"lr": 0.5}, [mlp(()), mlp((2,))], restarts=3, seed=7)
    assert (config.lr, config.seed, config.restarts, list(config.students)) == (0.5, 7, 3, ["linear", "units-2"])
