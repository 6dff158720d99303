"""The Algorithm: who does what, when."""

from __future__ import annotations

import copy
import logging
import math
import os
import pickle
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs
import ray
import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.dqn import DQN
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.env import INPUT_ENV_SINGLE_SPACES
from ray.rllib.env.env_context import EnvContext
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    ENV_RUNNER_SAMPLING_TIMER,
    EPISODE_RETURN_MEAN,
    EVALUATION_RESULTS,
    LEARNER_RESULTS,
    LEARNER_UPDATE_TIMER,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    SYNCH_WORKER_WEIGHTS_TIMER,
    TIMERS,
    WEIGHTS_SEQ_NO,
)
from ray.tune.registry import register_trainable

from rllib_kd.baselines import baseline_key, cached
from rllib_kd.config import DEFAULT_COMPRESSION, WIDTH_KEYS, DistillDQNConfig
from rllib_kd.learner import NUM_GRADIENT_STEPS, STATE_AFTER_UPDATE, TD_COLUMNS
from rllib_kd.sampling import Sample, SampleRequests
from rllib_kd.schedules import value_at
from rllib_kd.spaces import brief, check_spaces, same_space
from rllib_kd.students import compress, count_parameters
from rllib_kd.teachers import load_teacher
from rllib_kd.teachers.base import Support, Teacher, support_of

logger = logging.getLogger(__name__)

COMPONENT_TEACHER = "teacher"
#: In the config of a checkpoint: the teacher lies beside it, wherever it was loaded from once.
TEACHER_IN_CHECKPOINT = "checkpoint:teacher"

_STATE = "distillation"
_BASELINES = ("teacher", "random")


class DistillDQN(DQN):
    """Trains a compact student Q-network to act like a trained teacher, on states that EnvRunners visit."""

    config: DistillDQNConfig

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
        self._teacher = self._load_teacher()
        # EnvRunners and Learners build the student on their own nodes, from the config: it must be concrete by now.
        self.config = self._settle_student()
        # What is counted here and saved, beside RLlib's metrics.
        self._returns = {"teacher": math.nan, "random": math.nan, "student": math.nan}
        self.num_gradient_steps = 0  # over restarts
        self._rows_due = 0.0  # to be learned from, until the replay ratio is met
        self._steps_since_start = 0  # in this process: the replay starts empty
        try:
            super().setup(self.config)
        except IndexError:  # what RLlib makes of remote EnvRunners that could not be built
            self._explain_failed_env_runners()
            raise
        self._requests = SampleRequests(
            self.env_runner_group, max_staleness=self.config.max_staleness, timeout_s=self.config.sample_timeout_s
        )
        self._student_state: ray.ObjectRef | None = None  # what the next request carries; None: to be asked for
        self._weights_seq_no = 0  # updates that the student in it has seen
        self._staleness: list[int] = []  # of the samples of this iteration, in updates
        self._connector_states: dict[int, dict[str, Any]] = {}  # by EnvRunner with connectors of its own
        self._student_parameters, self._student_support = self._measure_student()
        self._check_vector_env()
        if self._teacher.is_loaded:
            self._warn_of_a_large_student()
            self._check_fit()
            self._send_teacher(self.env_runner_group)
            self._measure_baselines()

    @override(DQN)
    def training_step(self) -> None:
        """Sample labelled columns, learn from the replay, and send the student's weights to the EnvRunners."""
        if self.config.teacher is not None and not self._teacher.is_loaded:
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
                else:
                    self.env_runner_group.sync_weights(
                        from_worker_or_learner_group=self.learner_group, inference_only=True
                    )
        except ray.exceptions.RayActorError as error:  # a dead EnvRunner raises none
            raise RuntimeError(
                "A Learner has died, with the node it was on or by itself, and RLlib restarts EnvRunners but never "
                "Learners. Stop this algorithm and go on from the last checkpoint: DistillDQN.from_checkpoint(path). "
                "Under Ray Tune FailureConfig(max_failures=...) does so."
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
        evaluation = results.get(EVALUATION_RESULTS, {}).get(ENV_RUNNER_RESULTS, {})
        student_return = float(evaluation.get(EPISODE_RETURN_MEAN, math.nan))
        if math.isfinite(student_return):  # RLlib goes on reporting an evaluation after its iteration, as NaN
            self._returns["student"] = student_return
        results["distillation"] = self._results(results)
        self._staleness, self._connector_states = [], {}
        return results

    def __repr__(self) -> str:
        # Ray asks for it when __init__ has failed in an actor, before there is a config: without an answer the actor
        # dies, and takes the error that explains why with it.
        return super().__repr__() if self.config is not None else type(self).__name__

    # --- Teacher and student ------------------------------------------------------------------------------------------

    def _load_teacher(self) -> Teacher:
        """The teacher; an empty one where there is none, or not yet."""
        if isinstance(self.config.teacher, Teacher):
            return copy.deepcopy(self.config.teacher)  # a restored state replaces its network
        uri = str(self.config.teacher)
        if self.config.teacher is None or uri == TEACHER_IN_CHECKPOINT:
            return Teacher()  # restore_from_path() will fill the latter
        try:
            return load_teacher(uri, trust_checkpoint=self.config.trust_checkpoint)
        except ValueError:
            # Tune rebuilds a trial from its config before it restores it, maybe on another machine.
            if teacher := self._load_teacher_of_trial():
                return teacher
            raise

    def _load_teacher_of_trial(self) -> Teacher | None:
        """The teacher in the newest checkpoint of this Tune trial, if there is one."""
        if self._storage is None:
            return None
        filesystem, trial = self._storage.storage_filesystem, self._storage.trial_fs_path
        entries = filesystem.get_file_info(pyarrow.fs.FileSelector(trial, allow_not_found=True))
        checkpoints = sorted(entry.path for entry in entries if entry.base_name.startswith("checkpoint_"))
        for checkpoint in reversed(checkpoints):
            teacher = Teacher()
            try:
                teacher.restore_from_path(f"{checkpoint}/{COMPONENT_TEACHER}", filesystem=filesystem)
            except (OSError, EOFError, pickle.UnpicklingError):
                continue  # half written
            return teacher
        return None

    def _settle_student(self) -> DistillDQNConfig:
        """The config with `compression` turned into layer widths, and without the teacher itself."""
        config = self.config.copy(copy_frozen=False)
        if config.teacher is None:
            return self.config
        if isinstance(config.teacher, Teacher):
            config.teacher = config.teacher.source  # what actors and checkpoints get of it, they get by itself
        if config._rl_module_spec is None and not WIDTH_KEYS & set(config.given_model_config):
            if self._teacher.model_config is None:
                raise ValueError(
                    f"The teacher '{self._teacher.source}' has a network of its own, which cannot be scaled by "
                    "`compression`. Shape the student with rl_module(model_config={'fcnet_hiddens': [...]})."
                )
            # Before there is an environment: with connectors of its own the student sees what the teacher's network
            # sees, or nearly; the widths hardly depend on it. So it does where any kind of image is turned into that.
            sees_inputs = config._env_to_module_connector is not None or self._teacher.takes(self._teacher.input_space)
            observation_space = self._teacher.input_space if sees_inputs else self._teacher.observation_space
            check_spaces(observation_space, self._teacher.action_space)
            config.rl_module(
                model_config=compress(
                    {**self._teacher.model_config, **config.given_model_config},
                    head_config=config.model_config,
                    compression=config.compression or DEFAULT_COMPRESSION,
                    teacher_parameters=self._teacher.num_parameters,
                    observation_space=observation_space,
                    action_space=self._teacher.action_space,
                )
            )
        config.compression = None
        config.freeze()
        return config

    def _measure_student(self) -> tuple[int, Support | None]:
        """Its parameters, and the support of its return distributions."""

        def measure(learner: Any) -> tuple[int, Support | None]:
            module = learner.module[DEFAULT_MODULE_ID].unwrapped()
            return count_parameters(module), support_of(module)

        return next(iter(self.learner_group.foreach_learner(measure))).get()

    def _explain_failed_env_runners(self) -> None:
        """Raise the reason as a ValueError, if one shows here."""
        try:
            env = self.env_creator(EnvContext(self.config.env_config, worker_index=0))
        except Exception as error:
            raise ValueError(f"The environment '{self.config.env}' cannot be made: {error}") from error
        has_connectors = self.config._env_to_module_connector is not None
        if not has_connectors:
            check_spaces(env.observation_space, env.action_space)
        elif self._teacher.is_loaded:
            check_spaces(self._teacher.input_space, env.action_space)

    def _warn_of_a_large_student(self) -> None:
        if self._student_parameters >= 0.9 * self._teacher.num_parameters:
            logger.warning(
                "The student has %d parameters, nearly as many as its teacher (%d) or more. Where the model config "
                "names no widths, RLlib's own are taken: set fcnet_hiddens or conv_filters, or `compression`.",
                self._student_parameters,
                self._teacher.num_parameters,
            )

    def _check_fit(self) -> None:
        """Whether teacher, student and environment speak of the same things."""
        shown_space, action_space = self.spaces[INPUT_ENV_SINGLE_SPACES]
        if self._teacher.pipeline is None and not self._teacher.takes(shown_space):
            shown_space, _ = self.spaces[DEFAULT_MODULE_ID]  # then it takes what the student takes
        for what, fits, teacher_space, own_space in (
            ("observation", self._teacher.takes(shown_space), self._teacher.observation_space, shown_space),
            ("action", same_space(self._teacher.action_space, action_space), self._teacher.action_space, action_space),
        ):
            if not fits:
                raise ValueError(
                    f"The teacher's {what} space is {brief(teacher_space)}, but in '{self.config.env}' it is "
                    f"{brief(own_space)}. Distil in the environment in which the teacher was trained, with the same "
                    "wrappers, and connectors where its checkpoint has none."
                )
        if self.config.feature_coeff and self._teacher.model_config is None:
            raise ValueError(
                f"`feature_coeff` needs a teacher with RLlib's DQN architecture, but '{self._teacher.source}' has a "
                "network of its own. Set feature_coeff=0."
            )
        if self.config.loss == "categorical" and self._teacher.support != self._student_support:
            raise ValueError(
                "The loss 'categorical' needs return distributions on one support, but the teacher's is "
                f"{self._teacher.support} and the student's {self._student_support}. Set training(num_atoms=..., "
                "v_min=..., v_max=...) as in the teacher; for a teacher without distributions use another loss."
            )

    def _check_vector_env(self) -> None:
        reported = self.env_runner_group.foreach_env_runner(lambda env_runner: env_runner.autoreset_mode())
        modes = {str(mode) for mode in reported if mode is not None}
        if unknown := modes - {"AutoresetMode.NEXT_STEP"}:
            raise ValueError(
                f"The vector environment resets in mode {sorted(unknown)}, but RLlib's EnvRunners need "
                "AutoresetMode.NEXT_STEP. Make it with autoreset_mode=AutoresetMode.NEXT_STEP."
            )

    def _send_teacher(self, group: EnvRunnerGroup, worker_ids: list[int] | None = None) -> None:
        """Through the object store: nodes share no disk, and hold the weights once."""
        if group.local_env_runner is not None and worker_ids is None:
            group.local_env_runner.set_teacher(self._teacher)
        if worker_ids is None:
            self._teacher_reference = ray.put(self._teacher)  # kept for those that will be restarted
        reference = self._teacher_reference
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
        if restored and samples and self._teacher.is_loaded:
            self._send_teacher(env_runner_group, restored)
        return restored

    # --- One training step --------------------------------------------------------------------------------------------

    def _sample(self) -> list[ray.ObjectRef]:
        """References to new columns: those of the first Learner first."""
        num_shards = max(1, self.config.num_learners)
        if self._samples_remotely:
            samples = self._sample_remotely()
        else:
            shards, metrics = self.env_runner_group.local_env_runner.sample_columns(**self._sampling_kwargs())
            samples = [Sample(0, shards, metrics, self._weights_seq_no, {})]
        before = self.num_env_steps
        self.metrics.aggregate([sample.metrics for sample in samples], key=ENV_RUNNER_RESULTS)
        self._steps_since_start += self.num_env_steps - before
        if self._steps_since_start >= self.config.num_steps_sampled_before_learning_starts:
            self._rows_due += self.config.training_intensity * (self.num_env_steps - before)
        self._staleness += [self._weights_seq_no - sample.weights_seq_no for sample in samples]
        return [sample.shards[index] for index in range(num_shards) for sample in samples]

    def _sample_remotely(self) -> list[Sample]:
        """Samples that have come meanwhile; every EnvRunner has a request when this returns, and while we learn.

        The queues are filled up when the Learner is done, and not before, so that requests carry its newest student.
        """
        if self._student_state is None:
            component = f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}"
            self._take_student(self.learner_group.get_state(component, inference_only=True)[COMPONENT_LEARNER])
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
            "teacher_fraction": self._teacher_fraction(),
            "epsilon": value_at(self.config.epsilon, self.num_env_steps) if self.config.explore else 0.0,
            "names": (Columns.OBS, *self.config.label_columns, *(TD_COLUMNS if self.config.uses_td else ())),
            "num_shards": max(1, self.config.num_learners),
        }
        return kwargs | ({"state": self._student_state} if self._samples_remotely else {})

    def _take_student(self, state: dict[str, Any]) -> None:
        """The next requests carry this student."""
        self._weights_seq_no = state[WEIGHTS_SEQ_NO]
        state = {COMPONENT_RL_MODULE: state[COMPONENT_RL_MODULE], WEIGHTS_SEQ_NO: self._weights_seq_no}
        state[NUM_ENV_STEPS_SAMPLED_LIFETIME] = self.num_env_steps
        self._student_state = ray.put(state)

    def _show_student(self) -> None:
        """Give the newest student to the EnvRunner of this process: get_module() and restarts of others take it there.

        Once an iteration: it samples nothing here, and with each update this would be a fifth of the driver's work.
        """
        if self._student_state is not None and self.env_runner_group.local_env_runner is not None:
            self.env_runner_group.local_env_runner.set_state(ray.get(self._student_state))

    @property
    def _samples_remotely(self) -> bool:
        return self.env_runner_group.num_remote_env_runners() > 0

    def _update(self, shards: list[ray.ObjectRef]) -> dict[str, Any] | None:
        """Learn as much as is due; returns the student, for remote EnvRunners only."""
        env_steps = self.num_env_steps
        # The replay ratio decides how many rows are learned from; what is left of a batch waits for the next update.
        num_steps = int(self._rows_due // self.config.total_train_batch_size)
        self._rows_due -= num_steps * self.config.total_train_batch_size
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
        self.num_gradient_steps += int(results[0][DEFAULT_MODULE_ID][NUM_GRADIENT_STEPS].peek())
        self.metrics.aggregate(results, key=LEARNER_RESULTS)
        return student

    @property
    def num_env_steps(self) -> int:
        """Env steps sampled so far, over restarts."""
        return int(self.metrics.peek((ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME), default=0))

    def _kd_coeff(self) -> float:
        return self.config.kd_coeff_at(self.num_env_steps, self._return_ratio())

    def _return_ratio(self) -> float:
        """(student − random) / (teacher − random), by the last evaluation; NaN as long as there is none."""
        returns = self._returns
        gap = returns["teacher"] - returns["random"]
        return (returns["student"] - returns["random"]) / gap if gap > 0 else math.nan

    def _teacher_fraction(self) -> float:
        if self.config.teacher is None:
            return 0.0
        fixed = {"teacher": 1.0, "student": 0.0}
        if self.config.rollout_policy in fixed:
            return fixed[self.config.rollout_policy]
        return value_at(self.config.teacher_fraction, self.num_env_steps)

    # --- Results ------------------------------------------------------------------------------------------------------

    def _measure_baselines(self) -> None:
        """Returns of the greedy teacher and of a random policy, on the EnvRunners."""
        config = self.config
        num_episodes = config.num_baseline_episodes
        if num_episodes is None:
            num_episodes = config.evaluation_duration if isinstance(config.evaluation_duration, int) else 10
        if num_episodes == 0:
            return
        key = None
        if config._env_to_module_connector is None and config._module_to_env_connector is None:
            counts = (num_episodes, config.num_env_runners, config.num_envs_per_env_runner, config.seed)
            key = baseline_key(self._teacher, config.env, config.env_config, counts)
        returns = cached(
            key, lambda: {who: self._play_episodes(num_episodes, teacher=who == "teacher") for who in _BASELINES}
        )
        self._returns |= {who: float(np.mean(values)) for who, values in returns.items()}
        noise = 2.0 * math.sqrt(sum(np.var(values) / len(values) for values in returns.values()))
        gain = self._returns["teacher"] - self._returns["random"]
        trained_return = self._teacher.trained_return
        if config.kd_coeff == "qdagger" and gain <= 0:
            raise ValueError(
                f"kd_coeff='qdagger' needs a teacher that is better than a random policy, but their mean returns are "
                f"{self._returns['teacher']:.4g} and {self._returns['random']:.4g} over {num_episodes} episodes."
            )
        if gain <= noise:
            logger.warning(
                "The teacher '%s' plays '%s' no better than a random policy: mean returns of %.4g and %.4g over %d "
                "episodes. It may have been trained in another environment, or with other wrappers and connectors "
                "(e.g. a missing frame stack or observation filter).",
                self._teacher.source,
                config.env,
                self._returns["teacher"],
                self._returns["random"],
                num_episodes,
            )
        elif trained_return is not None and gain < 0.5 * (trained_return - self._returns["random"]):
            logger.warning(
                "The teacher '%s' plays '%s' far worse than in its training: a mean return of %.4g over %d episodes, "
                "where its training ended with %.4g, and a random policy has %.4g. The environment may differ from the "
                "one of its training, in its wrappers, its config or its connectors.",
                self._teacher.source,
                config.env,
                self._returns["teacher"],
                num_episodes,
                trained_return,
                self._returns["random"],
            )

    def _play_episodes(self, num_episodes: int, *, teacher: bool) -> list[float]:
        group = self.env_runner_group
        if (num_runners := group.num_healthy_remote_workers()) == 0:
            return group.local_env_runner.play_episodes(num_episodes, teacher=teacher)
        share = math.ceil(num_episodes / num_runners)
        parts = group.foreach_env_runner(
            "play_episodes", kwargs={"num_episodes": share, "teacher": teacher}, local_env_runner=False
        )
        return [value for part in parts for value in part]

    def _results(self, results: dict[str, Any]) -> dict[str, float]:
        own = {
            "student_params": self._student_parameters,
            "td_coeff": value_at(self.config.td_coeff, self.num_env_steps),
            "num_gradient_steps_lifetime": self.num_gradient_steps,
            "staleness_mean": float(np.mean(self._staleness)) if self._staleness else math.nan,
            "staleness_max": max(self._staleness, default=0),
        }
        if self.config.teacher is None:
            return own
        learner = results.get(LEARNER_RESULTS, {}).get(DEFAULT_MODULE_ID, {})
        return own | {
            "teacher_params": self._teacher.num_parameters,
            "compression": self._student_parameters / self._teacher.num_parameters,
            "teacher_return": self._returns["teacher"],
            "random_return": self._returns["random"],
            "return_ratio": self._return_ratio(),
            "kd_coeff": self._kd_coeff(),
            "teacher_fraction": self._teacher_fraction(),
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
        components = super().get_checkpointable_components()
        return components if self.config.teacher is None else [*components, (COMPONENT_TEACHER, self._teacher)]

    @override(DQN)
    def get_ctor_args_and_kwargs(self) -> tuple[tuple, dict[str, Any]]:
        (state,), kwargs = super().get_ctor_args_and_kwargs()
        return ({**state, "teacher": self.config.teacher and TEACHER_IN_CHECKPOINT},), kwargs

    @override(DQN)
    def get_state(
        self,
        components: str | Collection[str] | None = None,
        *,
        not_components: str | Collection[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        state = super().get_state(components, not_components=not_components, **kwargs)
        if self.config.teacher is not None and self._check_component(COMPONENT_TEACHER, components, not_components):
            state[COMPONENT_TEACHER] = self._teacher.get_state()
        if self._check_component(_STATE, components, not_components):
            state[_STATE] = {
                "returns": dict(self._returns),
                "rows_due": self._rows_due,
                "num_gradient_steps": self.num_gradient_steps,
            }
        return state

    @override(DQN)
    def set_state(self, state: dict[str, Any]) -> None:
        self._forget_samples()
        super().set_state(state)
        if COMPONENT_TEACHER in state:
            self._teacher.set_state(state[COMPONENT_TEACHER])
            self._use_restored_teacher()
        if _STATE in state:
            self._returns |= state[_STATE]["returns"]
            self._rows_due = state[_STATE]["rows_due"]
            self.num_gradient_steps = state[_STATE]["num_gradient_steps"]

    @override(DQN)
    def restore_from_path(self, path: str | Path, *args: Any, **kwargs: Any) -> None:
        self._forget_samples()
        super().restore_from_path(path, *args, **kwargs)
        if self._teacher.is_loaded:
            self._use_restored_teacher()

    def _forget_samples(self) -> None:
        """Those under way are of the student, and maybe of the teacher, before the restore."""
        self._requests.forget()
        self._student_state, self._staleness, self._connector_states = None, [], {}

    def _use_restored_teacher(self) -> None:
        self._check_fit()
        self._send_teacher(self.env_runner_group)


def _limit_threads(num_cpus: int) -> None:
    """Give the Learner and EnvRunner of this process as many threads as RLlib gives it CPUs.

    Ray does so for the processes that it starts. With more threads than free cores, torch is many times slower.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, int(num_cpus)))


register_trainable("DistillDQN", DistillDQN)
