"""The Learner: takes labelled columns into its replay shard, and makes many minibatch steps a call."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import ray
import torch
from ray.rllib.algorithms.dqn.dqn_learner import QF_LOGITS, QF_NEXT_PREDS, QF_PREDS, QF_TARGET_NEXT_PREDS, DQNLearner
from ray.rllib.algorithms.dqn.torch.dqn_torch_learner import DQNTorchLearner
from ray.rllib.core import COMPONENT_RL_MODULE
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner import DEFAULT_OPTIMIZER
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.core.rl_module.apis import QNetAPI
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import (
    ALL_MODULES,
    LAST_TARGET_UPDATE_TS,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    NUM_ENV_STEPS_TRAINED,
    NUM_ENV_STEPS_TRAINED_LIFETIME,
    NUM_MODULE_STEPS_TRAINED,
    NUM_MODULE_STEPS_TRAINED_LIFETIME,
    NUM_TARGET_UPDATES,
)
from torch import Tensor

from rllib_kd.learner import losses
from rllib_kd.learner.group import StudentGroup
from rllib_kd.learner.replay import PrioritizedReplay
from rllib_kd.learner.student import StackedStudents, Student, members_of
from rllib_kd.networks.stacking import stacking_key
from rllib_kd.schedules import value_at
from rllib_kd.wire import TEACHER_FEATURES, TEACHER_PROBS, TEACHER_Q, pack_weights, receive

logger = logging.getLogger(__name__)


NUM_GRADIENT_STEPS = "num_gradient_steps"  # of the last update


STATE_AFTER_UPDATE = "_rl_module_state_after_update"  # RLlib's name


_DISTILLATION = "distillation"


_TARGET_UPDATES = "last_update_ts_by_mid"  # env steps at the last update of each target network


class DistillDQNTorchLearner(DQNTorchLearner):
    """RLlib's DQN Learner with a distillation loss, a replay shard of its own and a tight update loop.

    A call of `update()` takes in the columns that it is given (by reference from other processes), and makes
    `num_gradient_steps` minibatch steps on rows drawn from the shard. Several Learners all-reduce their gradients; they
    must make equally many steps.
    """

    num_saves = 0  # by which the Algorithm sees whether a remote Learner has saved: RLlib drops its errors

    @override(DQNTorchLearner)
    def build(self) -> None:
        #: By module ID in multi-agent settings; otherwise one.
        self.groups: dict[str, StudentGroup] = {}
        super().build()
        for group in self.groups.values():
            if group.config.feature_coeff:
                for student in group.students.values():
                    student.watch_features()  # now that the target networks are made, which are copies
        self._coefficients = {"kd": self.config.kd_coeff_at(0), "td": value_at(self.config.td_coeff, 0)}

    @override(DQNTorchLearner)
    def configure_optimizers(self) -> None:
        """One optimizer a student, or one for several that are stacked."""
        for group_id, module_ids in self.config.student_groups(self.module.keys()).items():
            for module_id in module_ids:
                self._check_has_q_values(self.module[module_id].unwrapped())
            config = self.config.get_config_for_module(module_ids[0])
            learners: list[Student | StackedStudents] = []
            for members in self._stackable(module_ids, config):
                if len(members) == 1:
                    self.configure_optimizers_for_module(members[0], config)
                    optimizer = self.get_optimizer(members[0])
                    learners.append(self._make_student(members[0], optimizer, config))
                    continue
                stack = StackedStudents([self._make_student(member, None, config) for member in members])
                stack.optimizer = self._make_optimizer(ALL_MODULES, "_".join(members), stack.params, config)
                learners.append(stack)
            seed = self.config.seed
            self.groups[group_id] = StudentGroup(
                learners,
                config,
                num_actions=int(self.module[module_ids[0]].action_space.n),
                device=self._device,
                # Each shard is drawn in an order of its own.
                seed=None if seed is None else seed + 1_000 * self._learner_index + len(self.groups),
            )

    @override(DQNTorchLearner)
    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """As RLlib's, with the fused Adam, and reading `adam_epsilon`."""
        self._make_optimizer(module_id, DEFAULT_OPTIMIZER, self.get_parameters(self._module[module_id]), config)

    @override(DQNTorchLearner)
    def _make_modules_ddp_if_necessary(self) -> None:
        """No DDP wrapper: equal weights at the start, and one all-reduce of all gradients a step."""
        if self.distributed:
            for module in self.module.values():
                for tensor in module.state_dict().values():
                    torch.distributed.broadcast(tensor, src=0)

    @override(DQNTorchLearner)
    def update(
        self,
        batch_refs: Sequence[ray.ObjectRef] | None = None,
        *,
        training_data: TrainingData | None = None,
        timesteps: Mapping[str, Any] | None = None,
        num_gradient_steps: int = 0,
        kd_coeff: float | None = None,
        td_coeff: float | None = None,
        return_state: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Take in new columns, and make minibatch steps.

        Args:
            batch_refs: columns or references to them, as `DistillEnvRunner.sample_columns()` returns them; in
                multi-agent settings of dicts of columns by module.
            training_data: the same, as a LearnerGroup passes them.
            timesteps: with the lifetime env steps, for schedules and target updates.
            num_gradient_steps: minibatch steps of each student in this call; the same on every Learner.
            kd_coeff: weight of the distillation loss from here on; None keeps it.
            td_coeff: weight of the TD loss from here on; None keeps it.
            return_state: whether to add the students, as they are then, to the results; as in RLlib's IMPALA.
            kwargs: what LearnerGroup passes to every Learner.

        Returns:
            RLlib's reduced metrics.
        """
        self._check_is_built()
        timesteps = timesteps or {}
        env_steps = timesteps.get(NUM_ENV_STEPS_SAMPLED_LIFETIME, 0)
        self.before_gradient_based_update(timesteps=timesteps)
        self._weights_seq_no += 1
        self._coefficients = {
            "kd": self._coefficients["kd"] if kd_coeff is None else kd_coeff,
            "td": self._coefficients["td"] if td_coeff is None else td_coeff,
        }
        refs = training_data.batch_refs if training_data is not None else batch_refs
        fragments = [self.config.by_group(fragment) for fragment in _resolve(refs)]
        reduce = self._sum_over_learners if self.distributed else None
        for group_id, group in self.groups.items():
            own = [fragment[group_id] for fragment in fragments if group_id in fragment]
            fresh = group.take_in(own, reduce=reduce)
            self._log_agreement(group, fresh)
            num_steps = self._steps_to_make(group, num_gradient_steps)
            if num_steps:
                self._learn(group, num_steps, env_steps)
            for name in group.students:
                self.metrics.log_value((name, NUM_GRADIENT_STEPS), num_steps, reduce="max", window=1)
        self.after_gradient_based_update(timesteps=timesteps)
        results = self.metrics.reduce()
        if return_state:
            state = self.get_state(components=COMPONENT_RL_MODULE, inference_only=True)
            results[STATE_AFTER_UPDATE] = state | {COMPONENT_RL_MODULE: pack_weights(state[COMPONENT_RL_MODULE])}
        return results

    @override(DQNTorchLearner)
    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: Mapping[str, Tensor], fwd_out: Mapping[str, Tensor]
    ) -> Tensor:
        """kd_coeff · D + td_coeff · TD, averaged over the batch with its importance weights.

        Args:
            module_id: the student's.
            config: the student's.
            batch: `obs` `[B, ...]` and `teacher_q` `[B, A]`; also `teacher_probs` `[B, A, atoms]` for "categorical",
                RLlib's DQN columns for TD, and `weights` `[B]` of a prioritized replay.
            fwd_out: `qf_preds` `[B, A]`, of a C51 also `qf_logits` `[B, A, atoms]`; for TD also what `forward_train()`
                puts out.

        Returns:
            A scalar.
        """
        group = next(group for group in self.groups.values() if module_id in group.students)
        return self._weigh(self._loss_by_row(group, group.students[module_id], batch, fwd_out, config))

    # --- State --------------------------------------------------------------------------------------------------------

    @override(DQNTorchLearner)
    def get_state(
        self,
        components: str | Collection[str] | None = None,
        *,
        not_components: str | Collection[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        state = super().get_state(components, not_components=not_components, **kwargs)
        if self._check_component(_DISTILLATION, components, not_components):
            state[_DISTILLATION] = {group_id: group.get_state() for group_id, group in self.groups.items()}
            state[_TARGET_UPDATES] = dict(self.last_update_ts_by_mid)
        return state

    @override(DQNTorchLearner)
    def set_state(self, state: dict[str, Any]) -> None:
        own = state.get(_DISTILLATION, {})
        for group_id, group_state in own.items():
            for name, student_state in group_state["students"].items():
                self.groups[group_id].students[name].restore_feature_map(student_state)
        super().set_state(state)
        for optimizer, schedule in self._optimizer_lr_schedules.items():
            if not schedule.use_schedule:  # the config's counts, not that of the state: PBT exchanges states
                self._set_optimizer_lr(optimizer, lr=schedule.get_current_value())
        if COMPONENT_RL_MODULE in state:
            self._forget_training_weights()
        for group_id, group_state in own.items():
            self.groups[group_id].set_state(group_state)
        self.last_update_ts_by_mid.update(state.get(_TARGET_UPDATES, {}))

    def replay_arrays(self) -> dict[str, np.ndarray]:
        """The replay of this Learner, which is in no state: each Learner has another one."""
        return {
            f"{group_id}/{name}": array
            for group_id, group in self.groups.items()
            for name, array in group.replay_arrays().items()
        }

    def refill_replay(self, shards: Sequence[Mapping[str, np.ndarray]]) -> bool:
        """Fill the replay from `replay_arrays()` of all Learners, of whom there may have been more or fewer.

        Returns:
            Whether they had the columns that are learned from now; otherwise nothing has changed.
        """
        count = max(1, self.config.num_learners)
        is_own = len(shards) == count
        taken = shards[self._learner_index :: count] or [shards[self._learner_index % len(shards)]]
        by_group: dict[str, list[dict[str, np.ndarray]]] = {group_id: [{} for _ in taken] for group_id in self.groups}
        for place, shard in enumerate(taken):
            for name, array in shard.items():
                group_id, _, rest = name.partition("/")
                by_group[group_id][place][rest] = array
        return all(self.groups[group_id].refill_replay(own, is_own=is_own) for group_id, own in by_group.items())

    @override(DQNTorchLearner)
    def save_to_path(self, *args: Any, **kwargs: Any) -> str:
        saved = super().save_to_path(*args, **kwargs)
        self.num_saves += 1
        return saved

    @override(DQNTorchLearner)
    def restore_from_path(self, path: Any, **kwargs: Any) -> None:
        self._forget_training_weights()  # a whole checkpoint brings its own, in set_state()
        super().restore_from_path(path, **kwargs)

    def _forget_training_weights(self) -> None:
        for group in self.groups.values():
            for student in group.students.values():
                student.forget()

    # --- Who learns ---------------------------------------------------------------------------------------------------

    def _check_has_q_values(self, module: Any) -> None:
        if not isinstance(module, QNetAPI):
            raise ValueError(
                f"The student must have Q-values, but {type(module).__name__} does not implement compute_q_values(). "
                "Use RLlib's DQN module, or one that implements QNetAPI."
            )

    def _stackable(self, module_ids: Sequence[str], config: Any) -> list[list[str]]:
        """The students, together with those that they can be stacked with."""
        plain = (
            not config.uses_td
            and config.feature_coeff == 0.0
            and config.grad_clip is None
            and type(self).compute_loss_for_module is DistillDQNTorchLearner.compute_loss_for_module
        )
        stacks: dict[Any, list[str]] = {}
        for module_id in module_ids:
            key = stacking_key(self.module[module_id].unwrapped()) if plain else None
            stacks.setdefault(key or module_id, []).append(module_id)
        return list(stacks.values())

    def _make_student(self, module_id: str, optimizer: torch.optim.Optimizer | None, config: Any) -> Student:
        return Student(
            module_id,
            self.module[module_id].unwrapped(),
            optimizer,
            normalizes=(
                config.loss in losses.VALUE_LOSSES and config.normalize_q_values and bool(config.label_columns)
            ),
            averages=config.weight_averaging > 0.0 and not config.uses_td,
        )

    def _make_optimizer(self, module_id: str, name: str, params: Sequence[Tensor], config: Any) -> torch.optim.Adam:
        optimizer = torch.optim.Adam(params, eps=config.adam_epsilon, fused=True)
        self.register_optimizer(
            module_id=module_id, optimizer_name=name, optimizer=optimizer, params=params, lr_or_lr_schedule=config.lr
        )
        return optimizer

    # --- One update ---------------------------------------------------------------------------------------------------

    def _steps_to_make(self, group: StudentGroup, num_gradient_steps: int) -> int:
        """None while no loss has a weight, or while a Learner has nothing to draw: all must make equally many."""
        if not num_gradient_steps or not any(self._coefficients.values()):
            return 0
        drawable = torch.tensor(len(group.replay), device=self._device)
        if self.distributed:
            torch.distributed.all_reduce(drawable, op=torch.distributed.ReduceOp.MIN)
        if not drawable and self.config.label_columns and group.statistics.count == 0:
            raise ValueError(
                "There is nothing to learn from: no state so far has finite observations, a finite reward and finite "
                "Q-values of the teacher. The result's env_runners/num_..._not_finite_lifetime show which are missing."
            )
        return num_gradient_steps if drawable else 0

    @torch.no_grad()
    def _log_agreement(self, group: StudentGroup, fresh: Mapping[str, Tensor]) -> None:
        """How well the students know states that they have not been trained on yet."""
        if not fresh or len(fresh[TEACHER_Q]) == 0:
            return
        teacher_q = fresh[TEACHER_Q].unsqueeze(0)  # [1, M, A]
        student_q = group.q_values(fresh[Columns.OBS])  # [students, M, A]
        student_q = student_q.masked_fill(teacher_q == -torch.inf, -torch.inf)
        chosen = student_q.argmax(-1, keepdim=True)
        teacher_q = teacher_q.expand_as(student_q)
        by_state = {
            "teacher_agreement": (chosen.squeeze(-1) == teacher_q.argmax(-1)).float(),
            "q_regret": teacher_q.max(-1).values - teacher_q.gather(-1, chosen).squeeze(-1),
            "kl_to_teacher": losses.policy_kl(
                student_q, teacher_q, temperature=group.temperature, student_temperature=group.student_temperature
            ),
        }
        means = torch.stack([values.mean(-1) for values in by_state.values()], dim=-1).tolist()
        for name, own in zip(group.students, means, strict=True):
            metrics = dict(zip(by_state, own, strict=True)) | {"temperature": group.temperature}
            self.metrics.log_dict(metrics, key=name, window=1)

    def _learn(self, group: StudentGroup, num_steps: int, env_steps: int) -> None:
        config = group.config
        target_updates = self._target_updates(group, num_steps, env_steps) if config.uses_td else [False] * num_steps
        batch_size = config.train_batch_size_per_learner
        uses_td = bool(self._coefficients["td"])
        prioritized = isinstance(group.replay, PrioritizedReplay)
        sums: list[dict[str, Tensor]] = [{} for _ in group.learners]  # of each loss term, `[members]`

        scale = group.statistics.scale()
        for learner in group.learners:
            learner.enter(scale)
        draws = group.replay.draw(num_steps, batch_size)
        for (rows, weights), is_target_update in zip(draws, target_updates, strict=True):
            batch = group.gather(rows, uses_td=uses_td)
            if weights is not None:
                batch["weights"] = weights
            group.num_steps += 1
            errors = []
            for learner, own_sums in zip(group.learners, sums, strict=True):
                self._step(learner, self._loss(group, learner, batch))
                if learner.averages:
                    share = 1.0 / (1.0 + config.weight_averaging * (group.num_steps - 1))
                    torch._foreach_lerp_(learner.averages, learner.weights, share)
                for name, value in self._loss_terms.items():
                    own_sums[name] = own_sums[name] + value if name in own_sums else value
                if is_target_update and isinstance(learner, Student):  # what learns by TD is never stacked
                    learner.update_targets(config.tau)
                if prioritized:
                    errors.append(self._errors.detach().abs().view(-1, len(rows)).mean(0))
            if isinstance(group.replay, PrioritizedReplay):
                group.replay.update_priorities(rows, torch.stack(errors).mean(0))
        for learner, own_sums in zip(group.learners, sums, strict=True):
            learner.leave()
            self._log_learning(members_of(learner), own_sums, num_steps, num_steps * batch_size)

    def _target_updates(self, group: StudentGroup, num_steps: int, env_steps: int) -> list[bool]:
        """After which of these gradient steps the target networks move, as if each came at env steps of its own.

        RLlib makes one gradient step a call, and looks at `target_network_update_freq` after each.
        """
        freq = group.config.target_network_update_freq
        since = env_steps - self.last_update_ts_by_mid[next(iter(group.students))]  # they all move together
        due = min(num_steps, since // freq) if freq else num_steps
        last = env_steps - since % freq if freq else env_steps
        for name in group.students if due else ():
            self.last_update_ts_by_mid[name] = last
            self.metrics.log_value((name, NUM_TARGET_UPDATES), due, reduce="lifetime_sum")
            self.metrics.log_value((name, LAST_TARGET_UPDATE_TS), last, reduce="max")
        return [(step + 1) * due // num_steps > step * due // num_steps for step in range(num_steps)]

    @override(DQNTorchLearner)
    def after_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """With TD without RLlib's update of the target networks: theirs come between the gradient steps."""
        if self.config.uses_td:
            super(DQNLearner, self).after_gradient_based_update(timesteps=timesteps)
        else:
            super().after_gradient_based_update(timesteps=timesteps)

    def _loss(self, group: StudentGroup, learner: Student | StackedStudents, batch: Mapping[str, Tensor]) -> Tensor:
        """The sum of what each of them minimises: a scalar."""
        bf16 = torch.autocast(self._device.type, torch.bfloat16) if group.config.bf16 else nullcontext()
        if isinstance(learner, Student):
            with bf16:
                fwd_out = self._forward_td(learner, batch) if self._coefficients["td"] else learner.outputs(batch)
            if group.config.bf16:  # the loss is float32's
                fwd_out = {name: output.float() for name, output in fwd_out.items()}
            return self.compute_loss_for_module(
                module_id=learner.name, config=group.config, batch=batch, fwd_out=fwd_out
            )
        with bf16:
            outputs = learner.q_values(batch[Columns.OBS]).float()  # [N, B, A]
        by_row = self._loss_by_row(group, learner.members[0], batch, {QF_PREDS: outputs}, group.config)
        return self._weigh(by_row)

    def _forward_td(self, student: Student, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What RLlib's `forward_train()` puts out, which would also send zeros back through all of the next states."""
        next_states = {Columns.OBS: batch[Columns.NEXT_OBS]}
        with torch.no_grad():
            outputs = {QF_TARGET_NEXT_PREDS: student.module.forward_target(next_states)[QF_PREDS]}
            if self.config.double_q:
                outputs[QF_NEXT_PREDS] = student.outputs(next_states)[QF_PREDS]
        return outputs | student.outputs(batch)  # last: its features are the ones that are watched

    def _step(self, learner: Student | StackedStudents, loss: Tensor) -> None:
        for param in learner.params:
            param.grad = None  # as optimizer.zero_grad(), at a tenth of its cost
        loss.backward()
        if self.distributed:
            self._average_gradients(learner.params)
        _clip_gradients(learner.params, self.config)
        assert learner.optimizer is not None  # it has one, or is a member of a stack
        learner.optimizer.step()

    # --- The loss -----------------------------------------------------------------------------------------------------

    def _loss_by_row(
        self,
        group: StudentGroup,
        student: Student,
        batch: Mapping[str, Tensor],
        fwd_out: Mapping[str, Tensor],
        config: Any,
    ) -> dict[str, Tensor]:
        """Each loss that has a coefficient, times its importance weights: `[B]`."""
        by_row: dict[str, Tensor] = {}
        if self._coefficients["kd"]:
            by_row["kd_loss"] = self._errors = self._distillation_loss(group, student, batch, fwd_out, config)
        if self._coefficients["td"]:
            self._errors = losses.td_error(
                batch,
                student.to_q(fwd_out[QF_PREDS]),
                fwd_out[QF_TARGET_NEXT_PREDS],
                next_q=student.to_q(fwd_out[QF_NEXT_PREDS]) if config.double_q else None,
                gamma=config.gamma,
            )
            by_row["td_loss"] = losses.td(self._errors, loss_fn=config.td_error_loss_fn)
        return {name: batch["weights"] * rows for name, rows in by_row.items()} if "weights" in batch else by_row

    def _weigh(self, by_row: Mapping[str, Tensor]) -> Tensor:
        """Σ coefficient · mean over the batch, of losses `[B]`, or `[N, B]` of N students: a scalar."""
        terms = {name: rows.mean(-1) for name, rows in by_row.items()}
        self._loss_terms = {name: term.detach() for name, term in terms.items()}
        total: Any = None
        for name, term in terms.items():
            coefficient = self._coefficients[name.removesuffix("_loss")]
            weighted = term if coefficient == 1.0 else coefficient * term
            total = weighted if total is None else total + weighted
        return total.sum() if total.ndim else total

    def _distillation_loss(
        self,
        group: StudentGroup,
        student: Student,
        batch: Mapping[str, Tensor],
        fwd_out: Mapping[str, Tensor],
        config: Any,
    ) -> Tensor:
        """D with its options, unreduced: `[B]`."""
        loss = self._divergence(group, student, batch, fwd_out, config)
        if config.gap_weighting:
            loss = loss * losses.gap_weights(batch[TEACHER_Q])
        if config.value_gate:
            loss = loss * losses.value_gate(student.to_q(fwd_out[QF_PREDS]), batch[TEACHER_Q])
        if student.feature_map is not None:
            hint = losses.feature_matching(student.mapped_features(len(loss)), batch[TEACHER_FEATURES])
            loss = loss + config.feature_coeff * hint
        return loss

    def _divergence(
        self,
        group: StudentGroup,
        student: Student,
        batch: Mapping[str, Tensor],
        fwd_out: Mapping[str, Tensor],
        config: Any,
    ) -> Tensor:
        """The named loss, unreduced: `[B]`."""
        student_q, teacher_q = fwd_out[QF_PREDS], batch[TEACHER_Q]
        if student.scale is not None:
            teacher_q = student.scale.normalize(teacher_q)
        temperatures = {"temperature": group.temperature, "student_temperature": group.student_temperature}
        match config.loss:
            case "mse":
                return losses.mse(student_q, teacher_q)
            case "huber":
                return losses.huber(student_q, teacher_q, delta=config.huber_delta)
            case "kl":
                return losses.policy_kl(student_q, teacher_q, **temperatures)
            case "reverse_kl":
                return losses.reverse_kl(student_q, teacher_q, **temperatures)
            case "jsd":
                return losses.jsd(student_q, teacher_q, beta=config.jsd_beta, **temperatures)
            case "nll":
                return losses.nll(student_q, teacher_q, student_temperature=group.student_temperature)
            case "margin":
                return losses.margin(student_q, teacher_q, margin=config.margin)
            case "categorical":
                return losses.categorical(fwd_out[QF_LOGITS], batch[TEACHER_PROBS])
        raise AssertionError(f"validate() admits only {losses.LOSSES}, not {config.loss!r}.")

    # --- Several Learners --------------------------------------------------------------------------------------------

    def _sum_over_learners(self, tensor: Tensor) -> None:
        torch.distributed.all_reduce(tensor)

    def _average_gradients(self, params: Sequence[Tensor]) -> None:
        """One all-reduce of one flat buffer."""
        grads = [param.grad for param in params if param.grad is not None]
        flat = torch.cat([grad.flatten() for grad in grads])
        torch.distributed.all_reduce(flat)
        flat /= self.config.num_learners
        for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(part.view_as(grad))

    # --- Metrics -----------------------------------------------------------------------------------------------------

    def _log_learning(
        self, members: Sequence[Student], sums: Mapping[str, Tensor], num_steps: int, num_rows: int
    ) -> None:
        means = {name: (value / num_steps).view(-1).tolist() for name, value in sums.items()}
        coefficients = {name: self._coefficients[name.removesuffix("_loss")] for name in means}
        for i, student in enumerate(members):
            own = {name: values[i] for name, values in means.items()}
            own[self.TOTAL_LOSS_KEY] = sum(coefficients[name] * value for name, value in own.items())
            if not all(map(math.isfinite, own.values())):
                raise FloatingPointError(
                    f"The loss of '{student.name}' is not finite: {own}. Usual causes are a learning rate that is too "
                    "high, or Q-values that are not finite."
                )
            self.metrics.log_dict(own, key=student.name, window=1)
            self.metrics.log_value((student.name, NUM_MODULE_STEPS_TRAINED), num_rows, reduce="sum")
            self.metrics.log_value((student.name, NUM_MODULE_STEPS_TRAINED_LIFETIME), num_rows, reduce="lifetime_sum")
        self.metrics.log_value((ALL_MODULES, NUM_ENV_STEPS_TRAINED), num_rows, reduce="sum")
        self.metrics.log_value((ALL_MODULES, NUM_ENV_STEPS_TRAINED_LIFETIME), num_rows, reduce="lifetime_sum")


def _resolve(batch_refs: Sequence[Any] | None) -> list[Mapping[str, Any]]:
    """The fragments, behind references one by one: those of an EnvRunner that has died since are lost alone."""
    fragments = []
    for ref in batch_refs or ():
        try:
            fragments.append(receive(ref))
        except ray.exceptions.ObjectLostError as error:
            logger.warning("A fragment is lost with the EnvRunner that sampled it: %s", error)
    return fragments


def _clip_gradients(params: Sequence[Tensor], config: Any) -> None:
    """In place, without a Python loop over the parameters, and without waiting for the device."""
    if config.grad_clip is None:
        return
    if config.grad_clip_by == "value":
        torch.nn.utils.clip_grad_value_(params, config.grad_clip)
    elif config.grad_clip_by == "norm":  # of each tensor
        grads = [param.grad for param in params if param.grad is not None]
        norms = torch.stack(torch._foreach_norm(grads))
        torch._foreach_mul_(grads, (config.grad_clip / (norms + 1e-6)).clamp(max=1.0).unbind())
    else:
        torch.nn.utils.clip_grad_norm_(params, config.grad_clip)
