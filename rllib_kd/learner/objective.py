"""The objective of a batch, kd_coeff · D + td_coeff · TD: its total, terms and errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from ray.rllib.algorithms.dqn.default_dqn_rl_module import QF_LOGITS, QF_NEXT_PREDS, QF_TARGET_NEXT_PREDS
from torch import Tensor

from rllib_kd.learner import derivatives, losses
from rllib_kd.learner.stack import StackedStudents
from rllib_kd.learner.student import Student
from rllib_kd.networks.dqn_module import QF_PREDS
from rllib_kd.observations.masks import NEXT_MASK
from rllib_kd.wire import ACTING, TEACHER_FEATURES, TEACHER_PROBS, TEACHER_Q

#: Fields of the teacher's policy, and their columns in a batch.
_TARGET = {name: f"target_{name}" for name in derivatives.PolicyTarget._fields}


class Loss(NamedTuple):
    """The loss of a batch, with its terms for the results and its errors for priorities. N is the number of students.

    Args:
        total: scalar to minimise; for stacked students the sum.
        terms: means over the batch without their coefficients, by metric name (`kd_loss`, `td_loss`), each a scalar or
            `[N]`; without gradients.
        errors: error of each row, for its priority, `[B]` or `[N, B]`: TD errors (return units), or distillation losses
            if there is no TD; without gradients.
    """

    total: Tensor
    terms: dict[str, Tensor]
    errors: Tensor


@dataclass(frozen=True)
class Objective:
    """kd_coeff · D + td_coeff · TD, averaged over the batch with its importance weights.

    Args:
        config: config of the student's module.
        kd_coeff: weight of the distillation loss D, ≥ 0; 0 leaves it out.
        td_coeff: weight of the TD loss, ≥ 0; 0 leaves it out. One of the two must not be 0.
        temperature: temperature of the teacher's policy, > 0, return units.
        student_temperature: temperature of the student's policy, > 0, in units of its outputs.
        median_gap: median over states of the teacher's action gap, best − next lower Q-value, > 0, return units.
    """

    config: Any
    kd_coeff: float
    td_coeff: float
    temperature: float
    student_temperature: float
    median_gap: float

    def __call__(
        self, student: Student | StackedStudents, batch: Mapping[str, Tensor], fwd_out: Mapping[str, Tensor]
    ) -> Loss:
        """Return the loss of a batch.

        Args:
            student: the student or the stack with these outputs.
            batch: `obs` `[B, ...]` and `teacher_q` `[B, A]`; also `teacher_probs` `[B, A, atoms]` for "categorical",
                RLlib's DQN columns for TD, with `new_action_mask` `[B, A]` if the environment has masks; `weights`
                `[B]` of a prioritized replay; and `acting` `[B]` in a family that learns from its own states.
            fwd_out: `qf_preds` `[B, A]` or `[N, B, A]`, for a C51 also `qf_logits` `[B, A, atoms]`; for TD also the
                outputs of `forward_train()`.
        """
        terms: dict[str, Tensor] = {}  # of each loss that has a coefficient
        if self.kd_coeff:
            errors = self._distillation_loss(student, batch, fwd_out)
            terms["kd_loss"] = _mean(errors, self._kd_weights(student, batch, errors))
        if self.td_coeff:
            assert isinstance(student, Student)  # what learns by TD is never stacked
            errors = self._td_error(student, batch, fwd_out)
            terms["td_loss"] = _mean(losses.td(errors, loss_fn=self.config.td_error_loss_fn), batch.get("weights"))
        return Loss(self._total(terms), {name: term.detach() for name, term in terms.items()}, errors.detach())

    def has_gradient(self, student: Student | StackedStudents) -> bool:
        """Return whether `with_gradient()` knows the derivatives now, if all actions are legal."""
        config = self.config
        is_known = config.loss in ("mse", "huber") or (config.loss == "kl" and student.scale is None)
        changes = config.gap_weighting or config.value_gate or config.feature_coeff or self.td_coeff
        return is_known and bool(self.kd_coeff) and not changes

    def with_gradient(
        self, student: Student | StackedStudents, batch: Mapping[str, Tensor], student_q: Tensor
    ) -> tuple[Loss, Tensor] | None:
        """Return the loss of a batch, and the derivatives of its total by the outputs, without autograd.

        Args:
            student: the student or the stack with these outputs, which `has_gradient()`.
            batch: as for a call.
            student_q: outputs, inside an update, `[A, B]` or `[N, A, B]`.

        Returns:
            None if autograd has to make them: of a value loss, where there are illegal actions.
        """
        if self.config.loss == "kl":
            given = self._of_kl(student, batch)
            target = derivatives.PolicyTarget._make(None if rows is None else rows.t() for rows in given.pop("target"))
            errors, gradient = derivatives.kl_and_gradient(student_q, target, dim=-2, **given)
        else:
            teacher_q = batch[TEACHER_Q]
            if not teacher_q.is_cpu or (teacher_q == -torch.inf).any():  # of a GPU, the answer would be waited for
                return None
            teacher_q = (teacher_q if student.scale is None else student.scale.normalize(teacher_q)).t()
            delta = self.config.huber_delta if self.config.loss == "huber" else None
            errors, gradient = derivatives.difference_and_gradient(student_q, teacher_q, delta=delta)
        weights = self._kd_weights(student, batch, errors)
        terms = {"kd_loss": _mean(errors, weights)}
        share = self.kd_coeff / errors.shape[-1]
        gradient *= share if weights is None else (share * weights).unsqueeze(-2)
        return Loss(self._total(terms), terms, errors), gradient.to(student_q.dtype)  # labels may have another

    def target_columns(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return columns that the loss would otherwise make of the labels, for many batches at once.

        Args:
            batch: `teacher_q` `[B, A]` if there is a distillation loss.
        """
        if not self.kd_coeff or self.config.loss != "kl":
            return {}
        target = derivatives.policy_target(batch[TEACHER_Q].t().contiguous(), temperature=self.temperature, dim=-2)
        return {_TARGET[field]: rows.t() for field, rows in target._asdict().items() if rows is not None}

    def coefficient(self, term: str) -> float:
        """Return the weight of a term of the loss, by its metric name."""
        return {"kd_loss": self.kd_coeff, "td_loss": self.td_coeff}[term]

    def _total(self, terms: Mapping[str, Tensor]) -> Tensor:
        total: Any = None
        for name, term in terms.items():
            coefficient = self.coefficient(name)
            weighted = term if coefficient == 1.0 else coefficient * term
            total = weighted if total is None else total + weighted
        return total.sum() if total.ndim else total

    def _kd_weights(
        self, student: Student | StackedStudents, batch: Mapping[str, Tensor], rows: Tensor
    ) -> Tensor | None:
        """Return the weights of rows `[B]` or `[N, B]` in the distillation loss; None: all count the same."""
        weights = batch.get("weights")
        if student.own_states is None or student.own_states.are_all:
            return weights
        own = student.own_states.weights(batch[ACTING]).view_as(rows)
        return own if weights is None else weights * own

    def _td_error(self, student: Student, batch: Mapping[str, Tensor], fwd_out: Mapping[str, Tensor]) -> Tensor:
        return losses.td_error(
            batch,
            student.to_q(fwd_out[QF_PREDS]),
            fwd_out[QF_TARGET_NEXT_PREDS],
            next_q=student.to_q(fwd_out[QF_NEXT_PREDS]) if self.config.double_q else None,
            gamma=self.config.gamma,
            next_mask=batch.get(NEXT_MASK),
        )

    def _distillation_loss(
        self, student: Student | StackedStudents, batch: Mapping[str, Tensor], fwd_out: Mapping[str, Tensor]
    ) -> Tensor:
        """Return D with its options, unreduced: `[B]` or `[N, B]`."""
        loss = self._divergence(student, batch, fwd_out)
        if self.config.gap_weighting:
            loss = loss * losses.gap_weights(batch[TEACHER_Q])
        if isinstance(student, StackedStudents):  # neither TD nor features
            return loss
        if self.config.value_gate:
            loss = loss * losses.value_gate(student.to_q(fwd_out[QF_PREDS]), batch[TEACHER_Q])
        if student.feature_map is not None:
            hint = losses.feature_matching(student.mapped_features(len(loss)), batch[TEACHER_FEATURES])
            loss = loss + self.config.feature_coeff * hint
        return loss

    def _divergence(
        self, student: Student | StackedStudents, batch: Mapping[str, Tensor], fwd_out: Mapping[str, Tensor]
    ) -> Tensor:
        """Return the named loss, unreduced: `[B]` or `[N, B]`."""
        config = self.config
        student_q, teacher_q = fwd_out[QF_PREDS], batch[TEACHER_Q]
        if student.scale is not None:
            if (illegal := teacher_q == -torch.inf).any():  # the means of both are over legal actions then
                student_q = student.scale.denormalize(student_q).masked_fill(illegal, -torch.inf)
                student_q = student.scale.normalize(student_q)
            teacher_q = student.scale.normalize(teacher_q)
        temperatures = {"temperature": self.temperature, "student_temperature": self.student_temperature}
        match config.loss:
            case "mse":
                return losses.mse(student_q, teacher_q)
            case "huber":
                return losses.huber(student_q, teacher_q, delta=config.huber_delta)
            case "kl":
                return losses.kl_to_target(student_q, **self._of_kl(student, batch))
            case "reverse_kl":
                return losses.reverse_kl(student_q, teacher_q, **temperatures)
            case "jsd":
                return losses.jsd(student_q, teacher_q, beta=config.jsd_beta, **temperatures)
            case "nll":
                return losses.nll(student_q, teacher_q, student_temperature=self.student_temperature)
            case "margin":
                return losses.margin(student_q, teacher_q, margin=config.margin)
            case "categorical":
                return losses.categorical(fwd_out[QF_LOGITS], batch[TEACHER_PROBS])
        raise AssertionError(f"validate() admits only {losses.LOSSES}, not {config.loss!r}.")

    def _of_kl(self, student: Student | StackedStudents, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return what the forward KL takes beside the student's outputs."""
        made: Mapping[str, Any] = batch if _TARGET["policy"] in batch else self.target_columns(batch)
        return {
            "target": derivatives.PolicyTarget._make(made.get(name) for name in _TARGET.values()),
            "student_temperature": self.student_temperature,
            "regret_coeff": None
            if student.regret_coeff is None
            else student.regret_coeff / self.median_gap,  # nats / unit
        }


def _mean(rows: Tensor, weights: Tensor | None) -> Tensor:
    """Return the weighted mean of `[B]`, or of each student's of `[N, B]`."""
    return (rows if weights is None else weights * rows).mean(-1)
