"""The module that takes over a teacher's weights computes the same, but for rounding."""

import pytest
import torch

from rllib_kd.teachers.dqn_copy import are_same, dqn_module_with
from tests.conftest import CARTPOLE_ACTIONS, CARTPOLE_OBS, make_q_module


@pytest.mark.parametrize(
    ("outputs", "same"),
    [([1e4, 0.01], True), ([1e4 + 1e-2, 0.02], True), ([1e4 + 10, 0.01], False), ([1e4, 1.0], False), ([1e4], False)],
)
def test_rounding_is_measured_by_the_largest_output(outputs, same):
    """A logit near 0 beside one of 10,000 is rounded like the latter."""
    assert are_same(torch.tensor(outputs), torch.tensor([1e4, 0.01])) == same


def test_another_function_of_small_outputs_is_not_the_same():
    expected = 1e-6 * torch.tensor([[1.0, 0.5], [-0.3, 0.0]])
    assert are_same(expected * (1 + 1e-6), expected)
    assert not are_same(expected.flip(-1), expected)
    assert are_same(torch.zeros(2), torch.zeros(2))


def test_weights_of_other_shapes_have_no_module():
    module = make_q_module()
    weights, config = list(module.parameters()), module.model_config
    copied = dqn_module_with(weights, config, CARTPOLE_OBS, CARTPOLE_ACTIONS)
    assert all(map(torch.equal, copied.parameters(), weights))
    assert dqn_module_with(weights[:-1], config, CARTPOLE_OBS, CARTPOLE_ACTIONS) is None
