"""Normalised observations: the statistics, and the fold into the first layer."""

import numpy as np
import pytest
import ray
import torch

from rllib_kd.learner.observation_scale import ObservationStatistics, take_normalized, take_raw
from rllib_kd.networks.dqn_module import first_linears
from tests.conftest import make_q_module
from tests.learner.learners import RAW, config_of, fragment, make_learner, q_values, student_of


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


def test_inputs_that_are_nearly_0_stay_as_they_are():
    torch.manual_seed(0)
    scale = scale_of(torch.randn(500, 2) * 1e-42)
    assert torch.equal(scale.scale, torch.ones(2))
    assert torch.isfinite(scale.inverse).all()


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
