"""The Learner: adds labelled columns to its replay shard, and makes many minibatch steps in each call."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import ray
import torch
from ray.rllib.algorithms.dqn.dqn_learner import DQNLearner
from ray.rllib.algorithms.dqn.torch.dqn_torch_learner import DQNTorchLearner
from ray.rllib.core import COMPONENT_OPTIMIZER, COMPONENT_RL_MODULE
from ray.rllib.core.learner.learner import DEFAULT_OPTIMIZER
from ray.rllib.core.learner.training_data import TrainingData
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

from rllib_kd.allocator import keep_freed_memory
from rllib_kd.learner.distributed import fails_with_its_peers, keeps_failure
from rllib_kd.learner.gradients import gradient_of
from rllib_kd.learner.group import StudentGroup
from rllib_kd.learner.learning_rate import learning_rate_for
from rllib_kd.learner.objective import Loss, Objective
from rllib_kd.learner.optimizer_states import fitted, keep_epsilon
from rllib_kd.learner.optimizer_step import take_step, target_updates
from rllib_kd.learner.sequences import kinds_of
from rllib_kd.learner.stack import StackedStudents, members_of, stackable
from rllib_kd.learner.student import Student, check_has_q_values, make_student
from rllib_kd.learner.trees import TreeStudent
from rllib_kd.networks.dqn_module import count_parameters
from rllib_kd.networks.trees.module import TreeRLModule
from rllib_kd.networks.weights import Weights, set_weights, weights_of
from rllib_kd.public import public
from rllib_kd.schedules import value_at
from rllib_kd.students.restarts import is_named
from rllib_kd.wire import pack_weights, receive, receive_all

logger = logging.getLogger(__name__)

NUM_GRADIENT_STEPS = "num_gradient_steps"  # of the last update
NUM_REGROWTHS = "num_regrowths"  # likewise, of the trees
STATE_AFTER_UPDATE = "_rl_module_state_after_update"  # RLlib's name
_DISTILLATION = "distillation"
_TARGET_UPDATES = "last_update_ts_by_mid"  # env steps at the last update of each target network


@public
class DistillDQNTorchLearner(DQNTorchLearner):
    """RLlib's DQN Learner with a distillation loss, a replay shard of its own and a tight update loop.

    `update()` adds columns to the shard (references of other processes) and makes `num_gradient_steps` minibatch steps
    on rows drawn from it. Several Learners all-reduce their gradients, and must make the same number of steps.
    """

    num_saves = 0  # by which the Algorithm sees whether a remote Learner has saved: RLlib drops its errors

    @override(DQNTorchLearner)
    def build(self) -> None:
        keep_freed_memory()
        #: By module ID in multi-agent settings; otherwise one.
        self.groups: dict[str, StudentGroup] = {}
        super().build()
        for group in self.groups.values():
            if group.config.feature_coeff:
                for student in group.students.values():
                    student.watch_features()  # now that the target networks are made, which are copies
            group.note_weights()
        #: Weights of the distillation loss and of the TD loss, as of the last update.
        self.kd_coeff: float = self.config.kd_coeff_at(0)
        self.td_coeff: float = value_at(self.config.td_coeff, 0)

    @override(DQNTorchLearner)
    def configure_optimizers(self) -> None:
        """Create one optimizer for each student, or one for each stack of students."""
        for group_id, module_ids in self.config.student_groups(self.module.keys()).items():
            modules = {module_id: self.module[module_id].unwrapped() for module_id in module_ids}
            config = self.config.get_config_for_module(module_ids[0])
            for module in modules.values():
                check_has_q_values(module, uses_td=config.uses_td)
            learners: list[Student | StackedStudents] = []
            own_loss = not self._overrides_loss
            kinds = kinds_of(modules, config)
            student_of = partial(make_student, modules, config, own_loss=own_loss, kind=kinds.student)
            trees = {name: module for name, module in modules.items() if isinstance(module, TreeRLModule)}
            networks = {name: module for name, module in modules.items() if name not in trees}
            is_ours = own_loss and not self._overrides("configure_optimizers_for_module")
            for members in stackable(networks, config, is_ours=is_ours):
                if len(members) == 1:
                    self.configure_optimizers_for_module(members[0], config)
                    optimizer = self.get_optimizer(members[0])
                    learners.append(student_of(members[0], optimizer=optimizer))
                    continue
                stack = kinds.stack([student_of(member, optimizer=None) for member in members])
                size = max(count_parameters(modules[member]) for member in members)
                stack.optimizer = self._make_optimizer(ALL_MODULES, stack.name, stack.params, config, size)
                learners.append(stack)
            self._warn_of_cost(learners)
            seed = self.config.seed
            self.groups[group_id] = kinds.group(
                learners,
                config,
                trees=[TreeStudent(name, module) for name, module in trees.items()],
                num_actions=int(modules[module_ids[0]].action_space.n),
                outputs=self.config.outputs_of(group_id),
                device=self._device,
                # Each shard is drawn in a different order.
                seed=None if seed is None else seed + 1_000 * self._learner_index + len(self.groups),
            )

    @override(DQNTorchLearner)
    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Create RLlib's optimizer as a fused Adam, which reads `adam_epsilon`."""
        module = self._module[module_id]
        size = count_parameters(module.unwrapped())
        self._make_optimizer(module_id, DEFAULT_OPTIMIZER, self.get_parameters(module), config, size)

    @override(DQNTorchLearner)
    def _make_modules_ddp_if_necessary(self) -> None:
        """Equalize the first weights instead of wrapping in DDP: each step makes one all-reduce of all gradients."""
        if self.distributed:
            for module in self.module.values():
                for tensor in module.state_dict().values():
                    torch.distributed.broadcast(tensor, src=0)

    @override(DQNTorchLearner)
    @fails_with_its_peers
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
        is_again: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Add new columns to the replay, and make minibatch steps.

        Args:
            batch_refs: columns or references to them, as `DistillEnvRunner.sample_columns()` returns them; in
                multi-agent settings dicts of columns by module.
            training_data: `batch_refs` as a LearnerGroup passes them.
            timesteps: dict with the lifetime env steps, for schedules and target updates.
            num_gradient_steps: minibatch steps of each student in this call, ≥ 0; the same on every Learner.
            kd_coeff: new weight of the distillation loss, ≥ 0; None keeps the last one.
            td_coeff: new weight of the TD loss, ≥ 0; None keeps the last one.
            is_again: whether the columns were in the replay before, so that their labels are counted already.
            return_state: whether to add the students' state after the steps to the results; as in RLlib's IMPALA.
            kwargs: further arguments that a LearnerGroup passes to every Learner.

        Returns:
            RLlib's reduced metrics.

        Raises:
            ValueError: no state of a teacher's fragments so far has finite observations, rewards and labels (sequences
                of recurrent students are waited for), or a loss is not finite.
        """
        self._check_is_built()
        timesteps = dict(timesteps or {})
        env_steps = timesteps.get(NUM_ENV_STEPS_SAMPLED_LIFETIME, 0)
        self.before_gradient_based_update(timesteps=timesteps)
        self._weights_seq_no += 1
        self.kd_coeff = self.kd_coeff if kd_coeff is None else kd_coeff
        self.td_coeff = self.td_coeff if td_coeff is None else td_coeff
        refs = training_data.batch_refs if training_data is not None else batch_refs
        fragments = [self.config.by_group(fragment) for fragment in receive_all(refs)]
        reduce = torch.distributed.all_reduce if self.distributed else None
        for group_id, group in self.groups.items():
            own = [fragment[group_id] for fragment in fragments if group_id in fragment]
            fresh = group.take_in(own, reduce=reduce, is_again=is_again)
            # Recorded rows come again, so that those of a later pass are not new: agreement is on held-out ones.
            self._log_agreement(group, {} if self.config.is_offline else fresh)
            num_steps = self._steps_to_make(group, num_gradient_steps)
            self._log_trees(group, group.regrow_trees(are_all=not any(own)) if self.kd_coeff else [])
            if num_steps:
                self._learn(group, num_steps, env_steps)
            self._log_steps(group, num_steps)
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
        """Return kd_coeff · D + td_coeff · TD, averaged over the batch with its importance weights.

        A subclass may return any other scalar, with or without calling this. Students are not stacked then, and neither
        observations nor Q-values are normalised. `kd_loss`, `td_loss` and the priorities of a prioritized replay are
        still those of `objective()`, computed without gradients.

        Args:
            module_id: the student's module ID.
            config: the student's config.
            batch: `obs` `[B, ...]` and `teacher_q` `[B, A]`; also `teacher_probs` `[B, A, atoms]` for "categorical",
                RLlib's DQN columns for TD, and `weights` `[B]` of a prioritized replay.
            fwd_out: `qf_preds` `[B, A]`, for a C51 also `qf_logits` `[B, A, atoms]`; while `td_coeff` is not 0 also the
                outputs of `forward_train()`.

        Returns:
            A scalar.
        """
        group = self._group_of(module_id)
        return self._objective(group, config)(group.students[module_id], batch, fwd_out).total

    def objective(self, module_id: str) -> Objective:
        """Return a student's objective in this update, unless a subclass overrides `compute_loss_for_module()`."""
        group = self._group_of(module_id)
        return self._objective(group, group.config)

    # --- State --------------------------------------------------------------------------------------------------------

    @override(DQNTorchLearner)
    def get_state(
        self,
        components: str | Collection[str] | None = None,
        *,
        not_components: str | Collection[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        if self._check_component(COMPONENT_OPTIMIZER, components, not_components):
            self._return_moments()
        state = super().get_state(components, not_components=not_components, **kwargs)
        if self._check_component(_DISTILLATION, components, not_components):
            state[_DISTILLATION] = {group_id: group.get_state() for group_id, group in self.groups.items()}
            state[_TARGET_UPDATES] = dict(self.last_update_ts_by_mid)
        return state

    @override(DQNTorchLearner)
    def set_state(self, state: dict[str, Any]) -> None:
        own = state.get(_DISTILLATION, {})
        self._return_moments()  # of those that have no part in the state
        for group_id, group_state in own.items():
            self.groups[group_id].restore_feature_maps(group_state)
        if saved := state.get(COMPONENT_OPTIMIZER):
            state = {**state, COMPONENT_OPTIMIZER: fitted(saved, self.groups.values())}
        super().set_state(state)
        for optimizer, schedule in self._optimizer_lr_schedules.items():
            keep_epsilon(optimizer)
            if not schedule.use_schedule:  # the config's counts, not that of the state: PBT exchanges states
                self._set_optimizer_lr(optimizer, lr=schedule.get_current_value())
        if COMPONENT_RL_MODULE in state:
            self.module.set_state(state[COMPONENT_RL_MODULE])  # RLlib ignores those of fewer updates than its own
            self._forget_training_weights()
        for group_id, group_state in own.items():
            self.groups[group_id].set_state(group_state)
        for group in self.groups.values():
            group.divide()
        self.last_update_ts_by_mid.update(state.get(_TARGET_UPDATES, {}))

    def replay_arrays(self, *, with_rows: bool = True) -> dict[str, np.ndarray]:
        """Return this Learner's replay, which `get_state()` does not contain: each Learner has a different one.

        Args:
            with_rows: whether to return the rows, or only where their order of drawing stands.
        """
        return {
            f"{group_id}/{name}": array
            for group_id, group in self.groups.items()
            for name, array in group.replay_arrays(with_rows=with_rows).items()
        }

    def refill_replay(self, shards: Sequence[Mapping[str, np.ndarray]]) -> bool:
        """Fill the replay from `replay_arrays()` of all Learners, of which there may have been more or fewer.

        Returns:
            Whether they have the columns that are needed now; a group without them keeps its replay as it is.
        """
        count = max(1, self.config.num_learners)
        is_own = len(shards) == count
        taken = shards[self._learner_index :: count] or [shards[self._learner_index % len(shards)]]
        by_group: dict[str, list[dict[str, np.ndarray]]] = {group_id: [{} for _ in taken] for group_id in self.groups}
        for place, shard in enumerate(taken):
            for name, array in shard.items():
                group_id, _, rest = name.partition("/")
                by_group[group_id][place][rest] = array
        fits = [self.groups[group_id].refill_replay(own, is_own=is_own) for group_id, own in by_group.items()]
        return all(fits)  # each group was asked

    @override(DQNTorchLearner)
    def save_to_path(self, *args: Any, **kwargs: Any) -> str:
        saved = super().save_to_path(*args, **kwargs)
        self.num_saves += 1
        return saved

    @override(DQNTorchLearner)
    @keeps_failure
    def restore_from_path(self, path: Any, **kwargs: Any) -> None:
        self._forget_training_weights()  # a whole checkpoint brings its own, in set_state()
        super().restore_from_path(path, **kwargs)
        for group in self.groups.values():
            group.note_weights()

    def agreement(self, rows: Any) -> dict[str, dict[str, float]]:
        """Return how each student agrees with its teacher on rows that it never learns from.

        Args:
            rows: columns `obs` and `teacher_q`, or a reference to them.
        """
        group = next(iter(self.groups.values()))
        return group.agreement(group.as_states(receive(rows)))

    # --- Restarts, and students that rest -----------------------------------------------------------------------------

    def q_regret(self) -> dict[str, float]:
        """Return the mean regret of each module on states of the replay, in units of the labels; NaN without states."""
        return {name: regret for group in self.groups.values() for name, regret in group.q_regret().items()}

    def give_weights(self, weights: Mapping[str, Weights]) -> dict[str, Weights]:
        """Give weights to modules by ID, outside of an update, until they get back their own, which are returned."""
        had: dict[str, Weights] = {name: weights_of(self.module[name], new) for name, new in weights.items()}
        for name, new in weights.items():
            with self._group_of(name).students[name].unnoticed():
                set_weights(self.module[name], new)
        return had

    def rest(self, names: Sequence[str]) -> None:
        """Let modules of a family rest, by ID, and the others learn, as in `StudentGroup.rest()`."""
        for group in self.groups.values():
            group.rest(names)

    def _return_moments(self) -> None:
        for group in self.groups.values():
            group.return_moments()

    def _forget_training_weights(self) -> None:
        for group in self.groups.values():
            group.forget()

    def _warn_of_cost(self, learners: Sequence[Student | StackedStudents]) -> None:
        if (restarts := self.config.num_copies) > 1 and not all(learner.is_one_batch for learner in learners):
            logger.warning(
                "restarts=%d: these students are not one batch of matrices, so each copy costs nearly as much as one "
                "student. Plain MLPs are, without TD, features, gradient clipping and a loss or optimizer of your own.",
                restarts,
            )

    # --- Students and their objectives --------------------------------------------------------------------------------

    @property
    def _overrides_loss(self) -> bool:
        return self._overrides("compute_loss_for_module")

    def _overrides(self, hook: str) -> bool:
        return getattr(type(self), hook) is not getattr(DistillDQNTorchLearner, hook)

    def _group_of(self, module_id: str) -> StudentGroup:
        return next(group for group in self.groups.values() if module_id in group.students)

    def _objective(self, group: StudentGroup, config: Any) -> Objective:
        temperatures = group.temperature, group.student_temperature
        return Objective(config, self.kd_coeff, self.td_coeff, *temperatures, group.median_gap)

    def _make_optimizer(
        self, module_id: str, name: str, params: Sequence[Tensor], config: Any, num_parameters: int
    ) -> torch.optim.Adam:
        optimizer = torch.optim.Adam(params, eps=config.adam_epsilon, fused=True)
        lr = learning_rate_for(num_parameters) if config.lr is None else config.lr
        self.register_optimizer(
            module_id=module_id, optimizer_name=name, optimizer=optimizer, params=params, lr_or_lr_schedule=lr
        )
        return optimizer

    # --- One update ---------------------------------------------------------------------------------------------------

    def _steps_to_make(self, group: StudentGroup, num_gradient_steps: int) -> int:
        """Return 0 while no loss has a weight, or a Learner's replay is empty: all must make equally many steps."""
        if not num_gradient_steps or not (self.kd_coeff or self.td_coeff):
            return 0
        drawable = torch.tensor(len(group.replay), device=self._device)
        if self.distributed:
            torch.distributed.all_reduce(drawable, op=torch.distributed.ReduceOp.MIN)
        if not drawable:
            group.check_can_learn()
        return num_gradient_steps if drawable and group.learners else 0

    def _learn(self, group: StudentGroup, num_steps: int, env_steps: int) -> None:
        objective = self._objective(group, group.config)
        uses_td = bool(self.td_coeff)
        moves = self._target_updates(group, num_steps, env_steps) if group.config.uses_td else [False] * num_steps
        sums: list[dict[str, Tensor]] = [{} for _ in group.learners]  # of each loss term, `[members]`
        with group.entered():
            # A loss of the user's own gets no columns that it does not know.
            more = (lambda _: {}) if self._overrides_loss else objective.target_columns
            batches = group.batches(num_steps, uses_td=uses_td, more=more)
            own_loss = partial(self._own_loss, objective) if self._overrides_loss else None
            gradients = [gradient_of(learner, objective, own_loss, uses_td=uses_td) for learner in group.learners]
            for (rows, batch), moves_targets in zip(batches, moves, strict=True):
                errors = []
                for learner, gradient, own_sums in zip(group.learners, gradients, sums, strict=True):
                    loss = gradient(batch)
                    self._take_step(learner, group.config)
                    for name, value in loss.terms.items():
                        own_sums[name] = own_sums[name] + value if name in own_sums else value
                    errors.append(loss.errors)
                group.after_step(rows, errors, moves_targets=moves_targets)
        num_rows = num_steps * group.config.learner_batch_size
        for learner, own_sums in zip(group.learners, sums, strict=True):
            means = {name: (value / num_steps).view(-1).tolist() for name, value in own_sums.items()}
            self._log_learning(objective, members_of(learner), means, num_rows)

    def _own_loss(
        self, objective: Objective, learner: Student, batch: Mapping[str, Tensor], fwd_out: Mapping[str, Tensor]
    ) -> Loss:
        """Return the loss of a subclass that overrides it, and may write into its batch, which all students share."""
        own = {name: column.clone() for name, column in batch.items()}
        total = self.compute_loss_for_module(
            module_id=learner.name, config=objective.config, batch=own, fwd_out=fwd_out
        )
        with torch.no_grad():
            ours = objective(learner, batch, fwd_out)
        return Loss(total, ours.terms | {self.TOTAL_LOSS_KEY: total.detach()}, ours.errors)

    def _take_step(self, learner: Student | StackedStudents, config: Any) -> None:
        assert learner.optimizer is not None  # it has one, or is a member of a stack
        take_step(learner.params, learner.optimizer, config=config, num_learners=max(1, self.config.num_learners))

    def _target_updates(self, group: StudentGroup, num_steps: int, env_steps: int) -> list[bool]:
        """Return after which of these gradient steps the target networks are updated."""
        moves, last = target_updates(
            num_steps,
            freq=group.config.target_network_update_freq,
            last=self.last_update_ts_by_mid[next(iter(group.students))],  # they all move together
            env_steps=env_steps,
        )
        for name in group.students if any(moves) else ():
            self.last_update_ts_by_mid[name] = last
        for name in group.named if any(moves) else ():
            self.metrics.log_value((name, NUM_TARGET_UPDATES), sum(moves), reduce="lifetime_sum")
            self.metrics.log_value((name, LAST_TARGET_UPDATE_TS), last, reduce="max")
        return moves

    @override(DQNTorchLearner)
    def after_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """Skip RLlib's update of the target networks with TD: they are updated between the gradient steps."""
        if self.config.uses_td:
            super(DQNLearner, self).after_gradient_based_update(timesteps=timesteps)
        else:
            super().after_gradient_based_update(timesteps=timesteps)

    # --- Metrics -----------------------------------------------------------------------------------------------------

    def _log_agreement(self, group: StudentGroup, fresh: Mapping[str, Tensor]) -> None:
        found = group.agreement(fresh) or ({name: {} for name in group.named} if self.config.is_offline else {})
        for name, agreement in found.items():
            self.metrics.log_dict(agreement | {"temperature": group.temperature}, key=name, window=1)

    def _log_steps(self, group: StudentGroup, num_steps: int) -> None:
        learning = group.learning
        for name in group.named:
            own_steps = num_steps if name in learning else 0
            self.metrics.log_value((name, NUM_GRADIENT_STEPS), own_steps, reduce="max", window=1)

    def _log_trees(self, group: StudentGroup, regrown: Sequence[str]) -> None:
        for student in group.trees.students:
            if is_named(student.name):
                tree = student.module.tree
                sizes = {"num_leaves": tree.num_leaves, "depth": tree.depth, "num_parameters": tree.num_parameters}
                self.metrics.log_dict(sizes, key=student.name, window=1)
                self.metrics.log_value((student.name, NUM_REGROWTHS), int(bool(regrown)), reduce="max", window=1)

    def _log_learning(
        self, objective: Objective, members: Sequence[Student], means: Mapping[str, list[float]], num_rows: int
    ) -> None:
        for i, student in enumerate(members):
            own = {name: values[i] for name, values in means.items()}
            if self.TOTAL_LOSS_KEY not in own:
                own[self.TOTAL_LOSS_KEY] = sum(objective.coefficient(name) * value for name, value in own.items())
            if not all(map(math.isfinite, own.values())):
                raise ValueError(
                    f"The loss of '{student.name}' is not finite: {own}. Usual causes are a learning rate that is too "
                    "high (lower lr), or Q-values that are not finite."
                )
            if not is_named(student.name):
                continue
            self.metrics.log_dict(own, key=student.name, window=1)
            self.metrics.log_value((student.name, NUM_MODULE_STEPS_TRAINED), num_rows, reduce="sum")
            self.metrics.log_value((student.name, NUM_MODULE_STEPS_TRAINED_LIFETIME), num_rows, reduce="lifetime_sum")
        self.metrics.log_value((ALL_MODULES, NUM_ENV_STEPS_TRAINED), num_rows, reduce="sum")
        self.metrics.log_value((ALL_MODULES, NUM_ENV_STEPS_TRAINED_LIFETIME), num_rows, reduce="lifetime_sum")
