"""Normalised observations: the statistics, and the fold into the first layer."""

import numpy as np
import pytest
import ray
import torch

from rllib_kd.learner.group import MAX_METRIC_STATES
from rllib_kd.learner.observation_scale import ObservationStatistics, take_normalized, take_raw
from rllib_kd.networks.dqn_module import first_linears
from tests.conftest import make_q_module
from tests.learner.learners import RAW, config_of, fragment, group_of, make_learner, q_values, student_of


def scale_of(obs):
    statistics = ObservationStatistics(obs.shape[1])
    for part in obs.split(300):
        statistics.update(part)
    return statistics.scale()


def test_normal_inputs_get_a_mean_of_zero_and_a_standard_deviation_of_one():
    torch.manual_seed(0)
    units = torch.tensor([1e-3, 1.0, 1e3])
    obs = (torch.randn(20_000, 3) + torch.tensor([0.0, 5.0, -2.0])) * units
    normalized = scale_of(obs).normalize(obs)
    torch.testing.assert_close(normalized.mean(0), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(normalized.std(0), torch.ones(3), atol=0.03, rtol=0)


@pytest.mark.parametrize("share", [0.1, 1e-2, 1e-3])
def test_what_is_rarely_seen_is_no_outlier(share):
    """The standard deviation alone would make it one of 1 / sqrt(share)."""
    obs = (torch.arange(20_000) % round(1 / share) == 0).float().unsqueeze(-1)
    largest = scale_of(obs).normalize(obs).max().item()
    assert 1.0 < largest < 1.4 * share**-0.25


@pytest.mark.parametrize("mean", [0.0, 1e3, 1e5])
def test_constant_inputs_stay_as_they_are_and_far_ones_are_found(mean):
    torch.manual_seed(0)
    obs = torch.stack([torch.full((5_000,), mean), mean + torch.randn(5_000)], dim=-1)
    scale = scale_of(obs)
    assert scale.scale[0] == 1.0
    assert 0.7 < scale.scale[1] < 20.0  # the fourth moment loses digits far from 0, and has a floor then
    assert torch.isfinite(scale.normalize(obs)).all()


@pytest.mark.parametrize("spread", [30.0, 300.0, 900.0, 1_200.0])
def test_of_what_float32_hardly_resolves_no_value_is_cut(spread):
    """Times in seconds since 1970 differ by less than a millionth in some minutes."""
    torch.manual_seed(0)
    obs = (1e9 + spread * torch.randn(5_000, 1, dtype=torch.float64)).float()
    normalized = scale_of(obs).normalize(obs)
    assert 0.02 < normalized.std() < 1.1
    assert normalized.abs().max() < 10.0


def test_inputs_that_are_nearly_0_stay_as_they_are():
    torch.manual_seed(0)
    scale = scale_of(torch.randn(500, 2) * 1e-42)
    assert torch.equal(scale.scale, torch.ones(2))
    assert torch.isfinite(scale.inverse).all()


def plain_scale(obs):
    """Of values none of which is far from the others: mean, and scale by the fourth moment."""
    x = obs.double()
    mean = x.mean(0)
    return mean.float(), ((x - mean) ** 4).mean(0).div(3.0).pow(0.25).float()


@pytest.mark.parametrize("reading", [1e30, -3e38, 1e6])
@pytest.mark.parametrize("place", [5, 250, 4_321], ids=["at first", "in a full batch", "later"])
def test_one_broken_reading_leaves_the_scale_as_it_was(reading, place):
    torch.manual_seed(0)
    obs = torch.randn(8_000, 3) * torch.tensor([0.03, 1.0, 100.0]) + 1.0
    expected = plain_scale(torch.cat([obs[:place], obs[place + 1 :]]))
    obs[place] = reading
    scale = scale_of(obs)
    for got, wanted in zip(scale[:2], expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    normalized = scale.normalize(obs)
    assert normalized.abs().max() == 100.0  # a loss of it has a gradient of bounded size
    assert normalized.abs().sort(0).values[-2].max() < 6.0


@pytest.mark.parametrize("share", [2e-3, 0.05, 1.0])
def test_what_is_far_and_not_rare_counts(share):
    """As if an input of zeros comes to life: an altitude, a score."""
    torch.manual_seed(0)
    obs = torch.zeros(10_000, 1)
    obs[2_000:] = (torch.rand(8_000, 1) < share) * (5_000.0 + torch.randn(8_000, 1))
    scale = scale_of(obs)
    for got, wanted in zip(scale[:2], plain_scale(obs), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert scale.normalize(obs).abs().max() < 1.4 * share**-0.25 + 1.0


def test_values_that_are_not_far_are_summed_as_if_none_could_be():
    torch.manual_seed(0)
    obs = torch.randn(5_000, 3) ** 3 * torch.tensor([1e-3, 1.0, 1e3])  # up to 50 standard deviations
    statistics, sums = ObservationStatistics(3), torch.zeros(13, dtype=torch.float64)
    for part in obs.split(300):
        statistics.update(part)
        x = part.double()
        powers = [power.sum(0) for power in (x, x.square(), x**3, x.square().square())]
        sums += torch.cat([torch.tensor([float(len(x))]).double(), *powers])
    np.testing.assert_array_equal(statistics.get_state()["sums"], np.append(sums.numpy(), np.zeros(15)))


def test_statistics_go_on_bit_by_bit_from_their_state():
    torch.manual_seed(0)
    obs = torch.randn(4_000, 2)
    obs[::700] = 1e30
    whole, first = ObservationStatistics(2), ObservationStatistics(2)
    for part in obs.split(500):
        whole.update(part)
    for part in obs[:2_000].split(500):
        first.update(part)
    second = ObservationStatistics(2)
    second.set_state(first.get_state())
    for part in obs[2_000:].split(500):
        second.update(part)
    np.testing.assert_array_equal(second.get_state()["sums"], whole.get_state()["sums"])
    assert all(map(torch.equal, second.scale(), whole.scale()))


def test_a_state_of_before_values_were_summed_apart():
    torch.manual_seed(0)
    obs = torch.randn(2_000, 2)
    statistics, restored = ObservationStatistics(2), ObservationStatistics(2)
    statistics.update(obs)
    restored.set_state({"sums": statistics.get_state()["sums"][:9]})
    assert all(map(torch.equal, restored.scale(), statistics.scale()))


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_few_states_at_once(count):
    statistics = ObservationStatistics(2)
    for _ in range(4):
        statistics.update(torch.full((count, 2), 1e3))
    scale = statistics.scale()
    assert scale.mean.tolist() == [1e3 if count else 0.0] * 2
    assert scale.scale.tolist() == [1.0, 1.0]


def test_two_learners_have_the_statistics_of_both():
    torch.manual_seed(0)
    obs = torch.randn(600, 2)
    other = ObservationStatistics(2)
    other.update(obs[300:])
    together = ObservationStatistics(2)
    together.update(obs[:300], reduce=lambda sums: sums.add_(torch.from_numpy(other.get_state()["sums"])))
    torch.testing.assert_close(together.scale(), scale_of(obs))


@pytest.mark.parametrize(
    "model", [{"fcnet_hiddens": [8]}, {"fcnet_hiddens": [8, 8]}, {"fcnet_hiddens": [8], "dueling": True}]
)
def test_folding_preserves_the_function(model):
    module = make_q_module(**model)
    torch.manual_seed(0)
    obs = torch.randn(500, 4) * torch.tensor([0.01, 1.0, 10.0, 0.3]) + 0.5
    expected = module.compute_q_values({"obs": obs})["qf_preds"]
    scale, layers = scale_of(obs), first_linears(module)
    take_normalized(layers, scale)
    inside = module.compute_q_values({"obs": scale.normalize(obs)})["qf_preds"]
    torch.testing.assert_close(inside, expected, rtol=1e-4, atol=1e-5)
    take_raw(layers, scale)
    torch.testing.assert_close(module.compute_q_values({"obs": obs})["qf_preds"], expected, rtol=1e-4, atol=1e-5)


def make_inputs(kind, count=4_000):
    rng = np.random.default_rng(0)
    inputs = {
        "one-hot": lambda: np.eye(4, dtype=np.float32)[rng.integers(4, size=count)],
        "float64": lambda: rng.normal(size=(count, 4)),
        "integers": lambda: rng.integers(-1_000, 1_000, (count, 4)),
        "constant": lambda: np.full((count, 4), 1e6),
        "1e6 ± 1": lambda: 1e6 + rng.normal(size=(count, 4)),
        "1e-3 ± 1e-6": lambda: 1e-3 + 1e-6 * rng.normal(size=(count, 4)),
        "1e30": lambda: 1e30 * rng.normal(size=(count, 4)),
    }
    return torch.from_numpy(inputs[kind]()).float()  # as columns hold them


KINDS = ["one-hot", "float64", "integers", "constant", "1e6 ± 1", "1e-3 ± 1e-6", "1e30"]


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_folding_is_exact_to_the_digits_of_raw_inputs(kind):
    obs = make_inputs(kind)
    scale, module = scale_of(obs), make_q_module(fcnet_hiddens=[8])
    assert torch.isfinite(torch.stack(scale)).all()
    (layer,) = layers = first_linears(module)
    inside = layer(scale.normalize(obs)), module.compute_q_values({"obs": scale.normalize(obs)})["qf_preds"]
    take_raw(layers, scale)
    outside = layer(obs), module.compute_q_values({"obs": obs})["qf_preds"]
    # The terms of which the hidden layer is the sum, and their last digits: those of 1e6 are 0.06.
    terms = obs.abs() @ layer.weight.abs().T + layer.weight.abs() @ scale.mean.abs() + layer.bias.abs()
    digits = 4 * torch.finfo(torch.float32).eps * terms
    assert ((outside[0] - inside[0]).abs() <= digits).all()
    head = next(part for part in module.af.modules() if isinstance(part, torch.nn.Linear))
    assert ((outside[1] - inside[1]).abs() <= digits @ head.weight.abs().T + 1e-6).all()
    weights = [part.clone() for part in layer.parameters()]
    for _ in range(100):  # updates without a step
        take_normalized(layers, scale)
        take_raw(layers, scale)
    for weight, before in zip(layer.parameters(), weights, strict=True):
        torch.testing.assert_close(weight, before, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("mean", [1e4, 1e6, -1e6])
def test_inputs_far_from_0_have_their_own_scale(mean):
    torch.manual_seed(0)
    scale = scale_of(mean + torch.randn(20_000, 2))
    torch.testing.assert_close(scale.scale, torch.ones(2), rtol=0.05, atol=0)


def badly_scaled(count=2_048):
    """The better action depends on an input that hardly varies, and not on a large one."""
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(count, 4)).astype(np.float32) * np.array([0.01, 1.0, 10.0, 1.0], np.float32)
    columns = fragment(count)
    columns["obs"] = obs
    columns["teacher_q"] = np.stack([np.tanh(300 * obs[:, 0]), np.zeros(count)], -1).astype(np.float32)
    return columns


@pytest.mark.parametrize(("normalizes", "low", "high"), [(True, 0.97, 1.0), (False, 0.4, 0.9)])
@pytest.mark.parametrize("num_students", [1, 2])
def test_a_student_sees_what_hardly_varies(cluster, normalizes, low, high, num_students):
    """Outside of updates it takes what the environment shows."""
    columns = badly_scaled()
    config = config_of(normalize_observations=normalizes).training(lr=1e-2)
    if num_students > 1:  # stacked
        config.distillation(restarts=num_students)
    learner = make_learner(config)
    learner.update([ray.put(columns)], num_gradient_steps=100)
    learner.update([ray.put(columns)], num_gradient_steps=100)
    agreement = (q_values(learner, columns["obs"]).argmax(-1).numpy() == columns["teacher_q"].argmax(-1)).mean()
    assert low <= agreement <= high


@pytest.mark.parametrize("place", [3, 1_500])
def test_a_broken_reading_does_not_end_learning(place):
    columns = badly_scaled()
    columns["obs"][place, 0] = 1e30
    learner = make_learner(config_of().training(lr=1e-2))
    learner.update([columns], num_gradient_steps=200)
    assert all(torch.isfinite(weight).all() for weight in learner.module["default_policy"].parameters())
    others = np.arange(len(columns["obs"])) != place
    choices = q_values(learner, columns["obs"][others]).argmax(-1).numpy()
    assert (choices == columns["teacher_q"][others].argmax(-1)).mean() > 0.95


def test_without_a_step_the_student_stays_what_it_is(cluster):
    learner = make_learner(config_of("mse").training(lr=0.0))
    obs = fragment()["obs"]
    learner.update([ray.put(fragment())], num_gradient_steps=1)  # first weights are meant for normalised inputs
    before = q_values(learner, obs)
    for seed in range(5):  # the statistics move
        learner.update([ray.put(fragment(seed=seed))], num_gradient_steps=1)
    torch.testing.assert_close(q_values(learner, obs), before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("settings", [RAW, {"td_coeff": 1.0}, {"loss": "nll", "normalize_observations": False}])
def test_who_does_not_normalise_observations(cluster, settings):
    assert not student_of(make_learner(config_of(**settings))).first_layers


@pytest.mark.parametrize("num_fragments", [1, 4])
def test_the_statistics_are_of_all_phases_where_environments_alternate(num_fragments):
    columns = fragment(2 * MAX_METRIC_STATES, names=("obs", "teacher_q"))
    columns["obs"][:, 0] = np.arange(len(columns["obs"])) % 2
    parts = [
        dict(zip(columns, part, strict=True))
        for part in zip(*(np.array_split(column, num_fragments) for column in columns.values()), strict=True)
    ]
    group = group_of(make_learner(config_of()))
    seen = group.take_in(parts, reduce=None)
    assert len(seen["obs"]) == MAX_METRIC_STATES
    assert group.obs_statistics.scale().mean[0] == pytest.approx(0.5, abs=0.05)
    labels = {row.tobytes(): q for row, q in zip(columns["obs"], columns["teacher_q"], strict=True)}
    assert all(
        (labels[row.tobytes()] == q).all() for row, q in zip(*map(torch.Tensor.numpy, seen.values()), strict=True)
    )


def test_the_statistics_are_in_the_state(cluster):
    learner = make_learner(config_of())
    learner.update([ray.put(fragment())], num_gradient_steps=5)
    other = make_learner(config_of())
    other.set_state(learner.get_state())
    for one in (learner, other):
        one.update([ray.put(fragment(seed=1))])
    states = [one.groups["default_policy"].obs_statistics.get_state()["sums"] for one in (learner, other)]
    np.testing.assert_array_equal(*states)


def test_the_state_of_students_without_statistics_is_none_to_go_on_from(cluster):
    """As if TD was switched off for a run that goes on."""
    learner, plain = make_learner(config_of()), make_learner(config_of(normalize_observations=False))
    learner.set_state(plain.get_state())
    learner.update([ray.put(fragment())], num_gradient_steps=1)
    assert learner.groups["default_policy"].obs_statistics.get_state()["sums"][0] == 256
