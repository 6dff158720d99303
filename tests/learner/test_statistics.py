import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rllib_kd.learner.label_statistics import QStatistics, agrees, equally_good


def q_like_cartpole(count: int, seed: int = 0, num_actions: int = 2) -> torch.Tensor:
    """Large values that vary a lot, small gaps between actions."""
    rng = np.random.default_rng(seed)
    preferences = rng.normal([0.3] + [0.0] * (num_actions - 1), 0.1, (count, num_actions))
    return torch.tensor(rng.normal(100, 8, (count, 1)) + preferences)


@pytest.mark.parametrize("num_actions", [2, 5])
def test_normalised_parts_have_mean_zero_and_scale_one(num_actions):
    q = q_like_cartpole(5_000, num_actions=num_actions)
    statistics = QStatistics(num_actions)
    for part in q.split(700):
        statistics.update(part)
    normalized = statistics.scale().normalize(q)
    value = normalized.mean(-1)
    deviation = normalized - value[:, None]
    assert statistics.count == 5_000
    assert value.mean().item() == pytest.approx(0, abs=1e-6)
    assert value.std(correction=0).item() == pytest.approx(1, abs=1e-6)
    assert deviation.mean(0).abs().max().item() == pytest.approx(0, abs=1e-6)
    assert deviation.square().mean().sqrt().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("unit", [2.0**-50, 2.0**50])
def test_the_scale_does_not_depend_on_the_unit_of_rewards(unit):
    found = []
    for factor in (1.0, unit):
        statistics = QStatistics(2)
        statistics.update(q_like_cartpole(500) * factor)
        scale = statistics.scale()
        found.append([scale.value_mean, scale.value_scale, *scale.deviation_mean, scale.deviation_scale])
    np.testing.assert_allclose(np.divide(found[1], unit), found[0])


@pytest.mark.parametrize(("size", "smallest"), [(0.0, 1.0), (3.0, 3 * 2.0**-23), (3e5, 3e5 * 2.0**-23)])
def test_values_that_do_not_vary_have_the_scale_of_their_rounding(size, smallest):
    statistics = QStatistics(2)
    statistics.update(torch.full((100, 2), size))
    assert statistics.scale().value_scale == pytest.approx(smallest, rel=0.1)
    assert statistics.scale().deviation_scale == pytest.approx(smallest, rel=0.1)


@given(seed=st.integers(0, 100), num_actions=st.integers(1, 6))
def test_denormalize_is_the_inverse(seed, num_actions):
    q = q_like_cartpole(50, seed, num_actions)
    statistics = QStatistics(num_actions)
    statistics.update(q)
    scale = statistics.scale()
    torch.testing.assert_close(scale.denormalize(scale.normalize(q)), q)


def test_illegal_actions_stay_illegal_and_spoil_nothing():
    q = q_like_cartpole(1_000, num_actions=3)
    masked = q.clone()
    masked[::2, 2] = -torch.inf
    statistics = QStatistics(3)
    statistics.update(masked)
    normalized = statistics.scale().normalize(masked)
    assert torch.equal(torch.isfinite(normalized), torch.isfinite(masked))


def test_two_halves_added_up_are_the_whole():
    q = q_like_cartpole(1_000)
    whole, half = QStatistics(2), QStatistics(2)
    whole.update(q)
    other = QStatistics(2)
    other.update(q[500:])

    def add_the_other_learner(tensor):
        tensor.add_(torch.from_numpy(other.get_state()["sums"]))

    half.update(q[:500], reduce=add_the_other_learner)
    np.testing.assert_allclose(half.get_state()["sums"], whole.get_state()["sums"])


def test_the_median_gap_is_that_of_the_sample():
    rng = np.random.default_rng(0)
    gaps = rng.lognormal(-2, 1, 20_000)
    statistics = QStatistics(3)
    statistics.update(torch.tensor(np.stack([-5 - gaps, np.zeros_like(gaps), gaps], 1)))
    assert statistics.median_gap() == pytest.approx(np.median(gaps), rel=0.2)


def test_states_without_a_choice_say_nothing_about_gaps():
    statistics = QStatistics(2)
    statistics.update(torch.tensor([[0.5, 0.0]] * 10 + [[1.0, -torch.inf]] * 90))
    assert statistics.median_gap() == pytest.approx(0.5, rel=0.2)


@pytest.mark.parametrize(
    ("offset", "noise"), [(20.0, 0.0), (20.0, 3e-7), (0.0, 0.0)], ids=["equal", "equal up to rounding", "best at 0"]
)
def test_actions_as_good_as_the_best_one_make_no_gap(noise, offset):
    rng = np.random.default_rng(0)
    gaps = rng.lognormal(-2, 1, 2_000)
    best = offset + rng.normal(0, 2, 2_000) * (offset > 0)
    values = np.stack([best, best - noise, best - gaps, best - 5], 1)
    statistics = QStatistics(4)
    statistics.update(torch.tensor(values))
    statistics.update(torch.tensor(20.0 * (1 - noise * rng.random((3_000, 4)))))  # nothing depends on the action
    assert statistics.median_gap() == pytest.approx(np.median(gaps), rel=0.2)


@pytest.mark.parametrize("cost", [1e3, 1e5, 1e9])
def test_a_catastrophic_action_changes_neither_gaps_nor_agreement(cost):
    rng = np.random.default_rng(0)
    q = torch.tensor(10 + rng.normal(size=(1_000, 4)), dtype=torch.float32)
    q[:, 3] = -cost
    statistics = QStatistics(4)
    statistics.update(q)
    best = q[:, :3].sort(descending=True).values
    assert statistics.median_gap() == pytest.approx((best[:, 0] - best[:, 1]).median().item(), rel=0.2)
    assert not agrees(q, q[:, :3].argmin(-1)).any()
    assert agrees(q, q.argmax(-1)).all()


def test_ties_of_a_dueling_head_count_beside_a_catastrophic_action():
    value, advantages = torch.tensor([[12.3]]), torch.tensor([[0.7, 0.7, 0.1, -1e5]])
    q = value + advantages - advantages.mean(-1, keepdim=True)
    assert equally_good(q).tolist() == [[True, True, False, False]]


def test_gaps_of_a_few_roundings_count_where_there_are_no_others():
    statistics = QStatistics(3)
    statistics.update(torch.tensor([[100_000.0, 100_000.03, 99_999.97]] * 10, dtype=torch.float64))
    assert statistics.median_gap() == pytest.approx(0.03, rel=0.2)


def test_equally_good_actions_are_equal_up_to_rounding_but_for_those_that_are_all_alike():
    cases = {
        (1.0, 1.0, 0.5): (True, True, False),
        (20.0, 20.0 - 5e-6, 19.9): (True, True, False),
        (20.0, 20.0 - 5e-5, 19.9): (True, False, False),
        (-torch.inf, 3.0, 3.0): (False, True, True),
        (-torch.inf, 3.0, -torch.inf): (False, True, False),
        (1e5, 1e5 + 0.03125, 1e5): (False, True, False),  # small gaps of large values: only exact equals
        (10.0, 9.95, -5e5): (True, False, False),  # a catastrophe says nothing about the others
        (-10.0, -10.0 - 1e-6, -5e5): (True, True, False),
    }
    found = equally_good(torch.tensor(list(cases)))
    assert found.tolist() == list(map(list, cases.values()))


def test_the_state_of_an_earlier_version_has_its_gaps():
    statistics, former = QStatistics(2), QStatistics(2)
    former.update(q_like_cartpole(100))
    expected = former.median_gap()
    former._sums = former._sums[:-256]  # it had one histogram
    statistics.set_state(former.get_state())
    for each in (statistics, pickle.loads(pickle.dumps(former))):
        assert each.median_gap() == expected
        each.update(q_like_cartpole(100))


def test_nothing_seen_or_nothing_varying_gives_finite_scales():
    statistics = QStatistics(2)
    statistics.update(torch.zeros(0, 2))
    assert statistics.median_gap() > 0
    statistics.update(torch.full((100, 2), 3.0))
    scale = statistics.scale()
    assert torch.isfinite(scale.normalize(torch.tensor([[3.0, 3.0]]))).all()
    assert statistics.median_gap() > 0


def test_state_continues():
    statistics, copy = QStatistics(2), QStatistics(2)
    statistics.update(q_like_cartpole(100))
    copy.set_state(statistics.get_state())
    for each in (statistics, copy):
        each.update(q_like_cartpole(100, seed=1))
    np.testing.assert_array_equal(copy.get_state()["sums"], statistics.get_state()["sums"])
