"""The first states of a run, and the students' first weights, fitted to the teachers' outputs on them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.core.rl_module.apis import TargetNetworkAPI

from rllib_kd.algorithm.dead_learners import ask_learners
from rllib_kd.algorithm.students import Students
from rllib_kd.learner.label_statistics import QStatistics
from rllib_kd.learner.losses import POLICY_LOSSES
from rllib_kd.learner.replay import spread_over
from rllib_kd.networks.weights import Weights, weights_of
from rllib_kd.observations.frames import CONTEXT, VALID, observations
from rllib_kd.observations.images import as_input
from rllib_kd.students.convolutions import check_convolutions, initialize_convolutions
from rllib_kd.students.initialization import initialize
from rllib_kd.students.restarts import names_of
from rllib_kd.teachers.base import Teacher
from rllib_kd.wire import TEACHER_Q

logger = logging.getLogger(__name__)

_NUM_STATES, _NUM_NUMBERS = 2_048, 2**24  # states that decide, and numbers in all of them, at most
_NUM_IMAGES = 256  # the same for convolutions, which see many windows in each
_AT_ONCE = 64  # images would fill the memory


class FirstWeights:
    """The first states of each teacher, and the weights fitted to them, set before the first gradient step.

    A group without states then, such as one whose agents have not acted yet, gets its weights with its first states.

    Args:
        group_ids: groups that get first weights.
    """

    NOT_SAVED: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, group_ids: Iterable[str]):
        self._waiting = {group_id: FirstStates() for group_id in group_ids}  # for their first weights

    @property
    def is_done(self) -> bool:
        """Return whether all groups have their first weights."""
        return not self._waiting

    def keep(self, fragments: Iterable[Mapping[str, Mapping[str, Any]]]) -> None:
        """Add the columns of each group, of all fragments."""
        for fragment in fragments:
            for group_id in self._waiting.keys() & fragment.keys():
                self._waiting[group_id].keep(fragment[group_id])

    def set_on(
        self,
        learner_group: LearnerGroup,
        students: Students,
        teachers: Mapping[str, Teacher],
        new_student: Callable[[str], Any],
        config: Any,
    ) -> None:
        """Set the first weights of groups with states on all Learners; EnvRunners get them as after any update.

        Args:
            learner_group: Learners whose students and target networks get the weights.
            students: students of the run.
            teachers: teachers by group.
            new_student: builds a new RLModule for the student of a name.
            config: config with the losses and temperatures of all groups.

        Raises:
            ValueError: a teacher's observations differ from its student's, or its layers do not fit; not by default
                (`init=None`), by which such a student's weights stay random.
        """
        weights: dict[str, Weights] = {}
        for group_id in [group_id for group_id, states in self._waiting.items() if states]:
            states, teacher = self._waiting.pop(group_id), teachers[group_id]
            for name in students.of_group(group_id):
                try:
                    with torch.random.fork_rng(devices=[]):  # of the new student, that gives its shape alone
                        own = states.initial_weights(new_student(name), teacher, config.of_module(group_id))
                except (ValueError, torch.linalg.LinAlgError) as error:
                    if config.init is not None:
                        raise
                    logger.info("The first weights of '%s' are random. %s", name, error)
                else:
                    weights |= dict.fromkeys(names_of(name, config.num_copies), own)
        if weights:
            set_first_weights(learner_group, weights, is_whole=config.init == "teacher")

    def get_state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        return {"waiting": {group_id: states.get_state() for group_id, states in self._waiting.items()}}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore the state of `get_state()`."""
        # A version in which no group waited kept empty lists of those that had their weights.
        saved = state["waiting"] if "waiting" in state else {name: own for name, own in state["states"].items() if own}
        self._waiting = {group_id: states for group_id, states in self._waiting.items() if group_id in saved}
        for group_id, states in self._waiting.items():
            states.set_state(saved[group_id])


def set_first_weights(learner_group: LearnerGroup, weights: Mapping[str, Weights], *, is_whole: bool) -> None:
    """Set students and their target networks on all Learners, before the first gradient step.

    Args:
        learner_group: the Learners.
        weights: weights of each student's RLModule, by module ID.
        is_whole: whether these are all weights, with Q-values as outputs. Otherwise what was drawn stays, in the
            coordinates in which it was drawn.
    """

    def start(learner: Any) -> None:
        for group in learner.groups.values():
            for name in weights.keys() & group.students.keys():
                if is_whole:
                    learner.module[name].set_state(weights[name])
                    group.students[name].forget()
                else:
                    learner.give_weights({name: weights[name]})
                    group.students[name].training_weights = None  # as the module's: nothing was learned yet
        for name in weights:
            module = learner.module[name].unwrapped()
            for network, target in module.get_target_network_pairs() if isinstance(module, TargetNetworkAPI) else ():
                target.load_state_dict(network.state_dict())

    ask_learners(learner_group, start)


class FirstStates:
    """The newest labelled states of one teacher before learning starts."""

    def __init__(self) -> None:
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []  # observations and labels

    def __bool__(self) -> bool:
        """Return whether there are any."""
        return bool(self._parts)

    def keep(self, fragment: Mapping[str, Any]) -> None:
        """Add a fragment's columns."""
        drawable = fragment.get(VALID, np.ones(len(fragment[TEACHER_Q]), dtype=bool))
        rows = np.flatnonzero(drawable & ~fragment.get(CONTEXT, np.zeros_like(drawable)))
        if len(rows):
            self._parts.append((observations(fragment, rows), fragment[TEACHER_Q][rows]))
        while sum(len(obs) for obs, _ in self._parts[1:]) >= _NUM_STATES:
            del self._parts[0]

    def get_state(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the states and their labels."""
        return list(self._parts)

    def set_state(self, state: list[tuple[np.ndarray, np.ndarray]]) -> None:
        """Restore the state of `get_state()`."""
        self._parts = list(state)

    def initial_weights(self, student: Any, teacher: Teacher, config: Any) -> Weights:
        """Return a student's first weights: with `init="teacher"` all of them, otherwise its convolutions.

        Args:
            student: a new RLModule; it is changed.
            teacher: the teacher of the labels.
            config: config with `init`, the loss and its temperatures.

        Raises:
            ValueError: the teacher's observations differ from the student's, or its layers do not fit.
        """
        of_convolutions = config.init != "teacher"
        if of_convolutions:
            check_convolutions(student, teacher.module)
        obs, teacher_q = (torch.from_numpy(np.concatenate(part)) for part in zip(*self._parts, strict=True))
        most = _NUM_IMAGES if of_convolutions else _NUM_STATES
        some = spread_over(len(obs), min(most, max(1, _NUM_NUMBERS // obs[0].numel())))
        obs, teacher_q = obs[some], teacher_q[some]
        obs = torch.cat([as_input(part, student.observation_space.shape) for part in obs.split(_AT_ONCE)])
        legal = torch.isfinite(teacher_q)
        parts = zip(obs.split(_AT_ONCE), legal.split(_AT_ONCE), strict=True)
        own_q = torch.cat([teacher.q_values(part, own_legal) for part, own_legal in parts]).masked_fill(~legal, 0.0)
        seen_q = teacher_q.masked_fill(~legal, 0.0)
        if not torch.allclose(own_q, seen_q, rtol=1e-3, atol=1e-3 * float(seen_q.abs().max())):
            raise ValueError(
                "First weights from a teacher need a student with the same observations as its teacher "
                f"'{teacher.source}', but they differ. Give both the same connectors, or set init='random'."
            )
        if of_convolutions:
            return weights_of(student, initialize_convolutions(student, teacher.module, obs))
        statistics = QStatistics(teacher_q.shape[-1])
        statistics.update(teacher_q)
        temperature, student_temperature = config.temperatures(statistics.median_gap(), teacher.outputs)
        ranks = config.loss in POLICY_LOSSES and not config.uses_td
        unit = temperature / student_temperature if ranks else None
        initialize(student, teacher.module, obs, unit=unit)
        return weights_of(student)
