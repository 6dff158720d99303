"""What learns inside an update: a student, or several that are stacked; and what they learn from.

Outside of an update, a module is the student that acts and is saved. Inside, it holds the weights that learn. Two
things come between them: normalised coordinates (students.py), and an average over the last steps, which spares the
user a schedule of the learning rate (Polyak & Juditsky 1992; over a share of the steps so far: Shamir & Zhang 2013,
arXiv 1212.1824).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from torch import Tensor, nn

from rllib_kd import students
from rllib_kd.frames import VALID, observations
from rllib_kd.observations import as_input
from rllib_kd.replay import make_replay
from rllib_kd.stacking import PlainMLP, StackedMLPs
from rllib_kd.statistics import QScale, QStatistics
from rllib_kd.teachers.base import QF_PREDS, TEACHER_FEATURES, TEACHER_Q, last_linear

#: Columns that distillation alone needs (by most losses), and what TD needs beside them.
DISTILLATION_COLUMNS = (Columns.OBS, TEACHER_Q)
TD_COLUMNS = (Columns.ACTIONS, Columns.REWARDS, Columns.TERMINATEDS, Columns.TRUNCATEDS, VALID)

_MAX_METRIC_STATES = 2_048
_COLUMNS = "columns/"  # before the names of a replay's columns, among other arrays


class Student:
    """One student, with the weights that learn and the weights that act.

    Args:
        name: its module ID.
        module: RLlib's.
        optimizer: of its parameters; None where a stack has it.
        normalizes: whether the outputs are normalised inside an update.
        averages: whether the weights that act are an average of those that learn.
    """

    def __init__(
        self, name: str, module: Any, optimizer: torch.optim.Optimizer | None, *, normalizes: bool, averages: bool
    ):
        self.name = name
        self.module = module
        self.optimizer = optimizer
        self.params: list[Tensor] = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.weights: list[Tensor] = []  # inside an update: the parameters, without the record of what is done to them
        self.averages: list[Tensor] = []  # inside an update: of the weights that learn, where they are averaged
        #: Outside of an update: the weights that learn, where those of the module are their average.
        self.training_weights: list[Tensor] | None = None
        self.scale: QScale | None = None  # set while the outputs are normalised
        self.feature_map: nn.Linear | None = None  # made when the first labels show the teacher's width
        self._features: Tensor | None = None
        self._mlp: PlainMLP | None = None  # inside an update: a shorter way through the module, where there is one
        #: Of the target networks, and of those that they follow: listed at the first of many updates.
        self._target_weights: tuple[list[Tensor], list[Tensor]] | None = None
        self._normalizes = normalizes and students.has_scalable_head(module)
        self._averages = averages
        # A student that has learned nothing yet starts in the middle of the normalised coordinates.
        self._starts_normalized = True

    def enter(self, scale: QScale) -> None:
        """Put the weights that learn into the module."""
        self.module.train()
        if self.optimizer is not None:  # members of a stack pass through the stack
            self._mlp = PlainMLP.of(self.module)
        if self._normalizes:
            self.scale = scale
        self._normalize()
        self.weights = [param.detach() for param in self.params]
        if self._averages:
            self.averages = [weight.clone() for weight in self.weights]
            if self.training_weights is not None:
                _copy_into(self.params, self.training_weights)
                self._normalize()

    def leave(self) -> None:
        """Put the weights that act into the module."""
        self._denormalize()
        if self._averages:
            self.training_weights = [param.detach().clone() for param in self.params]
            _copy_into(self.params, self.averages)
            self._denormalize()
            self.averages = []
        self.scale, self._starts_normalized = None, False

    def outputs(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the module's `compute_q_values()` puts out."""
        if self._mlp is not None:
            return {QF_PREDS: self._mlp.q_values(batch[Columns.OBS])}
        return self.module.compute_q_values(batch)

    def to_q(self, outputs: Tensor) -> Tensor:
        """Q-values of what the module puts out inside an update."""
        return outputs if self.scale is None else self.scale.denormalize(outputs)

    def update_targets(self, tau: float) -> None:
        """Inside an update: move the target networks towards the weights that learn, by a share of `tau`."""
        if self._target_weights is None:
            self._target_weights = _weights_of_pairs(self.module)
        self._denormalize()  # they put out Q-values
        with torch.no_grad():
            torch._foreach_lerp_(*self._target_weights, tau)
        if self.scale is not None:
            students.to_normalized(self.module, self.scale)

    def forget(self) -> None:
        """Whatever is loaded into the module is where learning goes on, and puts out Q-values."""
        self.training_weights, self._starts_normalized = None, False

    def get_state(self) -> dict[str, Any]:
        """What the module and the optimizer do not hold."""
        state: dict[str, Any] = {
            "training_weights": [_as_array(weight) for weight in self.training_weights or ()],
            "starts_normalized": self._starts_normalized,
        }
        if self.feature_map is not None:
            state["feature_map"] = {name: _as_array(value) for name, value in self.feature_map.state_dict().items()}
        return state

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `get_state()`."""
        device = self.params[0].device
        weights = [torch.as_tensor(np.asarray(weight), device=device) for weight in state["training_weights"]]
        self.training_weights = weights or None
        self._starts_normalized = state.get("starts_normalized", False)

    def _normalize(self) -> None:
        if self.scale is not None and not self._starts_normalized:
            students.to_normalized(self.module, self.scale)

    def _denormalize(self) -> None:
        if self.scale is not None:
            students.to_q_values(self.module, self.scale)

    # --- Feature matching ---------------------------------------------------------------------------------------------

    def watch_features(self) -> None:
        """Keep what the last layer gets, at each forward pass."""
        if not isinstance(self.module, students.DefaultDQNRLModule):
            raise ValueError(
                f"`feature_coeff` needs a student with RLlib's DQN architecture, got {type(self.module).__name__}. Set "
                "it to 0."
            )

        def keep(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._features = inputs[0]

        last_linear(self.module.af).register_forward_pre_hook(keep)

    def make_feature_map(self, num_teacher_units: int) -> nn.Linear:
        """The linear map from the student's features to the teacher's: no part of the module, but of its optimizer."""
        num_units = last_linear(self.module.af).in_features
        self.feature_map = nn.Linear(num_units, num_teacher_units, device=self.params[0].device)
        parameters = list(self.feature_map.parameters())
        for parameter in parameters:
            nn.init.zeros_(parameter)  # on all Learners alike
        assert self.optimizer is not None  # such students are never stacked
        self.optimizer.add_param_group({"params": parameters, "lr": self.optimizer.param_groups[0]["lr"]})
        self.params += parameters
        return self.feature_map

    def restore_feature_map(self, state: Mapping[str, Any]) -> None:
        """Make the map of `get_state()`, before the optimizer's state comes, which counts its parameters."""
        if "feature_map" in state:
            weights = {name: torch.as_tensor(np.asarray(value)) for name, value in state["feature_map"].items()}
            (self.feature_map or self.make_feature_map(len(weights["bias"]))).load_state_dict(weights)

    def mapped_features(self, count: int) -> Tensor:
        """`[count, units of the teacher]`, of the first rows of the last forward pass."""
        assert self.feature_map is not None
        assert self._features is not None
        # RLlib's forward_train() with double Q-learning has those of the next states behind them.
        return self.feature_map(self._features[:count].float())


class StackedStudents:
    """Several students that learn side by side (stacking.py).

    Args:
        members: with one `stacking_key()`, and without optimizers.
    """

    def __init__(self, members: Sequence[Student]):
        self.members = list(members)
        self._mlps = StackedMLPs([student.module for student in members])
        self.params = [weight.requires_grad_() for weight in self._mlps.pack(self._mlps.weights)]
        self.weights = [param.detach() for param in self.params]
        self.averages: list[Tensor] = []
        self.optimizer: torch.optim.Optimizer | None = None  # of `params`, which must be there first

    def enter(self, scale: QScale) -> None:
        """Put the weights that learn into `params`."""
        for student in self.members:
            student.enter(scale)
        _copy_into(self.params, self._mlps.pack(self._mlps.weights))
        if self.members[0].averages:
            self.averages = self._mlps.pack([student.averages for student in self.members])

    def leave(self) -> None:
        """Put the weights that act into the modules."""
        self._mlps.unpack(self.params, self._mlps.weights)
        if self.averages:
            self._mlps.unpack(self.averages, [student.averages for student in self.members])
        for student in self.members:
            student.leave()

    def q_values(self, obs: Tensor) -> Tensor:
        """Outputs `[N, B, A]` of all members, inside an update."""
        return self._mlps.q_values(self.params, obs)


class StudentGroup:
    """The students of one teacher, and what they learn from: one stream of labelled states.

    Args:
        learners: who makes gradient steps, on every batch.
        config: of their module.
        num_actions: A.
        device: where the replay lives.
        seed: of the order in which it is drawn; None draws one.
    """

    def __init__(
        self,
        learners: Sequence[Student | StackedStudents],
        config: Any,
        *,
        num_actions: int,
        device: torch.device | str,
        seed: int | None,
    ):
        self.learners = list(learners)
        self.students = {student.name: student for learner in learners for student in members_of(learner)}
        self.config = config
        self.replay = make_replay(config.replay_buffer_config, device=device, seed=seed)
        self.statistics = QStatistics(num_actions, device=device)
        self.num_steps = 0  # gradient steps of each student, over restarts
        self.temperature = self.student_temperature = 1.0  # of the current update
        self._num_actions = num_actions
        self._input_shape = next(iter(self.students.values())).module.observation_space.shape

    def take_in(
        self, fragments: Sequence[Mapping[str, Any]], *, reduce: Callable[[Tensor], Any] | None
    ) -> dict[str, Tensor]:
        """Add fragments to the replay, and their labels to the statistics.

        Args:
            fragments: columns, as EnvRunners make them.
            reduce: adds up a tensor over all Learners, in place.

        Returns:
            Some of the labelled states: `obs` and `teacher_q`, or nothing.
        """
        fresh: list[dict[str, Tensor]] = []
        for fragment in fragments:
            self.replay.add(fragment)
            if not self.config.label_columns:
                continue
            if TEACHER_FEATURES in fragment:
                for student in self.students.values():
                    if student.feature_map is None:
                        student.make_feature_map(fragment[TEACHER_FEATURES].shape[-1])
            rows = np.flatnonzero(fragment.get(VALID, np.ones(len(fragment[TEACHER_Q]), dtype=bool)))
            room = _MAX_METRIC_STATES - sum(len(part[Columns.OBS]) for part in fresh)
            seen, labels = observations(fragment, rows[:room]), fragment[TEACHER_Q][rows]
            fresh.append({Columns.OBS: torch.tensor(seen), TEACHER_Q: torch.tensor(labels)})
        device = self.replay.device
        states = {name: torch.cat([part[name] for part in fresh]) for name in DISTILLATION_COLUMNS} if fresh else {}
        labels = states.get(TEACHER_Q, torch.zeros(0, self._num_actions))
        # Also without new states: every Learner takes part in the all-reduce.
        self.statistics.update(labels.to(device), reduce=reduce)
        self.temperature, self.student_temperature = self.config.temperatures(self.statistics.gap_quantile(0.5))
        states = {name: column[:_MAX_METRIC_STATES].to(device) for name, column in states.items()}
        return states and {**states, Columns.OBS: as_input(states[Columns.OBS], self._input_shape)}

    def q_values(self, obs: Tensor) -> Tensor:
        """Of the students as they act, outside of an update: `[students, B, A]`."""
        outputs = [student.module.compute_q_values({Columns.OBS: obs})[QF_PREDS] for student in self.students.values()]
        return torch.stack(outputs)

    def gather(self, rows: Tensor, *, uses_td: bool) -> dict[str, Tensor]:
        """The batch at `rows` (`[B]`) of the replay."""
        batch = self.replay.gather(rows, (Columns.OBS, *self.config.label_columns))
        if uses_td:
            batch |= self.replay.gather(rows, (Columns.ACTIONS,))
            batch |= self.replay.gather_transitions(rows, n_step=self.config.n_step, gamma=self.config.gamma)
            batch[Columns.NEXT_OBS] = as_input(batch[Columns.NEXT_OBS], self._input_shape)
        batch[Columns.OBS] = as_input(batch[Columns.OBS], self._input_shape, contiguous=True)
        return batch

    def get_state(self) -> dict[str, Any]:
        """Everything but the modules, the optimizers and the replay."""
        return {
            "q_statistics": self.statistics.get_state(),
            "num_steps": self.num_steps,
            "students": {name: student.get_state() for name, student in self.students.items()},
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `get_state()`."""
        self.statistics.set_state(state["q_statistics"])
        self.num_steps = state["num_steps"]
        for name, student_state in state["students"].items():
            if name in self.students:
                self.students[name].set_state(student_state)

    def replay_arrays(self) -> dict[str, np.ndarray]:
        """The replay, as arrays alone: columns by `columns/<name>`, and the rest by its name."""
        state = self.replay.get_state()
        columns = {f"{_COLUMNS}{name}": column for name, column in state.pop("columns").items()}
        return columns | {name: np.asarray(value) for name, value in state.items()}

    def refill_replay(self, shards: Sequence[Mapping[str, np.ndarray]], *, is_own: bool) -> bool:
        """Fill the replay with those of `replay_arrays()`, if they have the columns that are learned from.

        Args:
            shards: of one or more Learners.
            is_own: whether this Learner has written the only one, and draws on in that order.

        Returns:
            Whether they had.
        """
        needed = {Columns.OBS, *self.config.label_columns, *(TD_COLUMNS if self.config.uses_td else ())}
        states: list[dict[str, Any]] = []
        for shard in shards:
            given = {name.removeprefix(_COLUMNS): shard[name] for name in shard if name.startswith(_COLUMNS)}
            if given and not needed <= given.keys():
                return False
            columns = {name: given[name] for name in given if name in {*needed, *self.replay.OWN_COLUMNS}}
            rest = {name: shard[name] for name in shard if not name.startswith(_COLUMNS)}
            states.append({"columns": columns, **rest})
        first, *others = states
        if not is_own:
            del first["generator"]
        self.replay.set_state(first)
        for state in others:
            if state["columns"]:
                self.replay.add(state["columns"])
        return True


def members_of(learner: Student | StackedStudents) -> list[Student]:
    """Who learns there."""
    return learner.members if isinstance(learner, StackedStudents) else [learner]


def _weights_of_pairs(module: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and running statistics of the target networks, and in the same order of the networks they follow."""
    pairs = [
        (target_weight, weight)
        for network, target in module.get_target_network_pairs()
        for target_weight, weight in zip(target.state_dict().values(), network.state_dict().values(), strict=True)
        if weight.is_floating_point()
    ]
    return [target_weight for target_weight, _ in pairs], [weight for _, weight in pairs]


@torch.no_grad()
def _copy_into(params: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    for param, weight in zip(params, weights, strict=True):
        param.copy_(weight)


def _as_array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().copy()
