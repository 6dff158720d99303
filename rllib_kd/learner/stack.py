"""Students side by side: what can be one batch of matrices is, with one optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from itertools import islice
from typing import Any, ClassVar

import torch
from ray.rllib.core.learner.learner import DEFAULT_OPTIMIZER
from ray.rllib.utils.metrics import ALL_MODULES
from torch import Tensor

from rllib_kd.learner.label_statistics import QScale
from rllib_kd.learner.observation_scale import ObservationScale
from rllib_kd.learner.own_states import OwnStates
from rllib_kd.learner.student import Student, copy_into
from rllib_kd.networks.dqn_module import QF_PREDS
from rllib_kd.networks.mlp_gradient import MLPGradient
from rllib_kd.networks.quantization import rounded_stack
from rllib_kd.networks.stacking import StackedMLPs, learns_whole, stacking_key

#: What Adam knows of a student: of each weight its moments, and the steps made.
_Moments = Mapping[str, Sequence[Tensor]]
_MOMENTS = ("exp_avg", "exp_avg_sq")


class StackedStudents:
    """Several students that learn side by side (networks/stacking.py), with one loss, one backward pass, one optimizer.

    Those with one `stacking_key()` are in one batch of matrices. The loss takes the outputs of all batches at once: on
    small networks it costs as much as the networks.

    Args:
        members: students of the same observations and actions, without optimizers. They are sorted by batch.
    """

    is_one_batch: ClassVar[bool] = True
    #: The stack that this one is a part of, while other members of it rest.
    whole: StackedStudents | None = None

    def __init__(self, members: Sequence[Student]):
        by_key: dict[Any, list[Student]] = {}
        for student in members:
            by_key.setdefault(stacking_key(student.module), []).append(student)
        self.members = [student for own in by_key.values() for student in own]
        self._stacks = [_Stack(own) for own in by_key.values()]
        self.params = [param for stack in self._stacks for param in stack.params]
        self.weights = [param.detach() for param in self.params]
        self.averages: list[Tensor] = []
        self.optimizer: torch.optim.Optimizer | None = None  # of `params`, which must be there first
        self.regret_coeff = self._regret_coeffs()

    def _regret_coeffs(self) -> float | Tensor | None:
        """Return what all members have, or the different ones as `[N, 1, 1]`."""
        coeffs = [student.regret_coeff for student in self.members]
        if len(set(coeffs)) == 1:
            return coeffs[0]
        return torch.tensor([coeff or 0.0 for coeff in coeffs], device=self.params[0].device).view(-1, 1, 1)

    @cached_property
    def own_states(self) -> OwnStates | None:
        """The weights of states in the members' losses; None: all have the same."""
        each = [student.own_states for student in self.members if student.own_states is not None]
        return OwnStates.joined(each) if each else None

    @property
    def scale(self) -> QScale | None:
        """Return the scale of the outputs inside an update, which is that of each member."""
        return self.members[0].scale

    def enter(self, scale: QScale, obs_scale: ObservationScale) -> None:
        """Put the weights that learn into `params`."""
        self._follow_whole()
        for student in self.members:
            student.enter(scale, obs_scale)
        copy_into(self.params, [weight for stack in self._stacks for weight in stack.pack(stack.weights)])
        if self.members[0].averages:
            self.averages = [weight for stack in self._stacks for weight in stack.pack(stack.averages)]

    def average(self, window: float) -> None:
        """As `Student.average()`, for each member by its own steps: some may have rested."""
        if not self.averages:
            return
        shares = [student.next_share(window) for student in self.members]
        if len(set(shares)) == 1:
            torch._foreach_lerp_(self.averages, self.weights, shares[0])
        else:
            torch._foreach_lerp_(self.averages, self.weights, self._factors(torch.tensor(shares).to(self.params[0])))

    def _factors(self, numbers: Tensor) -> list[Tensor]:
        """Return a number of each member, `[N]`, as factors of each of `params`."""
        by_stack = numbers.view(-1, 1, 1).split([len(stack.names) for stack in self._stacks])
        return [own for stack, own in zip(self._stacks, by_stack, strict=True) for _ in stack.params]

    def _follow_whole(self) -> None:
        """Take the learning rate of the stack that this one is a part of, which RLlib sets by its schedule."""
        if self.whole is not None:
            assert self.optimizer is not None
            assert self.whole.optimizer is not None
            self.optimizer.param_groups[0]["lr"] = self.whole.optimizer.param_groups[0]["lr"]

    def leave(self) -> None:
        """Put the weights that act into the modules."""
        averages = iter(self.averages)
        for stack in self._stacks:
            stack.unpack(stack.params, stack.weights)
            if self.averages:
                stack.unpack(list(islice(averages, len(stack.params))), stack.averages)
        for student in self.members:
            student.leave()

    @property
    def name(self) -> str:
        """Return the names of all members."""
        return "_".join(student.name for student in self.members)

    @property
    def optimizer_name(self) -> str:
        """Return RLlib's name of the optimizer."""
        return _optimizer_name(self.name)

    def optimizer_state(self, saved: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the optimizer's state, made of those that each batch of matrices had in earlier checkpoints.

        Args:
            saved: states of optimizers by name, as RLlib saves them.

        Returns:
            None if the state is there already, or there are none of these.
        """
        if self.optimizer_name in saved:
            return None
        states = [state for stack in self._stacks for state in stack.optimizer_states(saved)]
        if len(states) != len(self.params):
            return None
        assert self.optimizer is not None  # it is set as soon as there is one
        return {"module_id": ALL_MODULES, "state": {**self.optimizer.state_dict(), "state": dict(enumerate(states))}}

    def part(self, members: Sequence[Student]) -> StackedStudents:
        """Return a stack of some members, as narrow as they are, with an optimizer that goes on from this one's."""
        assert self.optimizer is not None  # it has one as soon as it is made
        part = type(self)(members)
        part.whole = self
        (group,) = self.optimizer.param_groups
        part.optimizer = type(self.optimizer)(part.params, **{name: group[name] for name in self.optimizer.defaults})
        part.take_moments(self)
        return part

    def take_moments(self, other: StackedStudents) -> None:
        """Take what another stack's optimizer knows of the members that both have."""
        assert self.optimizer is not None
        assert other.optimizer is not None
        if not other.optimizer.state:  # it has made no step
            return
        own = self._moments() if self.optimizer.state else {}
        known = own | other._moments()
        self._set_moments({student.name: known.get(student.name) for student in self.members})

    def _moments(self) -> dict[str, _Moments]:
        """Return the optimizer's state by member."""
        assert self.optimizer is not None
        return {name: own for stack in self._stacks for name, own in stack.moments(self.optimizer).items()}

    def _set_moments(self, moments: Mapping[str, _Moments | None]) -> None:
        """Restore results of `_moments()`; None: the member has made no step."""
        assert self.optimizer is not None
        for stack in self._stacks:
            stack.set_moments(self.optimizer, moments)

    def inputs(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return what all members take of a batch as observations."""
        return self.members[0].inputs(batch)

    def outputs(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `qf_preds` `[N, B, A]` of all members, inside an update."""
        inputs = self.inputs(batch)
        q = [stack.q_values(self._forward_weights(stack), inputs) for stack in self._stacks]
        return {QF_PREDS: q[0] if len(q) == 1 else torch.cat(q)}

    def gradients(self) -> list[MLPGradient]:
        """Return passes that set the gradients of `params`, for each batch of matrices; none if autograd is needed."""
        if self.members[0].rounds:
            return []
        can_be = all(MLPGradient.can_be_of(stack.params, stack.activations) for stack in self._stacks)
        return [MLPGradient(stack.params, stack.activations) for stack in self._stacks] if can_be else []

    def _forward_weights(self, stack: _Stack) -> list[Tensor]:
        """Return the weights for a forward pass."""
        return rounded_stack(stack.params, self.members[0].input_scale) if self.members[0].rounds else stack.params


def _optimizer_name(members: str) -> str:
    """Return RLlib's name of an optimizer of several students."""
    return f"{ALL_MODULES}_{members}"


class _Stack(StackedMLPs):
    """Students in one batch of matrices, with its weights.

    Args:
        members: students with one `stacking_key()`.
    """

    def __init__(self, members: Sequence[Student]):
        super().__init__([student.module for student in members])
        self._members = members
        self.names = [student.name for student in members]
        self.params = [weight.requires_grad_() for weight in self.pack(self.weights)]

    def optimizer_states(self, saved: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the state of each of `params` in an optimizer of this stack alone, or in those of its students."""
        of_stack = saved.get(_optimizer_name("_".join(self.names)))
        if of_stack is not None:
            return list(of_stack["state"]["state"].values())
        each = [saved.get(f"{name}_{DEFAULT_OPTIMIZER}", {"state": {"state": {}}}) for name in self.names]
        states = [list(own["state"]["state"].values()) for own in each]
        if any(len(own) != len(self.params) for own in states):
            return []
        if len({float(own[0]["step"]) for own in states}) > 1:  # some have rested: the average begins anew
            return []
        packed = {
            key: self.pack([[torch.as_tensor(state[key]) for state in own] for own in states]) for key in _MOMENTS
        }
        return [
            {**state, **{key: tensors[place] for key, tensors in packed.items()}}
            for place, state in enumerate(states[0])
        ]

    def moments(self, optimizer: torch.optim.Optimizer) -> dict[str, _Moments]:
        """Return an optimizer's state of each member."""
        states = [optimizer.state[param] for param in self.params]
        found = {}
        for kind in _MOMENTS:
            found[kind] = [[torch.empty_like(weight) for weight in own] for own in self.weights]
            self.unpack([state[kind] for state in states], found[kind])
        return {
            name: {"step": [state["step"] for state in states], **{kind: own[i] for kind, own in found.items()}}
            for i, name in enumerate(self.names)
        }

    def set_moments(self, optimizer: torch.optim.Optimizer, moments: Mapping[str, _Moments | None]) -> None:
        """Restore results of `moments()`, by member; None: it has made no step.

        A stack counts its steps once. Members that have made fewer than the others get moments as large as if they had
        made as many: Adam divides them by what is missing to a full average (Kingma and Ba 2015, section 3).
        """
        known = [moments[name] for name in self.names]
        most = max((float(one["step"][0]) for one in known if one is not None), default=0.0)
        (group,) = optimizer.param_groups
        packed = {}
        for kind, beta in zip(_MOMENTS, group["betas"], strict=True):
            each = []
            for one, weights in zip(known, self.weights, strict=True):
                if one is None or not one["step"][0]:
                    each.append([torch.zeros_like(weight) for weight in weights])
                else:
                    grown = (1 - beta**most) / (1 - beta ** float(one["step"][0]))
                    each.append([moment * grown for moment in one[kind]])
            packed[kind] = self.pack(each)
        for i, param in enumerate(self.params):
            step = torch.tensor(most, device=param.device)  # where a fused Adam has it
            optimizer.state[param] = {"step": step, **{kind: own[i] for kind, own in packed.items()}}

    @property
    def averages(self) -> list[list[Tensor]]:
        """Return for each member the averages of its weights, inside an update."""
        return [student.averages for student in self._members]


def stackable(modules: Mapping[str, Any], config: Any, *, is_ours: bool) -> list[list[str]]:
    """Sort students, by module ID, into lists of those that can learn side by side.

    Args:
        modules: modules of the students of one teacher, by ID.
        config: config of the modules.
        is_ours: whether loss and optimizer are this package's, which take several students at once.
    """
    plain = is_ours and not config.uses_td and config.feature_coeff == 0.0 and config.grad_clip is None
    stacks: dict[Any, list[str]] = {}
    for module_id, module in modules.items():
        is_mlp = stacking_key(module) is not None and learns_whole(module)
        can_be_stacked = plain and (module.is_stateful() or is_mlp)
        stacks.setdefault(None if can_be_stacked else module_id, []).append(module_id)
    return list(stacks.values())


def forward(
    learner: Student | StackedStudents, batch: Mapping[str, Tensor], *, config: Any, uses_td: bool
) -> dict[str, Tensor]:
    """Return the students' outputs for the loss of a batch, in float32, computed in bfloat16 if the config has it."""
    bf16 = torch.autocast(learner.params[0].device.type, torch.bfloat16) if config.bf16 else nullcontext()
    with bf16:
        if uses_td and isinstance(learner, Student):  # what learns by TD is never stacked
            fwd_out = learner.td_outputs(batch, double_q=config.double_q)
        else:
            fwd_out = learner.outputs(batch)
    return {name: output.float() for name, output in fwd_out.items()} if config.bf16 else fwd_out


def members_of(learner: Student | StackedStudents) -> list[Student]:
    """Return the students of a learner: itself, or the members of a stack."""
    return learner.members if isinstance(learner, StackedStudents) else [learner]
