"""Figures that several parts of the package share: return ratio, better than random, bounds, seeds."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from rllib_kd.evaluation.intervals import lower_bound, mean_and_ci95
from rllib_kd.evaluation.measures import confusion_and_regret
from rllib_kd.evaluation.return_ratio import doubt, has_higher_mean, return_ratio
from rllib_kd.evaluation.seeds import FRESH_SEED, episode_seeds


@pytest.mark.parametrize(
    ("student", "teacher", "random", "expected"),
    [
        (260.0, 500.0, 20.0, 0.5),
        (500.0, 500.0, 20.0, 1.0),
        (-110.0, -100.0, -200.0, 0.9),  # returns below zero
        (0.0, 500.0, 20.0, -20 / 480),  # worse than random
        (600.0, 500.0, 20.0, 580 / 480),  # better than its teacher
    ],
)
def test_the_return_ratio_counts_from_the_random_policy_to_the_teacher(student, teacher, random, expected):
    assert return_ratio(student, teacher, random) == pytest.approx(expected)


@pytest.mark.parametrize(
    "returns", [(1.0, 20.0, 20.0), (1.0, 10.0, 20.0), (math.nan, 20.0, 10.0), (1.0, math.nan, 2.0)]
)
def test_a_teacher_no_better_than_random_has_no_return_ratio(returns):
    assert math.isnan(return_ratio(*returns))


def doubts(teacher, random, **options):
    return doubt("teachers/t", "CartPole-v1", teacher, random, to_play_more="Play more.", **options)


def test_better_than_random_means_by_two_standard_errors():
    rng = np.random.default_rng(0)
    random = rng.normal(0.0, 1.0, 100)
    noise = 2 * np.sqrt(2 * np.var(random, ddof=1) / 100)
    assert doubts(random + 1.01 * noise, random) is None
    assert doubts(random + 0.99 * noise, random) is not None
    assert doubts([5.1], [5.0]) is None  # of one episode nothing is known of the noise
    assert doubts([0.0, 2.0], [-0.8, -0.8]) is not None  # by less than two standard errors, by more without ddof


def test_chance_that_both_share_raises_no_doubt_on_the_same_seeds():
    rng = np.random.default_rng(0)
    demand, (own, of_random) = rng.normal(0.0, 10.0, 100), rng.normal(0.0, 0.1, (2, 100))
    teacher, random = demand + 0.5 + own, demand + of_random
    assert doubts(teacher, random) is not None
    assert doubts(teacher, random, same_seeds=True) is None
    assert "no better than a random policy" in doubts(random, teacher, same_seeds=True)
    opposite = demand - demand.mean()
    assert doubts(opposite + 3, -opposite, same_seeds=True) is not None
    assert doubts(opposite + 3, -opposite) is None  # as if both were independent


@pytest.mark.parametrize("teacher", [[20.0, 22.0], [19.0, 21.0], [21.0, 21.0]])
def test_no_better_than_random_is_claimed_of_a_mean_that_is_not_higher(teacher):
    text = doubts(teacher, [21.0, 21.0])
    assert text.startswith("The teacher 'teachers/t' plays 'CartPole-v1' no better than a random policy: mean returns")
    assert text.endswith("over 2 episodes.")
    assert not has_higher_mean(teacher, [21.0, 21.0])


def test_too_few_episodes_are_no_proof_against_a_teacher():
    teacher, random = [10.0, 40.0], [21.0, 21.0]
    text = doubts(teacher, random)
    assert "no better" not in text
    assert "with a higher mean return than a random policy" in text
    assert text.endswith("but 2 episodes are too few to tell whether it is better. Play more.")
    assert has_higher_mean(teacher, random)
    assert doubts(100 * teacher, 100 * random) is None  # the same returns, of more episodes


def test_the_intervals_are_students():
    values = [0.9, 1.0, 0.8, 0.95]
    mean, half_width = mean_and_ci95(values)
    low, high = scipy.stats.t.interval(0.95, 3, loc=np.mean(values), scale=scipy.stats.sem(values))
    assert (mean - half_width, mean + half_width) == pytest.approx((low, high))
    assert mean_and_ci95([1.0]) == (1.0, math.inf)
    assert lower_bound(values) > mean - half_width  # one-sided


def test_each_episode_has_a_seed_of_its_own():
    assert list(episode_seeds(3, FRESH_SEED)) == [1_000_000, 1_000_001, 1_000_002]
    assert len(episode_seeds(np.int64(3), 0)) == 3
    for num_episodes in (0, 2.5, "3", None, True):
        with pytest.raises(ValueError, match="`num_episodes` must be an integer of at least 1, got "):
            episode_seeds(num_episodes, 0)
    for seed in (-1, 0.5, None):
        with pytest.raises(ValueError, match="`seed` must be an integer of at least 0, got "):
            episode_seeds(1, seed)


class Fixed:
    """Puts out its inputs."""

    def q_values(self, obs, mask=None):
        return obs if mask is None else obs.masked_fill(~mask, -torch.inf)


def test_agreement_and_regret_are_over_legal_actions():
    teacher_q = np.array([[9.0, 2.0, 1.0], [3.0, 9.0, 1.0], [1.0, 2.0, 3.0]], np.float32)
    student_q = np.array([[0.0, 5.0, 9.0], [0.0, 9.0, 5.0], [1.0, 2.0, 3.0]], np.float32)
    mask = np.array([[False, True, True], [True, False, True], [True, True, True]])
    confusion, regret = confusion_and_regret(Fixed(), Fixed(), teacher_q, student_q, mask)
    assert confusion.tolist() == [[0, 0, 1], [0, 0, 1], [0, 0, 1]]
    assert regret == pytest.approx((1.0 + 2.0 + 0.0) / 3)
    every, _ = confusion_and_regret(Fixed(), Fixed(), teacher_q, student_q, np.ones_like(mask))
    assert np.array_equal(every, confusion_and_regret(Fixed(), Fixed(), teacher_q, student_q)[0])


def test_an_equally_good_action_counts_as_the_teachers():
    teacher_q = np.array([[2.0, 2.0, 1.0], [2.0, 2.0, 1.0], [2.0, 2.0, 1.0]], np.float32)
    confusion, regret = confusion_and_regret(Fixed(), Fixed(), teacher_q, np.eye(3, dtype=np.float32))
    assert confusion.tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]
    assert regret == pytest.approx(1 / 3)
