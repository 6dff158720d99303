"""The Learner: takes labelled columns into its replay shard, and makes many minibatch steps a call."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import ray
import torch
from ray.rllib.algorithms.dqn.default_dqn_rl_module import DefaultDQNRLModule
from ray.rllib.algorithms.dqn.dqn_learner import QF_LOGITS, QF_NEXT_PREDS, QF_PREDS, QF_TARGET_NEXT_PREDS
from ray.rllib.algorithms.dqn.torch.dqn_torch_learner import DQNTorchLearner
from ray.rllib.core import COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.core.rl_module.apis import QNetAPI
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import (
    ALL_MODULES,
    NUM_ENV_STEPS_TRAINED,
    NUM_ENV_STEPS_TRAINED_LIFETIME,
    NUM_MODULE_STEPS_TRAINED,
    NUM_MODULE_STEPS_TRAINED_LIFETIME,
)
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from rllib_kd import losses, students
from rllib_kd.replay import VALID, PrioritizedReplay, make_replay
from rllib_kd.schedules import value_at
from rllib_kd.statistics import QScale, QStatistics
from rllib_kd.teachers.base import TEACHER_FEATURES, TEACHER_PROBS, TEACHER_Q, last_linear

logger = logging.getLogger(__name__)

NUM_GRADIENT_STEPS = "num_gradient_steps"  # of the last update
STATE_AFTER_UPDATE = "_rl_module_state_after_update"  # RLlib's name
#: Columns that distillation alone needs (by most losses), and what TD needs beside them.
DISTILLATION_COLUMNS = (Columns.OBS, TEACHER_Q)
TD_COLUMNS = (Columns.ACTIONS, Columns.REWARDS, Columns.TERMINATEDS, Columns.TRUNCATEDS, VALID)

_DISTILLATION = "distillation"
_MAX_METRIC_STATES = 2_048


class DistillDQNTorchLearner(DQNTorchLearner):
    """RLlib's DQN Learner with a distillation loss, a replay shard of its own and a tight update loop.

    A call of `update()` takes in the columns that it is given (by reference), and makes `num_gradient_steps`
    minibatch steps on rows drawn from the shard. Several Learners all-reduce their gradients; they must make equally
    many steps.
    """

    @override(DQNTorchLearner)
    def build(self) -> None:
        super().build()
        module = self.module[DEFAULT_MODULE_ID].unwrapped()
        if not isinstance(module, QNetAPI):
            raise ValueError(
                f"The student must have Q-values, but {type(module).__name__} does not implement compute_q_values(). "
                "Use RLlib's DQN module, or one that implements QNetAPI."
            )
        seed = self.config.seed
        self.replay = make_replay(
            self.config.replay_buffer_config,
            device=self._device,
            # Each shard is drawn in an order of its own.
            seed=None if seed is None else seed + 1_000 * self._learner_index,
        )
        self._statistics = QStatistics(int(module.action_space.n), device=self._device)
        self._normalizes = (
            self.config.loss in losses.VALUE_LOSSES
            and self.config.normalize_q_values
            and bool(self.config.label_columns)
            and students.has_scalable_head(module)
        )
        self._averages = self.config.weight_averaging > 0.0 and not self.config.uses_td
        # While the student is an average, what it is the average of. None: it is the training weights themselves.
        self._training_weights: list[Tensor] | None = None
        self._num_steps = 0  # lifetime
        # A student that has learned nothing yet starts in the middle of the normalised coordinates.
        self._starts_normalized = True
        self._scale: QScale | None = None  # set while the student's outputs are normalised: inside an update
        self._temperature = self._student_temperature = 1.0  # of the current update
        self._feature_map: nn.Linear | None = None  # made when the first labels show the teacher's width
        if self.config.feature_coeff:
            self._watch_features(module)
        self._coefficients = {"kd": self.config.kd_coeff_at(0), "td": value_at(self.config.td_coeff, 0)}

    @override(DQNTorchLearner)
    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """As RLlib's, with the fused Adam, and reading `adam_epsilon`."""
        params = self.get_parameters(self._module[module_id])
        optimizer = torch.optim.Adam(params, eps=config.adam_epsilon, fused=True)
        self.register_optimizer(module_id=module_id, optimizer=optimizer, params=params, lr_or_lr_schedule=config.lr)

    @override(DQNTorchLearner)
    def _make_modules_ddp_if_necessary(self) -> None:
        """No DDP wrapper: equal weights at the start, and one all-reduce of all gradients a step."""
        if self.distributed:
            for tensor in self.module[DEFAULT_MODULE_ID].state_dict().values():
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
            batch_refs: references to columns, as `DistillEnvRunner.sample_columns()` makes them.
            training_data: the same, as a LearnerGroup passes them.
            timesteps: with the lifetime env steps, for schedules and target updates.
            num_gradient_steps: minibatch steps of this call; the same on every Learner.
            kd_coeff: weight of the distillation loss from here on; None keeps it.
            td_coeff: weight of the TD loss from here on; None keeps it.
            return_state: whether to add the student, as it is then, to the results; as in RLlib's IMPALA.
            kwargs: what LearnerGroup passes to every Learner.

        Returns:
            RLlib's reduced metrics.
        """
        self._check_is_built()
        timesteps = timesteps or {}
        self.before_gradient_based_update(timesteps=timesteps)
        self._weights_seq_no += 1
        self._coefficients = {
            "kd": self._coefficients["kd"] if kd_coeff is None else kd_coeff,
            "td": self._coefficients["td"] if td_coeff is None else td_coeff,
        }

        module_config = self.config.get_config_for_module(DEFAULT_MODULE_ID)
        fresh = self._take_in(_resolve(training_data.batch_refs if training_data is not None else batch_refs))
        self._temperature, self._student_temperature = self._temperatures()
        self._log_agreement(fresh)
        num_steps = self._steps_to_make(num_gradient_steps)
        if num_steps:
            self._learn(num_steps, module_config)
        self.metrics.log_value((DEFAULT_MODULE_ID, NUM_GRADIENT_STEPS), num_steps, reduce="max", window=1)
        self.after_gradient_based_update(timesteps=timesteps)
        results = self.metrics.reduce()
        if return_state:
            state = self.get_state(components=COMPONENT_RL_MODULE, inference_only=True)
            # By reference: the weights go to EnvRunners, not through whoever calls.
            results[STATE_AFTER_UPDATE] = state | {COMPONENT_RL_MODULE: ray.put(state[COMPONENT_RL_MODULE])}
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
        by_row: dict[str, Tensor] = {}  # each [B]
        if self._coefficients["kd"]:
            by_row["kd_loss"] = self._priorities = self._distillation_loss(config, fwd_out, batch)
        if self._coefficients["td"]:
            self._priorities = losses.td_error(
                batch,
                self._to_q(fwd_out[QF_PREDS]),
                fwd_out[QF_TARGET_NEXT_PREDS],
                next_q=self._to_q(fwd_out[QF_NEXT_PREDS]) if config.double_q else None,
                gamma=config.gamma,
            )
            by_row["td_loss"] = losses.td(self._priorities, loss_fn=config.td_error_loss_fn)
        if "weights" in batch:
            by_row = {name: batch["weights"] * rows for name, rows in by_row.items()}
        terms = {name: rows.mean() for name, rows in by_row.items()}
        self._loss_terms = {name: term.detach() for name, term in terms.items()}
        return sum(self._coefficients[name.removesuffix("_loss")] * term for name, term in terms.items())

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
            state[_DISTILLATION] = {
                "q_statistics": self._statistics.get_state(),
                "num_steps": self._num_steps,
                "training_weights": [weight.cpu().numpy().copy() for weight in self._training_weights or ()],
            }
            if self._feature_map is not None:
                state[_DISTILLATION]["feature_map"] = {
                    name: value.cpu().numpy().copy() for name, value in self._feature_map.state_dict().items()
                }
        return state

    @override(DQNTorchLearner)
    def set_state(self, state: dict[str, Any]) -> None:
        feature_map = state.get(_DISTILLATION, {}).get("feature_map")
        if feature_map is not None:  # before the optimizer's state, which counts its parameters
            own_map = self._feature_map or self._make_feature_map(len(feature_map["bias"]))
            own_map.load_state_dict({name: torch.as_tensor(np.asarray(value)) for name, value in feature_map.items()})
        super().set_state(state)
        for optimizer, schedule in self._optimizer_lr_schedules.items():
            if not schedule.use_schedule:  # the config's counts, not that of the state: PBT exchanges states
                self._set_optimizer_lr(optimizer, lr=schedule.get_current_value())
        if COMPONENT_RL_MODULE in state:
            self._forget_training_weights()
        if _DISTILLATION in state:
            own = state[_DISTILLATION]
            self._statistics.set_state(own["q_statistics"])
            self._num_steps = own["num_steps"]
            weights = [torch.as_tensor(np.asarray(weight), device=self._device) for weight in own["training_weights"]]
            self._training_weights = weights or None

    @override(DQNTorchLearner)
    def restore_from_path(self, path: Any, **kwargs: Any) -> None:
        self._forget_training_weights()  # a whole checkpoint brings its own, in set_state()
        super().restore_from_path(path, **kwargs)

    def _forget_training_weights(self) -> None:
        """Whatever is loaded into the module is where learning goes on, and puts out Q-values."""
        self._training_weights, self._starts_normalized = None, False

    # --- One update ---------------------------------------------------------------------------------------------------

    def _steps_to_make(self, num_gradient_steps: int) -> int:
        """None while no loss has a weight, or while a Learner has nothing to draw: all must make equally many."""
        if not num_gradient_steps or not any(self._coefficients.values()):
            return 0
        drawable = torch.tensor(len(self.replay), device=self._device)
        if self.distributed:
            torch.distributed.all_reduce(drawable, op=torch.distributed.ReduceOp.MIN)
        if not drawable and self.config.label_columns and self._statistics.count == 0:
            raise ValueError(
                "There is nothing to learn from: the teacher has given no finite Q-values for any state so far. Does "
                "it see the observations that it was trained on?"
            )
        return num_gradient_steps if drawable else 0

    def _take_in(self, fragments: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Add fragments to the replay and their labels to the statistics; returns some of the labelled states."""
        fresh: list[dict[str, Tensor]] = []
        for fragment in fragments:
            self.replay.add(fragment)
            if not self.config.label_columns:
                continue
            if TEACHER_FEATURES in fragment and self._feature_map is None:
                self._make_feature_map(fragment[TEACHER_FEATURES].shape[-1])
            drawable = slice(None) if VALID not in fragment else fragment[VALID]
            fresh.append({name: torch.tensor(fragment[name][drawable]) for name in DISTILLATION_COLUMNS})
        if not fresh:
            num_actions = int(self.module[DEFAULT_MODULE_ID].action_space.n)
            labels, states = torch.zeros(0, num_actions), {}
        else:
            states = {name: torch.cat([part[name] for part in fresh]) for name in DISTILLATION_COLUMNS}
            labels = states[TEACHER_Q]
        # Also without new states: every Learner takes part in the all-reduce.
        self._statistics.update(labels.to(self._device), reduce=self._sum_over_learners)
        return {name: column[:_MAX_METRIC_STATES].to(self._device) for name, column in states.items()}

    @torch.no_grad()
    def _log_agreement(self, fresh: Mapping[str, Tensor]) -> None:
        """How well the student knows states that it has not been trained on yet."""
        if not fresh or len(fresh[TEACHER_Q]) == 0:
            return
        teacher_q = fresh[TEACHER_Q]
        student_q = self.module[DEFAULT_MODULE_ID].compute_q_values(fresh)[QF_PREDS]
        student_q = student_q.masked_fill(teacher_q == -torch.inf, -torch.inf)
        chosen = student_q.argmax(-1, keepdim=True)
        regret = teacher_q.max(-1).values - teacher_q.gather(-1, chosen).squeeze(-1)
        divergence = losses.policy_kl(
            student_q, teacher_q, temperature=self._temperature, student_temperature=self._student_temperature
        )
        agreement = (chosen.squeeze(-1) == teacher_q.argmax(-1)).float()
        self.metrics.log_dict(
            {
                "teacher_agreement": agreement.mean().item(),
                "q_regret": regret.mean().item(),
                "kl_to_teacher": divergence.mean().item(),
                "temperature": self._temperature,
            },
            key=DEFAULT_MODULE_ID,
            window=1,
        )

    def _learn(self, num_steps: int, config: Any) -> None:
        module = self.module[DEFAULT_MODULE_ID]
        optimizer = self.get_optimizer(DEFAULT_MODULE_ID)
        params = [param for group in optimizer.param_groups for param in group["params"]]
        batch_size = config.train_batch_size_per_learner
        uses_td = bool(self._coefficients["td"])
        sums: dict[str, Tensor] = {}

        averages = self._enter_training(module, params)
        module.train()
        for rows, weights in self.replay.draw(num_steps, batch_size):
            batch = self._gather(rows, uses_td, config)
            if weights is not None:
                batch["weights"] = weights
            # The weights, the loss and the optimizer stay in float32.
            with torch.autocast(self._device.type, torch.bfloat16, enabled=config.bf16):
                fwd_out = module.forward_train(batch) if uses_td else module.compute_q_values(batch)
            if config.bf16:
                fwd_out = {name: output.float() for name, output in fwd_out.items()}
            loss = self.compute_loss_for_module(
                module_id=DEFAULT_MODULE_ID, config=config, batch=batch, fwd_out=fwd_out
            )
            for param in params:
                param.grad = None  # as optimizer.zero_grad(), at a tenth of its cost
            loss.backward()
            if self.distributed:
                self._average_gradients(params)
            _clip_gradients(params, config)
            optimizer.step()
            if isinstance(self.replay, PrioritizedReplay):
                self.replay.update_priorities(rows, self._priorities.detach())
            self._num_steps += 1
            if averages:
                _average_into(
                    averages, params, share=1.0 / (1.0 + self.config.weight_averaging * (self._num_steps - 1))
                )
            for name, value in {self.TOTAL_LOSS_KEY: loss.detach(), **self._loss_terms}.items():
                sums[name] = sums[name] + value if name in sums else value
        self._leave_training(module, params, averages)
        self._log_learning(sums, num_steps, num_steps * batch_size)

    def _gather(self, rows: Tensor, uses_td: bool, config: Any) -> dict[str, Tensor]:
        batch = self.replay.gather(rows, (Columns.OBS, *config.label_columns))
        if uses_td:
            batch |= self.replay.gather(rows, (Columns.ACTIONS,))
            batch |= self.replay.gather_transitions(rows, n_step=config.n_step, gamma=config.gamma)
        return batch

    def _distillation_loss(self, config: Any, fwd_out: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        """D with its options, unreduced: `[B]`."""
        loss = self._divergence(config, fwd_out, batch)
        if config.gap_weighting:
            loss = loss * losses.gap_weights(batch[TEACHER_Q])
        if config.value_gate:
            loss = loss * losses.value_gate(self._to_q(fwd_out[QF_PREDS]), batch[TEACHER_Q])
        if self._feature_map is not None:
            features = self._features[: len(loss)].float()  # with double Q-learning those of the next states follow
            hint = losses.feature_matching(self._feature_map(features), batch[TEACHER_FEATURES])
            loss = loss + config.feature_coeff * hint
        return loss

    def _divergence(self, config: Any, fwd_out: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        """The named loss, unreduced: `[B]`."""
        student_q, teacher_q = fwd_out[QF_PREDS], batch[TEACHER_Q]
        if self._scale is not None:
            teacher_q = self._scale.normalize(teacher_q)
        temperatures = {"temperature": self._temperature, "student_temperature": self._student_temperature}
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
                return losses.nll(student_q, teacher_q, student_temperature=self._student_temperature)
            case "margin":
                return losses.margin(student_q, teacher_q, margin=config.margin)
            case "categorical":
                return losses.categorical(fwd_out[QF_LOGITS], batch[TEACHER_PROBS])
        raise AssertionError(f"validate() admits only {losses.LOSSES}, not {config.loss!r}.")

    def _temperatures(self) -> tuple[float, float]:
        """What divides the teacher's and the student's outputs, so that the probabilities are equally sharp."""
        median_gap = self._statistics.gap_quantile(0.5)
        temperature = self.config.temperature
        if temperature == "auto":
            temperature = self.config.AUTO_TEMPERATURE_GAPS * median_gap
        if self.config.student_temperature is not None:
            return temperature, self.config.student_temperature
        if self.config.loss not in losses.POLICY_LOSSES or self.config.uses_td:
            return temperature, temperature  # both put out Q-values
        return temperature, temperature / median_gap  # the student's outputs count in median action gaps

    # --- Feature matching ---------------------------------------------------------------------------------------------

    def _watch_features(self, module: Any) -> None:
        """Keep what the student's last layer gets, at each forward pass."""
        if not isinstance(module, DefaultDQNRLModule):
            raise ValueError(
                f"`feature_coeff` needs a student with RLlib's DQN architecture, got {type(module).__name__}. Set it "
                "to 0."
            )

        def keep(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._features = inputs[0]

        last_linear(module.af).register_forward_pre_hook(keep)

    def _make_feature_map(self, num_teacher_units: int) -> nn.Linear:
        """The linear map from the student's features to the teacher's: of the Learner, and in its optimizer."""
        num_units = last_linear(self.module[DEFAULT_MODULE_ID].unwrapped().af).in_features
        self._feature_map = nn.Linear(num_units, num_teacher_units, device=self._device)
        parameters = list(self._feature_map.parameters())
        for parameter in parameters:
            nn.init.zeros_(parameter)  # on all Learners alike
        optimizer = self.get_optimizer(DEFAULT_MODULE_ID)
        optimizer.add_param_group({"params": parameters, "lr": optimizer.param_groups[0]["lr"]})
        return self._feature_map

    # --- Inside and outside of an update ------------------------------------------------------------------------------
    #
    # Outside, the module is the student that acts and is saved. Inside, it holds the weights that learn. Two things
    # come between them: normalised coordinates (students.py), and an average over the last steps, which spares the
    # user a schedule of the learning rate (Polyak & Juditsky 1992; over a share of the steps so far: Shamir & Zhang
    # 2013, arXiv 1212.1824).

    def _enter_training(self, module: Any, params: Sequence[Tensor]) -> list[Tensor]:
        """Put the training weights into the module; returns the averages, or nothing."""
        if self._normalizes:
            self._scale = self._statistics.scale()
        self._normalize_head(module)
        if not self._averages:
            return []
        averages = [param.detach().clone() for param in params]
        if self._training_weights is not None:
            _copy_into(params, self._training_weights)
            self._normalize_head(module)
        return averages

    def _leave_training(self, module: Any, params: Sequence[Tensor], averages: Sequence[Tensor]) -> None:
        self._denormalize_head(module)
        if averages:
            self._training_weights = [param.detach().clone() for param in params]
            _copy_into(params, averages)
            self._denormalize_head(module)
        self._scale, self._starts_normalized = None, False

    def _normalize_head(self, module: Any) -> None:
        if self._scale is not None and not self._starts_normalized:
            students.to_normalized(module, self._scale)

    def _denormalize_head(self, module: Any) -> None:
        if self._scale is not None:
            students.to_q_values(module, self._scale)

    def _to_q(self, outputs: Tensor) -> Tensor:
        return outputs if self._scale is None else self._scale.denormalize(outputs)

    # --- Several Learners --------------------------------------------------------------------------------------------

    def _sum_over_learners(self, tensor: Tensor) -> None:
        if self.distributed:
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

    def _log_learning(self, sums: Mapping[str, Tensor], num_steps: int, num_rows: int) -> None:
        means = {name: (value / num_steps).item() for name, value in sums.items()}
        if not all(map(math.isfinite, means.values())):
            raise FloatingPointError(
                f"The loss is not finite: {means}. Usual causes are a learning rate that is too high, or Q-values that "
                "are not finite."
            )
        self.metrics.log_dict(means, key=DEFAULT_MODULE_ID, window=1)
        for key in ((ALL_MODULES, NUM_ENV_STEPS_TRAINED), (DEFAULT_MODULE_ID, NUM_MODULE_STEPS_TRAINED)):
            self.metrics.log_value(key, num_rows, reduce="sum")
        for key in (
            (ALL_MODULES, NUM_ENV_STEPS_TRAINED_LIFETIME),
            (DEFAULT_MODULE_ID, NUM_MODULE_STEPS_TRAINED_LIFETIME),
        ):
            self.metrics.log_value(key, num_rows, reduce="lifetime_sum")


def _resolve(batch_refs: Sequence[ray.ObjectRef] | None) -> list[Mapping[str, Any]]:
    """The fragments behind references, one by one: those of an EnvRunner that has died since are lost alone."""
    fragments = []
    for ref in batch_refs or ():
        try:
            fragments.append(ray.get(ref))
        except ray.exceptions.ObjectLostError as error:
            logger.warning("A fragment is lost with the EnvRunner that sampled it: %s", error)
    return fragments


@torch.no_grad()
def _copy_into(params: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    for param, weight in zip(params, weights, strict=True):
        param.copy_(weight)


def _average_into(averages: list[Tensor], params: list[Tensor], *, share: float) -> None:
    """Adds share · (params − averages), in place."""
    get_ema_multi_avg_fn(1.0 - share)(averages, params, None)


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
