"""Distillation and TD losses: pure functions of tensors, returned unreduced (`[B]`).

The Learner weights, averages and adds them up. Every function treats `teacher_q` (and TD targets) as constants, and
leaves its arguments unchanged. An action with a teacher's Q-value of -inf is illegal in that state (an action mask):
it is excluded from the loss, whatever the student predicts for it.

Instead of one student's Q-values `[B, A]`, functions also take those of several students of one teacher,
`[students, B, A]`. The loss is then `[students, B]`, and terms of the teacher alone are computed once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from rllib_kd.learner.derivatives import PolicyTarget, kl_and_gradient, log_softmax, policy_target

#: Losses on Q-values: the student's outputs are returns, on the teacher's scale.
VALUE_LOSSES: Final = ("mse", "huber")
#: Losses on which action to prefer: the student's outputs have a scale of their own.
POLICY_LOSSES: Final = ("kl", "nll", "reverse_kl", "jsd", "margin")
#: Losses on return distributions: of a C51 student and a C51 teacher.
DISTRIBUTION_LOSSES: Final = ("categorical",)
LOSSES: Final = (*VALUE_LOSSES, *POLICY_LOSSES, *DISTRIBUTION_LOSSES)


def mse(student_q: Tensor, teacher_q: Tensor) -> Tensor:
    """Return the squared error of the Q-values, averaged over the legal actions: Σ_a (q_S − q_T)² / A.

    Args:
        student_q: `[B, A]`, return units.
        teacher_q: `[B, A]`, return units.

    Returns:
        `[B]`, return units squared.

    Raises:
        ValueError: the shapes differ.
    """
    return _mean_over_legal(_difference(student_q, teacher_q).square(), teacher_q)


def huber(student_q: Tensor, teacher_q: Tensor, *, delta: float = 1.0) -> Tensor:
    """Return the Huber loss of the Q-values, averaged over the legal actions; quadratic below `delta`, else linear.

    Args:
        student_q: `[B, A]`, return units.
        teacher_q: `[B, A]`, return units.
        delta: above 0, return units. Low: close to the absolute error, robust to outliers; high: half the squared
            error.

    Returns:
        `[B]`, return units squared.

    Raises:
        ValueError: the shapes differ.
    """
    difference = _difference(student_q, teacher_q)
    return _mean_over_legal(
        F.huber_loss(difference, torch.zeros_like(difference), reduction="none", delta=delta), teacher_q
    )


def policy_kl(
    student_q: Tensor,
    teacher_q: Tensor,
    *,
    temperature: float,
    student_temperature: float = 1.0,
    regret_coeff: float | Tensor | None = None,
) -> Tensor:
    """Return the forward KL(p_T ‖ p_S) between the softened teacher and the student policy, and c times the regret.

    Rusu et al. 2015, arXiv 1511.06295, eq. 3: only the teacher is divided by the temperature there, and the student's
    outputs are logits (`student_temperature=1`).

    The KL ignores the cost of a mistake. A student too small to imitate its teacher everywhere must choose its
    mistakes, and its expected Q-regret E_{a ~ p_S}[max_b q_T(b) − q_T(a)] is low for cheap ones. It is cost-sensitive
    as Bastani et al. 2018 (VIPER), arXiv 1805.08328, but weights costs by the student's own policy.

    Args:
        student_q: `[B, A]`, logits, or Q-values where `student_temperature` equals `temperature`.
        teacher_q: `[B, A]`, return units.
        temperature: above 0, return units. Low: the teacher's greedy action; high: a uniform policy. Usually 0.01 to 1.
        student_temperature: above 0. 1: the student's outputs become logits; equal to `temperature`: they stay Q-values
            up to a constant per state.
        regret_coeff: c ≥ 0, nats / return unit; for several students one for all, or `[students, 1, 1]`. None: the KL
            alone.

    Returns:
        `[B]`, nats, ≥ 0.

    Raises:
        ValueError: the shapes differ.
    """
    _check_same_shape(student_q, teacher_q)
    target = policy_target(teacher_q, temperature=temperature)
    return kl_to_target(student_q, target, student_temperature=student_temperature, regret_coeff=regret_coeff)


def kl_to_target(
    student_q: Tensor,
    target: PolicyTarget,
    *,
    student_temperature: float,
    regret_coeff: float | Tensor | None = None,
) -> Tensor:
    """Return what `policy_kl()` does."""
    return _ForwardKL.apply(student_q, target, student_temperature, regret_coeff)


class _ForwardKL(torch.autograd.Function):
    """`kl_and_gradient()` for autograd, which would need several times as many operations by itself."""

    @staticmethod
    def forward(
        ctx: Any, student_q: Tensor, target: PolicyTarget, student_temperature: float, regret_coeff: Any
    ) -> Tensor:
        kl, gradient = kl_and_gradient(
            student_q, target, student_temperature=student_temperature, regret_coeff=regret_coeff
        )
        ctx.save_for_backward(gradient)
        return kl

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        if torch.is_grad_enabled():  # what was saved has no graph, so that it would be wrong silently
            raise RuntimeError("The forward KL has no second derivative here: call backward() without create_graph.")
        return ctx.saved_tensors[0] * grad.unsqueeze(-1), None, None, None


def reverse_kl(student_q: Tensor, teacher_q: Tensor, *, temperature: float, student_temperature: float = 1.0) -> Tensor:
    """Return the reverse KL(p_S ‖ p_T): the student may omit the teacher's actions, but pays for those it never takes.

    Agarwal et al. 2023 (GKD), arXiv 2306.13649.

    Args:
        student_q: `[B, A]`, logits, or Q-values where `student_temperature` equals `temperature`.
        teacher_q: `[B, A]`, return units.
        temperature: above 0, return units. Low: any action but the teacher's is expensive (in gaps / temperature);
            high: a uniform policy.
        student_temperature: above 0, as in `policy_kl`.

    Returns:
        `[B]`, nats, ≥ 0.

    Raises:
        ValueError: the shapes differ.
    """
    legal, log_teacher, log_student = _log_policies(student_q, teacher_q, temperature, student_temperature)
    return _kl(log_student, log_teacher, legal)


def jsd(
    student_q: Tensor, teacher_q: Tensor, *, beta: float, temperature: float, student_temperature: float = 1.0
) -> Tensor:
    """Return the generalised Jensen-Shannon divergence β KL(p_T ‖ m) + (1 − β) KL(p_S ‖ m), m = β p_T + (1 − β) p_S.

    Agarwal et al. 2023 (GKD), arXiv 2306.13649, eq. 1. It vanishes as β (1 − β) towards both ends; divided by β it
    becomes the forward KL there, divided by 1 − β the reverse one; β = 0 and β = 1 are defined as these limits.

    Args:
        student_q: `[B, A]`, logits, or Q-values where `student_temperature` equals `temperature`.
        teacher_q: `[B, A]`, return units.
        beta: in [0, 1]. Low: towards forward KL, which covers all actions of the teacher; high: towards reverse KL.
        temperature: above 0, return units, as in `policy_kl`.
        student_temperature: above 0, as in `policy_kl`.

    Returns:
        `[B]`, nats, ≥ 0; at most log 2 for β inside (0, 1).

    Raises:
        ValueError: the shapes differ.
    """
    legal, log_teacher, log_student = _log_policies(student_q, teacher_q, temperature, student_temperature)
    if beta == 0.0:
        return _kl(log_teacher, log_student, legal)
    if beta == 1.0:
        return _kl(log_student, log_teacher, legal)
    # The gradient at two −inf is NaN: illegal actions get any finite value, and _kl() excludes them.
    log_mixture = torch.logaddexp(
        log_teacher.masked_fill(~legal, 0.0) + math.log(beta), log_student.masked_fill(~legal, 0.0) + math.log1p(-beta)
    )
    return beta * _kl(log_teacher, log_mixture, legal) + (1.0 - beta) * _kl(log_student, log_mixture, legal)


def nll(student_q: Tensor, teacher_q: Tensor, *, student_temperature: float = 1.0) -> Tensor:
    """Return the negative log likelihood of the teacher's greedy action (hard targets); Rusu et al. 2015, eq. 1.

    Args:
        student_q: `[B, A]`, logits.
        teacher_q: `[B, A]`, return units.
        student_temperature: above 0.

    Returns:
        `[B]`, nats, ≥ 0.

    Raises:
        ValueError: the shapes differ.
    """
    _check_same_shape(student_q, teacher_q)
    logits = student_q.masked_fill(~_legal(teacher_q), -torch.inf) / student_temperature
    return -log_softmax(logits).gather(-1, _greedy(student_q, teacher_q)).squeeze(-1)


def margin(student_q: Tensor, teacher_q: Tensor, *, margin: float) -> Tensor:
    """Return the large-margin loss max_a[q_S(a) + m · 1(a ≠ a_T)] − q_S(a_T): the teacher's action a_T must win by m.

    Hester et al. 2017 (DQfD), arXiv 1704.03732, eq. 2.

    Args:
        student_q: `[B, A]`.
        teacher_q: `[B, A]`, return units.
        margin: m > 0, in units of the student's outputs. Low: it suffices to rank a_T first; high: other actions are
            pushed further down, whatever their values.

    Returns:
        `[B]`, in units of the student's outputs, ≥ 0; 0 if a_T wins by m.

    Raises:
        ValueError: the shapes differ.
    """
    _check_same_shape(student_q, teacher_q)
    chosen = _greedy(student_q, teacher_q)
    handicap = torch.full_like(student_q, margin).scatter(-1, chosen, 0.0)
    best = (student_q + handicap).masked_fill(~_legal(teacher_q), -torch.inf).max(-1).values
    return best - student_q.gather(-1, chosen).squeeze(-1)


def categorical(student_logits: Tensor, teacher_probs: Tensor) -> Tensor:
    """Return the cross-entropy −Σ_z p_T(z | a) log p_S(z | a) of the return distributions, averaged over legal actions.

    For C51 networks (Bellemare et al. 2017, arXiv 1707.06887) with the same support z. Its minimum is the entropy of
    the teacher's distributions.

    Args:
        student_logits: `[B, A, atoms]`.
        teacher_probs: `[B, A, atoms]`, a distribution for each legal action, and zeros for an illegal one.

    Returns:
        `[B]`, nats, ≥ 0.

    Raises:
        ValueError: the shapes differ.
    """
    _check_same_shape(student_logits, teacher_probs, what="return distributions", axes="[batch, actions, atoms]")
    teacher_probs = teacher_probs.detach()
    legal = teacher_probs.sum(-1) > 0.0  # [B, A]
    log_student = F.log_softmax(student_logits.masked_fill(~legal.unsqueeze(-1), 0.0), dim=-1)
    return -(teacher_probs * log_student).sum((-2, -1)) / legal.sum(-1)


def feature_matching(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Return the squared distance ‖f(h_S) − h_T‖² of hidden features.

    Parisotto et al. 2015 (Actor-Mimic), arXiv 1511.06342.

    Args:
        student_features: `[B, H]`, outputs of the student's hidden layer, after a linear map f to the teacher's width.
        teacher_features: `[B, H]`, outputs of the teacher's hidden layer.

    Returns:
        `[B]`, in units of the features squared.

    Raises:
        ValueError: the shapes differ.
    """
    _check_same_shape(student_features, teacher_features, what="features", axes="[batch, units]")
    return (student_features - teacher_features.detach()).square().sum(-1)


def gap_weights(teacher_q: Tensor) -> Tensor:
    """Return max_a q_T − min_a q_T over legal actions, scaled to a mean of 1: how much the choice of action matters.

    Bastani et al. 2018 (VIPER), arXiv 1805.08328, eq. 1.

    Args:
        teacher_q: `[B, A]`, return units.

    Returns:
        `[B]`, without unit; 1 everywhere if no choice matters in the whole batch.
    """
    teacher_q = teacher_q.detach()
    worst = teacher_q.masked_fill(~_legal(teacher_q), torch.inf).min(-1).values
    gaps = teacher_q.max(-1).values - worst
    return torch.where(gaps.sum() > 0.0, gaps / gaps.mean(), 1.0)


def value_gate(student_q: Tensor, teacher_q: Tensor) -> Tensor:
    """Return 1 if the teacher expects a higher return, max_a q_T > max_a q_S over the legal actions, otherwise 0.

    Czarnecki et al. 2019, arXiv 1902.02186.

    Args:
        student_q: `[B, A]`, return units.
        teacher_q: `[B, A]`, return units.

    Returns:
        `[B]`.

    Raises:
        ValueError: the shapes differ.
    """
    _check_same_shape(student_q, teacher_q)
    student_value = student_q.detach().masked_fill(~_legal(teacher_q), -torch.inf).max(-1).values
    return (teacher_q.detach().max(-1).values > student_value).to(student_q.dtype)


def td_error(
    batch: Mapping[str, Tensor],
    q: Tensor,
    next_q_target: Tensor,
    *,
    next_q: Tensor | None,
    gamma: float,
    next_mask: Tensor | None = None,
) -> Tensor:
    """Return the TD error of RLlib's DQN, prediction − target: n-step, with or without double Q-learning.

    van Hasselt et al. 2016, arXiv 1509.06461.

    Args:
        batch: `actions` `[B]`, `rewards` `[B]` (already summed and discounted over the n steps), `terminateds` `[B]`
            and `n_step` `[B]` (steps between the state and the bootstrap state).
        q: `[B, A]`, the student's Q-values at the states, return units.
        next_q_target: `[B, A]`, the target network's at the bootstrap states, return units.
        next_q: `[B, A]`, the student's at the bootstrap states, by which the action there is chosen (double
            Q-learning); None: it is chosen by the target network's.
        gamma: discount, in [0, 1].
        next_mask: `[B, A]`, truth values: the legal actions of the bootstrap states, at least one in each, among which
            the action there is chosen; None: all are legal.

    Returns:
        `[B]`, return units.

    Raises:
        ValueError: the shapes differ.
    """
    _check_same_shape(q, next_q_target)
    chooser = next_q_target if next_q is None else next_q
    if next_mask is not None:
        chooser = chooser.masked_fill(~next_mask, -torch.inf)
    next_value = next_q_target.gather(-1, chooser.argmax(-1, keepdim=True)).squeeze(-1)
    bootstrap = torch.where(batch["terminateds"].bool(), 0.0, next_value)
    target = (batch["rewards"] + gamma ** batch["n_step"] * bootstrap).detach()
    return q.gather(-1, batch["actions"].long().unsqueeze(-1)).squeeze(-1) - target


def td(error: Tensor, *, loss_fn: str = "huber") -> Tensor:
    """Return the TD loss of RLlib's DQN.

    Args:
        error: `[B]`, result of `td_error()`, return units.
        loss_fn: "huber" (δ = 1) or "mse", as `DQNConfig.td_error_loss_fn`.

    Returns:
        `[B]`, return units squared.
    """
    elementwise = F.huber_loss if loss_fn == "huber" else F.mse_loss
    return elementwise(error, torch.zeros_like(error), reduction="none")


def _legal(teacher_q: Tensor) -> Tensor:
    return teacher_q != -torch.inf


def _greedy(student_q: Tensor, teacher_q: Tensor) -> Tensor:
    """Return the teacher's greedy actions `[..., B, 1]`, for each of the student's rows."""
    return teacher_q.argmax(-1, keepdim=True).expand(*student_q.shape[:-1], 1)


def _log_policies(
    student_q: Tensor, teacher_q: Tensor, temperature: float, student_temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return which actions are legal, and log-probabilities of teacher and student, −inf for illegal actions."""
    _check_same_shape(student_q, teacher_q)
    legal = _legal(teacher_q)
    log_teacher = F.log_softmax(teacher_q.detach() / temperature, dim=-1)
    log_student = log_softmax(student_q.masked_fill(~legal, -torch.inf) / student_temperature)
    return legal, log_teacher, log_student


def _kl(log_p: Tensor, log_q: Tensor, legal: Tensor) -> Tensor:
    """Return KL(p ‖ q) over the legal actions."""
    # Illegal actions are −inf on both sides: exclude them before the difference, which would be NaN.
    log_ratio = log_p.masked_fill(~legal, 0.0) - log_q.masked_fill(~legal, 0.0)
    return (log_p.exp() * log_ratio).sum(-1)


def _difference(student_q: Tensor, teacher_q: Tensor) -> Tensor:
    """Return q_S − q_T, and 0 (without a gradient) at the illegal actions."""
    _check_same_shape(student_q, teacher_q)
    illegal = ~_legal(teacher_q)
    return student_q.masked_fill(illegal, 0.0) - teacher_q.detach().masked_fill(illegal, 0.0)


def _mean_over_legal(per_action: Tensor, teacher_q: Tensor) -> Tensor:
    return per_action.sum(-1) / _legal(teacher_q).sum(-1)


def _check_same_shape(
    student: Tensor, teacher: Tensor, *, what: str = "Q-values", axes: str = "[batch, actions]"
) -> None:
    one_of_many = student.shape[1:] if student.ndim == 3 and teacher.ndim == 2 else student.shape
    if one_of_many != teacher.shape:
        raise ValueError(
            f"The {what} of student and teacher must have the same shape, {axes}, but the student's is "
            f"{tuple(student.shape)} and the teacher's {tuple(teacher.shape)}."
        )
