"""Weights of 8 bits, against the export that has them."""

import numpy as np
import pytest
import torch

from rllib_kd.export.c.integers import quantized
from rllib_kd.export.c.program import lower
from rllib_kd.export.c.reference import closest_integers, integer_q_values
from rllib_kd.export.formats import describe, input_shape
from rllib_kd.networks.quantization import RoundedMLP, check_can_round, round_linears, rounded, rounded_stack
from rllib_kd.networks.stacking import PlainMLP, StackedMLPs, linears_of
from rllib_kd.teachers.base import Teacher
from tests.conftest import make_q_module, states
from tests.networks.test_stacking import linear


def mlp(seed=0, activation="relu"):
    module = make_q_module(fcnet_hiddens=[16, 8], fcnet_activation=activation, seed=seed)
    with torch.no_grad():
        for layer in linears_of(module):
            layer.bias.uniform_(-0.5, 0.5)
    return module


def test_rounded_weights_are_integers_times_the_units_own_step_halves_away_from_zero():
    weight = torch.tensor([[127.0, 0.5, -0.5, 1.49], [-254.0, 1.0, 3.0, 0.9], [0.0, 0.0, 0.0, 0.0]])
    expected = torch.tensor([[127.0, 1.0, -1.0, 1.0], [-254.0, 2.0, 4.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(rounded(weight), expected)
    torch.testing.assert_close(rounded(weight.t(), dim=0), expected.t())


def test_rounding_is_done_to_weights_of_raw_inputs():
    weight, scale = torch.randn(5, 3), torch.tensor([0.1, 1.0, 30.0])
    torch.testing.assert_close(rounded(weight, scale=scale), rounded(weight / scale) * scale)


def test_gradients_pass_as_if_nothing_were_rounded():
    weight = torch.randn(3, 4, requires_grad=True)
    rounded(weight).square().sum().backward()
    torch.testing.assert_close(weight.grad, 2 * rounded(weight).detach())


def test_rounding_twice_changes_nothing():
    module = mlp()
    round_linears(linears_of(module))
    once = [layer.weight.clone() for layer in linears_of(module)]
    round_linears(linears_of(module))
    torch.testing.assert_close([layer.weight for layer in linears_of(module)], once, rtol=1e-6, atol=0)


def test_the_forward_pass_is_that_of_the_rounded_network():
    module, obs = mlp(), torch.from_numpy(states(9))
    q = RoundedMLP(module).q_values(obs)
    assert not torch.allclose(q, PlainMLP(module).q_values(obs), atol=1e-4)
    round_linears(linears_of(module))
    torch.testing.assert_close(q, PlainMLP(module).q_values(obs))


def test_a_stack_rounds_each_member_as_by_itself():
    modules, obs = [mlp(0), mlp(1), make_q_module(fcnet_hiddens=[5, 3], seed=2)], torch.from_numpy(states(9))
    stack, scale = StackedMLPs(modules), torch.tensor([0.1, 1.0, 2.0, 30.0])
    q = stack.q_values(rounded_stack(stack.pack(stack.weights), scale), obs)
    for module, own in zip(modules, q, strict=True):
        torch.testing.assert_close(own, RoundedMLP(module, scale).q_values(obs), rtol=1e-4, atol=1e-5)


def test_the_first_layers_bias_keeps_its_outputs_at_the_inputs_mean():
    module, mean = mlp(), torch.tensor([5.0, -3.0, 0.1, 20.0])
    first = linears_of(module)[0]
    before = first(mean)
    round_linears(linears_of(module), input_mean=mean)
    torch.testing.assert_close(first(mean), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_c_in_integers_has_exactly_these_weights_and_chooses_the_same_actions(activation):
    module = mlp(activation=activation)
    round_linears(linears_of(module))
    student, obs = Teacher(module), states(2_000)
    layers, tensors = describe(student)
    program = lower(layers, tensors, input_shape(student))
    (plain,) = quantized(program, tensors, obs, equalizations=[0.0])
    steps = [step for step in plain.steps if step.function == "linear"]
    for layer, step in zip(linears_of(module), steps, strict=True):
        unit = layer.weight.detach().abs().amax(-1, keepdim=True) / 127
        np.testing.assert_array_equal(step.arrays["weight"], torch.round(layer.weight.detach() / unit).numpy())
    q = student.q_values(torch.from_numpy(obs)).numpy()
    integers = integer_q_values(closest_integers(layers, program, tensors, obs), tensors)(obs)  # as exported
    np.testing.assert_allclose(integers, q, atol=2e-3 * np.abs(q).max())
    assert (integers.argmax(-1) == q.argmax(-1)).mean() > 0.995


@pytest.mark.parametrize("config", [{"dueling": True}, {"num_atoms": 7}, {"fcnet_use_layernorm": True}])
def test_other_networks_are_refused_by_name(config):
    with pytest.raises(ValueError, match=r"plain MLP.* but the student 'small' is another .* export with --int8"):
        check_can_round(make_q_module(**config), "small")
    check_can_round(linear(), "small")
