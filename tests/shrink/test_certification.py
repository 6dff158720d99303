"""The order of the tests, their shares of alpha, and when they end."""

import math

import numpy as np
import pytest

from rllib_kd.shrink.certification import certify


class Episodes:
    """Candidates with constant returns; records what was played."""

    def __init__(self, *ratios, noise=0.0):
        self.ratios, self.noise, self.played = ratios, noise, []

    def __call__(self, place, first, count):
        self.played.append((place, first, count))
        rng = np.random.default_rng(first)
        returns = np.array([[500.0 * self.ratios[place]], [500.0], [0.0]]) + np.zeros((3, count))
        returns[0] += self.noise * rng.uniform(-1, 1, count)
        return returns


def run(play, **settings):
    defaults = {"keep": 0.97, "alpha": 0.05, "max_episodes": 2_000, "seen": np.array([0.0, 500.0])}
    return certify(len(play.ratios), play, **{**defaults, **settings})


def test_the_first_that_passes_is_certified_and_no_more_are_tested():
    play = Episodes(0.5, 1.0, 1.0)
    tests = run(play)
    assert [test.certificate.verdict for test in tests] == ["hopeless", "certified"]
    assert {place for place, _, _ in play.played} == {0, 1}
    assert tests[1].is_certified
    assert tests[1].returns.shape == (3, tests[1].certificate.num_episodes)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_alpha_is_spent_by_place(count):
    tests = run(Episodes(*[0.5] * count))
    expected = {1: [0.05], 2: [0.025, 0.025], 4: [0.025, 0.0125, 0.00625, 0.00625]}
    assert [test.certificate.alpha for test in tests] == expected[count]


def test_all_candidates_play_the_same_episodes_in_order():
    play = Episodes(0.9, 0.9)
    run(play)
    for place in (0, 1):
        spans = [(first, count) for at, first, count in play.played if at == place]
        assert [first for first, _ in spans] == [50 * i for i in range(len(spans))]


def test_returns_of_earlier_tests_widen_the_range_of_later_ones():
    tests = run(Episodes(-10.0, 1.0))
    assert tests[1].certificate.bounds[0] <= -5_000.0
    assert run(Episodes(-10.0, 1.0), bounds=(-9_999.0, 500.0))[1].certificate.are_bounds_stated


def test_the_budget_of_episodes():
    tests = run(Episodes(0.9705, noise=5.0), max_episodes=120)
    assert tests[0].certificate.num_episodes <= 120
    assert not tests[0].is_certified


def test_without_time_nothing_is_tested_after_the_first_batch():
    play = Episodes(0.975, 1.0, noise=50.0)
    tests = run(play, affordable=lambda num_left, num_played: 0.0)
    assert [test.certificate.num_episodes for test in tests] == [50, 50]
    assert run(Episodes(1.0), affordable=lambda num_left, num_played: -math.inf) == []


def test_each_look_is_reported():
    looks = []
    run(Episodes(1.0), report=lambda place, certificate: looks.append((place, certificate.num_episodes)))
    assert looks == [(0, 50 * i) for i in range(1, len(looks) + 1)]
    assert looks[-1][1] >= 100  # fewer cannot certify 0.97
