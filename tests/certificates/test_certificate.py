"""A student's certificate: what it needs, what it promises, and how rarely it is wrong."""

import itertools
import json
import math

import numpy as np
import pytest

from rllib_kd.certificates.certificate import MARGIN, RatioTest
from rllib_kd.certificates.evidence import BETS, log_capital, spend_alpha
from tests.benchmarks import certificates


def fed(student, teacher, random, keep=0.97, **settings):
    test = RatioTest(keep, **settings)
    test.update(student=student, teacher=teacher, random=random)
    return test


def constant(n, *, student=500.0, teacher=500.0, random=20.0, **settings):
    return fed([student] * n, [teacher] * n, [random] * n, **settings)


def noisy(n, ratio, seed=0, spread=0.5):
    rng = np.random.default_rng(seed)
    return {
        "student": ratio + spread * rng.uniform(-1, 1, n),
        "teacher": 1 + spread * rng.uniform(-1, 1, n),
        "random": 0.1 * rng.uniform(-1, 1, n),
    }


# --- the capital ------------------------------------------------------------------------------------------------------


def test_the_capital_is_that_of_a_gambler_with_fixed_bets():
    differences, bound = np.array([2.0, -1.0, 4.0]), 4.0
    parts = [0.5**k for k in range(1, 7)]
    lost = [1 + d * np.array([1, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32]) / bound for d in differences]
    expected = [np.dot(parts, np.prod(lost[: n + 1], axis=0)) / sum(parts) for n in range(3)]
    np.testing.assert_allclose(np.exp(log_capital(differences, bound)), expected)


def test_a_fair_game_keeps_its_expected_capital():
    """Of all sequences of three fair episodes, each as likely as the others."""
    outcomes = np.array([-3.0, 1.0, 1.0, 1.0])
    sequences = np.stack(np.meshgrid(*[outcomes] * 3), -1).reshape(-1, 3)
    capitals = [math.exp(log_capital(sequence, 3.0)[-1]) for sequence in sequences]
    assert np.mean(capitals) == pytest.approx(1.0)


def test_losses_beyond_the_bound_ruin_the_bets_they_could_ruin():
    below = np.exp(log_capital(np.array([-1.5]), 1.0))
    parts = BETS / BETS.sum()
    assert below == pytest.approx(np.dot(parts, np.maximum(1 - 1.5 * BETS, 0)))
    assert np.exp(log_capital(np.array([-100.0, 1e6]), 1.0)).tolist() == [0.0, 0.0]  # nothing comes back


def test_equal_returns_are_no_evidence():
    assert log_capital(np.zeros(3), 0.0).tolist() == [0.0] * 3


# --- when a student is certified --------------------------------------------------------------------------------------


def test_a_student_equal_to_its_teacher_needs_what_rules_out_failures():
    """A student that scores like a random policy in 3 % of its episodes is seen in 99 episodes with 95 %."""
    stated = {"bounds": (20.0, 500.0)}
    assert constant(150, **stated).is_certified
    assert not constant(98, **stated).is_certified
    assert 0.97**98 > 0.05  # nobody could do with 98: such a student would look the same
    assert constant(180).is_certified


def test_one_failure_takes_back_what_perfect_episodes_had_shown():
    test = constant(120, bounds=(20.0, 500.0))
    before = test.as_dict()["episodes_needed"]
    test.update(student=[20.0], teacher=[500.0], random=[20.0])
    assert test.episodes_needed() > 3 * before > 0


def test_batches_make_no_difference():
    returns = noisy(400, 1.05)
    whole, parts = RatioTest(0.9), RatioTest(0.9)
    whole.update(**returns)
    for start in range(0, 400, 7):
        parts.update(**{name: values[start : start + 7] for name, values in returns.items()})
        parts.is_certified  # noqa: B018  # what is kept must not outlive new episodes
    assert parts.as_dict() == whole.as_dict()
    assert whole.is_certified


@pytest.mark.parametrize("scale", [1e-3, 1e6])
@pytest.mark.parametrize("shift", [0.0, -1e3])
def test_units_of_return_make_no_difference(scale, shift):
    returns = noisy(300, 1.0)
    found = fed(**returns, keep=0.9).certificate()
    other = fed(**{name: scale * (values + shift) for name, values in returns.items()}, keep=0.9).certificate()
    assert (other.verdict, other.episodes_needed) == (found.verdict, found.episodes_needed)
    assert (other.lower, other.upper) == pytest.approx((found.lower, found.upper), abs=1e-4)
    assert other.evidence == pytest.approx(found.evidence, rel=1e-6)


def test_the_interval_contains_the_ratio_and_agrees_with_the_verdict():
    for ratio in (0.5, 0.9, 1.0, 1.1):
        test = fed(**noisy(3_000, ratio), keep=0.9)
        assert test.lower < ratio < test.upper
        assert test.upper - test.lower < 0.2
        assert test.is_certified == (test.lower >= 0.9) == (ratio > 0.9)
        assert test.is_hopeless == (ratio == 0.5)


def test_a_return_worse_than_all_others_widens_the_range():
    few = constant(180)
    assert few.bounds == (20.0 - MARGIN * 480, 500.0)
    assert few.is_certified
    warned = constant(180, seen=[-2_000.0])
    assert warned.bounds == (-2_000.0 - MARGIN * 2_500, 500.0)
    assert not warned.is_certified
    assert constant(180, seen=[0.0], bounds=(-9.0, 500.0)).bounds == (-9.0, 500.0)


# --- when it is not ---------------------------------------------------------------------------------------------------


def test_a_student_below_keep_is_given_up():
    test = fed(**noisy(300, 0.5))
    assert test.is_hopeless
    assert test.upper < 0.97
    assert "below 0.97" in test.certificate().reason


def test_a_student_beyond_the_budget_is_given_up():
    returns = noisy(100, 1.0)
    assert not fed(**returns).is_hopeless
    assert fed(**returns).episodes_needed() > 10
    assert not fed(**returns, max_episodes=100_000).is_hopeless
    limited = fed(**returns, max_episodes=110)
    assert limited.is_hopeless
    assert "budget of 110" in limited.certificate().reason


def test_a_student_with_a_large_budget_is_not_given_up_by_a_few_unlucky_episodes():
    """50 of 5,000 episodes with 0.87 ± 0.04, two standard errors below `keep`: it was given up in a real run."""
    unlucky = noisy(50, 0.87)
    assert fed(**unlucky, max_episodes=1_000).is_hopeless
    assert not fed(**unlucky, max_episodes=5_000).is_hopeless
    assert fed(**noisy(150, 0.87), max_episodes=5_000).is_hopeless


def test_the_projection_is_exact_without_noise():
    needed = constant(40).episodes_needed()
    assert needed > 50
    assert constant(40 + needed).is_certified
    assert not constant(40 + needed - 1).is_certified
    assert constant(40 + needed).episodes_needed() == 0


def test_a_teacher_no_better_than_random_certifies_nothing():
    """Its student scores more than both, but the ratio means nothing."""
    for teacher in (20.0, 10.0):
        test = constant(1_000, student=400.0, teacher=teacher)
        assert not test.is_certified
        assert test.is_hopeless
        assert test.as_dict()["return_ratio"] is None
        assert "not above the random policy's" in test.certificate().reason


def test_nobody_keeps_all_of_a_return_without_being_better():
    assert not constant(1_000, keep=1.0).is_certified
    assert constant(1_000, keep=1.0).is_hopeless
    assert constant(1_000, keep=1.0, student=510.0, teacher=490.0).is_certified


# --- results ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "test", [RatioTest(0.97), constant(1), constant(30, teacher=20.0), constant(9_999), constant(300, student=-1e9)]
)
def test_the_result_is_json_without_nan(test):
    written = json.dumps(test.as_dict(), allow_nan=False)
    assert json.loads(written) == test.as_dict()


def test_the_result_says_what_it_rests_on():
    found = constant(200).as_dict()
    assert found["verdict"] == "certified"
    assert found["reason"] == "The return ratio is at least 0.97, with 95 % confidence, after 200 episodes."
    assert found["mean_returns"] == {"student": 500.0, "teacher": 500.0, "random": 20.0}
    assert found["return_ratio"] == 1.0
    assert found["evidence"] >= 20
    assert found["bounds"] == [-100.0, 500.0]
    assert found["are_bounds_stated"] is False
    assert constant(200, bounds=(0, 500)).as_dict()["are_bounds_stated"] is True


# --- several candidates -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "expected"), [(1, [1.0]), (2, [0.5, 0.5]), (4, [0.5, 0.25, 0.125, 0.125])])
def test_candidates_share_alpha(count, expected):
    assert spend_alpha(0.05, count) == pytest.approx([0.05 * share for share in expected])
    assert sum(spend_alpha(0.05, count)) == pytest.approx(0.05)


# --- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": 0.0}, r"keep must be in \(0, 1\], got 0.0"),
        ({"keep": 97}, "Use 0.97"),
        ({"keep": math.nan}, "keep must be"),
        ({"alpha": 0.5}, r"confidence in \(0.5, 1\), got 0.5"),
        ({"alpha": 0}, "got 0. Use 0.05"),
        ({"alpha": math.nan}, "alpha must be"),
        ({"max_episodes": 0}, "max_episodes must be ≥ 1 or None, got 0"),
        ({"bounds": (500, 0)}, r"the lowest first, got \(500, 0\)"),
        ({"bounds": (0, math.inf)}, "two finite returns"),
        ({"bounds": (0,)}, "two finite returns"),
        ({"seen": [math.nan]}, r"seen\[0\] is nan"),
        ({"seen": [-2_000.0], "bounds": (0, 500)}, r"within bounds=\(0.0, 500.0\), got -2000 to -2000"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RatioTest(**{"keep": 0.97} | settings)


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ([1.0], "got 1 of student, 2 of teacher, 2 of random"),
        ([1.0, math.inf], r"student\[1\] is inf, but returns must be finite"),
        ([[1.0, 1.0]], r"student must have shape \[n\], got \[1, 2\]"),
        (["a", "b"], "student must be a list of returns"),
        ([1.0, 600.0], r"within bounds=\(0.0, 500.0\), got 0 to 600"),
        ([1.0, 500.001], r"within bounds=\(0.0, 500.0\), got 0 to 500.001"),
    ],
)
def test_returns_that_fit_nothing_are_refused_and_change_nothing(student, message):
    test = RatioTest(0.97, bounds=(0, 500))
    with pytest.raises(ValueError, match=message):
        test.update(student=student, teacher=[1.0, 1.0], random=[0.0, 0.0])
    assert test.num_episodes == 0


@pytest.mark.parametrize("number", [np.float64, np.float32])
def test_sums_of_rewards_at_a_stated_bound_are_within_it(number):
    *_, lowest = itertools.accumulate(40 * [float(number(-0.1))])  # `sum` makes up for rounding since Python 3.12
    assert lowest < -4.0
    test, exact = (RatioTest(0.97, bounds=(-4, 1), seen=[low]) for low in (lowest, -4.0))
    for each, low in ((test, lowest), (exact, -4.0)):
        each.update(student=[1.0] * 200, teacher=[1.0] * 200, random=[low, *[0.0] * 199])
    assert test.as_dict() == exact.as_dict()


@pytest.mark.parametrize(("alpha", "count"), [(0.5, 1), (0.0, 1), (0.05, 0), (0.05, 1.5), (0.05, True)])
def test_shares_of_alpha_out_of_range_are_refused(alpha, count):
    with pytest.raises(ValueError, match="must be"):
        spend_alpha(alpha, count)


# --- error rates: docs/results/certificates.md has them for 1,000 runs and 5,000 episodes -----------------------------

RUNS, EPISODES = 120, 1_000


@pytest.fixture(scope="module")
def rates():
    """Share of wrong certificates of each method, by kind of returns: the return ratio is `keep`."""
    kinds = "LunarLander, crashes", "CartPole", "catastrophe 1 %", "catastrophe 0.3 %"
    firsts = {
        kind: [
            certificates.one_run(certificates.SCENARIOS[kind], certificates.KEEP, seed, EPISODES)
            for seed in range(RUNS)
        ]
        for kind in kinds
    }
    return {
        method: {kind: np.mean([first[method] < math.inf for first in runs]) for kind, runs in firsts.items()}
        for method in certificates.METHODS
    }


def test_certificates_are_wrong_as_rarely_as_promised(rates):
    """5 %, and three standard errors of 120 runs."""
    assert max(rates["certificate"].values()) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / RUNS)


def test_a_t_test_with_peeking_would_fail_here(rates):
    assert min(rates["t-test"].values()) > 0.3


def test_an_estimated_variance_would_fail_here(rates):
    assert rates["asymptotic"]["catastrophe 0.3 %"] > 0.5


def test_good_students_are_certified_soon():
    episodes = {
        kind: np.median(
            [certificates.one_run(certificates.SCENARIOS[kind], 1.0, seed, 2_000)["certificate"] for seed in range(20)]
        )
        for kind in ("LunarLander", "CartPole, constant")
    }
    assert episodes["LunarLander"] < 1_000
    assert episodes["CartPole, constant"] < 180


def test_the_measured_test_is_the_one_that_users_run():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        student, teacher, random = certificates.cartpole(rng, 400, 0.995)
        first = certificates.first_certified((student, teacher, random), np.array([100.0]), certificates.betting)
        if first == math.inf:
            continue
        for n, certified in ((int(first), True), (int(first) - 1, False)):
            assert fed(student[:n], teacher[:n], random[:n], seen=[100.0]).is_certified is certified
