"""Values that follow from the settings of a distillation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from rllib_kd.learner.group import TD_COLUMNS
from rllib_kd.learner.losses import POLICY_LOSSES
from rllib_kd.networks.recurrent import USE_LSTM, max_seq_len_of, num_sequences
from rllib_kd.networks.trees.shape import TREE, is_tree
from rllib_kd.schedules import Schedule, qdagger, value_at, values_of
from rllib_kd.students.restarts import names_of, regret_factor
from rllib_kd.teachers.names import is_by_policy
from rllib_kd.wire import ACTING, LOG_PROBS, Q_VALUES, TEACHER_FEATURES, TEACHER_PROBS, TEACHER_Q, Outputs

if TYPE_CHECKING:
    from rllib_kd.teachers.base import Teacher


class DerivedValues:
    """Values that follow from the settings of `DistillationConfig`, which has the settings as attributes."""

    #: `temperature="auto"` is this times the median action gap of a teacher with Q-values.
    AUTO_TEMPERATURE_GAPS: ClassVar[float] = 0.1
    #: Copies of a tree, which validation episodes choose among.
    TREE_COPIES: ClassVar[int] = 12
    #: `max_regret` of copies. They see mostly each other's states, which may be those of failures alone: without a
    #: limit linear copies on CartPole fell to a third of the return. With 3 they see too seldom where their mistakes
    #: lead: where they cannot follow, trees and small networks lost 0.1 to 0.3 (docs/results/trees.md, studies.md).
    COPIES_MAX_REGRET: ClassVar[float] = 30.0

    teacher: str | Teacher | list[Any] | Mapping[str, Any] | None
    loss: str
    temperature: float | Literal["auto"]
    student_temperature: float | None
    regret_coeff: float | None
    feature_coeff: float
    rollout_policy: str
    teacher_fraction: Schedule | None
    max_regret: float | None
    kd_coeff: Schedule | Literal["qdagger"]
    td_coeff: Schedule
    students: dict[str, Any]
    own_states: bool | Literal["linear"] | None
    restarts: int | None
    student: str | Mapping[str, Any] | None
    init: str | None
    _log_prob_groups: tuple[str, ...]
    _loaded_teachers: dict[str, Any]
    is_multi_agent: bool
    is_offline: bool
    model_config: Any
    train_batch_size_per_learner: int

    _model_config: Any
    _env_to_module_connector: Any
    _module_to_env_connector: Any
    _learner_connector: Any
    _rl_module_spec: Any

    @property
    def given_model_config(self) -> dict[str, Any]:
        """Return the argument of `rl_module(model_config=...)` as a dict; empty if there was none.

        Fields of a `DefaultModelConfig` that have their defaults count as not given.
        """
        given = self._model_config
        if isinstance(given, Mapping):
            return dict(given)
        defaults = dataclasses.asdict(DefaultModelConfig())
        own = dataclasses.asdict(given)
        return {
            name: own[name] for name in own if name not in defaults or not np.array_equal(own[name], defaults[name])
        }

    @property
    def members(self) -> dict[str, dict[str, Any]]:
        """Return each learning module's own part of the model config: for students of a family, and for restarts.

        Empty if there is one student without restarts: RLlib makes its module.
        """
        if not self.students and self.num_copies == 1:
            return {}
        students = self.students or {DEFAULT_MODULE_ID: {}}
        return {name: shape for student, shape in students.items() for name in names_of(student, self.num_copies)}

    @property
    def trees(self) -> dict[str, Any]:
        """Return the settings of those students that are trees, by name."""
        if self._rl_module_spec is not None:
            return {}
        alone = self.student if isinstance(self.student, Mapping) else self.given_model_config
        shapes = self.students or {DEFAULT_MODULE_ID: alone}
        return {name: own[TREE] for name, own in shapes.items() if is_tree(own)}

    @property
    def is_recurrent(self) -> bool:
        """Return whether students have a memory."""
        return self._rl_module_spec is None and any(shape.get(USE_LSTM) for shape in self._own_shapes())

    @property
    def learner_batch_size(self) -> int:
        """Return how many rows a Learner learns from in a gradient step: recurrent students need whole sequences."""
        size = self.train_batch_size_per_learner
        if not self.is_recurrent:
            return size
        return num_sequences(size, self.model_config) * max_seq_len_of(self.model_config)

    def _own_shapes(self) -> list[Mapping[str, Any]]:
        """Return the user's own model configs, without those that presets give."""
        students = self.students.values() if isinstance(self.students, Mapping) else ()
        shapes = [self.given_model_config, self.student, *students]
        return [shape for shape in shapes if isinstance(shape, Mapping)]

    @property
    def num_copies(self) -> int:
        """Return `restarts`, or its default: 1, and more if all students are trees."""
        if self.restarts is not None:
            return self.restarts
        return self.TREE_COPIES if self.are_all_trees and not self.is_multi_agent else 1

    @property
    def are_all_trees(self) -> bool:
        """Return whether all students are trees."""
        return bool(self.trees) and len(self.trees) == max(1, len(self.students))

    @property
    def own_connectors(self) -> frozenset[str]:
        """Return the kinds of connectors that the user has set: "env_to_module", "module_to_env", "learner"."""
        set_by_user = {
            "env_to_module": self._env_to_module_connector,
            "module_to_env": self._module_to_env_connector,
            "learner": self._learner_connector,
        }
        return frozenset(kind for kind, connector in set_by_user.items() if connector is not None)

    @property
    def own_rl_module_spec(self) -> Any:
        """Return the argument of `rl_module(rl_module_spec=...)`; None if there was none."""
        return self._rl_module_spec

    @property
    def label_columns(self) -> tuple[str, ...]:
        """Return the columns in which EnvRunners store labels, the teacher's outputs for a state."""
        if self.teacher is None:
            return ()
        optional = {TEACHER_PROBS: self.loss == "categorical", TEACHER_FEATURES: self.feature_coeff > 0.0}
        return (TEACHER_Q, *(name for name, needed in optional.items() if needed))

    @property
    def state_columns(self) -> tuple[str, ...]:
        """Return the columns of distillation: observations, labels, and who acted if that matters."""
        return (Columns.OBS, *self.label_columns, *((ACTING,) if self.own_states and self.label_columns else ()))

    @property
    def replay_columns(self) -> tuple[str, ...]:
        """Return the columns that Learners get: those of distillation, and those of TD if it is used."""
        return (*self.state_columns, *(TD_COLUMNS if self.uses_td else ()))

    @property
    def starts_from_teacher(self) -> bool:
        """Return whether the user wants first weights that are made from the teacher's."""
        return self.init in ("teacher", "convolutions")

    def kd_coeff_at(self, env_steps: int, return_ratio: float = math.nan) -> float:
        """Return λ after `env_steps` env steps, for the student's return ratio (NaN: not known yet)."""
        if self.teacher is None:
            return 0.0
        return qdagger(return_ratio) if self.kd_coeff == "qdagger" else value_at(self.kd_coeff, env_steps)

    @property
    def acting_teacher_fraction(self) -> Schedule:
        """Return β, or its default: 1 or 0 if the teacher or the student alone acts, or rows are recorded."""
        if self.teacher is None or self.rollout_policy == "student" or self.is_offline:
            return 0.0
        if self.rollout_policy == "teacher":
            return 1.0
        default = [[0, 1.0], [10_000, 0.0]] if self.uses_td else [[0, 1.0], [10_000, 0.5], [60_000, 0.0]]
        return default if self.teacher_fraction is None else self.teacher_fraction

    def teacher_fraction_at(self, env_steps: int) -> float:
        """Return β after `env_steps` env steps."""
        return value_at(self.acting_teacher_fraction, env_steps)

    @property
    def max_regret_in_gaps(self) -> float:
        """Return `max_regret`, or its default; infinite if the student alone acts."""
        if self.rollout_policy != "mixture":
            return math.inf
        if self.max_regret is not None:
            return self.max_regret
        return math.inf if self.num_copies == 1 or self.uses_td else self.COPIES_MAX_REGRET

    @property
    def teachers(self) -> dict[str, Any]:
        """Return the teacher of each group, as a list if it is an ensemble; empty without a teacher."""
        if is_by_policy(self.teacher):
            return dict(self.teacher)
        return {} if self.teacher is None else {DEFAULT_MODULE_ID: self.teacher}

    def set_teachers(self, change: Callable[[str, Any], Any]) -> None:
        """Replace the teacher of each group by `change(group, teacher)`."""
        changed = {group_id: change(group_id, teacher) for group_id, teacher in self.teachers.items()}
        self.teacher = changed if is_by_policy(self.teacher) else changed.get(DEFAULT_MODULE_ID)

    def note_loaded_teachers(self, groups: Collection[str]) -> None:
        """Record for which groups the source of a teacher that was loaded in Python stands in `teacher` now."""
        self._loaded_teachers = {group_id: self.teachers[group_id] for group_id in groups}

    def is_teacher_lost(self, group_id: str) -> bool:
        """Return whether only the source of a group's teacher, which was loaded in Python, stands in `teacher`."""
        return group_id in self._loaded_teachers and self._loaded_teachers[group_id] == self.teachers[group_id]

    def set_outputs(self, outputs: Mapping[str, Outputs]) -> None:
        """Record what the labels of each group are, which its teacher determines."""
        self._log_prob_groups = tuple(group_id for group_id, kind in outputs.items() if kind == LOG_PROBS)

    def outputs_of(self, group_id: str) -> Outputs:
        """Return what the labels of a group are: Q-values, or log-probabilities."""
        return LOG_PROBS if group_id in self._log_prob_groups else Q_VALUES

    def student_groups(self, module_ids: Collection[str]) -> dict[str, list[str]]:
        """Return the modules of each group's students."""
        if self.is_multi_agent:
            return {group_id: [group_id] for group_id in self.teachers}
        return {DEFAULT_MODULE_ID: list(module_ids)}

    def by_group(self, fragment: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
        """Split a fragment, as EnvRunners send it, into the columns of each group."""
        return fragment if self.is_multi_agent else {DEFAULT_MODULE_ID: fragment}

    def temperatures(self, median_gap: float, outputs: Outputs = Q_VALUES) -> tuple[float, float]:
        """Return the temperatures of teacher and student, with which their probabilities are equally sharp.

        Args:
            median_gap: median over states of the teacher's action gap, best − next lower output, return units or nats.
            outputs: what the teacher's outputs are. A policy has temperature 1, unless another one is set.
        """
        auto = 1.0 if outputs == LOG_PROBS else self.AUTO_TEMPERATURE_GAPS * median_gap
        temperature = auto if self.temperature == "auto" else self.temperature
        if self.student_temperature is not None:
            return temperature, self.student_temperature
        if self.loss not in POLICY_LOSSES or self.uses_td:
            return temperature, temperature  # both put out Q-values
        return temperature, temperature / median_gap  # the student's outputs count in median action gaps

    def regret_coeff_of(self, name: str) -> float:
        """Return the weight of a module's expected regret beside the KL, nats / median action gap of the labels."""
        if self.regret_coeff is not None:
            return self.regret_coeff
        return regret_factor(name) if self.loss == "kl" and not self.uses_td else 0.0

    @property
    def uses_td(self) -> bool:
        """Return whether the TD loss ever has a weight, so that EnvRunners must send whole transitions."""
        return any(values_of(self.td_coeff))
