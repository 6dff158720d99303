"""Settings that differ between policies, against the same settings for all of them."""

import copy

import pytest
import torch

from rllib_kd.algorithm.checks.labels import check_labels
from rllib_kd.algorithm.checks.policies import OF_A_POLICY
from rllib_kd.algorithm.settings import apply_settings
from rllib_kd.algorithm.teachers import Teachers
from rllib_kd.learner.group import DISTILLATION_COLUMNS, TD_COLUMNS
from tests.algorithm.test_label_checks import ACTOR_CRITIC
from tests.learner.learners import config_of, fragment, make_learner

POLICIES = ("left", "right")
TD = {"loss": "huber", "td_coeff": 1.0, "td_error_loss_fn": "mse"}
#: What is set for one policy, and what for all.
CASES = [
    ({"lr": 1e-4}, {}),
    ({"lr": [[0, 1e-4], [100, 1e-5]]}, {}),
    ({"adam_epsilon": 1e-2}, {}),
    ({"weight_averaging": 0.9}, {}),
    ({"grad_clip": 1e-3}, {}),
    ({"grad_clip_by": "value"}, {"grad_clip": 1e-3}),
    ({"loss": "mse"}, {}),
    ({"loss": "reverse_kl"}, {"loss": "mse"}),
    ({"temperature": 5.0}, {}),
    ({"student_temperature": 5.0}, {}),
    ({"regret_coeff": 3.0}, {}),
    ({"huber_delta": 0.01}, {"loss": "huber"}),
    ({"jsd_beta": 0.9}, {"loss": "jsd"}),
    ({"margin": 5.0}, {"loss": "margin"}),
    ({"gamma": 0.5}, TD),
    ({"tau": 0.1}, {**TD, "target_network_update_freq": 1}),
]


def config_with(**distillation):
    config = config_of().multi_agent(policies=set(POLICIES), policy_mapping_fn=lambda *_, **__: "left")
    config.training(lr=1e-2, tau=0.5)
    return apply_settings(config, {"teacher": dict.fromkeys(POLICIES, "cartpole"), **distillation})


def weights(config):
    """All weights of each policy after two updates."""
    learner = make_learner(config, policies=POLICIES)
    names = DISTILLATION_COLUMNS + TD_COLUMNS if config.uses_td else DISTILLATION_COLUMNS
    rows = {name: fragment(seed=seed, names=names) for seed, name in enumerate(POLICIES)}
    for i in range(2):
        learner.update([rows], num_gradient_steps=4, timesteps={"num_env_steps_sampled_lifetime": 100 * (i + 1)})
    return {name: copy.deepcopy(learner.module[name].state_dict()) for name in POLICIES}


@pytest.mark.parametrize(("of_one", "of_all"), CASES)
def test_what_is_set_for_one_policy_counts_for_it_alone(of_one, of_all):
    config = config_with(**of_all)
    overridden = weights(config.copy().rl_module(algorithm_config_overrides_per_module={"left": of_one}))
    for_all, for_none = weights(config_with(**{**of_all, **of_one})), weights(config)
    torch.testing.assert_close(overridden["left"], for_all["left"], rtol=0.0, atol=0.0)
    torch.testing.assert_close(overridden["right"], for_none["right"], rtol=0.0, atol=0.0)
    assert any(not torch.equal(for_none["left"][key], value) for key, value in overridden["left"].items())


def test_every_setting_that_may_differ_is_tested():
    assert {name for of_one, _ in CASES for name in of_one} == OF_A_POLICY


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"left": {"kd_coeff": 0.1}}, "'kd_coeff', which cannot differ between policies. Set it for all, or train the"),
        ({"left": {"temperature": -1.0}}, r"\['left'\]`: `temperature` must be positive"),
        ({"left": {"lr": "fast"}}, r"\['left'\]`: .*'lr' cannot be 'fast'"),
        ({"left": {"loss": "categorical"}}, r"\['left'\]`: The loss 'categorical' needs a C51 student"),
        ({"up": {"lr": 1e-3}}, r"is for policies that learn, \['left', 'right'\], got 'up'"),
        ({"left": 3}, r"\['left'\]` must be an object with settings by name, got 3"),
    ],
)
def test_what_cannot_differ_is_refused(overrides, message):
    config = config_with().rl_module(algorithm_config_overrides_per_module=overrides)
    with pytest.raises(ValueError, match=message):
        config.validate()


def test_a_loss_of_other_labels_is_refused():
    config = config_with(num_atoms=5, v_min=0.0, v_max=9.0)
    config.rl_module(algorithm_config_overrides_per_module={"left": {"loss": "categorical"}})
    with pytest.raises(ValueError, match="has loss='categorical', which needs other labels than loss='kl'"):
        config.validate()


def test_overrides_are_for_several_agents():
    config = config_of().rl_module(algorithm_config_overrides_per_module={"default_policy": {"lr": 1e-3}})
    with pytest.raises(ValueError, match="is for several agents, got 'default_policy'"):
        config.validate()


def test_labels_are_checked_against_the_loss_of_each_policy():
    config = config_with().rl_module(algorithm_config_overrides_per_module={"left": {"loss": "mse"}})
    config.validate()
    check_labels(config, {"right": ACTOR_CRITIC})
    with pytest.raises(ValueError, match="`loss`='mse' needs a teacher with Q-values"):
        check_labels(config, {"left": ACTOR_CRITIC})


def test_an_ensemble_by_policies_has_the_temperature_of_its_policy():
    config = config_with(teacher={name: ["cartpole", "cartpole"] for name in POLICIES}, ensemble="policy")
    with pytest.raises(ValueError, match="Set a number, in return units"):
        Teachers.load(config, None)
    config.rl_module(algorithm_config_overrides_per_module={name: {"temperature": 1.0} for name in POLICIES})
    assert Teachers.load(config, None).are_loaded
