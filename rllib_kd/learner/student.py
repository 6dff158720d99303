"""One student, inside and outside of an update."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from ray.rllib.algorithms.dqn.default_dqn_rl_module import QF_NEXT_PREDS, QF_TARGET_NEXT_PREDS, DefaultDQNRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import QNetAPI, TargetNetworkAPI
from torch import Tensor, nn

from rllib_kd.learner.label_statistics import QScale
from rllib_kd.learner.losses import VALUE_LOSSES
from rllib_kd.learner.observation_scale import NORMALIZED_OBS, ObservationScale, shrink, take_normalized, take_raw
from rllib_kd.learner.own_states import OwnStates
from rllib_kd.learner.scale import has_scalable_head, to_normalized, to_q_values
from rllib_kd.networks.dqn_module import QF_PREDS, first_linears, is_linear
from rllib_kd.networks.mlp_gradient import MLPGradient
from rllib_kd.networks.parts import last_linear
from rllib_kd.networks.quantization import RoundedMLP, check_can_round, round_linears
from rllib_kd.networks.recurrent import first_layers
from rllib_kd.networks.stacking import PlainMLP, linears_of
from rllib_kd.networks.weights import weights_of
from rllib_kd.students.restarts import student_of
from rllib_kd.wire import ACTING


class Student:
    """One student, with the weights that learn and the weights that act.

    Args:
        name: its module ID.
        module: its RLModule.
        optimizer: optimizer of its parameters; None if a stack has it.
        normalizes: whether the outputs are normalised inside an update.
        normalizes_obs: whether it takes normalised observations inside an update.
        averages: whether the weights that act are an average of those that learn.
        regret_coeff: weight of the expected Q-regret beside the KL, ≥ 0, nats / median action gap.
        rounds: whether it learns for weights of 8 bits, and acts with them.
        own_states: the weights of states in its distillation loss; None: all have the same.

    Raises:
        ValueError: it is to have such weights, but is no plain MLP.
    """

    is_one_batch: ClassVar[bool] = False  # whether many of them cost little more than one

    def __init__(
        self,
        name: str,
        module: Any,
        optimizer: torch.optim.Optimizer | None,
        *,
        normalizes: bool,
        normalizes_obs: bool,
        averages: bool,
        regret_coeff: float,
        rounds: bool = False,
        own_states: OwnStates | None = None,
    ):
        if rounds:
            check_can_round(module, name)
        self.name = name
        self.own_states = own_states
        self.module = module.eval()
        self._has_modes = PlainMLP.of(module) is None  # such as dropout, in training
        self.optimizer = optimizer
        self.regret_coeff = regret_coeff or None  # None: the KL alone
        self.params: list[Tensor] = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.weights: list[Tensor] = []  # inside an update: the parameters, without the record of what is done to them
        self.averages: list[Tensor] = []  # inside an update: of the weights that learn, where they are averaged
        self.num_averaged = 0  # gradient steps after which the weights were averaged
        #: Outside of an update: the weights that learn, where those of the module are their average.
        self.training_weights: list[Tensor] | None = None
        #: Outside of an update: the weights that act, before rounding, if those of the module are rounded.
        self.unrounded: list[Tensor] | None = None
        self.rounds = rounds
        self.scale: QScale | None = None  # set while the outputs are normalised
        self.obs_scale: ObservationScale | None = None  # set while the first layers take normalised observations
        self.first_layers = unless_frozen(first_linears(module) or first_layers(module)) if normalizes_obs else []
        self.feature_map: nn.Linear | None = None  # made when the first labels show the teacher's width
        self._features: Tensor | None = None
        self._mlp: PlainMLP | None = None  # inside an update: a shorter way through the module, where there is one
        #: Of the target networks, and of those that they follow: listed at the first of many updates.
        self._target_weights: tuple[list[Tensor], list[Tensor]] | None = None
        self._normalizes = normalizes and has_scalable_head(module)
        self._averages = averages
        # An untrained student starts at the mean of the normalised coordinates.
        self._starts_normalized = True
        self._versions: list[int] = []  # PyTorch's counts of the writes to each parameter, as of `note_weights()`

    def enter(self, scale: QScale, obs_scale: ObservationScale) -> None:
        """Put the weights that learn into the module; if others have set its weights since the last time, these."""
        self._heed_others()
        if self._has_modes:
            self.module.train()
        if self.unrounded is not None:
            copy_into(self.params, self.unrounded)
            self.unrounded = None
        if self.first_layers:
            self.obs_scale = obs_scale
        if self.optimizer is not None:  # members of a stack pass through the stack
            self._mlp = RoundedMLP(self.module, self.input_scale) if self.rounds else PlainMLP.of(self.module)
        if self._normalizes:
            self.scale = scale
        self._normalize()
        self.weights = [param.detach() for param in self.params]
        if self._averages:
            self.averages = [weight.clone() for weight in self.weights]
            if self.training_weights is not None:
                copy_into(self.params, self.training_weights)
                self._normalize()

    def leave(self) -> None:
        """Put the weights that act into the module."""
        self._denormalize()
        if self._averages:
            self.training_weights = [param.detach().clone() for param in self.params]
            copy_into(self.params, self.averages)
            self._denormalize()
            self.averages = []
        if self.rounds:
            self.unrounded = [param.detach().clone() for param in self.params]
            round_linears(linears_of(self.module), input_mean=None if self.obs_scale is None else self.obs_scale.mean)
        self.scale, self.obs_scale, self._starts_normalized = None, None, False
        if self._has_modes:
            self.module.eval()  # as it acts and is measured
        self.note_weights()

    def note_weights(self) -> None:
        """Take the module's weights for those that the Learner has set, beside which others may learn."""
        self._versions = [param._version for param in self.params]

    @contextmanager
    def unnoticed(self) -> Iterator[None]:
        """In this context, the Learner sets the module's weights, and those that learn stay."""
        was_changed = self._was_changed
        yield
        if not was_changed:
            self.note_weights()

    @property
    def _was_changed(self) -> bool:
        """Return whether others, such as a callback, have set the module's weights since `note_weights()`."""
        # A feature map, which may be newer, comes last.
        return any(param._version != noted for param, noted in zip(self.params, self._versions, strict=False))

    @property
    def input_scale(self) -> Tensor | None:
        """Return what the first layer's inputs are divided by inside an update; None if they are raw."""
        return None if self.obs_scale is None else self.obs_scale.scale

    def inputs(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return what the module takes of a batch as observations."""
        return batch[Columns.OBS if self.obs_scale is None else NORMALIZED_OBS]

    def outputs(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the outputs of the module's `compute_q_values()`."""
        if self._mlp is not None:
            return {QF_PREDS: self._mlp.q_values(self.inputs(batch))}
        return self.module.compute_q_values({**batch, Columns.OBS: self.inputs(batch)})

    def gradients(self) -> list[MLPGradient]:
        """Return passes that set the gradients of `params`; none if autograd is needed."""
        if type(self._mlp) is not PlainMLP:
            return []
        layers = self._mlp.layers
        learns_all = sorted(map(id, layers.params)) == sorted(map(id, self.params))  # none of them twice
        return [MLPGradient(*layers)] if learns_all and MLPGradient.can_be_of(*layers) else []

    def td_outputs(self, batch: Mapping[str, Tensor], *, double_q: bool) -> dict[str, Tensor]:
        """Return the outputs of RLlib's `forward_train()`, without its useless backward pass through next states."""
        next_states = self._next_states(batch)
        with torch.no_grad():
            outputs = {QF_TARGET_NEXT_PREDS: self._target_q(next_states)}
            if double_q:
                outputs[QF_NEXT_PREDS] = self.outputs(next_states)[QF_PREDS]
        return outputs | self.outputs(batch)  # last: its features are the ones that are watched

    def _next_states(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a batch of the next states."""
        return {Columns.OBS: batch[Columns.NEXT_OBS]}

    def _target_q(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the target networks' Q-values `[B, A]`."""
        return self.module.forward_target(dict(batch))[QF_PREDS]

    def to_q(self, outputs: Tensor) -> Tensor:
        """Return the Q-values of the module's outputs inside an update."""
        return outputs if self.scale is None else self.scale.denormalize(outputs)

    def average(self, window: float) -> None:
        """Inside an update, after a gradient step, move the averages towards the weights that learn.

        Args:
            window: the share of the steps so far over which the weights are averaged, in [0, 1).
        """
        if self.averages:
            torch._foreach_lerp_(self.averages, self.weights, self.next_share(window))

    def next_share(self, window: float) -> float:
        """Count a step, and return the share of its weights in their average, in (0, 1]."""
        self.num_averaged += 1
        return 1.0 / (1.0 + window * (self.num_averaged - 1))

    def update_targets(self, tau: float) -> None:
        """Inside an update, move the target networks towards the weights that learn, by a share of `tau`."""
        if self._target_weights is None:
            self._target_weights = _weights_of_pairs(self.module)
        self._denormalize()  # they put out Q-values
        with torch.no_grad():
            torch._foreach_lerp_(*self._target_weights, tau)
        if self.scale is not None:
            to_normalized(self.module, self.scale)

    def forget(self) -> None:
        """Forget the weights that learn: learning continues from those in the module, whose outputs are Q-values."""
        self.training_weights, self.unrounded, self._starts_normalized = None, None, False
        self.num_averaged = 0

    def _heed_others(self) -> None:
        """Forget the weights that learn if others have set those of the module."""
        if self._was_changed:
            self.forget()
            self.note_weights()

    def get_state(self) -> dict[str, Any]:
        """Return the state that is neither the module's nor the optimizer's."""
        self._heed_others()
        state: dict[str, Any] = {
            "training_weights": [_as_array(weight) for weight in self.training_weights or ()],
            "unrounded": [_as_array(weight) for weight in self.unrounded or ()],
            "starts_normalized": self._starts_normalized,
            "num_averaged": self.num_averaged,
        }
        if self.feature_map is not None:
            state["feature_map"] = weights_of(self.feature_map)
        return state

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore the state of `get_state()`."""
        device = self.params[0].device

        def weights(name: str) -> list[Tensor] | None:
            # Those of a feature map come last. There is none if features are not matched any more.
            saved = state.get(name, ())[: len(self.params)]
            return [torch.as_tensor(np.asarray(weight), device=device) for weight in saved] or None

        self.training_weights, self.unrounded = weights("training_weights"), weights("unrounded")
        self._starts_normalized = state.get("starts_normalized", False)
        self.num_averaged = state["num_averaged"]
        self.note_weights()

    def _normalize(self) -> None:
        if self.scale is not None and not self._starts_normalized:
            to_normalized(self.module, self.scale)
        if self.obs_scale is None:
            return
        if self._starts_normalized:
            shrink(self.first_layers)
        else:
            take_normalized(self.first_layers, self.obs_scale)

    def _denormalize(self) -> None:
        if self.scale is not None:
            to_q_values(self.module, self.scale)
        if self.obs_scale is not None:
            take_raw(self.first_layers, self.obs_scale)

    # --- Feature matching ---------------------------------------------------------------------------------------------

    def watch_features(self) -> None:
        """Keep the last layer's inputs at each forward pass."""
        if not isinstance(self.module, DefaultDQNRLModule):
            raise ValueError(
                f"`feature_coeff` needs a student with RLlib's DQN architecture, got {type(self.module).__name__}. Set "
                "feature_coeff=0."
            )

        def keep(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._features = inputs[0]

        last_linear(self.module.af).register_forward_pre_hook(keep)

    def make_feature_map(self, num_teacher_units: int) -> nn.Linear:
        """Create the linear map from student's to teacher's features: the optimizer has it, but not the module."""
        num_units = last_linear(self.module.af).in_features
        self.feature_map = nn.Linear(num_units, num_teacher_units, device=self.params[0].device)
        parameters = list(self.feature_map.parameters())
        for parameter in parameters:
            nn.init.zeros_(parameter)  # on all Learners alike
        assert self.optimizer is not None  # such students are never stacked
        self.optimizer.add_param_group({"params": parameters, "lr": self.optimizer.param_groups[0]["lr"]})
        self.params += parameters
        for saved in (self.training_weights, self.unrounded):  # of a checkpoint without a map
            if saved is not None:
                saved += [parameter.detach().clone() for parameter in parameters]
        return self.feature_map

    def restore_feature_map(self, state: Mapping[str, Any]) -> None:
        """Create the map of `get_state()`, before the optimizer's state is set, which includes its parameters."""
        if "feature_map" in state:
            weights = {name: torch.as_tensor(np.asarray(value)) for name, value in state["feature_map"].items()}
            (self.feature_map or self.make_feature_map(len(weights["bias"]))).load_state_dict(weights)

    def mapped_features(self, count: int) -> Tensor:
        """Return the mapped features `[count, units of the teacher]` of the last forward pass's first rows."""
        assert self.feature_map is not None
        assert self._features is not None
        # RLlib's forward_train() with double Q-learning has those of the next states behind them.
        return self.feature_map(self._features[:count].float())


def check_has_q_values(module: Any, *, uses_td: bool = False) -> None:
    """Check that a module can be a student.

    Raises:
        ValueError: it has no Q-values, or no target networks, which TD needs.
    """
    if not isinstance(module, QNetAPI):
        raise ValueError(
            f"The student must have Q-values, but {type(module).__name__} has no compute_q_values(). "
            "Use RLlib's DQN module, or one that implements QNetAPI."
        )
    if uses_td and not isinstance(module, TargetNetworkAPI):
        raise ValueError(
            f"TD (td_coeff) needs target networks, but {type(module).__name__} has no forward_target(). Use RLlib's "
            "DQN module, or one that implements TargetNetworkAPI, too; or set td_coeff=0."
        )


def make_student(
    modules: Mapping[str, Any],
    config: Any,
    name: str,
    *,
    optimizer: torch.optim.Optimizer | None,
    own_loss: bool,
    kind: Callable[..., Student] = Student,
) -> Student:
    """Return the student of a module.

    Args:
        modules: modules of the students of one teacher, by ID.
        config: config of the modules.
        name: the module's ID.
        optimizer: optimizer of its parameters; None if a stack has it.
        own_loss: whether the loss is this package's. A custom one compares outputs with raw labels, and may pass raw
            observations to the module.
        kind: what makes it: its class, or a function.
    """
    has_labels = bool(config.label_columns)
    return kind(
        name,
        modules[name],
        optimizer,
        normalizes=config.loss in VALUE_LOSSES and config.normalize_q_values and has_labels and own_loss,
        normalizes_obs=config.normalize_observations and has_labels and own_loss and not config.uses_td,
        averages=config.weight_averaging > 0.0 and not config.uses_td and not _has_running_statistics(modules[name]),
        regret_coeff=config.regret_coeff_of(name),
        rounds=config.quantize is not None,
        own_states=_own_states(modules, config, name) if ACTING in config.state_columns else None,
    )


def _has_running_statistics(module: Any) -> bool:
    """Return whether a module has batch norm: its statistics are of the weights that learn, and not of an average."""
    return any(getattr(part, "track_running_stats", False) for part in module.modules())


def _own_states(modules: Mapping[str, Any], config: Any, name: str) -> OwnStates:
    device, num_students = next(modules[name].parameters()).device, len(config.students)
    if config.own_states == "linear" and not is_linear(modules[name]):
        return OwnStates.of_all(num_students, device=device)
    return OwnStates.of(list(config.students).index(student_of(name)), num_students, device=device)


def _weights_of_pairs(module: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Return weights and running statistics of the target networks, and in the same order of their networks."""
    pairs = [
        (target_weight, weight)
        for network, target in module.get_target_network_pairs()
        for target_weight, weight in zip(target.state_dict().values(), network.state_dict().values(), strict=True)
        if weight.is_floating_point()
    ]
    return [target_weight for target_weight, _ in pairs], [weight for _, weight in pairs]


@torch.no_grad()
def copy_into(params: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    """Copy weights into parameters, in the same order."""
    for param, weight in zip(params, weights, strict=True):
        param.copy_(weight)


def unless_frozen(layers: list[Any]) -> list[Any]:
    """Return layers with a weight and a bias, which an update may rewrite; none if some of these do not learn."""
    return layers if all(param.requires_grad for layer in layers for param in (layer.weight, layer.bias)) else []


def _as_array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().copy()
