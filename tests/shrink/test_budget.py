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


def test_time_that_would_certify_nobody_after_it_is_for_this_candidate():
    clock = Clock()
    budget = Budget(minutes=10.0, env_steps=None, max_episodes=5_000, clock=clock)
    clock.now += 570.0
    assert budget.episodes_left(3, 0.1, least=150) == pytest.approx(150)
    assert budget.episodes_left(3, 0.1, least=151) == pytest.approx(300)
    assert budget.episodes_left(1, 0.1, least=150) == pytest.approx(300)


def test_the_certificate_has_a_quarter_of_the_time_also_if_it_begins_late():
    clock = Clock()
    budget = Budget(minutes=10.0, env_steps=None, max_episodes=5_000, clock=clock)
    clock.now += 590.0
    budget.begin_certificate()
    assert budget.left() == " · 150 s left"
    clock.now += 150.0
    assert budget.episodes_left(1, 0.1) == 0.0


@pytest.mark.parametrize(
    ("seconds_per_seed", "training", "certificate"),
    [
        (1.0, 0.47, 0.25),  # validation after training is a part of it then
        (0.018, 0.545, 0.25),
        (0.01, 0.7472, 0.25),
        (0.004, 0.8489, 0.1),
        (0.0, 0.85, 0.0),
    ],
)
def test_cheap_episodes_leave_more_time_for_training(seconds_per_seed, training, certificate):
    clock = Clock()
    budget = Budget(minutes=10.0, env_steps=None, max_episodes=5_000, clock=clock)
    budget.keep_for_certificate(seconds_per_seed)
    clock.now += 600 * training - 1
    assert not budget.training_is_over(1.0, 1)
    clock.now += 2
    assert budget.training_is_over(1.0, 1)
    clock.now += 600
    budget.begin_certificate()
    assert budget.end - budget.seconds == pytest.approx(600 * certificate)


def test_candidates_race_for_a_share_of_the_time_or_for_the_env_steps_of_training():
    budget = Budget(minutes=10.0, env_steps=None, max_episodes=9)
    assert [budget.play_limit(1_000, share).races for share in (0.1, 0.5, 1.0)] == pytest.approx([6.6, 33.0, 66.0])
    assert budget.play_limit(1_000).unit == "seconds"
    assert Budget(minutes=None, env_steps=1_000, max_episodes=9).play_limit(420, 0.4) == (
        "env_steps",
        420,
        math.inf,
        0,
        0,
    )


def test_other_validation_has_a_share_of_the_time_too():
    budget = Budget(minutes=10.0, env_steps=None, max_episodes=9)
    looks = [budget.play_limit(1_000, share, seconds_of_baselines=0.3) for share in (0.1, 1.0)]
    looks.append(budget.play_limit(1_000, 1.0, at_end=True))
    assert [limit.looks for limit in looks] == pytest.approx([55.2, 120.0, 150.0])
    assert looks[0].baselines == 0.3
    assert {limit.least_looks for limit in looks} == {12.0}


def test_checks_of_the_teacher_are_fewer_where_they_are_slow():
    budget = Budget(minutes=10.0, env_steps=None, max_episodes=9)
    for in_doubt, expected in ((False, [100, 100, 30, 0]), (True, [100, 100, 100, 1])):
        counts = [budget.num_checks(100, seconds, in_doubt=in_doubt) for seconds in (0.0, 0.01, 1.0, 100.0)]
        assert counts == expected
    assert Budget(minutes=None, env_steps=1_000, max_episodes=9).num_checks(100, 100.0, in_doubt=False) == 100


def test_what_cannot_be_certified_in_time():
    budget = Budget(minutes=1.0, env_steps=None)
    assert budget.is_too_short(185, 0.15)  # certificates have 45 % of the time
    assert not budget.is_too_short(185, 0.14)
    assert budget.minutes_for(185, 0.15) == 3  # half of what certificates have is for the first one
    assert not Budget(minutes=None, env_steps=1).is_too_short(1e9, 1.0)


def test_env_steps_know_no_time():
    clock = Clock()
    budget = Budget(minutes=None, env_steps=1_000, max_episodes=300, clock=clock)
    clock.now += 1e9
    assert not budget.training_is_over(0.4, 399)
    assert budget.training_is_over(0.4, 400)
    assert (budget.episodes_left(1, 9.0), budget.max_episodes(9.0), budget.left()) == (math.inf, 300, "")


def test_time_that_was_spent_counts():
    clock = Clock()
    budget = Budget(minutes=10.0, env_steps=None, max_episodes=5_000, spent=500.0, clock=clock)
    assert budget.left() == " · 100 s left"
    assert budget.training_is_over(1.0, 1)
    again = Budget(minutes=10.0, env_steps=None, max_episodes=5_000, spent=700.0, end=740.0, clock=clock)
    assert again.left() == " · 40 s left"
    assert again.end == 740.0
    assert Budget(minutes=None, env_steps=9, max_episodes=5_000, clock=clock).end is None


def test_when_training_is_saved_by_time():
    clock = Clock()
    budget = Budget(minutes=100.0, env_steps=None, max_episodes=5_000, clock=clock)
    clock.now += 59.0
    assert not budget.is_save_due(10**9)
    clock.now += 2.0
    assert budget.is_save_due(1)
    budget.saved(1, took=10.0)
    clock.now += 190.0
    assert not budget.is_save_due(10**9)  # saves take at most 5 % of the time
    clock.now += 20.0
    assert budget.is_save_due(10**9)


def test_with_env_steps_equal_runs_are_saved_at_the_same_places():
    clock = Clock()
    budget = Budget(minutes=None, env_steps=1_000_000, max_episodes=300, clock=clock)
    clock.now += 1e9
    assert not budget.is_save_due(19_999)
    assert budget.is_save_due(20_000)
    budget.saved(20_000, took=1e9)
    assert not budget.is_save_due(39_999)
    assert budget.is_save_due(40_000)
    assert not Budget(minutes=None, env_steps=1_000, max_episodes=300, clock=clock).is_save_due(9_999)


@pytest.mark.parametrize(
    ("asked", "limit", "expected"),
    [
        (None, {"minutes": 10.0}, 20_000),
        (300, {"minutes": 10.0}, 300),
        (None, {"env_steps": 1_000}, 5_000),  # equal runs have equal certificates
    ],
)
def test_a_certificate_may_have_more_episodes_if_time_is_the_limit(asked, limit, expected):
    budget = Budget(**{"minutes": None, "env_steps": None, **limit}, max_episodes=asked, clock=Clock())
    assert budget.max_episodes(0.001) <= 5_000
    assert budget.begin_certificate() == expected
