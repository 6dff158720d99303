"""Values and gradients derived by hand, limiting cases, and independent references."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Categorical, kl_divergence

from rllib_kd.learner import losses

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
    "reverse_kl": lambda s, t: losses.reverse_kl(s, t, temperature=0.5, student_temperature=0.5),
    "jsd": lambda s, t: losses.jsd(s, t, beta=0.3, temperature=0.5, student_temperature=0.5),
    "margin": lambda s, t: losses.margin(s, t, margin=0.8),
}
#: Those whose minimum is where student and teacher are equal.
ZERO_WHERE_EQUAL = ("mse", "huber", "kl_on_q_scale", "reverse_kl", "jsd")
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


@pytest.mark.parametrize("temperature", [1e-9, 1e-20, 1e-30])
def test_a_small_temperature_makes_no_nan_of_illegal_actions(temperature):
    student_q, teacher_q = torch.tensor([[0.0, 0.3, 0.0]]), torch.tensor([[1.0, -INF, 1.0]])
    settings = {"temperature": 1.0, "student_temperature": temperature, "regret_coeff": 0.5}
    torch.testing.assert_close(losses.policy_kl(student_q, teacher_q, **settings), torch.zeros(1))
    assert grad_of(losses.policy_kl, student_q, teacher_q, **settings).tolist() == [[0.0, 0.0, 0.0]]


def test_kl_divides_only_the_teacher_by_the_temperature():
    student_q, teacher_q, temperature = torch.tensor([[0.2, 1.0, -0.5]]), torch.tensor([[3.0, 2.0, 1.0]]), 0.7
    expected = kl_divergence(Categorical(logits=teacher_q / temperature), Categorical(logits=student_q))
    torch.testing.assert_close(losses.policy_kl(student_q, teacher_q, temperature=temperature), expected)
    # d/dz_S KL = p_S − p_T
    gradient = grad_of(losses.policy_kl, student_q, teacher_q, temperature=temperature)
    torch.testing.assert_close(gradient, student_q.softmax(-1) - (teacher_q / temperature).softmax(-1))


@pytest.mark.parametrize("shape", [(7, 4), (3, 7, 4)])
def test_kl_and_regret_are_what_autograd_makes_of_the_formula(shape):
    torch.manual_seed(0)
    student_q, teacher_q = torch.randn(shape, requires_grad=True), torch.randn(7, 4)
    teacher_q[2, 1] = teacher_q[3, 0] = -torch.inf  # illegal actions
    kwargs = {"temperature": 0.3, "student_temperature": 0.7}
    policy = Categorical(logits=student_q.masked_fill(teacher_q == -torch.inf, -torch.inf) / 0.7)
    kl = kl_divergence(Categorical(logits=teacher_q / 0.3), policy)
    regret = (teacher_q.max(-1, keepdim=True).values - teacher_q).masked_fill(teacher_q == -torch.inf, 0.0)
    weights = torch.rand(kl.shape)
    for loss, expected in (
        (losses.policy_kl(student_q, teacher_q, **kwargs), kl),
        (
            losses.policy_kl(student_q, teacher_q, **kwargs, regret_coeff=2.5),
            kl + 2.5 * (policy.probs * regret).sum(-1),
        ),
    ):
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(
            torch.autograd.grad((loss * weights).sum(), student_q, retain_graph=True),
            torch.autograd.grad((expected * weights).sum(), student_q, retain_graph=True),
        )


def test_a_second_derivative_is_refused_not_wrong():
    student_q = torch.randn(5, 3, requires_grad=True)
    loss = losses.policy_kl(student_q, torch.randn(5, 3), temperature=0.3).sum()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, student_q, create_graph=True)


def test_without_a_coefficient_the_regret_is_left_out():
    student_q, teacher_q = torch.randn(5, 3), torch.randn(5, 3)
    kwargs = {"temperature": 0.3, "student_temperature": 0.7}
    loss = losses.policy_kl(student_q, teacher_q, **kwargs, regret_coeff=0.0)
    torch.testing.assert_close(loss, losses.policy_kl(student_q, teacher_q, **kwargs))


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


def policies(student_q, teacher_q, temperature, student_temperature=1.0):
    return Categorical(logits=teacher_q / temperature), Categorical(logits=student_q / student_temperature)


def test_reverse_kl_is_the_kl_the_other_way_round():
    student_q, teacher_q = torch.tensor([[0.2, 1.0, -0.5]]), torch.tensor([[3.0, 2.0, 1.0]])
    teacher, student = policies(student_q, teacher_q, 0.7)
    value = losses.reverse_kl(student_q, teacher_q, temperature=0.7)
    torch.testing.assert_close(value, kl_divergence(student, teacher))
    # d/dz_a KL(p_S ‖ p_T) = p_a (log p_a − log t_a − KL)
    expected = student.probs * (student.probs.log() - teacher.probs.log() - value)
    torch.testing.assert_close(grad_of(losses.reverse_kl, student_q, teacher_q, temperature=0.7), expected)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.8])
def test_jsd_mixes_the_divergences_from_the_mixture(beta):
    student_q, teacher_q = torch.tensor([[0.2, 1.0, -0.5]]), torch.tensor([[3.0, 2.0, 1.0]])
    kwargs = {"beta": beta, "temperature": 0.7, "student_temperature": 0.4}
    teacher, student = policies(student_q, teacher_q, 0.7, 0.4)
    mixture = Categorical(probs=beta * teacher.probs + (1 - beta) * student.probs)
    expected = beta * kl_divergence(teacher, mixture) + (1 - beta) * kl_divergence(student, mixture)
    torch.testing.assert_close(losses.jsd(student_q, teacher_q, **kwargs), expected)
    # d/dp_a = (1 − β) (log p_a − log m_a); through the softmax, and its temperature.
    slope = (1 - beta) * (student.probs.log() - mixture.probs.log())
    gradient = student.probs * (slope - (student.probs * slope).sum(-1, keepdim=True)) / 0.4
    torch.testing.assert_close(grad_of(losses.jsd, student_q, teacher_q, **kwargs), gradient)


@given(student=q_values, teacher=q_values)
def test_jsd_leads_from_forward_to_reverse_kl(student, teacher):
    student_q, teacher_q = torch.tensor([student]), torch.tensor([teacher])
    kwargs = {"temperature": 20.0, "student_temperature": 20.0}
    forward, reverse = (
        losses.policy_kl(student_q, teacher_q, **kwargs),
        losses.reverse_kl(student_q, teacher_q, **kwargs),
    )
    assert torch.equal(losses.jsd(student_q, teacher_q, beta=0.0, **kwargs), forward)
    assert torch.equal(losses.jsd(student_q, teacher_q, beta=1.0, **kwargs), reverse)
    # Inside, the same limits after division by β and 1 − β; symmetric in the middle, and bounded.
    args = (student_q.double(), teacher_q.double())
    near = [losses.jsd(*args, beta=beta, **kwargs).item() for beta in (1e-5, 1 - 1e-5)]
    assert near[0] / 1e-5 == pytest.approx(forward.item(), rel=1e-2, abs=1e-5)
    assert near[1] / 1e-5 == pytest.approx(reverse.item(), rel=1e-2, abs=1e-5)
    middle = losses.jsd(*args, beta=0.5, **kwargs)
    torch.testing.assert_close(middle, losses.jsd(*reversed(args), beta=0.5, **kwargs))
    assert middle.item() <= math.log(2.0)


def test_margin_is_what_the_teachers_action_lacks():
    teacher_q = torch.tensor([[5.0, 1.0, 0.0]]).expand(3, 3)
    student_q = torch.tensor([[2.0, 1.0, 1.5], [2.0, 1.0, 0.0], [0.0, 3.0, 1.0]])
    value = losses.margin(student_q, teacher_q, margin=0.8)
    # The nearest rival is 0.5 behind; 1.0 behind, which is enough; 3.0 ahead.
    torch.testing.assert_close(value, torch.tensor([0.8 - 0.5, 0.0, 0.8 + 3.0]))
    # Up with the teacher's action, down with the best rival, where the margin is not met.
    expected = [[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [-1.0, 1.0, 0.0]]
    assert grad_of(losses.margin, student_q, teacher_q, margin=0.8).tolist() == expected


def test_categorical_is_the_cross_entropy_of_the_returns_of_each_action():
    torch.manual_seed(0)
    logits, probs = torch.randn(4, 3, 5), torch.randn(4, 3, 5).softmax(-1)
    teacher, student = Categorical(probs=probs), Categorical(logits=logits)
    value = losses.categorical(logits, probs)
    torch.testing.assert_close(value, (kl_divergence(teacher, student) + teacher.entropy()).mean(-1))
    # d/dz = (p_S − p_T) / A: nothing is left to learn where they are equal, and the loss is the entropy.
    torch.testing.assert_close(grad_of(losses.categorical, logits, probs), (student.probs - probs) / 3)
    torch.testing.assert_close(losses.categorical(probs.log(), probs), teacher.entropy().mean(-1))


def test_categorical_leaves_out_illegal_actions():
    torch.manual_seed(0)
    logits, probs = torch.randn(1, 3, 5), torch.randn(1, 3, 5).softmax(-1)
    legal = losses.categorical(logits[:, :2], probs[:, :2])
    probs[:, 2] = 0.0  # no distribution at all
    for at_illegal in (0.0, 1e6, -INF):
        logits[:, 2] = at_illegal
        torch.testing.assert_close(losses.categorical(logits, probs), legal)
        gradient = grad_of(losses.categorical, logits, probs)
        assert torch.isfinite(gradient).all()
        assert (gradient[:, 2] == 0.0).all()


def test_categorical_is_finite_where_the_student_is_sure_of_something_else():
    logits, probs = torch.tensor([[[1e4, -1e4]]]), torch.tensor([[[0.0, 1.0]]])
    assert losses.categorical(logits, probs).item() == pytest.approx(2e4)
    assert grad_of(losses.categorical, logits, probs).tolist() == [[[1.0, -1.0]]]


def test_other_supports_are_refused():
    with pytest.raises(ValueError, match=r"\[batch, actions, atoms\].*\(4, 2, 1\).*\(4, 2, 51\)"):
        losses.categorical(torch.zeros(4, 2, 1), torch.zeros(4, 2, 51))


@given(student=q_values, teacher=q_values)
def test_losses_are_finite_not_negative_and_zero_where_equal(student, teacher):
    student_q, teacher_q = torch.tensor([student]), torch.tensor([teacher])
    for name, loss in ALL.items():
        value = loss(student_q, teacher_q)
        assert value.shape == (1,)
        assert torch.isfinite(value).all()
        assert value.item() >= -1e-5
        assert torch.isfinite(grad_of(loss, student_q, teacher_q)).all()
        if name in ZERO_WHERE_EQUAL:
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


def test_feature_matching_by_hand():
    student, teacher = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 4.0], [0.0, 0.0]])
    assert losses.feature_matching(student, teacher).tolist() == [1.0 + 4.0, 0.0]
    assert grad_of(losses.feature_matching, student, teacher).tolist() == [[2.0, -4.0], [0.0, 0.0]]
    with pytest.raises(ValueError, match=r"features.*\[batch, units\].*\(4, 1\).*\(4, 3\)"):
        losses.feature_matching(torch.zeros(4, 1), torch.zeros(4, 3))


def test_gap_weights_are_best_minus_worst_with_a_mean_of_one():
    teacher_q = torch.tensor([[3.0, 1.0, 2.0], [5.0, 5.0, 5.0], [0.0, -4.0, -INF]], requires_grad=True)
    weights = losses.gap_weights(teacher_q)
    torch.testing.assert_close(weights, torch.tensor([1.0, 0.0, 2.0]))  # 2, 0 and 4 by their mean of 2
    assert not weights.requires_grad
    assert losses.gap_weights(torch.tensor([[1.0, 1.0], [2.0, -INF]])).tolist() == [1.0, 1.0]


def test_the_value_gate_is_open_where_the_teacher_expects_more():
    teacher_q = torch.tensor([[3.0, 1.0], [3.0, 1.0], [3.0, 1.0], [1.0, -INF]])
    student_q = torch.tensor([[2.0, 2.9], [0.0, 4.0], [3.0, 0.0], [0.5, 9.0]], requires_grad=True)
    gate = losses.value_gate(student_q, teacher_q)
    assert gate.tolist() == [1.0, 0.0, 0.0, 1.0]  # an illegal action has no value
    assert not gate.requires_grad
    with pytest.raises(ValueError, match=r"\(4, 1\).*\(4, 3\)"):
        losses.value_gate(torch.zeros(4, 1), torch.zeros(4, 3))


def td(*args, loss_fn, **kwargs):
    return losses.td(losses.td_error(*args, **kwargs), loss_fn=loss_fn)


def td_batch(**columns):
    defaults = {"actions": [0], "rewards": [1.0], "terminateds": [False], "n_step": [1.0]}
    return {name: torch.tensor(value) for name, value in (defaults | columns).items()}


def test_td_target_by_hand():
    q, next_q_target = torch.tensor([[5.0, 0.0]]), torch.tensor([[2.0, 4.0]])
    loss = td(td_batch(n_step=[3.0]), q, next_q_target, next_q=None, gamma=0.5, loss_fn="mse")
    assert loss.item() == pytest.approx((5.0 - (1.0 + 0.5**3 * 4.0)) ** 2)


def test_double_q_chooses_with_the_student_and_values_with_the_target():
    q, next_q_target, next_q = torch.tensor([[5.0, 0.0]]), torch.tensor([[2.0, 4.0]]), torch.tensor([[9.0, 0.0]])
    loss = td(td_batch(), q, next_q_target, next_q=next_q, gamma=0.5, loss_fn="mse")
    assert loss.item() == pytest.approx((5.0 - (1.0 + 0.5 * 2.0)) ** 2)


def test_terminal_states_have_no_value_even_where_the_network_is_not_finite():
    q, next_q_target = torch.tensor([[5.0, 0.0]]), torch.full((1, 2), -INF)
    loss = td(td_batch(terminateds=[True]), q, next_q_target, next_q=None, gamma=0.9, loss_fn="mse")
    assert loss.item() == pytest.approx(16.0)


def test_td_gradient_flows_into_the_chosen_action_of_the_student_alone():
    q = torch.tensor([[5.0, 0.0]], requires_grad=True)
    next_q_target = torch.tensor([[2.0, 4.0]], requires_grad=True)
    td(td_batch(), q, next_q_target, next_q=next_q_target, gamma=0.5, loss_fn="mse").sum().backward()
    assert q.grad.tolist() == [[2 * (5.0 - 3.0), 0.0]]
    assert next_q_target.grad is None


@every_loss
@pytest.mark.parametrize("num_actions", [3, 18])
def test_several_students_of_one_teacher_at_once(loss, num_actions):
    generator = torch.Generator().manual_seed(0)
    student_q, teacher_q = (torch.randn(*shape, num_actions, generator=generator) for shape in ((5, 7), (7,)))
    teacher_q[2, 1] = -torch.inf
    expected = torch.stack([loss(one, teacher_q) for one in student_q])
    torch.testing.assert_close(loss(student_q, teacher_q), expected)
    torch.testing.assert_close(grad_of(loss, student_q, teacher_q)[3], grad_of(loss, student_q[3], teacher_q))


# --- As others would write it, row by row -----------------------------------------------------------------------------


@pytest.mark.parametrize("double_q", [False, True])
@pytest.mark.parametrize("loss_fn", ["huber", "mse"])
def test_td_of_a_batch_is_that_of_each_row(double_q, loss_fn):
    generator = torch.Generator().manual_seed(0)
    q, next_q_target, next_q = 3 * torch.randn(3, 8, 4, generator=generator)
    batch = td_batch(
        actions=[0, 1, 2, 3, 0, 1, 2, 3],
        rewards=[1.0, -2.0, 0.5, 3.0, 0.0, 1.0, 1.0, 9.0],
        terminateds=[False, True] * 4,
        n_step=[1.0, 1.0, 2.0, 3.0] * 2,
    )
    errors = losses.td_error(batch, q, next_q_target, next_q=next_q if double_q else None, gamma=0.9)
    for i in range(8):
        chosen = int((next_q if double_q else next_q_target)[i].argmax())
        future = 0.0 if batch["terminateds"][i] else 0.9 ** batch["n_step"][i].item() * next_q_target[i, chosen].item()
        error = q[i, batch["actions"][i]].item() - (batch["rewards"][i].item() + future)
        assert errors[i].item() == pytest.approx(error, rel=1e-5)
        expected = error**2 if loss_fn == "mse" else 0.5 * error**2 if abs(error) < 1 else abs(error) - 0.5
        assert losses.td(errors, loss_fn=loss_fn)[i].item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(losses.td(errors), losses.td(errors, loss_fn="huber"))  # RLlib's default


def test_hard_targets_at_any_student_temperature():
    student_q, teacher_q = torch.tensor([[0.2, 1.0, -0.5], [3.0, 0.0, 1.0]]), torch.tensor([[3.0, 2.0, 1.0], [0, 1, 2]])
    expected = -Categorical(logits=student_q / 0.3).log_prob(torch.tensor([0, 2]))
    torch.testing.assert_close(losses.nll(student_q, teacher_q, student_temperature=0.3), expected)


def test_defaults_are_the_papers():
    student_q, teacher_q = torch.tensor([[0.2, 9.0, -0.5]]), torch.tensor([[3.0, 2.0, 1.0]])
    torch.testing.assert_close(losses.huber(student_q, teacher_q), losses.huber(student_q, teacher_q, delta=1.0))
    jsd = {"beta": 0.3, "temperature": 0.5}
    torch.testing.assert_close(
        losses.jsd(student_q, teacher_q, **jsd), losses.jsd(student_q, teacher_q, **jsd, student_temperature=1.0)
    )


def test_gaps_of_any_unit_have_weights():
    small = torch.tensor([[1e-4, 0.0], [3e-4, 0.0]])
    torch.testing.assert_close(losses.gap_weights(small), torch.tensor([0.5, 1.5]))


def test_shapes_are_named_as_they_are():
    with pytest.raises(ValueError, match=r"Q-values .*\[batch, actions\]"):
        losses.mse(torch.zeros(4, 1), torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"return distributions .*\[batch, actions, atoms\]"):
        losses.categorical(torch.zeros(4, 1, 5), torch.zeros(4, 3, 5))


@pytest.mark.parametrize("double_q", [False, True])
def test_the_bootstrap_takes_the_best_legal_action(double_q):
    batch = {
        "actions": torch.tensor([0, 1]),
        "rewards": torch.tensor([1.0, 2.0]),
        "terminateds": torch.tensor([False, True]),
        "n_step": torch.tensor([1.0, 1.0]),
    }
    q, target = torch.zeros(2, 3), torch.tensor([[5.0, 3.0, 4.0], [1.0, 1.0, 1.0]])
    next_q = torch.tensor([[0.0, 2.0, 1.0], [0.0, 0.0, 0.0]]) if double_q else None
    mask = torch.tensor([[False, True, True], [False, False, False]])  # after the end there is none
    errors = losses.td_error(batch, q, target, next_q=next_q, gamma=0.5, next_mask=mask)
    best = 3.0 if double_q else 4.0
    assert errors.tolist() == [-(1.0 + 0.5 * best), -2.0]
    unmasked = losses.td_error(batch, q, target, next_q=next_q, gamma=0.5)
    legal = losses.td_error(batch, q, target, next_q=next_q, gamma=0.5, next_mask=torch.ones_like(mask))
    assert torch.equal(unmasked, legal)
