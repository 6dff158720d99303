"""Values and gradients derived by hand, limiting cases, and independent references."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Categorical, kl_divergence

from rllib_kd import losses

INF = math.inf


def grad_of(loss, student_q, *args, **kwargs):
    student_q = student_q.clone().requires_grad_(True)
    loss(student_q, *args, **kwargs).sum().backward()
    return student_q.grad


ALL = {
    "mse": losses.mse,
    "huber": losses.huber,
    "kl": lambda s, t: losses.policy_kl(s, t, temperature=0.5),
    "kl_on_q_scale": lambda s, t: losses.policy_kl(s, t, temperature=0.5, student_temperature=0.5),
    "nll": losses.nll,
}
every_loss = pytest.mark.parametrize("loss", ALL.values(), ids=ALL.keys())

q_values = st.lists(st.floats(-50, 50, width=32), min_size=3, max_size=3)


def test_mse_is_the_mean_over_actions_not_over_the_batch():
    student_q, teacher_q = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 4.0], [0.0, 0.0]])
    assert losses.mse(student_q, teacher_q).tolist() == [(1.0**2 + 2.0**2) / 2, 0.0]
    # d/dq_S Σ (q_S − q_T)² / A = 2 (q_S − q_T) / A
    assert grad_of(losses.mse, student_q, teacher_q).tolist() == [[1.0, -2.0], [0.0, 0.0]]


def test_huber_is_quadratic_inside_delta_and_linear_outside():
    student_q, teacher_q = torch.tensor([[0.5, 10.0]]), torch.tensor([[0.0, 0.0]])
    delta = 2.0
    expected = (0.5 * 0.5**2 + delta * (10.0 - 0.5 * delta)) / 2
    assert losses.huber(student_q, teacher_q, delta=delta).item() == pytest.approx(expected)
    # Inside the difference, outside ±δ; both over A.
    assert grad_of(losses.huber, student_q, teacher_q, delta=delta).tolist() == [[0.25, 1.0]]


def test_kl_divides_only_the_teacher_by_the_temperature():
    student_q, teacher_q, temperature = torch.tensor([[0.2, 1.0, -0.5]]), torch.tensor([[3.0, 2.0, 1.0]]), 0.7
    expected = kl_divergence(Categorical(logits=teacher_q / temperature), Categorical(logits=student_q))
    torch.testing.assert_close(losses.policy_kl(student_q, teacher_q, temperature=temperature), expected)
    # d/dz_S KL = p_S − p_T
    gradient = grad_of(losses.policy_kl, student_q, teacher_q, temperature=temperature)
    torch.testing.assert_close(gradient, student_q.softmax(-1) - (teacher_q / temperature).softmax(-1))


def test_kl_with_the_students_temperature_scales_its_outputs_and_gradient():
    student_q, teacher_q, temperature = torch.tensor([[0.2, 1.0]]), torch.tensor([[3.0, 2.0]]), 0.5
    kwargs = {"temperature": temperature, "student_temperature": temperature}
    expected = kl_divergence(Categorical(logits=teacher_q / 0.5), Categorical(logits=student_q / 0.5))
    torch.testing.assert_close(losses.policy_kl(student_q, teacher_q, **kwargs), expected)
    gradient = grad_of(losses.policy_kl, student_q, teacher_q, **kwargs)
    torch.testing.assert_close(gradient, ((student_q / 0.5).softmax(-1) - (teacher_q / 0.5).softmax(-1)) / 0.5)


def test_nll_is_minus_the_log_probability_of_the_greedy_action():
    student_q, teacher_q = torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([[5.0, 1.0]])
    assert losses.nll(student_q, teacher_q).item() == pytest.approx(math.log(4.0))
    torch.testing.assert_close(grad_of(losses.nll, student_q, teacher_q), torch.tensor([[0.25 - 1.0, 0.75]]))


def test_kl_becomes_nll_as_the_temperature_goes_to_zero():
    student_q, teacher_q = torch.tensor([[0.3, -1.0, 0.4]]), torch.tensor([[1.0, 2.0, 0.0]])
    torch.testing.assert_close(
        losses.policy_kl(student_q, teacher_q, temperature=1e-3), losses.nll(student_q, teacher_q)
    )


@given(student=q_values, teacher=q_values)
def test_losses_are_finite_not_negative_and_zero_where_equal(student, teacher):
    student_q, teacher_q = torch.tensor([student]), torch.tensor([teacher])
    for name, loss in ALL.items():
        value = loss(student_q, teacher_q)
        assert value.shape == (1,)
        assert torch.isfinite(value).all()
        assert value.item() >= -1e-5
        assert torch.isfinite(grad_of(loss, student_q, teacher_q)).all()
        if name in ("mse", "huber", "kl_on_q_scale"):
            assert loss(teacher_q, teacher_q).item() == pytest.approx(0.0, abs=1e-5)


@every_loss
def test_teacher_is_constant_and_unchanged(loss):
    student_q = torch.tensor([[1.0, 2.0]], requires_grad=True)
    teacher_q = torch.tensor([[3.0, 2.0]], requires_grad=True)
    before = teacher_q.detach().clone()
    for _ in range(3):  # a division in place would shrink the labels each time
        loss(student_q, teacher_q).sum().backward()
    assert teacher_q.grad is None
    assert torch.equal(teacher_q.detach(), before)


@every_loss
def test_illegal_actions_take_no_part(loss):
    teacher_q = torch.tensor([[1.0, -INF, 0.5]])
    values = []
    for student_at_illegal in (0.0, 1e6, -INF):
        student_q = torch.tensor([[0.1, student_at_illegal, 0.7]])
        values.append(loss(student_q, teacher_q))
        gradient = grad_of(loss, student_q, teacher_q)
        assert torch.isfinite(gradient).all()
        assert gradient[0, 1] == 0.0
    legal = loss(torch.tensor([[0.1, 0.7]]), torch.tensor([[1.0, 0.5]]))
    for value in values:
        torch.testing.assert_close(value, legal)


@every_loss
def test_extreme_gaps_stay_finite(loss):
    student_q, teacher_q = torch.tensor([[1e4, -1e4]]), torch.tensor([[-500.0, 500.0]])  # 1000/τ and more
    assert torch.isfinite(loss(student_q, teacher_q)).all()
    assert torch.isfinite(grad_of(loss, student_q, teacher_q)).all()


@every_loss
def test_shapes_that_would_broadcast_are_refused(loss):
    with pytest.raises(ValueError, match=r"\(4, 1\).*\(4, 3\)"):
        loss(torch.zeros(4, 1), torch.zeros(4, 3))


def td_batch(**columns):
    defaults = {"actions": [0], "rewards": [1.0], "terminateds": [False], "n_step": [1.0]}
    return {name: torch.tensor(value) for name, value in (defaults | columns).items()}


def test_td_target_by_hand():
    q, next_q_target = torch.tensor([[5.0, 0.0]]), torch.tensor([[2.0, 4.0]])
    loss = losses.td(td_batch(n_step=[3.0]), q, next_q_target, next_q=None, gamma=0.5, loss_fn="mse")
    assert loss.item() == pytest.approx((5.0 - (1.0 + 0.5**3 * 4.0)) ** 2)


def test_double_q_chooses_with_the_student_and_values_with_the_target():
    q, next_q_target, next_q = torch.tensor([[5.0, 0.0]]), torch.tensor([[2.0, 4.0]]), torch.tensor([[9.0, 0.0]])
    loss = losses.td(td_batch(), q, next_q_target, next_q=next_q, gamma=0.5, loss_fn="mse")
    assert loss.item() == pytest.approx((5.0 - (1.0 + 0.5 * 2.0)) ** 2)


def test_terminal_states_have_no_value_even_where_the_network_is_not_finite():
    q, next_q_target = torch.tensor([[5.0, 0.0]]), torch.full((1, 2), -INF)
    loss = losses.td(td_batch(terminateds=[True]), q, next_q_target, next_q=None, gamma=0.9, loss_fn="mse")
    assert loss.item() == pytest.approx(16.0)


def test_td_gradient_flows_into_the_chosen_action_of_the_student_alone():
    q = torch.tensor([[5.0, 0.0]], requires_grad=True)
    next_q_target = torch.tensor([[2.0, 4.0]], requires_grad=True)
    losses.td(td_batch(), q, next_q_target, next_q=next_q_target, gamma=0.5, loss_fn="mse").sum().backward()
    assert q.grad.tolist() == [[2 * (5.0 - 3.0), 0.0]]
    assert next_q_target.grad is None
