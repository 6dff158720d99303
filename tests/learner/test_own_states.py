"""The students of a family learn from the states in which they act themselves, or their teacher."""

import pytest
import torch

from rllib_kd.learner.own_states import OwnStates

ACTING = torch.tensor([1, 1, 2, 0], dtype=torch.int32)


def test_states_of_others_do_not_count():
    each = [OwnStates.of(place, 3) for place in range(3)]
    torch.testing.assert_close(each[0].weights(ACTING), torch.tensor([[4 / 3, 4 / 3, 0.0, 4 / 3]]))
    expected = torch.tensor([[4 / 3, 4 / 3, 0, 4 / 3], [0, 0, 2, 2], [0, 0, 0, 4]])
    torch.testing.assert_close(OwnStates.joined(each).weights(ACTING), expected)


@pytest.mark.parametrize("num_own", [0, 1, 8, 15, 16, 40, 128])
def test_few_states_of_its_own_do_not_count_for_all(num_own):
    acting = torch.full((128,), 3, dtype=torch.int32)
    acting[:num_own] = 1
    (weights,) = OwnStates.of(0, 3).weights(acting)
    assert weights.mean().item() == pytest.approx(1.0)
    assert weights.max() <= 9.0
    if num_own:
        assert weights[0] >= weights[-1]
        assert (weights[-1] == 0.0) == (16 <= num_own < 128)


def test_a_teachers_states_are_everybodys():
    acting = torch.zeros(8, dtype=torch.int32)
    assert (OwnStates.joined([OwnStates.of(i, 3) for i in range(3)]).weights(acting) == 1.0).all()
