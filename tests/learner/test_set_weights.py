"""Weights that a callback sets directly on the Learner's modules, between updates or before the first one."""

import pytest
import torch

from tests.learner.learners import config_of, fragment, make_learner, student_of

FAMILIES = [{}, {"students": {"a": {"fcnet_hiddens": [4]}, "b": {"fcnet_hiddens": [4]}}}, {"restarts": 2}]


def config_with(loss, family):
    config = config_of(loss, **family).training(lr=0.0)  # what is set then stays
    return config.rl_module(model_config={}) if "students" in family else config


def weights_of_all(learner):
    return {name: {k: v.clone() for k, v in module.state_dict().items()} for name, module in learner.module.items()}


def assert_same(learner, expected):
    for name, own in weights_of_all(learner).items():
        torch.testing.assert_close(own, expected[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("loss", ["kl", "mse"])
@pytest.mark.parametrize("num_before", [0, 2])
@pytest.mark.parametrize("is_saved", [False, True], ids=["at once", "saved before"])
def test_they_are_learned_from_as_they_are(loss, family, num_before, is_saved):
    learner = make_learner(config_with(loss, family))
    given = weights_of_all(make_learner(config_with(loss, family).debugging(seed=1)))
    for _ in range(num_before):
        learner.update([fragment()], num_gradient_steps=3)
    for name, weights in given.items():
        learner.module[name].load_state_dict(weights)
    if is_saved:
        state, learner = learner.get_state(), make_learner(config_with(loss, family))
        learner.set_state(state)
    for _ in range(2):
        learner.update([fragment()], num_gradient_steps=3)
    assert_same(learner, given)


def test_their_average_begins_anew():
    learner = make_learner(config_of("kl", weight_averaging=0.1))
    learner.update([fragment()], num_gradient_steps=50)
    learner.module["default_policy"].load_state_dict(weights_of_all(learner)["default_policy"])
    learner.update([fragment()], num_gradient_steps=1)
    student = student_of(learner)
    torch.testing.assert_close(list(map(torch.detach, student.params)), student.training_weights)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_that_are_given_for_a_while_change_nothing(family):
    config = config_with("kl", family).training(lr=1e-2)
    learner, expected = make_learner(config), make_learner(config)
    others = weights_of_all(make_learner(config.debugging(seed=1)))
    for _ in range(3):
        for each in (learner, expected):
            each.update([fragment()], num_gradient_steps=3)
        own = learner.give_weights({name: {k: v.numpy() for k, v in own.items()} for name, own in others.items()})
        learner.give_weights(own)
    assert_same(learner, weights_of_all(expected))
