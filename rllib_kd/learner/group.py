"""The students of one teacher, and the states from which they learn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from torch import Tensor

from rllib_kd.learner import losses
from rllib_kd.learner.label_statistics import QStatistics, agrees, regret
from rllib_kd.learner.large_labels import LargeLabels
from rllib_kd.learner.observation_scale import NORMALIZED_OBS, ObservationScale, ObservationStatistics
from rllib_kd.learner.replay import BATCHES_AT_ONCE, ColumnarReplay, PrioritizedReplay, make_replay, spread_over
from rllib_kd.learner.stack import StackedStudents, members_of
from rllib_kd.learner.student import Student
from rllib_kd.learner.trees import Trees, TreeStudent
from rllib_kd.networks.dqn_module import QF_PREDS
from rllib_kd.observations.frames import VALID, observations
from rllib_kd.observations.images import as_input
from rllib_kd.observations.masks import MASK
from rllib_kd.students.restarts import is_named, student_of
from rllib_kd.wire import ACTING, LOG_PROBS, TEACHER_FEATURES, TEACHER_Q, Outputs

#: Columns that distillation needs (with most losses), and those that TD needs in addition.
DISTILLATION_COLUMNS = (Columns.OBS, TEACHER_Q)
TD_COLUMNS = (Columns.ACTIONS, Columns.REWARDS, Columns.TERMINATEDS, Columns.TRUNCATEDS, VALID)
#: States on which students are compared with the teacher at each update.
MAX_METRIC_STATES = 2_048
_MOST_BYTES_AT_ONCE = 2**20 // BATCHES_AT_ONCE  # of a batch: what fits a processor's cache
COLUMNS = "columns/"  # before the names of a replay's columns, among other arrays


class StudentGroup:
    """The students of one teacher, and the stream of labelled states from which they learn.

    Args:
        learners: students, or stacks of them, each of which makes a gradient step on every batch.
        trees: students that are trees, which are regrown now and then.
        config: config of their module.
        num_actions: number of actions, A.
        outputs: what the labels are: Q-values, or log-probabilities.
        device: device of the replay.
        seed: seed of the order in which rows are drawn; None: a random one.
    """

    def __init__(
        self,
        learners: Sequence[Student | StackedStudents],
        config: Any,
        *,
        trees: Sequence[TreeStudent] = (),
        num_actions: int,
        outputs: Outputs,
        device: torch.device | str,
        seed: int | None,
    ):
        self.learners = list(learners)  # those that are awake
        self.all_learners = list(learners)
        self.resting: list[str] = []  # module IDs of those that rest
        self.students: dict[str, Any] = {student.name: student for one in learners for student in members_of(one)}
        self.students |= {tree.name: tree for tree in trees}
        self.trees = Trees(trees, seed=seed)
        #: Names of students. Their restarts are in `students`, too, but in no results.
        self.named = [name for name in self.students if is_named(name)]
        self.config = config
        self.replay = self.make_replay(device=device, seed=seed)
        self.statistics = QStatistics(num_actions, device=device)
        shape = next(iter(self.students.values())).module.observation_space.shape
        normalizes_obs = any(student.first_layers for student in self.students.values())
        self.obs_statistics = ObservationStatistics(shape[0] if normalizes_obs else 0, device=device)
        self._obs_scale: ObservationScale | None = None  # inside an update
        self.num_steps = 0  # gradient steps of those that are awake, over restarts
        self.temperature = self.student_temperature = self.median_gap = 1.0  # of the current update
        self._large_labels = LargeLabels()
        self._num_taken = 0  # calls of `take_in()` with fragments
        self._num_actions = num_actions
        self._outputs = outputs
        self._input_shape = shape

    def make_replay(self, *, device: torch.device | str, seed: int | None) -> ColumnarReplay:
        """Return the replay that the config describes."""
        return make_replay(self.config.replay_buffer_config, device=device, seed=seed)

    def rest(self, names: Sequence[str]) -> None:
        """Let students rest, or copies of them: they keep their weights, and the others learn faster."""
        self.return_moments()
        self.resting = list(names)
        self.divide()

    def divide(self) -> None:
        """Divide what learns from what rests, with the optimizers of all as they are now."""
        self.trees.resting = self.resting
        self.learners = []
        for learner in self.all_learners:
            awake = [student for student in members_of(learner) if student.name not in self.resting]
            if len(awake) == len(members_of(learner)):
                self.learners.append(learner)
            elif awake and isinstance(learner, StackedStudents):
                self.learners.append(learner.part(awake))

    @property
    def learning(self) -> set[str]:
        """Return the students of which a copy learns by gradient steps."""
        return {student_of(student.name) for learner in self.learners for student in members_of(learner)}

    def return_moments(self) -> None:
        """Put what the optimizers of those that are awake know into the optimizers of all, which are saved."""
        for learner in self.learners:
            if isinstance(learner, StackedStudents) and learner.whole is not None:
                learner.whole.take_moments(learner)

    @property
    def is_waiting(self) -> bool:
        """Return whether no fragment has come yet: an agent may not have acted so far."""
        return self._num_taken == 0

    def check_can_learn(self) -> None:
        """Check that some state so far was usable, if there has been anything to learn from, and is kept.

        Raises:
            ValueError: none was, or the replay is too small to keep a row with what belongs to it.
        """
        if self.config.label_columns and self.statistics.count == 0 and not self.is_waiting:
            raise ValueError(
                "There is nothing to learn from: no state so far has finite observations, a finite reward and finite "
                "Q-values of the teacher. The result's env_runners/num_..._not_finite_lifetime count the causes."
            )
        if self.replay.is_full and not len(self.replay):
            raise ValueError(
                f"None of the {self.replay.capacity:,} rows in the replay can be drawn, although it is full: rows lack "
                "their next states, or the earlier frames of their stacks. Set replay_buffer_config['capacity'] higher."
            )

    def take_in(
        self,
        fragments: Sequence[Mapping[str, Any]],
        *,
        reduce: Callable[[Tensor], Any] | None,
        is_again: bool = False,
    ) -> dict[str, Tensor]:
        """Add fragments to the replay, and their labels to the statistics.

        Args:
            fragments: columns, as EnvRunners make them.
            reduce: adds up a tensor over all Learners, in place.
            is_again: whether the statistics have them already.

        Returns:
            Some of the labelled states: `obs` and `teacher_q`, or nothing.
        """
        self._num_taken += bool(fragments)
        for fragment in fragments:
            self.replay.add(fragment)
        labelled = fragments if self.config.label_columns and not is_again else []
        valid = [np.flatnonzero(each.get(VALID, np.ones(len(each[TEACHER_Q]), dtype=bool))) for each in labelled]
        # From all EnvRunners, and from all episodes of a piece of a file, which is larger than any fragment.
        is_seen = np.zeros(sum(map(len, valid)), dtype=bool)
        is_seen[spread_over(len(is_seen), MAX_METRIC_STATES)] = True
        device = self.replay.device
        fresh: list[dict[str, Tensor]] = []
        all_labels: list[Tensor] = []
        for fragment, rows in zip(labelled, valid, strict=True):
            if TEACHER_FEATURES in fragment:
                for student in self.students.values():
                    if student.feature_map is None:
                        student.make_feature_map(fragment[TEACHER_FEATURES].shape[-1])
            own, is_seen = np.split(is_seen, [len(rows)])
            some = rows[own]
            obs = torch.tensor(observations(fragment, some)).to(device)  # channels last if packed; else anywhere
            fresh.append({Columns.OBS: as_input(obs, self._input_shape)})
            fresh[-1][TEACHER_Q] = torch.tensor(fragment[TEACHER_Q][some])
            all_labels.append(torch.tensor(fragment[TEACHER_Q][rows]))
        states = {name: torch.cat([part[name] for part in fresh]) for name in DISTILLATION_COLUMNS} if fresh else {}
        labels = torch.cat(all_labels) if all_labels else torch.zeros(0, self._num_actions)
        self._take_labels(labels.to(device), reduce)
        states = {name: column.to(device) for name, column in states.items()}
        if self.obs_statistics.num_inputs:
            obs = states.get(Columns.OBS, torch.zeros(0, self.obs_statistics.num_inputs))
            self.obs_statistics.update(obs.to(device), reduce=reduce)
        return states

    def _take_labels(self, labels: Tensor, reduce: Callable[[Tensor], Any] | None) -> None:
        """Add labels `[M, A]` to the statistics, also if M is 0: every Learner takes part in the all-reduce."""
        if self._outputs != LOG_PROBS:
            self._large_labels.check(labels)
        self.statistics.update(labels, reduce=reduce)
        self.median_gap = self.statistics.median_gap()
        self.temperature, self.student_temperature = self.config.temperatures(self.median_gap, self._outputs)

    def as_states(self, rows: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """Return rows with the columns `obs` and `teacher_q` as `agreement()` takes them."""
        states = {name: torch.tensor(rows[name]).to(self.replay.device) for name in DISTILLATION_COLUMNS}
        return states | {Columns.OBS: as_input(states[Columns.OBS], self._input_shape)}

    @torch.no_grad()
    def agreement(self, states: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
        """Compare the acting students with the teacher on states on which they have not been trained yet.

        Args:
            states: as `take_in()` returns them.

        Returns:
            For each student the means over the states of `teacher_agreement` (share of actions that are the teacher's,
            or equally good, in [0, 1]), `q_regret` (return units; `regret_nats` against log-probabilities) and, but
            for trees, `kl_to_teacher` (nats). Empty if there are no states.
        """
        if not states or len(states[TEACHER_Q]) == 0:
            return {}
        student_q, chosen = self._choices(self.named, states)
        by_state = {
            "teacher_agreement": agrees(states[TEACHER_Q], chosen).float(),
            "regret_nats" if self._outputs == LOG_PROBS else "q_regret": regret(states[TEACHER_Q], chosen),
            "kl_to_teacher": losses.policy_kl(
                student_q,
                states[TEACHER_Q],
                temperature=self.temperature,
                student_temperature=self.student_temperature,
            ),
        }
        means = torch.stack([values.mean(-1) for values in by_state.values()], dim=-1).tolist()
        found = {name: dict(zip(by_state, own, strict=True)) for name, own in zip(self.named, means, strict=True)}
        for tree in self.trees.students:  # its values are no logits
            found.get(tree.name, {}).pop("kl_to_teacher", None)
        return found

    @torch.no_grad()
    def q_regret(self) -> dict[str, float]:
        """Return the mean regret of each module on states of the replay; NaN if there are none.

        It is in return units, or nats if the labels are log-probabilities.
        """
        states = self._states_of_replay() if self.config.label_columns else {}
        if not states:
            return dict.fromkeys(self.students, math.nan)
        _, chosen = self._choices(self.students, states)
        return dict(zip(self.students, regret(states[TEACHER_Q], chosen).mean(-1).tolist(), strict=True))

    def _states_of_replay(self) -> dict[str, Tensor]:
        """Return labelled states spread over the replay, as `take_in()` returns them; nothing if there are none."""
        rows = self.replay.spread(MAX_METRIC_STATES)
        if not len(rows):
            return {}
        states = self.replay.gather(rows, DISTILLATION_COLUMNS)
        return states | {Columns.OBS: as_input(states[Columns.OBS], self._input_shape)}

    def regrow_trees(self, *, are_all: bool = False) -> list[str]:
        """Regrow those trees that are due, on states of the replay; return their names.

        Args:
            are_all: whether no new ones have come. Recorded rows are then all in the replay.
        """
        num_states = self.statistics.count
        if not self.trees.is_due(num_states, are_all=are_all and self.config.is_offline) or not len(self.replay):
            return []

        def choose(rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
            states = self.replay.gather(self.replay.choose(count, rng), DISTILLATION_COLUMNS)
            return as_input(states[Columns.OBS], self._input_shape), states[TEACHER_Q]

        return self.trees.regrow(num_states, choose)

    def _choices(self, names: Iterable[str], states: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return Q-values `[N, M, A]` of acting students, and their actions `[N, M]`."""
        outputs = [self._q_values(self.students[name], states) for name in names]
        student_q = torch.stack(outputs).masked_fill(states[TEACHER_Q] == -torch.inf, -torch.inf)
        return student_q, student_q.argmax(-1)

    def _q_values(self, student: Any, states: Mapping[str, Tensor]) -> Tensor:
        """Return a student's Q-values `[M, A]` of states, as `take_in()` returns them."""
        return student.module.compute_q_values({Columns.OBS: states[Columns.OBS]})[QF_PREDS]

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Put the weights that learn into the modules during an update, and those that act after it.

        Also after an update that was interrupted or failed: otherwise the next one would normalise weights twice.
        """
        scale, self._obs_scale = self.statistics.scale(), self.obs_statistics.scale()
        with ExitStack() as stack:
            for learner in self.learners:
                learner.enter(scale, self._obs_scale)
                stack.callback(learner.leave)
            stack.callback(setattr, self, "_obs_scale", None)
            yield

    def batches(
        self, num_steps: int, *, uses_td: bool, more: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
    ) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Draw minibatches from the replay: the rows `[B]` of each, and their columns.

        Args:
            num_steps: minibatches to draw.
            uses_td: whether TD columns are gathered, too.
            more: makes more columns of some rows, each row by itself.
        """
        size = self.config.train_batch_size_per_learner
        draws = self.replay.draw(num_steps, size)
        at_once = BATCHES_AT_ONCE if size * self.replay.bytes_of_state <= _MOST_BYTES_AT_ONCE else 1
        while drawn := list(islice(draws, at_once)):
            columns = self.gather(torch.cat([rows for rows, _ in drawn]), uses_td=uses_td)
            columns |= more(columns)
            each = zip(*(column.split(size) for column in columns.values()), strict=True)
            for (rows, weights), own in zip(drawn, each, strict=True):
                batch = dict(zip(columns, own, strict=True))
                if weights is not None:
                    batch["weights"] = weights
                yield rows, batch

    def after_step(self, rows: Tensor, errors: Sequence[Tensor], *, moves_targets: bool) -> None:
        """Update priorities and target networks after all students have made a gradient step on a minibatch.

        Args:
            rows: rows of the minibatch, `[B]`.
            errors: errors of each of `learners`, `[B]` or `[N, B]`; their mean sets the priorities of the rows.
            moves_targets: whether the target networks are updated.
        """
        self.num_steps += 1
        for learner in self.learners:
            learner.average(self.config.weight_averaging)
            if moves_targets and isinstance(learner, Student):  # what learns by TD is never stacked
                learner.update_targets(self.config.tau)
        if isinstance(self.replay, PrioritizedReplay):
            each = [own.abs().view(-1, len(rows)).mean(0) for own in errors]
            self.replay.update_priorities(rows, torch.stack(each).mean(0))

    def gather(self, rows: Tensor, *, uses_td: bool) -> dict[str, Tensor]:
        """Return the batch at `rows` (`[B]`) of the replay."""
        batch = self.replay.gather(rows, self.config.state_columns)
        if uses_td:
            batch |= self.replay.gather(rows, (Columns.ACTIONS,))
            batch |= self.replay.gather_transitions(rows, n_step=self.config.n_step, gamma=self.config.gamma)
            batch[Columns.NEXT_OBS] = as_input(batch[Columns.NEXT_OBS], self._input_shape)
        batch[Columns.OBS] = as_input(batch[Columns.OBS], self._input_shape, contiguous=True)
        if self._obs_scale is not None and self.obs_statistics.num_inputs:
            batch[NORMALIZED_OBS] = self._obs_scale.normalize(batch[Columns.OBS])
        return batch

    def note_weights(self) -> None:
        """Take the weights of all modules for those that the Learner has set, as in `Student.note_weights()`."""
        for learner in self.all_learners:
            for student in members_of(learner):
                student.note_weights()

    def forget(self) -> None:
        """Let all students learn from the weights of their modules, as in `Student.forget()`."""
        for student in self.students.values():
            student.forget()

    def get_state(self) -> dict[str, Any]:
        """Return the state without the modules, the optimizers and the replay."""
        return {
            "q_statistics": self.statistics.get_state(),
            "obs_statistics": self.obs_statistics.get_state(),
            "num_steps": self.num_steps,
            "trees": self.trees.get_state(),
            "students": {name: student.get_state() for name, student in self.students.items()},
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore the state of `get_state()`."""
        self.statistics.set_state(state["q_statistics"])
        if "obs_statistics" in state:  # not of a version without
            self.obs_statistics.set_state(state["obs_statistics"])
        self.num_steps = state["num_steps"]
        if "trees" in state:  # not of a version without
            self.trees.set_state(state["trees"])
        for name, student_state in state["students"].items():
            if name in self.students:
                own = {"num_averaged": self.num_steps, **student_state}  # a version counted the steps of the group
                self.students[name].set_state(own)

    def restore_feature_maps(self, state: Mapping[str, Any]) -> None:
        """Create the feature maps of `get_state()` before the optimizers' states are set, if features are matched."""
        for name, student in self.students.items() if self.config.feature_coeff else ():
            student.restore_feature_map(state["students"].get(name, {}))

    def replay_arrays(self, *, with_rows: bool = True) -> dict[str, np.ndarray]:
        """Return the replay as arrays: columns as `columns/<name>`, unless left out, and the rest by its name."""
        state = self.replay.get_state(with_rows=with_rows)
        columns = {f"{COLUMNS}{name}": column for name, column in state.pop("columns").items()}
        return columns | {name: np.asarray(value) for name, value in state.items()}

    def refill_replay(self, shards: Sequence[Mapping[str, np.ndarray]], *, is_own: bool) -> bool:
        """Fill the replay from results of `replay_arrays()`, if they have the columns that are needed now.

        Args:
            shards: results of one or more Learners.
            is_own: whether there is one shard, of this Learner, which then continues its order of drawing.

        Returns:
            Whether they have the columns. If not, nothing changes.
        """
        needed = set(self.config.replay_columns)
        kept = {*self.replay.OWN_COLUMNS, *({MASK} if self.config.uses_td else ())}
        states: list[dict[str, Any]] = []
        for shard in shards:
            given = {name.removeprefix(COLUMNS): shard[name] for name in shard if name.startswith(COLUMNS)}
            if given and ACTING in needed:  # of a version that did not save who acted
                given.setdefault(ACTING, np.zeros(given[TEACHER_Q].shape[:-1], dtype=np.int32))
            if given and not needed <= given.keys():
                return False
            columns = {name: given[name] for name in given if name in {*needed, *kept}}
            rest = {name: shard[name] for name in shard if not name.startswith(COLUMNS)}
            states.append({"columns": columns, **rest})
        first, *others = states
        if not is_own:
            del first["generator"]
        self.replay.set_state(first)
        for state in others:
            self.replay.add_contents(state)
        return True
