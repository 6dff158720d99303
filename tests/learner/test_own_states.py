"""The students of a family learn from the states in which they act themselves, or their teacher."""

import pytest
import torch

from rllib_kd.learner.own_states import own_state_weights

ACTING = torch.tensor([0, 0, 1, -1], dtype=torch.int16)


def test_states_of_others_do_not_count():
    torch.testing.assert_close(own_state_weights(ACTING, 0), torch.tensor([4 / 3, 4 / 3, 0.0, 4 / 3]))
    places = torch.tensor([[0], [1], [2]])
    expected = torch.tensor([[4 / 3, 4 / 3, 0, 4 / 3], [0, 0, 2, 2], [0, 0, 0, 4]])
    torch.testing.assert_close(own_state_weights(ACTING, places), expected)


@pytest.mark.parametrize("num_own", [0, 1, 8, 15, 16, 40, 128])
def test_few_states_of_its_own_do_not_count_for_all(num_own):
    acting = torch.full((128,), 3, dtype=torch.int16)
    acting[:num_own] = 0
    weights = own_state_weights(acting, 0)
    assert weights.mean().item() == pytest.approx(1.0)
    assert weights.max() <= 9.0
    if num_own:
        assert weights[0] >= weights[-1]
        assert (weights[-1] == 0.0) == (16 <= num_own < 128)


def test_a_teachers_states_are_everybodys():
    acting = torch.full((8,), -1, dtype=torch.int16)
    assert (own_state_weights(acting, torch.arange(3)[:, None]) == 1.0).all()
