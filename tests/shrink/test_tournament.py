"""Which students may be certified: found by validation episodes of made-up students."""

import json
import math
import operator

import numpy as np
import pytest

from rllib_kd.certificates.certificate import RatioTest
from rllib_kd.evaluation.validation import Validation
from rllib_kd.shrink.budget import PlayLimit
from rllib_kd.shrink.run import ROUNDS
from rllib_kd.shrink.tournament import Tournament
from rllib_kd.students.restarts import by_student, names_of

SIZES = ("small", "middle", "large", "huge")
TEACHER, RANDOM = 100.0, 0.0


def played(returns):
    """Validation of episodes of ten steps."""
    return Validation(returns, env_steps=10 * sum(map(len, returns.values())), seconds=0.0)


def all_fail(modules, first, count):
    return played({name: np.full(count, 50.0) for name in modules})


class Players:
    """Students are numbers, their return ratios; returns have noise by episode, the same for all."""

    def __init__(self, noise=0.0):
        self.noise, self.played = noise, []

    def returns(self, first, count):
        return self.noise * np.array([np.random.default_rng(i).normal() for i in range(first, first + count)])

    def play(self, modules, first, count):
        self.played.append((dict(modules), first, count))
        spread = {name: np.random.default_rng(first).normal(size=count) for name in modules}
        return played({name: TEACHER * value + self.noise * spread[name] for name, value in modules.items()})

    def baselines(self, first, count):
        return np.array([TEACHER + self.returns(first, count), RANDOM + np.zeros(count)])


class Noisy(Players):
    """The same, with noise of its own in each episode of each student."""

    def __init__(self, noise, seed):
        super().__init__(noise)
        self.rng = np.random.default_rng(seed)

    def play(self, modules, first, count):
        draws = {name: self.noise * self.rng.normal(size=count) for name in modules}
        return played({name: TEACHER * value + draws[name] for name, value in modules.items()})

    def baselines(self, first, count):
        return np.array([TEACHER + self.noise * self.rng.normal(size=count), RANDOM + np.zeros(count)])


def tournament(players, keep=0.97, max_episodes=5_000, **options):
    def new_test(seen):
        return RatioTest(keep, 0.025, seen=seen, max_episodes=max_episodes)

    return Tournament(SIZES, players.play, players.baselines, new_test, keep=keep, scale=TEACHER - RANDOM, **options)


def copies(**ratios):
    """Two copies of each size, of which the second is the better one."""
    pairs = ((names_of(size, 2), value) for size, value in ratios.items())
    return {name: value - 0.2 * (i == 0) for names, value in pairs for i, name in enumerate(names)}


ALL_GOOD = dict.fromkeys(SIZES, 1.0)


def test_the_best_copy_over_time_is_the_candidate():
    found = tournament(Players())
    found.round(0, copies(**{**ALL_GOOD, "small": 0.5}), 1_000)
    found.round(1, copies(**{**ALL_GOOD, "small": 0.9}), 2_000)
    found.round(2, copies(**{**ALL_GOOD, "small": 0.6}), 4_000)
    best = found.best("small")
    assert (best.copy, best.env_steps, best.module) == ("small__restart_1", 2_000, 0.9)
    assert found.ratio(best) == pytest.approx(0.9)


def test_larger_ones_than_needed_do_not_play():
    players = Players()
    found = tournament(players)
    found.round(0, copies(**ALL_GOOD), 1_000)
    assert {one.size for one in found.snapshots} == set(SIZES)  # nothing was known
    assert found.playing(1) == ["small", "middle"]
    found.round(1, copies(**ALL_GOOD), 2_000)
    assert {one.size for one in found.snapshots if one.env_steps == 2_000} == {"small", "middle"}


def test_what_cannot_make_it_is_dropped_late():
    found = tournament(Players())
    found.round(0, copies(small=0.3, middle=0.6, large=0.8, huge=1.0), 1_000)
    assert found.playing(1) == list(SIZES)
    assert found.playing(2) == ["middle", "large", "huge"]
    assert found.playing(3) == ["large", "huge"]
    assert found.playing(4) == found.playing(9) == ["huge"]


def preferred(number=3, **ratios):
    found = tournament(Players())
    found.round(0, copies(**ratios), 1_000)
    return found.preferred(number)


@pytest.mark.parametrize("number", [1, 3])
def test_where_all_have_most_of_the_return_those_that_are_hardly_above_the_worst_act_less(number):
    # Three quarters of the way from 0.85 to 0.96 are at 0.9325.
    assert preferred(number, small=0.9, middle=0.85, large=0.95, huge=0.96) == ["large", "huge"]
    assert preferred(number, small=0.92, middle=0.85, large=0.95, huge=0.96) == ["small", "large", "huge"]  # an error
    assert preferred(number, small=0.98, middle=0.98, large=1.0, huge=1.0) == ["small", "middle"]
    assert preferred(number, small=0.9, middle=0.9) == list(SIZES)  # nothing is known of two


def test_those_that_are_far_too_bad_act_at_first():
    found = tournament(Players())
    assert found.preferred(0) == list(SIZES)
    assert preferred(2, small=0.3, middle=0.9, large=1.0, huge=1.0) == ["small", "large", "huge"]
    assert preferred(3, small=0.3, middle=0.9, large=1.0, huge=1.0) == ["middle", "large", "huge"]
    assert preferred(2, small=0.3, middle=1.0, large=1.0, huge=1.0) == ["small", "middle", "large"]
    assert preferred(3, small=0.3, middle=1.0, large=1.0, huge=1.0) == ["middle", "large"]


def resting(number, **ratios):
    """Sizes of which all copies rest, after one round; there are three of each, and at least so many play."""
    found, names = tournament(Players()), [name for size in SIZES for name in names_of(size, 3)]
    found.round(0, {name: ratios.get(name.partition("__")[0], 0.0) for name in names}, 1_000)
    rests = by_student(found.resting(number, names))
    assert all(rests[size] == names_of(size, 3) for size in rests)
    return list(rests)


@pytest.mark.parametrize("number", [1, 3])
def test_larger_ones_than_those_that_play_rest(number):
    assert tournament(Players()).resting(0, list(SIZES)) == []
    assert resting(number, small=0.9, middle=1.0, large=1.0, huge=1.0) == ["huge"]
    assert resting(number, small=0.3, middle=0.9, large=1.0, huge=1.0) == []  # one plays on beside what is needed
    assert resting(number, small=0.3, middle=0.5, large=0.8, huge=0.9) == []
    assert resting(number, small=0.1, middle=0.1, large=0.1, huge=0.1) == []


def test_none_rests_because_a_smaller_one_was_lucky():
    """In a few noisy episodes the best of eight copies that are all too bad seems good enough, mostly."""
    found = [tournament(Noisy(20.0, seed), keep=0.95) for seed in range(20)]
    lucky, needless = 0, 0
    for own in found:
        names = [name for size in SIZES for name in names_of(size, 8)]
        own.round(0, {name: 1.0 if name.startswith("huge") else 0.9 for name in names}, 1_000)
        lucky += own.is_promising(own.best("small"))
        needless += "huge" in by_student(own.resting(0, names))
    assert (lucky, needless) == (11, 0)


def test_larger_ones_learn_on_beside_one_whose_certificate_would_take_too_many_episodes():
    found = [tournament(Noisy(0.2, 0), keep=0.97, max_episodes=most) for most in (120, 5_000)]
    for own in found:
        own.round(0, copies(small=1.0, middle=0.97, large=0.97, huge=0.97), 1_000)
        assert own._is_good("small")
    assert [own.is_promising(own.best("small")) for own in found] == [False, True]
    assert ["huge" in by_student(own.resting(1, list(copies(**ALL_GOOD)))) for own in found] == [False, True]


class Learning:
    """Students who learn while they do not rest: their return ratio rises to 1 or less, fast or slowly.

    Args:
        highest: return ratio after long training, by size.
        times: how long they take, as shares of all training.
    """

    def __init__(self, highest, times):
        self.names = [name for size in SIZES for name in names_of(size, 2)]
        self.highest, self.times, self.trained = highest, times, dict.fromkeys(self.names, 0.0)

    def train(self, share, resting):
        for name in set(self.names) - set(resting):
            self.trained[name] += share

    def copies(self):
        each = {name: name.partition("__")[0] for name in self.names}
        return {
            name: self.highest[size] * (1 - math.exp(-self.trained[name] / self.times[size]))
            for name, size in each.items()
        }


LATE = {"small": (1.0, 0.2), "middle": (1.0, 0.05), "large": (1.0, 0.05), "huge": (1.0, 0.05)}
NOT_QUITE = {"small": (0.5, 0.05), "middle": (0.945, 0.02), "large": (1.0, 0.12), "huge": (1.0, 0.15)}


@pytest.mark.parametrize(("learning", "least", "expected"), [(LATE, 12, "small"), (NOT_QUITE, 18, "large")])
def test_who_rests_is_not_missing_in_the_end(learning, least, expected):
    """Twenty runs in noise: small ones learn late; or what seemed good enough is not, and a larger one is."""
    found = []
    for seed in range(20):
        highest, times = ({size: each[i] for size, each in learning.items()} for i in range(2))
        students, done = Learning(highest, times), 0.0
        own = tournament(Noisy(15.0, seed), keep=0.95, is_same=operator.eq)
        for number, share in enumerate(ROUNDS):
            students.train(share - done, own.resting(number, students.names))
            done, limit = share, PlayLimit("env_steps", 30_000 * share)
            own.round(number, students.copies(), int(1_000 * share), limit=limit)
            if own.is_settled(number):
                break
        own.finish(number, students.copies(), int(1_000 * done), limit=limit)
        good = [one.size for one in own.candidates() if one.module >= 0.95]
        found += good[:1]
    assert found.count(expected) >= least
    assert len(found) >= 18


def test_where_episodes_cost_little_the_better_half_of_copies_is_mostly_left():
    """Of eight copies, four are better by less than the noise of a few episodes: the worse ones in thirty-two."""
    names = names_of("small", 8)
    better = []
    for most in (0, 100_000):  # env steps
        left = []
        for seed in range(10):
            own = tournament(Noisy(20.0, seed), keep=0.95)
            ratios = {name: 0.85 - 0.1 * (i % 2) for i, name in enumerate(names)}
            own.round(0, ratios, 1_000, limit=PlayLimit("env_steps", most))
            left += [ratios[name] for name in set(names) - set(own.resting(1, names))]
        better.append(left.count(0.85))
    assert better[0] <= 28  # of 40
    assert better[1] >= 34


def test_copies_that_will_not_play_rest():
    found, names = tournament(Players()), [name for size in SIZES for name in names_of(size, 8)]
    found.round(0, {name: 0.5 + 0.01 * (i % 8) for i, name in enumerate(names)}, 1_000)
    assert found.resting(0, names) == []
    assert found.resting(1, names) == [name for size in SIZES for name in names_of(size, 4)]


def test_there_is_no_snapshot_of_what_has_not_changed():
    found, own = tournament(Players()), copies(small=0.8, middle=1.0)
    found.round(0, own, 1_000)
    found.round(1, {**own, "small": 0.7}, 2_000)
    assert [one.copy for one in found.snapshots if one.env_steps == 2_000] == ["small"]
    found.finish(1, {**own, "small": 0.7}, 3_000)
    assert [one.copy for one in found.snapshots if one.env_steps == 3_000] == []


def test_the_better_half_of_the_copies_plays_on():
    found = tournament(Players(), keep=1.0)
    names = names_of("small", 8)
    found.round(0, {name: 0.6 + 0.01 * i for i, name in enumerate(names)}, 1_000)
    assert len(found.snapshots) == 8
    found.round(1, dict.fromkeys(names, 0.7), 2_000)
    assert [one.copy for one in found.snapshots[8:]] == names[4:]
    few = tournament(Players(), keep=1.0)
    for number in range(2):
        few.round(number, dict.fromkeys(names[:4], 0.7 + number), 1_000)
    assert len(few.snapshots) == 4 + 3


def test_training_may_end_where_the_smallest_is_good_enough():
    players = Players()
    found = tournament(players)
    found.round(0, copies(**ALL_GOOD), 1_000)
    assert found.is_settled(0)
    assert players.played[-1][2] == 64  # it has proven so in further episodes
    weak = tournament(Players())
    weak.round(0, copies(**{**ALL_GOOD, "small": 0.9}), 1_000)
    assert not weak.is_settled(0)  # it may learn more


SLOW = ({"small": 0.0}, {"small": 0.1}, {"small": 0.3}, {"small": 1.0})


def test_small_ones_that_learn_late_are_not_lost():
    found = tournament(Players())
    for number, small in enumerate(SLOW):
        found.round(number, copies(**{**ALL_GOOD, **small}), 1_000 * (number + 1))
        assert ("small" in found.playing(number)) == (number != 2)
        assert found.is_settled(number) == (number == 3)  # there is no early end while they are far too bad
    assert found.best("small").env_steps == 4_000
    assert found.candidates()[0].size == "small"


def test_those_that_learn_nothing_play_little_and_training_ends_late():
    found = tournament(Players())
    for number in range(3):
        found.round(number, copies(**{**ALL_GOOD, "small": -1.0}), 1_000 * (number + 1))
        assert not found.is_settled(number)
    found.round(3, copies(**{**ALL_GOOD, "small": -1.0}), 4_000)
    assert found.is_settled(3)
    assert sum(len(one.returns) for one in found.snapshots if one.size == "small" and one.env_steps == 3_000) == 2 * 4


def test_luck_in_a_few_episodes_settles_nothing():
    found = tournament(Players())
    found.round(0, copies(**ALL_GOOD), 1_000)
    found._play = all_fail
    assert not found.is_settled(0)


def test_candidates_are_those_that_a_certificate_is_likely_for_smallest_first():
    found = tournament(Players(noise=5.0))
    students = copies(small=0.9, middle=0.995, large=1.0, huge=1.0)
    found.round(0, students, 1_000)
    found.finish(4, students, 1_000)
    assert [one.size for one in found.candidates()] == ["middle", "large", "huge"]
    assert all(len(found.best(size).returns) >= 64 for size in ("middle", "large"))


def test_the_smallest_and_the_safest_are_tested():
    players = Players()
    found = tournament(players)
    found.round(0, copies(small=1.0, middle=1.0, large=1.0, huge=1.1), 1_000)
    assert [one.size for one in found.candidates()] == ["small", "middle", "huge"]


def test_if_the_best_fails_at_the_end_larger_ones_play():
    found = tournament(Players())
    found.round(0, copies(small=1.0, middle=1.0), 1_000)
    found._play = all_fail
    assert found.best("large") is None
    found.finish(4, copies(large=0.5, huge=0.5), 2_000)
    assert {one.size for one in found.snapshots} == set(SIZES)


def test_a_larger_size_that_is_needed_after_all_is_looked_at_as_it_is_now():
    players = Players()
    found = tournament(players)
    found.round(0, copies(small=1.0, middle=0.8, large=0.8, huge=0.8), 1_000)
    late = copies(small=0.5, middle=0.5, large=1.0, huge=1.0)
    found.round(1, late, 2_000)
    assert found.playing(1)[-1] == "middle"  # the small one seems to be enough
    for one in found.snapshots:  # but that was luck
        one.returns |= {episode: 50.0 for episode in one.returns if one.size == "small"}
    found.finish(4, late, 2_000)
    assert found.best("large").env_steps == 2_000
    assert found.best("large") in found.candidates()


def test_without_hope_nothing_is_tested_and_the_best_one_if_it_is_near():
    far = tournament(Players())
    far.round(0, copies(small=0.2, middle=0.3, large=0.4, huge=0.5), 1_000)
    assert far.candidates() == []
    near = tournament(Players(), keep=1.0)
    near.round(0, copies(small=0.2, middle=0.3, large=1.0, huge=0.999), 1_000)
    assert [one.size for one in near.candidates()] == ["large"]  # no number of episodes proves equality


def test_no_episode_is_used_twice_and_all_returns_are_seen():
    players = Players(noise=5.0)
    found = tournament(players)
    for number in range(3):
        found.round(number, copies(**ALL_GOOD), 1_000 * (number + 1))
    spans = [range(first, first + count) for _, first, count in players.played]
    assert [i for span in spans for i in span] == list(range(found.num_episodes))
    assert len(found.returns) == 2 * found.num_episodes + sum(len(one.returns) for one in found.snapshots)


# --- Races ------------------------------------------------------------------------------------------------------------


class NoisyPlayers(Players):
    """Episodes of each student have noise of their own."""

    def play(self, modules, first, count):
        rng = np.random.default_rng(first)
        return played({name: TEACHER * value + rng.normal(0, self.noise, count) for name, value in modules.items()})


def after_finish(noise, limit, seed=0):
    """One good copy of four small students; validation begins at another episode for each seed."""
    found = tournament(NoisyPlayers(noise))
    found.num_episodes = 10_000 * seed
    found._played = np.zeros((2, found.num_episodes))
    small = dict(zip(names_of("small", 4), (0.9, 0.9, 1.0, 0.9), strict=True))
    students = small | {name: 0.0 for size in SIZES[1:] for name in names_of(size, 4)}
    for number in range(2):
        found.round(number, students, 1_000 * (number + 1))
    found.finish(4, students, 2_000, limit=limit)
    return found


LIMIT = PlayLimit("env_steps", 100_000)


def num_right(limit):
    return sum(after_finish(45.0, limit, seed).best("small").module == 1.0 for seed in range(8))


def test_where_episodes_are_noisy_a_race_finds_the_best_snapshot_and_not_the_luckiest():
    assert num_right(LIMIT) >= num_right(None) + 3


def test_a_round_ends_with_a_race_within_its_limit():
    students = {name: 1.0 for size in SIZES for name in names_of(size, 4)}
    counts = []
    for limit in (None, PlayLimit("env_steps", 10_000), PlayLimit("env_steps", 30_000)):
        found = tournament(NoisyPlayers(50.0))
        found.round(0, students, 1_000, limit=limit)
        assert found.get_state()["spending"]["raced"] <= (limit.races if limit else 0)
        counts.append(sum(len(one.returns) for one in found.snapshots))
    assert counts[0] < counts[1] < counts[2]


@pytest.mark.parametrize("most", [0, 3_000, 10_000])
def test_a_race_keeps_its_limit(most):
    found, without = after_finish(100.0, PlayLimit("env_steps", most)), after_finish(100.0, None)
    played = sum(len(one.returns) for one in found.snapshots)
    assert found.get_state()["spending"]["raced"] <= most
    assert (played > sum(len(one.returns) for one in without.snapshots)) == (most > 3 * 64 * 10)  # two play beside one


def test_without_noise_there_is_no_race():
    assert after_finish(0.0, LIMIT).num_episodes == after_finish(0.0, None).num_episodes
    perfect = tournament(Players())
    perfect.round(0, {name: 1.0 for size in SIZES for name in names_of(size, 4)}, 1_000)
    assert min(len(one.returns) for one in perfect.snapshots) == 4  # which alone prove little
    assert perfect._unsettled("small") == []


def test_a_race_that_was_interrupted_goes_on_to_the_same_end():
    students = {name: 1.0 for size in SIZES for name in names_of(size, 4)}
    whole, states, limit = tournament(NoisyPlayers(50.0)), [], PlayLimit("env_steps", 20_000)
    whole.round(0, students, 1_000)
    whole.finish(4, students, 1_000, limit=limit, save=lambda: states.append(json.dumps(whole.get_state())))
    assert len(states) > 2
    for state in states:
        resumed = tournament(NoisyPlayers(50.0))
        resumed.set_state(json.loads(state), lambda env_steps: students)
        resumed.finish(4, students, 1_000, limit=limit)
        assert resumed.get_state() == whole.get_state()
