"""What is checked before anything is trained, in made-up episodes that take time."""

from types import SimpleNamespace

import numpy as np
import pytest

from rllib_kd.certificates.certificate import RatioTest
from rllib_kd.shrink import checks as module_of_checks
from rllib_kd.shrink.budget import Budget
from rllib_kd.shrink.checks import Checks, least_episodes


class Games:
    """Teacher and random policy; an episode of both takes `seconds(count)` of a made-up clock."""

    def __init__(self, seconds, teacher=100.0, noise=1.0):
        self.seconds, self.teacher, self.noise, self.now, self.played = seconds, teacher, noise, 0.0, []

    def validation_baselines(self, first, count):
        self.played.append(count)
        self.now += count * self.seconds(count)
        rng = np.random.default_rng(first)
        return np.array([self.teacher + self.noise * rng.normal(size=count), self.noise * rng.normal(size=count)])


@pytest.fixture
def check(monkeypatch):
    def play(games, minutes=10.0, keep=0.97, num_processes=1):
        monkeypatch.setattr(module_of_checks.time, "perf_counter", lambda: games.now)
        asked = SimpleNamespace(keep=keep, confidence=0.95, minutes=minutes)
        budget = Budget(minutes=minutes, env_steps=None if minutes else 1_000)

        def new_test(seen):
            return RatioTest(keep, 0.025, seen=seen)

        found = Checks(asked, games, budget, new_test, teacher="t", env="e", num_processes=num_processes)
        return found, found.play()

    return play


def test_where_episodes_are_fast_there_are_a_hundred(check):
    games = Games(lambda count: 0.01)
    found, returns = check(games)
    assert (found.too_short, found.why_not_better(returns), games.played) == ("", "", [10, 90])
    assert returns.shape == (2, 100)


def test_where_they_are_slow_there_are_fewer(check):
    games = Games(lambda count: 0.4)
    assert check(games)[1].shape == (2, 75)
    assert check(Games(lambda count: 100.0), minutes=None)[1].shape == (2, 100)


def test_a_run_that_is_too_short_says_how_long_it_must_be(check):
    games = Games(lambda count: 1.0)
    found, returns = check(games)
    assert "takes about 2 s here. A certificate takes at least" in found.too_short
    minutes = int(found.too_short.split("(--minutes ")[1].split(")")[0])
    assert not check(Games(lambda count: 1.0), minutes=float(minutes))[0].too_short
    assert check(Games(lambda count: 1.0), minutes=minutes / 2.1)[0].too_short
    assert returns.shape == (2, 60)


def test_where_many_episodes_at_once_take_less_time_each_they_decide(check):
    games = Games(lambda count: 1.0 if count < 50 else 0.1)
    found, _ = check(games, minutes=5.0)
    assert (found.too_short, games.played[:2]) == ("", [10, 50])


def test_with_several_processes_each_plays(check):
    games = Games(lambda count: 0.01)
    check(games, num_processes=4)
    assert games.played == [40, 60]


def test_a_doubtful_teacher_plays_on_for_longer(check):
    games = Games(lambda count: 0.4, teacher=-0.3)
    found, returns = check(games, keep=0.5)
    assert returns.shape == (2, 100)
    assert "The teacher is not clearly better than a random policy" in found.why_not_better(returns)
    assert "in 100 episodes" in found.why_not_better(returns)


@pytest.mark.parametrize("keep", [0.5, 0.9, 0.97])
@pytest.mark.parametrize("random", [0.0, 60.0])
def test_how_many_episodes_a_student_needs_that_plays_as_its_teacher(keep, random):
    """Where the random policy is not at the bottom of the range, it needs more."""
    seen, one = [0.0, 100.0], np.array([[100.0], [random]])
    least, test = least_episodes(RatioTest(keep, 0.025, seen=seen), np.tile(one, 10)), RatioTest(keep, 0.025, seen=seen)
    while not test.is_certified:
        test.update(student=[100.0], teacher=[100.0], random=[random])
    assert least == pytest.approx(test.num_episodes, rel=0.15, abs=3)


def test_a_student_that_must_be_better_than_its_teacher_plays_a_batch():
    assert least_episodes(RatioTest(1.0, 0.025), np.array([[1.0] * 10, [0.0] * 10])) == 50
