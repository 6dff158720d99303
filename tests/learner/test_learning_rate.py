"""The learning rate of students for which none is set."""

import pytest

from rllib_kd.algorithm.settings import apply_settings
from rllib_kd.learner.learning_rate import learning_rate_for
from tests.learner.learners import config_of, make_learner

WIDE = {"fcnet_hiddens": [8_000]}  # 56,002 parameters


@pytest.mark.parametrize(("num_parameters", "lr"), [(1_000, 3e-3), (39_999, 3e-3), (40_000, 1e-3), (10**7, 1e-3)])
def test_small_students_learn_by_larger_steps(num_parameters, lr):
    assert learning_rate_for(num_parameters) == lr


def rates_of(config):
    return [optimizer.param_groups[0]["lr"] for optimizer in make_learner(config)._named_optimizers.values()]


def test_it_is_that_of_the_student():
    config = config_of("kl")
    assert rates_of(config.training(lr=None)) == [3e-3]
    assert rates_of(config.rl_module(model_config=WIDE)) == [1e-3]
    assert rates_of(config.training(lr=0.5)) == [0.5]  # what is set counts


@pytest.mark.parametrize(("grad_clip", "rates"), [(None, [1e-3]), (1.0, [3e-3, 1e-3])])  # side by side, and apart
def test_students_side_by_side_have_that_of_the_largest(grad_clip, rates):
    config = config_of("kl").training(lr=None, grad_clip=grad_clip)
    config.distillation(students={"small": {"fcnet_hiddens": [4]}, "wide": WIDE})
    assert rates_of(config) == rates


def test_a_restored_optimizer_has_epsilon_and_learning_rate_of_the_config():
    for family in ({}, {"restarts": 2}):
        saved = make_learner(config_of("kl", **family)).get_state()
        learner = make_learner(apply_settings(config_of("kl", **family), {"adam_epsilon": 1e-4, "lr": 0.5}))
        learner.set_state(saved)
        (optimizer,) = learner._named_optimizers.values()
        assert (optimizer.param_groups[0]["eps"], optimizer.param_groups[0]["lr"]) == (1e-4, 0.5)
