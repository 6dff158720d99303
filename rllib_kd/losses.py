"""Distillation and TD losses: pure functions of tensors, returned unreduced (`[B]`).

The Learner weights, averages and adds them up. Every function treats `teacher_q` (and TD targets) as constants, and
leaves its arguments unchanged. An action with a teacher's Q-value of -inf is illegal in that state (an action mask):
it takes no part in the loss, whatever the student predicts for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

#: Losses on Q-values: the student's outputs are returns, on the teacher's scale.
VALUE_LOSSES: Final = ("mse", "huber")
#: Losses on action probabilities: the student's outputs are logits, on a scale of their own.
POLICY_LOSSES: Final = ("kl", "nll")
LOSSES: Final = (*VALUE_LOSSES, *POLICY_LOSSES)


def mse(student_q: Tensor, teacher_q: Tensor) -> Tensor:
    """Squared error of the Q-values, averaged over the legal actions: Σ_a (q_S − q_T)² / A.

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
    """Huber loss of the Q-values, averaged over the legal actions; quadratic below `delta`, linear above.

    Args:
        student_q: `[B, A]`, return units.
        teacher_q: `[B, A]`, return units.
        delta: > 0, return units. Low: close to the absolute error, robust to outliers; high: half the squared error.

    Returns:
        `[B]`, return units squared.

    Raises:
        ValueError: the shapes differ.
    """
    difference = _difference(student_q, teacher_q)
    return _mean_over_legal(
        F.huber_loss(difference, torch.zeros_like(difference), reduction="none", delta=delta), teacher_q
    )


def policy_kl(student_q: Tensor, teacher_q: Tensor, *, temperature: float, student_temperature: float = 1.0) -> Tensor:
    """Forward KL(p_T ‖ p_S) between the softened teacher and the student policy.

    Rusu et al. 2015, arXiv 1511.06295, eq. 3: only the teacher is divided by the temperature there, and the student's
    outputs are logits (`student_temperature=1`).

    Args:
        student_q: `[B, A]`, logits, or Q-values where `student_temperature` equals `temperature`.
        teacher_q: `[B, A]`, return units.
        temperature: > 0, return units. Low: the teacher's greedy action; high: a uniform policy. Usually 0.01 to 1.
        student_temperature: > 0. 1: the student's outputs become logits; equal to `temperature`: they stay Q-values
            up to a constant per state.

    Returns:
        `[B]`, nats, ≥ 0.

    Raises:
        ValueError: the shapes differ.
    """
    _check_same_shape(student_q, teacher_q)
    legal = _legal(teacher_q)
    log_teacher = F.log_softmax(teacher_q.detach() / temperature, dim=-1)
    log_student = F.log_softmax(student_q.masked_fill(~legal, -torch.inf) / student_temperature, dim=-1)
    # Illegal actions are −inf on both sides: cut them out before the difference makes NaN of them.
    log_ratio = log_teacher.masked_fill(~legal, 0.0) - log_student.masked_fill(~legal, 0.0)
    return (log_teacher.exp() * log_ratio).sum(-1)


def nll(student_q: Tensor, teacher_q: Tensor, *, student_temperature: float = 1.0) -> Tensor:
    """Negative log likelihood of the teacher's greedy action (hard targets); Rusu et al. 2015, eq. 1.

    Args:
        student_q: `[B, A]`, logits.
        teacher_q: `[B, A]`, return units.
        student_temperature: > 0.

    Returns:
        `[B]`, nats, ≥ 0.

    Raises:
        ValueError: the shapes differ.
    """
    _check_same_shape(student_q, teacher_q)
    logits = student_q.masked_fill(~_legal(teacher_q), -torch.inf) / student_temperature
    return F.cross_entropy(logits, teacher_q.argmax(-1), reduction="none")


def td(
    batch: Mapping[str, Tensor],
    q: Tensor,
    next_q_target: Tensor,
    *,
    next_q: Tensor | None,
    gamma: float,
    loss_fn: str = "huber",
) -> Tensor:
    """TD loss of RLlib's DQN: n-step, with or without double Q-learning (van Hasselt et al. 2016, arXiv 1509.06461).

    Args:
        batch: `actions` `[B]`, `rewards` `[B]` (already summed and discounted over the n steps), `terminateds` `[B]`
            and `n_step` `[B]` (steps between the state and the bootstrap state).
        q: `[B, A]`, the student at the states.
        next_q_target: `[B, A]`, the target network at the bootstrap states.
        next_q: `[B, A]`, the student at the bootstrap states, which then chooses the action there (double
            Q-learning); None: the target network chooses itself.
        gamma: discount, in [0, 1].
        loss_fn: "huber" (δ = 1) or "mse", as `DQNConfig.td_error_loss_fn`.

    Returns:
        `[B]`.

    Raises:
        ValueError: the shapes differ.
    """
    _check_same_shape(q, next_q_target)
    chooser = next_q_target if next_q is None else next_q
    next_value = next_q_target.gather(-1, chooser.argmax(-1, keepdim=True)).squeeze(-1)
    bootstrap = torch.where(batch["terminateds"].bool(), 0.0, next_value)
    target = (batch["rewards"] + gamma ** batch["n_step"] * bootstrap).detach()
    prediction = q.gather(-1, batch["actions"].long().unsqueeze(-1)).squeeze(-1)
    elementwise = F.huber_loss if loss_fn == "huber" else F.mse_loss
    return elementwise(prediction, target, reduction="none")


def _legal(teacher_q: Tensor) -> Tensor:
    return teacher_q != -torch.inf


def _difference(student_q: Tensor, teacher_q: Tensor) -> Tensor:
    """q_S − q_T, and 0 (without a gradient) at the illegal actions."""
    _check_same_shape(student_q, teacher_q)
    illegal = ~_legal(teacher_q)
    return student_q.masked_fill(illegal, 0.0) - teacher_q.detach().masked_fill(illegal, 0.0)


def _mean_over_legal(per_action: Tensor, teacher_q: Tensor) -> Tensor:
    return per_action.sum(-1) / _legal(teacher_q).sum(-1)


def _check_same_shape(student_q: Tensor, teacher_q: Tensor) -> None:
    if student_q.shape != teacher_q.shape:
        raise ValueError(
            "The Q-values of student and teacher must have one shape, [batch, actions], but the student's is "
            f"{tuple(student_q.shape)} and the teacher's {tuple(teacher_q.shape)}."
        )
