"""Students that learn for weights of 8 bits."""

import copy

import numpy as np
import pytest
import torch

from rllib_kd.learner.stack import StackedStudents
from rllib_kd.networks.quantization import RoundedMLP, rounded
from rllib_kd.networks.stacking import linears_of
from tests.learner.learners import config_of, fragment, make_learner, q_values, student_of


def learner_of(**distillation):
    return make_learner(config_of(quantize="int8", **distillation))


def assert_is_rounded(module):
    for layer in linears_of(module):
        torch.testing.assert_close(rounded(layer.weight), layer.weight, rtol=1e-6, atol=0)


def steps(learner, count=20, seed=0):
    learner.update([fragment(seed=seed)], num_gradient_steps=count)


@pytest.mark.parametrize(
    "distillation",
    [{}, {"weight_averaging": 0.0}, {"normalize_observations": False}, {"loss": "mse", "normalize_q_values": False}],
)
def test_the_student_that_acts_has_rounded_weights_and_is_the_one_that_learned(distillation):
    learner = learner_of(**distillation)
    steps(learner)
    student = student_of(learner)
    assert_is_rounded(student.module)
    assert any(not torch.equal(weight, param) for weight, param in zip(student.unrounded, student.params, strict=True))
    # Inside of the next update, before its first step, the same function is learned from.
    obs = torch.from_numpy(fragment(seed=3)["obs"])
    acting = q_values(learner, obs)
    group = learner.groups["default_policy"]
    scale, obs_scale = group.statistics.scale(), group.obs_statistics.scale()
    student.training_weights = None  # the averages, if there are any, are then what is entered
    student.enter(scale, obs_scale)
    batch = {"obs": obs} if student.obs_scale is None else {"obs": obs, "normalized_obs": obs_scale.normalize(obs)}
    inside = student.outputs(batch)["qf_preds"]
    torch.testing.assert_close(student.to_q(inside).detach(), acting, rtol=1e-3, atol=1e-3)
    student.leave()


def test_what_is_lost_by_rounding_is_not_lost_by_an_update():
    """Steps that are smaller than the rounding add up, over many updates."""
    often, once = learner_of(), learner_of()
    for learner, turns in ((often, 30), (once, 1)):
        learner.update([fragment(seed=0)], num_gradient_steps=0)
        for _ in range(turns):
            learner.update([], num_gradient_steps=30 // turns)
    torch.testing.assert_close(student_of(often).unrounded, student_of(once).unrounded, rtol=1e-3, atol=1e-4)


def test_other_students_learn_as_before():
    plain = make_learner(config_of())
    steps(plain)
    assert student_of(plain).unrounded is None
    assert not isinstance(student_of(plain)._mlp, RoundedMLP)


def test_a_stack_learns_as_its_members_alone():
    config = config_of(quantize="int8", regret_coeff=1.0, restarts=3)
    stacked = make_learner(config)
    group = stacked.groups["default_policy"]
    assert isinstance(group.learners[0], StackedStudents)
    modules = {name: copy.deepcopy(student.module) for name, student in group.students.items()}
    steps(stacked, 10)
    for student in group.students.values():
        assert_is_rounded(student.module)
        assert any(
            not torch.allclose(a, b)
            for a, b in zip(student.module.parameters(), modules[student.name].parameters(), strict=True)
        )


def test_a_restored_student_continues_with_the_weights_before_rounding():
    learner = learner_of()
    steps(learner)
    copied = learner_of()
    copied.set_state(learner.get_state())
    torch.testing.assert_close(student_of(copied).unrounded, student_of(learner).unrounded)
    torch.testing.assert_close(
        dict(student_of(copied).module.state_dict()), dict(student_of(learner).module.state_dict())
    )


def test_training_goes_on_without_rounding_from_the_weights_before_it():
    learner, plain = learner_of(), make_learner(config_of())
    steps(learner)
    plain.set_state(learner.get_state())
    steps(plain, seed=1)
    first = [weight.clone() for weight in student_of(plain).params]
    assert student_of(plain).unrounded is None
    steps(plain, seed=2)
    assert not any(torch.equal(before, now) for before, now in zip(first, student_of(plain).params, strict=True))


@pytest.mark.slow
def test_it_learns_for_its_rounding():
    """After the same steps, it is closer to its labels than a student that is rounded afterwards."""
    obs = fragment(1024)["obs"]
    labels = np.tanh(obs @ np.random.default_rng(0).normal(size=(4, 2))).astype(np.float32)
    errors = {}
    for quantize in (None, "int8"):
        learner = make_learner(config_of("mse", normalize_q_values=False, quantize=quantize))
        learner.update([fragment(1024) | {"teacher_q": labels}], num_gradient_steps=1_500)
        module = student_of(learner).module
        with torch.no_grad():
            q = RoundedMLP(module).q_values(torch.from_numpy(obs)).numpy()
        errors[quantize] = float(np.square(q - labels).mean())
    assert errors["int8"] < 0.02
    assert errors["int8"] < errors[None], errors
