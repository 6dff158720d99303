"""The Algorithm: who does what, when."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import os
import pickle
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.fs
import ray
import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.dqn import DQN
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.env import INPUT_ENV_SINGLE_SPACES
from ray.rllib.env.env_context import EnvContext
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    ENV_RUNNER_SAMPLING_TIMER,
    EPISODE_MODULE_RETURN_MEAN,
    EPISODE_RETURN_MEAN,
    LEARNER_RESULTS,
    LEARNER_UPDATE_TIMER,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    SYNCH_WORKER_WEIGHTS_TIMER,
    TIMERS,
    WEIGHTS_SEQ_NO,
)
from ray.tune.registry import register_trainable

from rllib_kd.algorithm.baselines import BASELINES, Returns, baseline_key, cached, check_baselines
from rllib_kd.algorithm.config import DEFAULT_COMPRESSION, WIDTH_KEYS, DistillDQNConfig
from rllib_kd.algorithm.first_weights import FirstStates
from rllib_kd.algorithm.preflight import (
    actor_resources,
    check_environment,
    check_resources,
    check_teacher,
    check_teachers,
    known_spaces,
)
from rllib_kd.algorithm.random_state import capture_random_state, put_back_random_state
from rllib_kd.algorithm.sampling import SampleRequests, answers, kill_the_hung, reason_in
from rllib_kd.checkpoints.replacing import replacing
from rllib_kd.checkpoints.replay_files import REPLAY_FOLDER, local_folder, read_replays, resolve, write_replay
from rllib_kd.env_runner.capture import capture_sampling, put_back_sampling, restart_sampling
from rllib_kd.env_runner.column_sampler import NUM_NOT_FINITE_LIFETIME, NUM_STATES_DROPPED_LIFETIME
from rllib_kd.environments.failures import described
from rllib_kd.learner.group import TD_COLUMNS
from rllib_kd.learner.learner import NUM_GRADIENT_STEPS, STATE_AFTER_UPDATE
from rllib_kd.networks.dqn_module import Support, count_parameters, student_module_spec, support_of
from rllib_kd.observations.spaces import check_spaces, input_space
from rllib_kd.schedules import value_at
from rllib_kd.students import initialization
from rllib_kd.students.sizes import PRESETS, compress
from rllib_kd.teachers.base import Teacher
from rllib_kd.teachers.ensemble import as_configured
from rllib_kd.teachers.loading import load_teacher
from rllib_kd.wire import Sample, pack_weights, receive

logger = logging.getLogger(__name__)


COMPONENT_TEACHER = "teacher"


#: In the config of a checkpoint: the teacher lies beside it, wherever it was loaded from once.
TEACHER_IN_CHECKPOINT = "checkpoint:teacher"


_STATE = "distillation"


_SECONDS_TO_STOP = 10.0  # in which an EnvRunner ends the sample that it is in


class DistillDQN(DQN):
    """Trains a compact student Q-network to act like a trained teacher, on states that EnvRunners visit."""

    config: DistillDQNConfig
    _is_set_up = False
    _restore_when_set_up: Callable[[], None] | None = None

    @classmethod
    @override(DQN)
    def get_default_config(cls) -> DistillDQNConfig:
        return DistillDQNConfig()

    @override(DQN)
    def setup(self, config: AlgorithmConfig) -> None:
        """Load the teacher, settle the student's widths, and build RLlib's groups.

        Raises:
            ValueError: the teacher cannot be loaded, or does not fit the environment or the student.
        """
        _limit_threads(self.config.num_cpus_for_main_process)
        spaces = self._known_spaces()
        if spaces is not None:
            check_environment(self.config, spaces)
        check_resources(actor_resources(type(self), self.config))
        #: By group: by module in multi-agent settings, otherwise one; empty without a teacher.
        self._teachers = {group_id: self._load_teacher(group_id) for group_id in self.config.teachers}
        check_teachers(self.config, self._teachers, spaces)
        # EnvRunners and Learners build the students on their own nodes, from the config: it must be concrete by now.
        self.config = self._settle_students()
        # What is counted here and saved, beside RLlib's metrics.
        self._returns: dict[str, Returns] = {}  # by student
        self.num_gradient_steps = 0  # over restarts
        self._rows_due = 0.0  # to be learned from, until the replay ratio is met
        self._steps_since_start = 0  # since the replay was empty
        self._num_dropped = 0  # states, when it was last looked
        self._to_put_back: dict[str, Any] = {}  # of a restored state, until everything else is restored
        self._first_states = {group_id: FirstStates() for group_id in self._teachers}
        try:
            super().setup(self.config)
        except IndexError:  # what RLlib makes of remote EnvRunners that could not be built
            self._explain_failed_env_runners()
            raise
        self._requests = SampleRequests(
            self.env_runner_group, max_staleness=self.config.max_staleness, timeout_s=self.config.sample_timeout_s
        )
        self._student_state: dict[str, Any] | None = None  # what the next request carries; None: to be asked for
        self._weights_seq_no = 0  # updates that the student in it has seen
        self._staleness: list[int] = []  # of the samples of this iteration, in updates
        self._connector_states: dict[int, dict[str, Any]] = {}  # by EnvRunner with connectors of its own
        #: By group, and then by name.
        self._students: dict[str, dict[str, StudentSize]] = self._measure_students()
        self._returns |= {name: Returns() for students in self._students.values() for name in students}
        self._check_vector_env()
        if all(teacher.is_loaded for teacher in self._teachers.values()):
            self._warn_of_large_students()
            self._check_fit()
            if self.config.init == "teacher":
                for group_id, teacher in self._teachers.items():
                    for name in self._students[group_id]:
                        initialization.check(self._new_student(name), teacher.module)
            self._send_teachers(self.env_runner_group)
            self._measure_baselines()
        self._is_set_up = True
        if self._restore_when_set_up is not None:
            self._restore_when_set_up()

    @override(DQN)
    def training_step(self) -> None:
        """Sample labelled columns, learn from the replay, and send the student's weights to the EnvRunners."""
        if not all(teacher.is_loaded for teacher in self._teachers.values()):
            raise ValueError(
                "This algorithm was built from a checkpoint's config, without the teacher. Restore it with "
                "DistillDQN.from_checkpoint(path), which loads both, or set .distillation(teacher=...)."
            )
        with self.metrics.log_time((TIMERS, ENV_RUNNER_SAMPLING_TIMER)):
            shards = self._sample()
        if not shards:
            return  # no EnvRunner is left; RLlib restarts them before the next step
        try:
            with self.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)):
                student = self._update(shards)
            with self.metrics.log_time((TIMERS, SYNCH_WORKER_WEIGHTS_TIMER)):
                if student is not None:
                    self._take_student(student)
                else:  # as RLlib's sync_weights(), without its way through the object store
                    self.env_runner_group.local_env_runner.set_state(self._newest_student())
        except ray.exceptions.RayActorError as error:  # a dead EnvRunner raises none
            raise RuntimeError(
                "A Learner has died, with the node it was on or by itself, and RLlib restarts EnvRunners but never "
                "Learners. Stop this algorithm and go on from the last checkpoint: DistillDQN.from_checkpoint(path). "
                "`rllib train --checkpoint-freq N --max-failures N` does so by itself, and under Ray Tune "
                "FailureConfig(max_failures=...)."
            ) from error

    @override(DQN)
    def step(self) -> dict[str, Any]:
        """RLlib's training iteration, with the result's `distillation` entry."""
        results = super().step()
        self._show_student()
        if self._connector_states or not self._samples_remotely:
            # As RLlib would, but without asking EnvRunners that are busy.
            self.env_runner_group.sync_env_runner_states(
                config=self.config,
                connector_states=list(self._connector_states.values()),
                env_steps_sampled=self.num_env_steps,
                env_to_module=self.env_to_module_connector,
                module_to_env=self.module_to_env_connector,
            )
        results["distillation"] = self._results(results)
        self._staleness, self._connector_states = [], {}
        return results

    @override(DQN)
    def cleanup(self) -> None:
        """As RLlib's, also where the environment of a remote EnvRunner hangs."""
        if hasattr(self, "_requests"):  # setup() came that far
            self._requests.kill_the_hung(seconds=_SECONDS_TO_STOP)
            if self.eval_env_runner_group is not None:
                kill_the_hung(self.eval_env_runner_group._worker_manager.actors(), seconds=_SECONDS_TO_STOP)
        super().cleanup()

    def __repr__(self) -> str:
        # Ray asks for it when __init__ has failed in an actor, before there is a config: without an answer the actor
        # dies, and takes the error that explains why with it.
        return super().__repr__() if self.config is not None else type(self).__name__

    @override(DQN)
    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """RLlib's evaluation; of a family, of one student after the other: see `students` in what it returns."""
        if not self.config.students:
            evaluation = self._evaluate(*args, **kwargs)
            for name, student_return in self._returns_in(evaluation).items():
                self._returns[name].student = student_return
            return evaluation
        students = {}
        for name in self.config.students:
            self.eval_env_runner_group.foreach_env_runner(lambda env_runner, name=name: env_runner.let_act(name))
            students[name] = self._evaluate(*args, **kwargs)
            self._returns[name].student = self._returns_in(students[name])[DEFAULT_MODULE_ID]
        return {**students[name], "students": students}

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        try:
            return super().evaluate(*args, **kwargs)
        except ray.exceptions.RayTaskError as error:  # of a remote EnvRunner
            raise reason_in(error) or error from None

    def _returns_in(self, evaluation: dict[str, Any]) -> dict[str, float]:
        """Mean returns by module; NaN where no episode ended."""
        results = evaluation.get(ENV_RUNNER_RESULTS, {})
        if self.config.is_multi_agent:
            by_module = results.get(EPISODE_MODULE_RETURN_MEAN, {})
            return {name: float(by_module.get(name, math.nan)) for name in self._returns}
        return {DEFAULT_MODULE_ID: float(results.get(EPISODE_RETURN_MEAN, math.nan))}

    @override(DQN)
    def get_module(self, module_id: str = DEFAULT_MODULE_ID) -> Any:
        """The student; of a family or in multi-agent settings the one of that name.

        Raises:
            ValueError: of a family, no name was given, or one that is not in it.
        """
        family = self.config.students
        if family and module_id not in family:
            raise ValueError(f"This is a family of students: name one of them, {sorted(family)}. Got '{module_id}'.")
        return self.env_runner.family[module_id] if family else super().get_module(module_id)

    # --- Teachers and students ----------------------------------------------------------------------------------------

    def _known_spaces(self) -> Any:
        """The environment's, where they are known before EnvRunners have made it."""
        try:
            return known_spaces(self.config)
        except ValueError:
            if self.config.num_env_runners == 0:
                raise
            return None  # the nodes of EnvRunners may have packages that are missing here

    def _load_teacher(self, group_id: str) -> Teacher:
        """A teacher; an empty one that is still to come from a checkpoint."""
        given = self.config.teachers[group_id]
        if isinstance(given, str) and given == TEACHER_IN_CHECKPOINT:
            return Teacher()  # restore_from_path() will fill it
        try:
            if isinstance(given, Teacher):
                loaded = copy.deepcopy(given)  # a restored state replaces its network
            else:
                loaded = load_teacher(given, trust_checkpoint=self.config.trust_checkpoint)
            return as_configured(loaded, self.config.ensemble, self.config.temperature)
        except ValueError:
            # Tune rebuilds a trial from its config before it restores it, maybe on another machine.
            if teacher := self._load_teacher_of_trial(_component(group_id)):
                return teacher
            raise

    def _load_teacher_of_trial(self, component: str) -> Teacher | None:
        """The teacher in the newest checkpoint of this Tune trial, if there is one."""
        if self._storage is None:
            return None
        filesystem, trial = self._storage.storage_filesystem, self._storage.trial_fs_path
        entries = filesystem.get_file_info(pyarrow.fs.FileSelector(trial, allow_not_found=True))
        checkpoints = sorted(entry.path for entry in entries if entry.base_name.startswith("checkpoint_"))
        for checkpoint in reversed(checkpoints):
            teacher = Teacher()
            try:
                teacher.restore_from_path(f"{checkpoint}/{component}", filesystem=filesystem)
            except (OSError, EOFError, pickle.UnpicklingError):
                continue  # half written
            return teacher
        return None

    def _settle_students(self) -> DistillDQNConfig:
        """The config with presets and compressions turned into layer widths, and without the teachers themselves."""
        config = self.config.copy(copy_frozen=False)
        own = config.given_model_config
        if config.students:
            config.students = {name: self._shape(shape, DEFAULT_MODULE_ID) for name, shape in config.students.items()}
        elif config.student is not None:
            config.rl_module(model_config=own | self._shape(config.student, DEFAULT_MODULE_ID))
        elif self._teachers and config._rl_module_spec is None and not WIDTH_KEYS & set(own):
            size = {"compression": config.compression or DEFAULT_COMPRESSION}
            shapes = {group_id: own | self._shape(size, group_id) for group_id in self._teachers}
            if config.is_multi_agent:
                specs = {group_id: student_module_spec(shape) for group_id, shape in shapes.items()}
                config.rl_module(rl_module_spec=MultiRLModuleSpec(rl_module_specs=specs))
            else:
                config.rl_module(model_config=shapes[DEFAULT_MODULE_ID])
        config.student = config.compression = None
        # What actors and checkpoints get of a teacher that is loaded already, they get by itself.
        config.set_teachers(lambda _, teacher: _without_networks(teacher))
        config.freeze()
        return config

    def _shape(self, shape: str | Mapping[str, Any], group_id: str) -> dict[str, Any]:
        """The model config of a preset, or of a student that is described by its compression."""
        if isinstance(shape, str):
            return dict(PRESETS[shape])
        if "compression" not in shape:
            return dict(shape)
        config, teacher = self.config, self._teachers[group_id].members[0]
        if teacher.model_config is None:
            raise ValueError(
                f"The teacher '{teacher.source}' has a network of its own, which cannot be scaled by `compression`. "
                "Shape the student with rl_module(model_config={'fcnet_hiddens': [...]})."
            )
        # Before there is an environment: with connectors of its own the student sees what the teacher's network sees,
        # or nearly; the widths hardly depend on it. So it does where any kind of image is turned into that.
        sees_inputs = config._env_to_module_connector is not None or teacher.takes(teacher.input_space)
        observation_space = teacher.input_space if sees_inputs else teacher.observation_space
        check_spaces(observation_space, teacher.action_space)
        given = {name: value for name, value in shape.items() if name != "compression"}
        return given | compress(
            {**teacher.model_config, **config.given_model_config, **given},
            head_config=config.model_config,
            compression=shape["compression"],
            teacher_parameters=self._teachers[group_id].num_parameters,
            observation_space=observation_space,
            action_space=teacher.action_space,
        )

    def _measure_students(self) -> dict[str, dict[str, StudentSize]]:
        def measure(learner: Any) -> dict[str, dict[str, StudentSize]]:
            return {
                group_id: {
                    name: StudentSize(count_parameters(student.module), support_of(student.module))
                    for name, student in group.students.items()
                }
                for group_id, group in learner.groups.items()
            }

        return next(iter(self.learner_group.foreach_learner(measure))).get()

    def _new_student(self, name: str) -> Any:
        spec = self.config.get_multi_rl_module_spec(spaces=self.spaces, inference_only=True)
        return spec.rl_module_specs[name].build()

    def _explain_failed_env_runners(self) -> None:
        """Raise the reason as a ValueError, if one shows here."""
        try:
            env = self.env_creator(EnvContext(self.config.env_config, worker_index=0))
        except Exception as error:
            name = getattr(self.config.env, "__name__", self.config.env)
            raise ValueError(f"The environment '{name}' cannot be made: {described(error)}") from error
        if self.config.is_multi_agent:
            return
        if self.config._env_to_module_connector is None:
            check_spaces(input_space(env.observation_space), env.action_space)
        elif self._teachers and self._teachers[DEFAULT_MODULE_ID].is_loaded:
            check_spaces(self._teachers[DEFAULT_MODULE_ID].input_space, env.action_space)

    def _warn_of_large_students(self) -> None:
        for group_id, teacher in self._teachers.items():
            for name, student in self._students[group_id].items():
                if student.num_parameters >= 0.9 * teacher.num_parameters:
                    logger.warning(
                        "The student '%s' has %d parameters, nearly as many as its teacher (%d) or more. Where the "
                        "model config names no widths, RLlib's own are taken: set fcnet_hiddens or conv_filters, or "
                        "`compression`.",
                        name,
                        student.num_parameters,
                        teacher.num_parameters,
                    )

    def _check_fit(self) -> None:
        """Whether teachers, students and environment speak of the same things."""
        for group_id, teacher in self._teachers.items():
            self._check_spaces(group_id, teacher)
            if self.config.feature_coeff and teacher.model_config is None:
                raise ValueError(
                    f"`feature_coeff` needs a teacher with RLlib's DQN architecture, but '{teacher.source}' has a "
                    "network of its own. Set feature_coeff=0."
                )
            for student in self._students[group_id].values() if self.config.loss == "categorical" else ():
                if teacher.support != student.support:
                    raise ValueError(
                        "The loss 'categorical' needs return distributions on one support, but the teacher's is "
                        f"{teacher.support} and the student's {student.support}. Set training(num_atoms=..., "
                        "v_min=..., v_max=...) as in the teacher; for a teacher without distributions use another loss."
                    )

    def _check_spaces(self, group_id: str, teacher: Teacher) -> None:
        shown_space, action_space = self.spaces[group_id if self.config.is_multi_agent else INPUT_ENV_SINGLE_SPACES]
        if self.config.is_multi_agent and teacher.pipeline is not None and teacher.pipeline.stages:
            raise ValueError(
                f"The teacher '{teacher.source}' sees through filters or connectors of its own, which multi-agent "
                "settings do not have. Name one that takes what the environment shows."
            )
        seen, _ = self.spaces.get(group_id, (None, None))
        check_teacher(teacher, (shown_space, action_space), self.config.env, seen=seen)

    def _check_vector_env(self) -> None:
        reported = self.env_runner_group.foreach_env_runner(lambda env_runner: env_runner.autoreset_mode())
        modes = {str(mode) for mode in reported if mode is not None}
        if unknown := modes - {"AutoresetMode.NEXT_STEP"}:
            raise ValueError(
                f"The vector environment resets in mode {sorted(unknown)}, but RLlib's EnvRunners need "
                "AutoresetMode.NEXT_STEP. Make it with autoreset_mode=AutoresetMode.NEXT_STEP."
            )

    def _send_teachers(self, group: EnvRunnerGroup, worker_ids: list[int] | None = None) -> None:
        """Through the object store: nodes share no disk, and hold the weights once."""
        teachers = self._teachers if self.config.is_multi_agent else self._teachers.get(DEFAULT_MODULE_ID)
        if not teachers:
            return
        if group.local_env_runner is not None and worker_ids is None:
            group.local_env_runner.set_teacher(teachers)
        if worker_ids is None:
            self._teachers_reference = ray.put(teachers)  # kept for those that will be restarted
        reference = self._teachers_reference
        group.foreach_env_runner(
            lambda env_runner: env_runner.set_teacher(ray.get(reference)),
            local_env_runner=False,
            remote_worker_ids=worker_ids,
        )

    @override(DQN)
    def restore_env_runners(self, env_runner_group: EnvRunnerGroup) -> list[int]:
        """As RLlib; but the others do not wait, and a restarted EnvRunner also needs the teacher again."""
        samples = env_runner_group is self.env_runner_group
        is_back = samples and self._requests.ping_the_dead()
        if samples and env_runner_group.num_healthy_remote_env_runners() and not is_back:
            return []
        restored = super().restore_env_runners(env_runner_group)
        if restored and samples:
            self._send_teachers(env_runner_group, restored)
        return restored

    # --- One training step --------------------------------------------------------------------------------------------

    def _sample(self) -> list[Any]:
        """New columns, as they are handed over: those for the first Learner first."""
        num_shards = max(1, self.config.num_learners)
        if self._samples_remotely:
            samples = self._sample_remotely()
        else:
            shards, metrics = self.env_runner_group.local_env_runner.sample_columns(**self._sampling_kwargs())
            samples = [Sample(0, shards, metrics, self._weights_seq_no, {})]
        before = self.num_env_steps
        self.metrics.aggregate([sample.metrics for sample in samples], key=ENV_RUNNER_RESULTS)
        self._check_finite()
        self._steps_since_start += self.num_env_steps - before
        if self._steps_since_start >= self.config.num_steps_sampled_before_learning_starts:
            self._rows_due += self.config.training_intensity * (self.num_env_steps - before)
        self._staleness += [self._weights_seq_no - sample.weights_seq_no for sample in samples]
        return [sample.shards[index] for index in range(num_shards) for sample in samples]

    def _check_finite(self) -> None:
        """Warn once of numbers that are not finite, by who gave them.

        Raises:
            ValueError: so it was in every state so far, when there must be something to learn from.
        """
        dropped = self._count(NUM_STATES_DROPPED_LIFETIME)
        if dropped == self._num_dropped:
            return
        is_first, self._num_dropped = self._num_dropped == 0, dropped
        counts = {cause: self._count(name) for cause, name in NUM_NOT_FINITE_LIFETIME.items()}
        message = not_finite(counts, dropped, env=self.config.env, teacher=self._teacher_sources())
        # Agents of one env step are many states, which none of RLlib's counters counts.
        is_all = not self.config.is_multi_agent and dropped >= self.num_env_steps
        if is_all and self.num_env_steps >= max(1, self.config.num_steps_sampled_before_learning_starts):
            raise ValueError(f"There is nothing to learn from: {message}")
        if is_first:
            logger.warning("%s These states are not learned from; the results count them.", message)

    def _count(self, name: str) -> int:
        return int(self.metrics.peek((ENV_RUNNER_RESULTS, name), default=0))

    def _teacher_sources(self) -> str:
        return ", ".join(f"'{teacher.source}'" for teacher in self._teachers.values())

    def _sample_remotely(self) -> list[Sample]:
        """Samples that have come meanwhile; every EnvRunner has a request when this returns, and while we learn.

        The queues are filled up when the Learner is done, and not before, so that requests carry its newest student.
        """
        if self._student_state is None:
            student = self._newest_student()
            self._take_student(student | {COMPONENT_RL_MODULE: pack_weights(student[COMPONENT_RL_MODULE])})
        synchronous = self.config.max_staleness == 0
        newest = self._weights_seq_no
        self._requests.send(self._sampling_kwargs(), weights_seq_no=newest, only_to_idle=synchronous)
        samples = self._requests.fetch(weights_seq_no=newest)
        if not synchronous:
            self._requests.send(self._sampling_kwargs(), weights_seq_no=newest, only_to_idle=True)
        self._connector_states |= {
            each.worker_index: each.connector_states for each in samples if each.connector_states
        }
        return samples

    def _sampling_kwargs(self) -> dict[str, Any]:
        kwargs = {
            "teacher_fraction": self.config.teacher_fraction_at(self.num_env_steps),
            "epsilon": value_at(self.config.epsilon, self.num_env_steps) if self.config.explore else 0.0,
            "names": (Columns.OBS, *self.config.label_columns, *(TD_COLUMNS if self.config.uses_td else ())),
            "num_shards": max(1, self.config.num_learners),
        }
        return kwargs | ({"state": self._student_state} if self._samples_remotely else {})

    def _newest_student(self) -> dict[str, Any]:
        """What the Learner would let act now, for `set_state()` of EnvRunners."""
        component = f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}"
        state = self.learner_group.get_state(component, inference_only=True)[COMPONENT_LEARNER]
        return {name: state[name] for name in (COMPONENT_RL_MODULE, WEIGHTS_SEQ_NO)}

    def _take_student(self, state: dict[str, Any]) -> None:
        """The next requests carry this student, whose weights are packed."""
        self._weights_seq_no = state[WEIGHTS_SEQ_NO]
        self._student_state = {
            COMPONENT_RL_MODULE: state[COMPONENT_RL_MODULE],
            WEIGHTS_SEQ_NO: self._weights_seq_no,
            NUM_ENV_STEPS_SAMPLED_LIFETIME: self.num_env_steps,
        }

    def _show_student(self) -> None:
        """Give the newest student to the EnvRunner of this process: get_module() and restarts of others take it there.

        Once an iteration: it samples nothing here, and with each update this would be a fifth of the driver's work.
        """
        if self._student_state is not None and self.env_runner_group.local_env_runner is not None:
            self.env_runner_group.local_env_runner.set_state(self._student_state)

    @property
    def _samples_remotely(self) -> bool:
        return self.env_runner_group.num_remote_env_runners() > 0

    def _update(self, shards: list[Any]) -> dict[str, Any] | None:
        """Learn as much as is due; returns the student, for remote EnvRunners only."""
        env_steps = self.num_env_steps
        # The replay ratio decides how many rows are learned from; what is left of a batch waits for the next update.
        num_steps = int(self._rows_due // self.config.total_train_batch_size)
        self._rows_due -= num_steps * self.config.total_train_batch_size
        if self.config.init == "teacher" and self.num_gradient_steps == 0:
            self._keep_first_states(shards)
            if num_steps:
                self._initialize_students()
        results = self.learner_group.update(
            batch_refs=shards,
            defer_solve_refs_to_learner=True,
            timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: env_steps},
            num_gradient_steps=num_steps,
            kd_coeff=self._kd_coeff(),
            td_coeff=value_at(self.config.td_coeff, env_steps),
            return_state=self._samples_remotely,
        )
        student = results[0].pop(STATE_AFTER_UPDATE, None)
        self.num_gradient_steps += max(int(results[0][name][NUM_GRADIENT_STEPS].peek()) for name in self._returns)
        self.metrics.aggregate(results, key=LEARNER_RESULTS)
        return student

    def _keep_first_states(self, shards: list[Any]) -> None:
        for fragment in shards:
            for group_id, part in self.config.by_group(receive(fragment)).items():
                self._first_states[group_id].keep(part)

    def _initialize_students(self) -> None:
        """Send the first weights to all Learners, and from there to the EnvRunners, as after any update."""
        weights = {
            name: self._first_states[group_id].initial_weights(self._new_student(name), teacher, self.config)
            for group_id, teacher in self._teachers.items()
            for name in self._students[group_id]
        }

        def start(learner: Any) -> None:
            learner.set_state({COMPONENT_RL_MODULE: weights})
            for name in weights:
                for network, target in learner.module[name].unwrapped().get_target_network_pairs():
                    target.load_state_dict(network.state_dict())

        for result in self.learner_group.foreach_learner(start):
            result.get()
        self._first_states = {group_id: FirstStates() for group_id in self._teachers}

    @property
    def num_env_steps(self) -> int:
        """Env steps sampled so far, over restarts."""
        return int(self.metrics.peek((ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME), default=0))

    def _kd_coeff(self) -> float:
        return self.config.kd_coeff_at(self.num_env_steps, self._return_ratio())

    def _return_ratio(self) -> float:
        """Of the student that is furthest from its teacher, by the last evaluation; NaN as long as there is none."""
        return float(np.min([returns.ratio for returns in self._returns.values()]))

    # --- Results ------------------------------------------------------------------------------------------------------

    def _measure_baselines(self) -> None:
        """Returns of the greedy teachers and of random policies, on the EnvRunners."""
        config = self.config
        num_episodes = config.num_baseline_episodes
        if num_episodes is None:
            num_episodes = config.evaluation_duration if isinstance(config.evaluation_duration, int) else 10
        if num_episodes == 0 or not self._teachers:
            return
        played: dict[str, dict[str, list[float]]]  # by who played, and by group
        if config.is_multi_agent:
            played = {who: self._play_episodes(num_episodes, teacher=who == "teacher") for who in BASELINES}
        else:
            teacher, key = self._teachers[DEFAULT_MODULE_ID], None
            if config._env_to_module_connector is None and config._module_to_env_connector is None:
                counts = (num_episodes, config.num_env_runners, config.num_envs_per_env_runner, config.seed)
                key = baseline_key(teacher, config.env, config.env_config, counts)
            alone = cached(
                key,
                lambda: {
                    who: self._play_episodes(num_episodes, teacher=who == "teacher")[DEFAULT_MODULE_ID]
                    for who in BASELINES
                },
            )
            played = {who: {DEFAULT_MODULE_ID: returns} for who, returns in alone.items()}
        for group_id, teacher in self._teachers.items():
            own = {who: by_group[group_id] for who, by_group in played.items()}
            check_baselines(own, teacher, env=config.env, must_gain=config.kd_coeff == "qdagger")
            for name in self._students[group_id]:
                self._returns[name].teacher = float(np.mean(own["teacher"]))
                self._returns[name].random = float(np.mean(own["random"]))

    def _play_episodes(self, num_episodes: int, *, teacher: bool) -> dict[str, list[float]]:
        """Returns of each episode, by group."""
        group = self.env_runner_group
        if (num_runners := group.num_healthy_remote_workers()) == 0:
            return group.local_env_runner.play_episodes(num_episodes, teacher=teacher)
        share = math.ceil(num_episodes / num_runners)
        results = group._worker_manager.foreach_actor(
            "play_episodes", kwargs={"num_episodes": share, "teacher": teacher}
        )
        parts = answers(group, results)
        if not parts:
            raise _reason_of(results)
        return {group_id: [value for part in parts for value in part[group_id]] for group_id in self._teachers}

    def _results(self, results: dict[str, Any]) -> dict[str, Any]:
        learner = results.get(LEARNER_RESULTS, {})
        own = {
            "td_coeff": value_at(self.config.td_coeff, self.num_env_steps),
            "num_gradient_steps_lifetime": self.num_gradient_steps,
            "staleness_mean": float(np.mean(self._staleness)) if self._staleness else math.nan,
            "staleness_max": max(self._staleness, default=0),
        }
        if self._teachers:
            own |= {
                "kd_coeff": self._kd_coeff(),
                "teacher_fraction": self.config.teacher_fraction_at(self.num_env_steps),
                "return_ratio": self._return_ratio(),
            }
        students = {
            name: self._student_results(group_id, name, learner.get(name, {}))
            for group_id, students in self._students.items()
            for name in students
        }
        is_alone = not self.config.students and not self.config.is_multi_agent
        return own | (students[DEFAULT_MODULE_ID] if is_alone else {"students": students})

    def _student_results(self, group_id: str, name: str, learner: dict[str, Any]) -> dict[str, float]:
        num_parameters = self._students[group_id][name].num_parameters
        if group_id not in self._teachers:
            return {"student_params": num_parameters}
        returns, teacher = self._returns[name], self._teachers[group_id]
        return {
            "student_params": num_parameters,
            "teacher_params": teacher.num_parameters,
            "compression": num_parameters / teacher.num_parameters,
            "teacher_return": returns.teacher,
            "random_return": returns.random,
            "return_ratio": returns.ratio,
            "temperature": float(learner.get("temperature", math.nan)),
        }

    @classmethod
    @override(DQN)
    def _should_create_evaluation_env_runners(cls, eval_config: AlgorithmConfig) -> bool:
        # Always: without a group of its own, evaluate() would sample the training EnvRunners, which act with π.
        return True

    # --- Checkpoints --------------------------------------------------------------------------------------------------

    @override(DQN)
    def get_checkpointable_components(self) -> list[tuple[str, Any]]:
        teachers = [(_component(group_id), teacher) for group_id, teacher in self._teachers.items()]
        return [*super().get_checkpointable_components(), *teachers]

    @override(DQN)
    def get_ctor_args_and_kwargs(self) -> tuple[tuple, dict[str, Any]]:
        (state,), kwargs = super().get_ctor_args_and_kwargs()
        config = self.config.copy(copy_frozen=False)
        config.set_teachers(lambda group_id, teacher: TEACHER_IN_CHECKPOINT)
        return ({**state, "teacher": config.teacher},), kwargs

    @override(DQN)
    def get_state(
        self,
        components: str | Collection[str] | None = None,
        *,
        not_components: str | Collection[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        state = super().get_state(components, not_components=not_components, **kwargs)
        for group_id, teacher in self._teachers.items():
            if self._check_component(_component(group_id), components, not_components):
                state[_component(group_id)] = teacher.get_state()
        if self._check_component(_STATE, components, not_components):
            state[_STATE] = {
                "returns": {name: dataclasses.asdict(returns) for name, returns in self._returns.items()},
                "rows_due": self._rows_due,
                "num_gradient_steps": self.num_gradient_steps,
                "steps_since_start": self._steps_since_start,
                "first_states": {name: states.get_state() for name, states in self._first_states.items()},
            }
            if not self._samples_remotely:
                state[_STATE]["sampling"] = capture_sampling(self.env_runner)
            if self.config.seed is not None:
                state[_STATE]["random_state"] = capture_random_state()
        return state

    @override(DQN)
    def set_state(self, state: dict[str, Any]) -> None:
        self._forget_samples()
        super().set_state(state)
        restored = {group_id for group_id in self._teachers if _component(group_id) in state}
        for group_id in restored:
            self._teachers[group_id].set_state(state[_component(group_id)])
        if _STATE in state:
            own = state[_STATE]
            self._returns |= {name: Returns(**returns) for name, returns in own["returns"].items()}
            self._rows_due = own["rows_due"]
            self.num_gradient_steps = own["num_gradient_steps"]
            self._steps_since_start = own.get("steps_since_start", 0)
            for group_id, states in own.get("first_states", {}).items():
                self._first_states[group_id].set_state(states)
            self._to_put_back = {name: own[name] for name in ("sampling", "random_state") if name in own}
        if restored or not self._teachers:
            self._use_restored_teachers()

    @override(DQN)
    def save_to_path(
        self,
        path: str | Path | None = None,
        *,
        state: dict[str, Any] | None = None,
        filesystem: pyarrow.fs.FileSystem | None = None,
        **kwargs: Any,
    ) -> str:
        """As RLlib's, with the replay of each Learner; on a local disk, whole or not at all.

        A checkpoint that lies there stays until the new one is complete. See `replacing()`.
        """
        folder = local_folder(path, filesystem)
        if folder is None:
            return self._write_checkpoint(path, state=state, filesystem=filesystem, **kwargs)
        with replacing(folder, left_out=(REPLAY_FOLDER,)) as new:
            self._write_checkpoint(new, state=state, **kwargs)
        return str(folder)

    def _write_checkpoint(
        self,
        path: str | Path | None,
        *,
        state: dict[str, Any] | None,
        filesystem: pyarrow.fs.FileSystem | None = None,
        **kwargs: Any,
    ) -> str:
        num_saves = self._num_learner_saves()
        saved = super().save_to_path(path, state=state, filesystem=filesystem, **kwargs)
        if state is None:
            if not self.learner_group.is_local and self._num_learner_saves() in (None, num_saves):
                raise OSError(
                    f"The Learner could not write its part of the checkpoint '{saved}'. Is the disk full, or read-only "
                    "on its node?"
                )
            self._write_replays(saved, resolve(saved if path is None else path, filesystem)[1])
        return saved

    def _num_learner_saves(self) -> int | None:
        """How often a remote Learner has saved; None of a local one, and where RLlib has given the Learner up."""
        if self.learner_group.is_local:
            return None
        answers = self.learner_group.foreach_learner(lambda own: own.num_saves, remote_actor_ids=[0])
        return next((answer.get() for answer in answers), None)

    def _write_replays(self, path: str, filesystem: pyarrow.fs.FileSystem) -> None:
        if not self.config.store_buffer_in_checkpoints:
            return
        for index in range(max(1, self.config.num_learners)):  # one at a time: they may be large
            write_replay(path, index, self._ask_learner(index, lambda own: own.replay_arrays()), filesystem)

    @classmethod
    @override(DQN)
    def from_checkpoint(cls, path: Any, filesystem: pyarrow.fs.FileSystem | None = None, **kwargs: Any) -> DistillDQN:
        """As RLlib's, which takes no relative paths."""
        if isinstance(path, str | Path):
            path = str(local_folder(path, filesystem) or path)
        return super().from_checkpoint(path, filesystem=filesystem, **kwargs)

    @override(DQN)
    def restore_from_path(self, path: str | Path, *args: Any, **kwargs: Any) -> None:
        if not self._is_set_up:  # RLlib calls callbacks `on_algorithm_init` before setup() has ended
            self._restore_when_set_up = partial(self.restore_from_path, path, *args, **kwargs)
            return
        path = str(local_folder(path, kwargs.get("filesystem")) or path)
        self._forget_samples()
        super().restore_from_path(path, *args, **kwargs)
        if all(teacher.is_loaded for teacher in self._teachers.values()):
            self._use_restored_teachers()
        if "component" not in kwargs:
            self._refill_replay(*resolve(path, kwargs.get("filesystem")))

    def _refill_replay(self, path: str, filesystem: pyarrow.fs.FileSystem) -> None:
        shards = read_replays(path, filesystem) if self.config.store_buffer_in_checkpoints else []
        if shards:
            reference = ray.put(shards)
            num_learners = max(1, self.config.num_learners)
            if len(shards) != num_learners:
                logger.warning("The replay of %d Learners goes to %d: rows are shared anew.", len(shards), num_learners)
            fits = [
                self._ask_learner(index, lambda own: own.refill_replay(ray.get(reference)))
                for index in range(num_learners)
            ]
            if all(fits):
                return
            logger.warning("The replay of the checkpoint lacks columns that are learned from now, and begins empty.")
        self._steps_since_start = 0

    def _ask_learner(self, index: int, question: Callable[[Any], Any]) -> Any:
        if self.learner_group.is_local:
            return question(self.learner_group._learner)
        (answer,) = self.learner_group.foreach_learner(question, remote_actor_ids=[index])
        return answer.get()

    def _forget_samples(self) -> None:
        """Those under way are of the student, and maybe of the teacher, before the restore."""
        self._requests.forget()
        self._student_state, self._staleness, self._connector_states = None, [], {}

    def _use_restored_teachers(self) -> None:
        self._check_fit()
        self._send_teachers(self.env_runner_group)
        self._resume_sampling()

    def _resume_sampling(self) -> None:
        """Let EnvRunners sample on: a local one exactly there; remote ones not what they have sampled already."""
        state, self._to_put_back = self._to_put_back, {}
        if self._samples_remotely:
            salt = self.num_env_steps
            self.env_runner_group.foreach_env_runner(
                lambda env_runner: restart_sampling(env_runner, salt), local_env_runner=False
            )
        elif "sampling" in state:
            put_back_sampling(self.env_runner, state["sampling"])
        if "random_state" in state:
            put_back_random_state(state["random_state"])


def _reason_of(results: Any) -> Exception:
    """Why no remote EnvRunner has answered."""
    errors = [result.get() for result in results if not result.ok]
    reasons = [reason for error in errors if (reason := reason_in(error)) is not None]
    return next(iter([*reasons, *errors]), RuntimeError("No EnvRunner has answered."))


def not_finite(counts: Mapping[str, int], dropped: int, *, env: Any, teacher: str) -> str:
    """Who gave numbers that are not finite, in how many of the dropped states, and what to do.

    Args:
        counts: states by cause: "observations", "rewards" or "labels".
        dropped: states altogether.
        env: of the config.
        teacher: its name.
    """
    env = getattr(env, "__name__", env)
    advice = "Mend the environment, or wrap it."
    words = {
        "observations": f"observations of the environment '{env}' are not finite in {{}} of them. {advice}",
        "rewards": f"rewards of the environment '{env}' are not finite in {{}} of them. {advice}",
        "labels": f"the teacher {teacher} gives no finite Q-values in {{}} of them. Does it see the observations that "
        "it was trained on?",
    }
    causes = "; ".join(words[cause].format(count) for cause, count in counts.items() if count)
    return f"{dropped} states are unusable (NaN or infinity): {causes}"


class StudentSize(NamedTuple):
    """What a student's network is like."""

    num_parameters: int  # that act
    support: Support | None  # of its return distributions


def _component(group_id: str) -> str:
    """The name of a teacher's folder in a checkpoint."""
    return COMPONENT_TEACHER if group_id == DEFAULT_MODULE_ID else f"{COMPONENT_TEACHER}_{group_id}"


def _without_networks(teacher: Any) -> Any:
    """What a config says of a teacher, of each in a list, where it is loaded already."""
    if isinstance(teacher, list | tuple):
        return [_without_networks(member) for member in teacher]
    return teacher.source if isinstance(teacher, Teacher) else teacher


def _limit_threads(num_cpus: int) -> None:
    """Give the Learner and EnvRunner of this process as many threads as RLlib gives it CPUs.

    Ray does so for the processes that it starts. With more threads than free cores, torch is many times slower.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, int(num_cpus)))


register_trainable("DistillDQN", DistillDQN)
