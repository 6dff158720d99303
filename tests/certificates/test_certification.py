"""The order of the tests, their shares of alpha, and when they end."""

import itertools
import json
from dataclasses import asdict
from itertools import count

import numpy as np
import pytest

from rllib_kd.certificates.certification import Episodes as Begun
from rllib_kd.certificates.certification import certify


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


def test_batches_grow_with_the_episodes():
    """A look takes time in proportion to all of them."""
    play = Episodes(0.975, noise=100.0)
    run(play, max_episodes=20_000)
    spans = [(first, count) for _, first, count in play.played]
    assert spans[-1][0] > 2_000
    assert all(count == max(50, first // 20) for first, count in spans)
    assert all(first + count == after for (first, count), (after, _) in itertools.pairwise(spans))


def test_a_large_batch_ends_where_the_time_does():
    play, calls = Episodes(0.975, noise=100.0), count()

    def affordable(num_left):
        is_before = next(calls) % 2 == 0  # a batch; after it, there is more time than was expected
        return 60 if is_before and sum(count for _, _, count in play.played) > 2_000 else np.inf

    run(play, max_episodes=20_000, affordable=affordable)
    counts = [count for _, _, count in play.played]
    assert (max(counts) > 90, counts[-1]) == (True, 60)


def test_how_much_time_is_left_is_asked_again_before_a_candidate_is_given_up_for_it():
    """The first batch shows how long an episode takes: here less than was expected."""
    play = Episodes(1.0)
    tests = run(play, affordable=lambda num_left: 1_000 if play.played else 60)
    assert tests[0].is_certified


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
    tests = run(play, affordable=lambda num_left: 0.0)
    assert [test.certificate.num_episodes for test in tests] == [50]


@pytest.mark.parametrize(("time_for", "expected"), [(99, [50]), (100, [50, 50])])
def test_another_candidate_begins_only_if_there_is_time_for_a_batch(time_for, expected):
    play = Episodes(0.975, 0.975, noise=50.0)
    tests = run(play, affordable=lambda num_left: time_for - sum(count for _, _, count in play.played))
    assert [test.certificate.num_episodes for test in tests] == expected


def test_fewer_units_than_a_batch_are_enough_for_all_candidates():
    tests = run(Episodes(0.5, 0.5), max_episodes=20)
    assert [test.certificate.num_episodes for test in tests] == [20, 20]


def test_each_look_is_reported():
    looks = []
    run(Episodes(1.0), report=lambda place, certificate: looks.append((place, certificate.num_episodes)))
    assert looks == [(0, 50 * i) for i in range(1, len(looks) + 1)]
    assert looks[-1][1] >= 100  # fewer cannot certify 0.97


# --- Interrupted ------------------------------------------------------------------------------------------------------


class KilledError(Exception):
    pass


def interrupted(play, at, affordable):
    """Test as `run()`, but die at the `at`-th batch; then continue from what was saved."""
    saved, counter = [], count()

    def save(played):
        saved[:] = [json.dumps([one.as_dict() for one in played])]

    def dying(*args):
        if next(counter) == at:
            raise KilledError
        return play(*args)

    try:
        return run_all(dying, play, save=save, affordable=affordable)
    except KilledError:
        begun = [Begun.of(content) for content in json.loads(saved[0])] if saved else []
        return run_all(play, play, begun=begun, affordable=affordable)


def run_all(playing, play, **settings):
    defaults = {"keep": 0.97, "alpha": 0.05, "max_episodes": 700, "seen": np.array([0.0, 500.0])}
    return certify(len(play.ratios), playing, **{**defaults, **settings})


WORLDS = {
    "the last passes": lambda: Episodes(0.5, 0.96, 1.0, noise=20.0),
    "none passes": lambda: Episodes(0.5, 0.6, 0.96, noise=20.0),
    "a failure below the range": lambda: Episodes(-10.0, 1.0, noise=20.0),
    "until the budget ends": lambda: Episodes(0.975, 0.972, noise=300.0),
}


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("affordable", [lambda num_left: np.inf, lambda num_left: 130.0])
def test_an_interrupted_test_is_the_same_test(name, affordable):
    """The same candidates play the same episodes, with the same shares of alpha, and have the same evidence."""
    whole = WORLDS[name]()
    expected = run_all(whole, whole, affordable=affordable)
    for at in range(len(whole.played)):
        play = WORLDS[name]()
        tests = interrupted(play, at, affordable)
        assert play.played == whole.played  # each episode once, in the same order
        assert [asdict(test.certificate) for test in tests] == [asdict(test.certificate) for test in expected]
        assert all(map(np.array_equal, (test.returns for test in tests), (test.returns for test in expected)))


def test_a_batch_is_saved_before_anyone_sees_it():
    events = []
    run(
        Episodes(1.0),
        save=lambda played: events.append(("saved", played[0].returns.shape[1])),
        report=lambda place, certificate: events.append(("seen", certificate.num_episodes)),
    )
    assert events[::2] == [("saved", count) for _, count in events[1::2]]
    assert len(events) > 2


def test_a_test_that_was_over_is_not_continued_with_more_time():
    saved = []
    play, times = Episodes(0.975, 0.975, noise=50.0), itertools.cycle([100, 0])
    run(
        play,
        affordable=lambda num_left: next(times),
        save=lambda played: saved.append([one.as_dict() for one in played]),
    )
    again = Episodes(0.975, 0.975, noise=50.0)
    tests = run(again, begun=[Begun.of(content) for content in json.loads(json.dumps(saved[-1]))])
    assert again.played == []
    assert [test.certificate.num_episodes for test in tests] == [50, 50]
