"""Time, or env steps."""

import math

import pytest

from rllib_kd.shrink.budget import Budget


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_minutes():
    clock = Clock()
    budget = Budget(minutes=10.0, env_steps=None, max_episodes=5_000, clock=clock)
    clock.now += 33.5
    assert budget.training_is_over(0.1, 1)  # 55 % of ten minutes are for training
    assert not budget.training_is_over(0.2, 1)
    assert not budget.training_is_over(0.1, 0)  # at least one iteration
    assert budget.left() == " · 566 s left"
    assert budget.episodes_left(1, 0.1) == pytest.approx(566.5 / 0.1)
    assert budget.episodes_left(2, 0.1) == budget.episodes_left(3, 0.1) == pytest.approx(566.5 / 2 / 0.1)
    assert budget.max_episodes(0.1) == 2_700
    assert budget.max_episodes(0.001) == 5_000
    budget.begin_certificate()
    assert budget.left() == " · 566 s left"
    clock.now += 1_000.0
    assert budget.episodes_left(1, 0.1) == 0.0
    assert budget.left() == " · 0 s left"


def test_the_certificate_has_a_quarter_of_the_time_also_if_it_begins_late():
    clock = Clock()
    budget = Budget(minutes=10.0, env_steps=None, max_episodes=5_000, clock=clock)
    clock.now += 590.0
    budget.begin_certificate()
    assert budget.left() == " · 150 s left"
    clock.now += 150.0
    assert budget.episodes_left(1, 0.1) == 0.0


def test_env_steps_know_no_time():
    clock = Clock()
    budget = Budget(minutes=None, env_steps=1_000, max_episodes=300, clock=clock)
    clock.now += 1e9
    assert not budget.training_is_over(0.4, 399)
    assert budget.training_is_over(0.4, 400)
    assert (budget.episodes_left(1, 9.0), budget.max_episodes(9.0), budget.left()) == (math.inf, 300, "")
