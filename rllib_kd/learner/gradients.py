"""The gradient of one student, or of students side by side, on a batch: by autograd, or written out for MLPs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from rllib_kd.learner.objective import Loss, Objective
from rllib_kd.learner.stack import StackedStudents, forward
from rllib_kd.learner.student import Student
from rllib_kd.networks.dqn_module import QF_PREDS
from rllib_kd.networks.mlp_gradient import MLPGradient

#: Sets the gradients of a learner's parameters on a batch, and returns its loss.
Gradient = Callable[[Mapping[str, Tensor]], Loss]

_Learner = Student | StackedStudents
#: Makes the loss of a learner, a batch and its outputs, as an Objective does.
_OwnLoss = Callable[[Any, Mapping[str, Tensor], Mapping[str, Tensor]], Loss]


def gradient_of(learner: _Learner, objective: Objective, own_loss: _OwnLoss | None, *, uses_td: bool) -> Gradient:
    """Return how a learner's gradients are made, inside an update.

    Args:
        learner: the student or the stack.
        objective: its objective.
        own_loss: what it minimises instead of the objective; None: the objective.
        uses_td: whether there is a TD loss.
    """
    config = objective.config
    is_possible = own_loss is None and not (uses_td or config.feature_coeff or config.bf16)
    pays = learner.is_one_batch or objective.has_gradient(learner)
    if is_possible and pays and (parts := learner.gradients()):
        return WrittenOut(learner, objective, parts)
    return Autograd(learner, objective, own_loss or objective, uses_td=uses_td)


class Autograd:
    """Gradients of any loss and network.

    Args:
        learner: as for `gradient_of()`.
        objective: likewise.
        loss: what the learner minimises.
        uses_td: as for `gradient_of()`.
    """

    def __init__(self, learner: _Learner, objective: Objective, loss: _OwnLoss, *, uses_td: bool):
        self._learner, self._config, self._loss, self._uses_td = learner, objective.config, loss, uses_td

    def __call__(self, batch: Mapping[str, Tensor]) -> Loss:
        """Return the loss of a batch, after its gradients have been set."""
        fwd_out = forward(self._learner, batch, config=self._config, uses_td=self._uses_td)
        loss = self._loss(self._learner, batch, fwd_out)
        for param in self._learner.params:
            param.grad = None  # as optimizer.zero_grad(), at a tenth of its cost
        loss.total.backward()
        return loss


class WrittenOut:
    """Gradients of MLPs, whose passes are written out. Autograd makes the loss's derivatives that are not known.

    Args:
        learner: the student or the stack.
        objective: its objective.
        parts: one for each batch of matrices in it, in the order of their outputs.
    """

    def __init__(self, learner: _Learner, objective: Objective, parts: list[MLPGradient]):
        self._learner, self._objective, self._parts = learner, objective, parts
        self._has_gradient = objective.has_gradient(learner)

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Tensor]) -> Loss:
        """Return the loss of a batch, after its gradients have been set."""
        inputs = self._learner.inputs(batch)
        outputs = [part.outputs(inputs) for part in self._parts]
        together = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        loss, gradient = self._derivatives(batch, together)
        each = [gradient] if len(outputs) == 1 else gradient.split([len(own) for own in outputs])
        for part, own in zip(self._parts, each, strict=True):
            part.backward(own)
        return loss

    def _derivatives(self, batch: Mapping[str, Tensor], outputs: Tensor) -> tuple[Loss, Tensor]:
        """Return the loss, and its derivatives by outputs `[A, B]` or `[N, A, B]`, in their shape."""
        known = self._objective.with_gradient(self._learner, batch, outputs) if self._has_gradient else None
        if known is not None:
            return known
        with torch.enable_grad():
            q = outputs.mT.contiguous().requires_grad_()
            loss = self._objective(self._learner, batch, {QF_PREDS: q})
        (gradient,) = torch.autograd.grad(loss.total, q)
        return loss, gradient.mT.contiguous()
