"""Recurrent students: how they learn, from sequences of states.

A row of the replay is a sequence: states of one environment in the order in which it visited them, all of one episode,
followed by padding. Beside them stands the state that each student had in the EnvRunner when the first of them came.
From it the student runs over the whole sequence, and learns from those states that are marked: not from the burn-in,
whose states other sequences have, nor from padding. Kapturowski et al. 2019 (R2D2, ICLR).

For TD, a sequence has one observation more. The networks run over its next states as RLlib's do: from the state that
the student had in the EnvRunner before the second of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from torch import Tensor

from rllib_kd.learner.group import COLUMNS, MAX_METRIC_STATES, StudentGroup
from rllib_kd.learner.label_statistics import QScale
from rllib_kd.learner.observation_scale import ObservationScale
from rllib_kd.learner.replay import ColumnarReplay, default_capacity, spread_over
from rllib_kd.learner.stack import StackedStudents
from rllib_kd.learner.student import Student
from rllib_kd.networks.dqn_module import QF_PREDS
from rllib_kd.networks.memories import StateLayout
from rllib_kd.networks.mlp_gradient import MLPGradient
from rllib_kd.networks.recurrent import (
    PlainPass,
    at_places,
    max_seq_len_of,
    num_sequences,
    run_sequences,
)
from rllib_kd.observations.frames import OBS
from rllib_kd.observations.images import as_input
from rllib_kd.observations.masks import MASK, NEXT_MASK
from rllib_kd.wire import ACTING, LEARNED, NEXT_STATE_COLUMNS, STATE_COLUMNS, TEACHER_Q

#: In a batch: the places of the states to learn from, `[M]`, in all states of its sequences, one after the other.
PLACES = "places"

_STATES, _NEXT_STATES = tuple(STATE_COLUMNS.values()), tuple(NEXT_STATE_COLUMNS.values())
_TRANSITIONS = (Columns.ACTIONS, Columns.REWARDS, Columns.TERMINATEDS)


class RecurrentStudent(Student):
    """A student with an LSTM or a GRU. Its outputs are those of the states to learn from.

    Args:
        layout: where its state is beside those of the other students.
        args: as in `Student`.
        kwargs: as in `Student`.
    """

    def __init__(self, *args: Any, layout: StateLayout, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._layout = layout
        self._pass: PlainPass | None = None  # a shorter way through the module, where there is one

    def enter(self, scale: QScale, obs_scale: ObservationScale) -> None:
        """Put the weights that learn into the module."""
        super().enter(scale, obs_scale)
        self._pass = PlainPass.of(self.module)

    def outputs(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `qf_preds` `[M, A]` of a batch from `SequenceGroup.batches()`."""
        obs = batch[Columns.OBS]
        if self.obs_scale is not None:
            obs = self.obs_scale.normalize(obs)
        if self._pass is not None:
            return {QF_PREDS: self._pass(obs, self._states_in(batch), batch[PLACES])}
        return {QF_PREDS: self.q_values({**batch, Columns.OBS: obs})}

    def _next_states(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        before = {STATE_COLUMNS[part]: batch[name] for part, name in NEXT_STATE_COLUMNS.items() if name in batch}
        return {Columns.OBS: batch[Columns.NEXT_OBS], PLACES: batch[PLACES], **before}

    def _target_q(self, batch: Mapping[str, Tensor]) -> Tensor:
        inputs = {Columns.OBS: batch[Columns.OBS], Columns.STATE_IN: self._states_in(batch)}
        return at_places(self.module.forward_target(inputs)[QF_PREDS], batch[PLACES])

    def q_values(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the module's Q-values `[M, A]` of the states to learn from.

        Args:
            batch: `obs` `[B, T, ...]`, `places` `[M]`, and the parts of the students' states before each sequence,
                `[B, layers, units of all]`.
        """
        q, _ = run_sequences(self.module, batch[Columns.OBS], self._states_in(batch))
        return at_places(q, batch[PLACES])

    def _states_in(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        states = {part: batch[column] for part, column in STATE_COLUMNS.items() if column in batch}
        return self._layout.of(self.name, states)


class RecurrentStudents(StackedStudents):
    """Several recurrent students that learn side by side: each by a pass of its own, with one loss and one optimizer.

    As one batch of matrices, a step in time is five operations or more, and PyTorch's own layer runs over all steps in
    one: for sixteen networks of 32 units, the batch takes 0.6 times as long, for four of them longer.

    Args:
        members: recurrent students of the same observations and actions, without optimizers.
    """

    is_one_batch: ClassVar[bool] = False

    def __init__(self, members: Sequence[Student]):
        self.members = list(members)
        self.params = [param for student in members for param in student.params]
        self.weights = []
        self.averages = []
        self.optimizer = None
        self.regret_coeff = self._regret_coeffs()

    def enter(self, scale: QScale, obs_scale: ObservationScale) -> None:
        """Put the weights that learn into the modules, whose parameters are `params`."""
        self._follow_whole()
        for student in self.members:
            student.enter(scale, obs_scale)
        self.weights = [weight for student in self.members for weight in student.weights]
        self.averages = [average for student in self.members for average in student.averages]

    def leave(self) -> None:
        """Put the weights that act into the modules."""
        for student in self.members:
            student.leave()
        self.averages = []

    def _factors(self, numbers: Tensor) -> list[Tensor]:
        return [own for student, own in zip(self.members, numbers, strict=True) for _ in student.weights]

    def optimizer_state(self, saved: Mapping[str, Any]) -> None:
        """Return None: no earlier checkpoint has their optimizer in another form."""

    def _moments(self) -> dict[str, Any]:
        assert self.optimizer is not None
        known = [student for student in self.members if student.params[0] in self.optimizer.state]
        states = {student.name: [self.optimizer.state[param] for param in student.params] for student in known}
        return {name: {kind: [state[kind] for state in own] for kind in own[0]} for name, own in states.items()}

    def _set_moments(self, moments: Mapping[str, Any]) -> None:
        assert self.optimizer is not None
        for student in self.members:
            for i, param in enumerate(student.params if moments[student.name] is not None else ()):
                own = {kind: values[i].clone() for kind, values in moments[student.name].items()}
                self.optimizer.state[param] = own

    def outputs(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `qf_preds` `[N, M, A]` of all members, inside an update."""
        return {QF_PREDS: torch.stack([student.outputs(batch)[QF_PREDS] for student in self.members])}

    def gradients(self) -> list[MLPGradient]:
        """Return none: they need autograd."""
        return []


class SequenceReplay(ColumnarReplay):
    """A ring buffer whose rows are sequences of one length.

    Args:
        capacity: states kept, ≥ 1, padding included; None as in `ColumnarReplay`.
        length: observations of a sequence, ≥ 1.
        device: as in `ColumnarReplay`.
        seed: as in `ColumnarReplay`.
    """

    OWN_COLUMNS: ClassVar[tuple[str, ...]] = (*ColumnarReplay.OWN_COLUMNS, LEARNED, *_STATES, *_NEXT_STATES)

    def __init__(
        self, capacity: int | None, *, length: int, device: torch.device | str = "cpu", seed: int | None = None
    ):
        rows = None if capacity is None else max(1, capacity // length)
        super().__init__(rows, device=device, seed=seed)
        self.length = length

    def default_capacity(self, rows: Mapping[str, np.ndarray | Tensor]) -> int:
        """Return how many sequences are kept if that is not set, by the columns `[B, T, ...]` of some."""
        states = {name: column[:, 0] for name, column in rows.items() if column.ndim > 1}
        return max(1, default_capacity(states) // self.length)

    def there(self, *names: str) -> tuple[str, ...]:
        """Return those of these columns that there are."""
        return tuple(name for name in names if name in self._columns)


class SequenceGroup(StudentGroup):
    """The recurrent students of one teacher, and the sequences from which they learn."""

    replay: SequenceReplay

    def make_replay(self, *, device: torch.device | str, seed: int | None) -> SequenceReplay:
        """Return a replay of sequences."""
        length = max_seq_len_of(self.config.model_config) + self.config.uses_td  # the last one's next state
        return SequenceReplay(self.config.replay_buffer_config["capacity"], length=length, device=device, seed=seed)

    def take_in(
        self,
        fragments: Sequence[Mapping[str, Any]],
        *,
        reduce: Callable[[Tensor], Any] | None,
        is_again: bool = False,
    ) -> dict[str, Tensor]:
        """Add sequences to the replay, and their labels to the statistics.

        Args:
            fragments: sequences, as EnvRunners cut them: columns `[B, T, ...]`, `learned` `[B, T]`, and parts of
                the students' states `[B, layers, units of all]`.
            reduce: adds up a tensor over all Learners, in place.
            is_again: False: sequences come from EnvRunners alone, and once.

        Returns:
            Some of the sequences as a batch; nothing if there are none.
        """
        # Empty ones are waited for: a window is open, or its states were dropped, which the Algorithm counts.
        fragments = [fragment for fragment in fragments if len(fragment[LEARNED])]
        self._num_taken += bool(fragments)
        for fragment in fragments:
            self.replay.add(fragment)
        device = self.replay.device
        labelled = fragments if self.config.label_columns else []
        labels = [fragment[TEACHER_Q][fragment[LEARNED]] for fragment in labelled]
        joined = torch.from_numpy(np.concatenate(labels)) if labels else torch.zeros(0, self._num_actions)
        self._take_labels(joined.to(device), reduce)
        batch: dict[str, Tensor] = {}
        if labelled:
            count = sum(len(each[LEARNED]) for each in labelled)
            some = spread_over(count, max(1, MAX_METRIC_STATES // self.replay.length))
            names = (Columns.OBS, TEACHER_Q, LEARNED, *self.replay.there(*_STATES))
            columns = {name: np.concatenate([fragment[name] for fragment in labelled])[some] for name in names}
            batch = self._as_batch({name: torch.tensor(column).to(device) for name, column in columns.items()})
        if self.obs_statistics.num_inputs:
            none = torch.zeros(0, self.obs_statistics.num_inputs, device=device)
            obs = batch[Columns.OBS].flatten(0, 1)[batch[PLACES]] if batch else none
            self.obs_statistics.update(obs, reduce=reduce)
        return batch

    def batches(
        self, num_steps: int, *, uses_td: bool, more: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
    ) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Draw minibatches of about `train_batch_size_per_learner` states: rows of sequences, and their batch."""
        count = num_sequences(self.config.train_batch_size_per_learner, self.config.model_config)
        for rows, _ in self.replay.draw(num_steps, count):
            batch = self.gather(rows, uses_td=uses_td)
            yield rows, {**batch, **more(batch)}

    def gather(self, rows: Tensor, *, uses_td: bool) -> dict[str, Tensor]:
        """Return the batch of the sequences at `rows` (`[B]`) of the replay.

        Returns:
            `obs` `[B, T, ...]`, parts of the students' states `[B, layers, units of all]`, `places` `[M]`, and labels
            `[M, ...]`. For TD also `new_obs` `[B, T, ...]`, the states before these, and RLlib's columns `[M]`.
        """
        names = (*self.config.state_columns, LEARNED, *self.replay.there(*_STATES))
        if uses_td:
            names += (*_TRANSITIONS, *self.replay.there(*_NEXT_STATES, MASK))
        return self._as_batch(self.replay.gather(rows, names))

    def _as_batch(self, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        batch = dict(columns)
        learned = batch.pop(LEARNED)
        places, length = learned.flatten().nonzero().squeeze(-1), learned.shape[1]
        batch[PLACES] = places
        obs = batch[Columns.OBS]
        inputs = as_input(obs.flatten(0, 1), self._input_shape, contiguous=True).unflatten(0, obs.shape[:2])
        batch[Columns.OBS] = inputs[:, :length].contiguous()
        if Columns.REWARDS in batch:
            batch[Columns.NEXT_OBS] = inputs[:, 1:].contiguous()
            batch["n_step"] = torch.ones_like(batch[Columns.REWARDS])
            if MASK in batch:
                batch[NEXT_MASK] = batch.pop(MASK)[:, 1:]
        for name in (*self.config.label_columns, ACTING, *_TRANSITIONS, "n_step", NEXT_MASK):
            if name in batch:
                batch[name] = at_places(batch[name], places)
        return batch

    def _q_values(self, student: Any, states: Mapping[str, Tensor]) -> Tensor:
        return student.q_values(states)

    def _states_of_replay(self) -> dict[str, Tensor]:
        rows = self.replay.spread(max(1, MAX_METRIC_STATES // self.replay.length))
        return self.gather(rows, uses_td=False) if len(rows) else {}

    def refill_replay(self, shards: Sequence[Mapping[str, np.ndarray]], *, is_own: bool) -> bool:
        """Fill the replay as `StudentGroup.refill_replay()`; not from sequences of another length."""
        name = f"{COLUMNS}{OBS}"
        lengths = {shard[name].shape[1] for shard in shards if name in shard}
        return lengths <= {self.replay.length} and super().refill_replay(shards, is_own=is_own)


class Kinds(NamedTuple):
    """Constructors for the students of one teacher: one student, several that learn side by side, and their group."""

    student: Callable[..., Student]
    stack: type[StackedStudents]
    group: type[StudentGroup]


def kinds_of(modules: Mapping[str, Any], config: Any) -> Kinds:
    """Return what makes students of these modules."""
    stateful = [module for module in modules.values() if module.is_stateful()]
    if stateful and not config.is_recurrent:
        raise ValueError(
            f"A {type(stateful[0]).__name__} of your own with a state is not supported. Shape a recurrent student by "
            "rl_module(model_config={'use_lstm': True, ...})."
        )
    if not stateful:
        return Kinds(Student, StackedStudents, StudentGroup)
    return Kinds(partial(RecurrentStudent, layout=StateLayout(modules)), RecurrentStudents, SequenceGroup)
