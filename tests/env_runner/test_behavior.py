"""The behaviour policy against its law."""

import math

import numpy as np
import pytest

from rllib_kd.env_runner.behavior import ActionGaps, BehaviorPolicy


def policy(teacher_fraction, epsilon, seed=0):
    return BehaviorPolicy(teacher_fraction, epsilon, np.random.default_rng(seed))


def test_mixes_teacher_student_and_random_actions_by_their_probabilities():
    num, beta, epsilon = 40_000, 0.7, 0.1
    teacher_q, student_q = np.tile([0.0, 1.0, 0.0, 0.0], (num, 1)), np.tile([0.0, 0.0, 1.0, 0.0], (num, 1))
    shares = np.bincount(policy(beta, epsilon).act(student_q, teacher_q), minlength=4) / num
    expected = [epsilon / 4, epsilon / 4 + (1 - epsilon) * beta, epsilon / 4 + (1 - epsilon) * (1 - beta), epsilon / 4]
    np.testing.assert_allclose(shares, expected, atol=5 * 0.5 / np.sqrt(num))


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.0])
def test_never_chooses_an_illegal_action(epsilon):
    teacher_q = np.tile([-np.inf, 0.0, -5.0], (1_000, 1))
    student_q = np.tile([10.0, -1.0, -2.0], (1_000, 1))
    actions = policy(0.5, epsilon).act(student_q, teacher_q)
    assert set(actions) <= {1, 2}


def test_without_a_teacher_the_student_acts_and_explores_what_is_legal():
    student_q = np.tile([-np.inf, 0.0, 1.0], (4_000, 1))
    assert set(policy(0.0, 0.0).act(student_q, None)) == {2}
    shares = np.bincount(policy(0.0, 0.5).act(student_q, None), minlength=3) / 4_000
    np.testing.assert_allclose(shares, [0.0, 0.25, 0.75], atol=5 * 0.5 / np.sqrt(4_000))


def test_explores_actions_whose_value_is_exactly_zero():
    actions = policy(1.0, 1.0).act(None, np.zeros((1_000, 2)))
    assert set(actions) == {0, 1}


def test_the_teacher_takes_over_where_the_students_choice_costs_too_much():
    teacher_q = np.array([[1.0, 0.0], [1.0, 0.8], [1.0, -np.inf], [-np.inf, -np.inf]])
    student_q = np.tile([0.0, 1.0], (4, 1))
    choices = [
        list(BehaviorPolicy(0.0, 0.0, np.random.default_rng(0), limit).act(student_q, teacher_q)[:3])
        for limit in (math.inf, 0.5, 0.1)
    ]
    assert choices == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_gaps_are_known_once_there_are_labels():
    gaps = ActionGaps()
    assert gaps.in_return_units(3.0) == math.inf
    gaps.update(np.zeros((0, 2)))
    assert gaps.in_return_units(3.0) == math.inf
    gaps.update(np.array([[1.0, 0.0], [4.0, 2.0], [2.0, 4.0], [9.0, 1.0], [0.0, 2.0]]))
    assert gaps.in_return_units(3.0) == pytest.approx(6.0, rel=0.2)


def test_a_teacher_that_explores_draws_from_its_policy():
    num, probabilities = 40_000, np.array([0.5, 0.3, 0.2, 0.0])
    with np.errstate(divide="ignore"):
        log_probs = np.tile(np.log(probabilities), (num, 1))
    student_q = np.tile([0.0, 0.0, 0.0, 1.0], (num, 1))
    for beta in (1.0, 0.4):
        explores = BehaviorPolicy(beta, 0.0, np.random.default_rng(0), teacher_explores=True)
        shares = np.bincount(explores.act(student_q, log_probs), minlength=4) / num
        # The student's action is illegal for the teacher: the best legal one is taken instead.
        expected = beta * probabilities + (1 - beta) * np.array([1.0, 0.0, 0.0, 0.0])
        np.testing.assert_allclose(shares, expected, atol=5 * 0.5 / np.sqrt(num))
    greedy = BehaviorPolicy(1.0, 0.0, np.random.default_rng(0))
    assert set(greedy.act(None, log_probs)) == {0}
