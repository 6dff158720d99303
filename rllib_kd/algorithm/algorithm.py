"""DistillDQN and its config: the training loop, evaluation and checkpoints."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from operator import methodcaller
from typing import Any, ClassVar, NoReturn

import ray
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.dqn import DQN
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    ENV_RUNNER_SAMPLING_TIMER,
    EPISODE_LEN_MEAN,
    LEARNER_RESULTS,
    LEARNER_UPDATE_TIMER,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    SYNCH_WORKER_WEIGHTS_TIMER,
    TIMERS,
)
from ray.tune.registry import register_trainable

from rllib_kd import _rllib
from rllib_kd.algorithm.answers import SECONDS_TO_ANSWER, call_all, kill_the_hung, reason_in
from rllib_kd.algorithm.baselines import play_baselines
from rllib_kd.algorithm.checkpoint import CheckpointedDQN
from rllib_kd.algorithm.checks.labels import check_labels
from rllib_kd.algorithm.concrete import concrete_config
from rllib_kd.algorithm.config import DistillationConfig
from rllib_kd.algorithm.dead_learners import names_dead_learners
from rllib_kd.algorithm.evaluations import Evaluations
from rllib_kd.algorithm.first_weights import FirstWeights
from rllib_kd.algorithm.fit import check_fit, check_vector_env, explain_failed_env_runners
from rllib_kd.algorithm.gradient_steps import ReplayRatio
from rllib_kd.algorithm.patience import Patience
from rllib_kd.algorithm.preflight import (
    actor_resources,
    check_environment,
    check_evaluation_environment,
    check_has_environment,
    check_resources,
    check_teachers_fit,
    limit_threads,
    spaces_known_here,
)
from rllib_kd.algorithm.recorded import check_can_play, check_recorded, make_sampling, recorded_spaces
from rllib_kd.algorithm.restarts import Players, Restarts
from rllib_kd.algorithm.results import distillation_results, without_nans
from rllib_kd.algorithm.returns import StudentReturns
from rllib_kd.algorithm.students import Students, new_student, warn_of_large_students
from rllib_kd.algorithm.teachers import Teachers
from rllib_kd.algorithm.unusable_states import UnusableStates
from rllib_kd.environments.failures import exits_are_errors, users_errors
from rllib_kd.environments.own import settled
from rllib_kd.evaluation.played_environment import record_config
from rllib_kd.learner.learner import STATE_AFTER_UPDATE
from rllib_kd.networks.weights import with_weights
from rllib_kd.offline.data import open_files
from rllib_kd.public import public
from rllib_kd.schedules import value_at
from rllib_kd.wire import Sample, receive_all

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LEARNERS = 600  # that one waits for another's gradients, before both fail
_FIXED_POLICIES = (
    "{}() is not supported: a checkpoint could not be resumed. Name all policies when the algorithm is built, in "
    ".multi_agent(policies=...). Those without a teacher act, and do not learn."
)
_SECONDS_TO_STOP = 10.0  # for an EnvRunner to finish its current sample


@public
class DistillDQNConfig(DistillationConfig):
    """Configures `DistillDQN`: the settings of RLlib's `DQNConfig`, and `.distillation(...)`.

    Defaults that differ from `DQNConfig`: ε 0.05 from the start (Rusu et al. 2015), a student that is not dueling, 16
    environments for each EnvRunner in fragments of 32 steps, a columnar replay in the Learner, and evaluation in a
    separate EnvRunner group, always with the greedy student. Of `training()`, `lr`, `training_intensity` (rows learned
    from / env steps sampled), `train_batch_size_per_learner` and the replay's `capacity` depend on what the student
    sees if they are not set: 3e-3, 32, 256 rows and 50,000 rows for vectors (recurrent students: 1e-3, 32, 1,024 and
    50,000), 1e-3, 4, 128 and 400,000 for images. Of images, `lr` is 3e-3 for students of fewer than 40,000 parameters
    that learn without TD and memory (side by side: by the largest of them). With trees among the students, the capacity
    is 200,000 rows.

    `training(replay_buffer_config={"alpha": 0.6, "beta": 0.4})` makes the replay prioritized (Schaul et al. 2016, arXiv
    1511.05952), by the TD error, or by the distillation loss if there is no TD. alpha, in [0, 1]: 0 (default) is
    uniform, 1 draws in proportion to the error. beta, in [0, 1]: the share of this bias that the loss corrects.
    """

    build_algo: Callable[..., DistillDQN]  # RLlib's, which does not know of which type

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class or DistillDQN)


@public
class DistillDQN(CheckpointedDQN):
    """Trains a compact student Q-network to act like a trained teacher, on the states that EnvRunners visit."""

    config: DistillDQNConfig

    SAVED: ClassVar = ("_returns", "_replay_ratio", "_first_weights", "_sampling", "_restarts", "_patience")
    #: The other attributes of this class, which follow from the config, or belong to one process.
    NOT_SAVED: ClassVar = frozenset({"config", "_students", "_unusable_states", "_evaluations", "_let_act"})

    @classmethod
    @override(DQN)
    def get_default_config(cls) -> DistillDQNConfig:
        return DistillDQNConfig()

    @staticmethod
    @override(DQN)
    def _get_env_id_and_creator(env_specifier: Any, config: AlgorithmConfig) -> tuple[Any, Any]:
        # The first thing that RLlib does: after it, the name is not looked up again. It may come from a checkpoint.
        return DQN._get_env_id_and_creator(settled(env_specifier), config)

    @override(DQN)
    @exits_are_errors
    def setup(self, config: AlgorithmConfig) -> None:
        """Load the teachers, shape the students, build RLlib's groups, and connect teachers with students.

        If that fails, stop what was started: in a notebook, the traceback would keep the actors and their CPUs.

        Raises:
            ValueError: a teacher cannot be loaded, or does not fit the environment or the student.
        """
        try:
            with _rllib.algorithm_init_put_off(self):
                self._set_up()
        except (Exception, KeyboardInterrupt, SystemExit):
            try:
                self.cleanup()
            except Exception:  # the first error counts
                logger.warning("What this algorithm had started could not be stopped.", exc_info=True)
            raise

    def _set_up(self) -> None:
        limit_threads(self.config.num_cpus_for_main_process)
        check_has_environment(self.config)
        spaces = spaces_known_here(self.config)
        if spaces is not None:
            check_environment(self.config, spaces)
            check_evaluation_environment(self.config, spaces)
        record_config(self.config.env, self.config.env_config)
        files = open_files(self.config)
        check_resources(actor_resources(type(self), self.config))
        self._teachers = Teachers.load(self.config, self._storage)
        check_labels(self.config, self._teachers)
        spaces = spaces or recorded_spaces(self.config, self._teachers)
        check_teachers_fit(self.config, self._teachers, spaces)
        check_recorded(self.config, files, self._teachers, spaces)
        self.config = concrete_config(self.config, spaces, self._teachers, files)
        try:
            with _rllib.learners_wait_for_each_other(seconds=_SECONDS_BETWEEN_LEARNERS):
                super().setup(self.config)
        except users_errors() as error:
            if self.config.num_env_runners == 0 or isinstance(error, IndexError):  # RLlib's if remote ones failed
                explain_failed_env_runners(self.config, self.env_creator)
            raise
        self._students = Students.of(self.learner_group)
        self._returns = StudentReturns(self._students.names)
        self._first_weights = FirstWeights(self._teachers if self.config.init != "random" else ())
        self._replay_ratio = ReplayRatio(
            rows_per_env_step=self.config.training_intensity,
            batch_size=self.config.learner_batch_size * max(1, self.config.num_learners),
            learning_starts=0 if files else self.config.num_steps_sampled_before_learning_starts,
        )
        self._sampling = make_sampling(self, files)
        self._restarts = Restarts(
            self.config.num_copies,
            self.config.num_validation_episodes,
            num_students=max(1, len(self.config.students or ())),
        )
        self._patience = Patience(self.config.patience, self.config.acting_teacher_fraction)
        self._unusable_states = UnusableStates(self.config, self._teachers)
        self._evaluations = Evaluations()
        self._let_act: Callable[[Any], None] | None = None  # lets the student that is evaluated act in an EnvRunner
        check_vector_env(self.env_runner_group)
        if self._teachers.are_loaded:
            self._meet_teachers()

    def _meet_teachers(self) -> None:
        """Check that teachers and students fit, send the teachers to EnvRunners, and play the baselines there."""
        warn_of_large_students(self._students, self._teachers)
        check_fit(self.config, self._teachers, self._students, self.spaces)
        self._sampling.meet(self._teachers)
        for group_id, played in play_baselines(self.config, self._teachers, self.env_runner_group).items():
            self._returns.take_baselines(self._students.of_group(group_id), played)

    @override(DQN)
    @exits_are_errors
    def train(self) -> dict[str, Any]:
        """Run RLlib's training iteration, with callbacks of its result."""
        return super().train()

    @override(DQN)
    @names_dead_learners
    def training_step(self) -> None:
        """Sample labelled columns, learn from the replay, and send the student's weights to the EnvRunners."""
        if not self._teachers.are_loaded:
            raise ValueError(
                "This algorithm was built from a checkpoint's config, without the teacher. Restore it with "
                "DistillDQN.from_checkpoint(path), which loads both, or set .distillation(teacher=...)."
            )
        for samples in self._sampling.before_learning():
            self._update(samples, learns=False)
        with self.metrics.log_time((TIMERS, ENV_RUNNER_SAMPLING_TIMER)):
            samples = self._sample()
        if not samples:
            return  # no EnvRunner is left; RLlib restarts them before the next step
        with self.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)):
            student = self._update(samples)
        with self.metrics.log_time((TIMERS, SYNCH_WORKER_WEIGHTS_TIMER)):
            self._sampling.take_student(student, self.num_env_steps)

    def _sample(self) -> list[Sample]:
        """Return new samples, and count them."""
        before = self.num_env_steps
        samples = self._sampling.sample(before)
        self.metrics.aggregate([sample.metrics for sample in samples], key=ENV_RUNNER_RESULTS)
        found = next((sample.not_finite for sample in samples if sample.not_finite), "")
        self._unusable_states.check(self.metrics, self.num_env_steps, found)
        self._replay_ratio.sampled(self.num_env_steps - before)
        return samples

    def _update(self, samples: list[Sample], *, learns: bool = True) -> dict[str, Any] | None:
        """Make the gradient steps that are due; return the student for remote EnvRunners, or None if there are none."""
        env_steps = self.num_env_steps
        samples = [sample for sample in samples if sample.shards]
        # The shards of the first Learner come first.
        shards = [sample.shards[index] for index in range(max(1, self.config.num_learners)) for sample in samples]
        num_steps = self._replay_ratio.steps_due() if learns else 0
        if not self._first_weights.is_done:
            self._first_weights.keep(map(self.config.by_group, receive_all(shards)))
            if num_steps:
                make = partial(new_student, self.config, self.spaces)
                self._first_weights.set_on(self.learner_group, self._students, self._teachers, make, self.config)
        results = self.learner_group.update(
            batch_refs=shards,
            defer_solve_refs_to_learner=True,
            timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: env_steps},
            num_gradient_steps=num_steps,
            kd_coeff=self.config.kd_coeff_at(env_steps, self._returns.ratio) if learns else 0.0,
            td_coeff=value_at(self.config.td_coeff, env_steps),
            return_state=self._sampling.is_remote,
            is_again=not learns and self._sampling.is_again,
        )
        student = results[0].pop(STATE_AFTER_UPDATE, None)
        self._replay_ratio.learned(*self._students.take_results(results[0]))
        self.metrics.aggregate(results, key=LEARNER_RESULTS)
        return student

    @override(DQN)
    @names_dead_learners
    def step(self) -> dict[str, Any]:
        """Run RLlib's training iteration; add the entry `distillation` to its result."""
        results = super().step()
        results[LEARNER_RESULTS] = without_nans(results.get(LEARNER_RESULTS, {}))
        staleness = self._sampling.end_iteration(
            self.num_env_steps, env_to_module=self.env_to_module_connector, module_to_env=self.module_to_env_connector
        )
        results["distillation"] = distillation_results(
            self.config,
            teachers=self._teachers,
            students=self._students,
            returns=self._returns,
            env_steps=self.num_env_steps,
            num_gradient_steps=self.num_gradient_steps,
            num_regrowths=self._replay_ratio.num_regrowths,
            staleness=staleness,
            learner_results=results[LEARNER_RESULTS],
            held_out=self._sampling.held_out_results(),
        ) | self._sampling.progress(self.num_gradient_steps, self.num_env_steps)
        if self.config.num_copies > 1:
            length = results.get(ENV_RUNNER_RESULTS, {}).get(EPISODE_LEN_MEAN, math.nan)  # NaN for recorded rows
            if self._restarts.is_look_due(self.num_env_steps, length):
                self._restarts.look(Players.of(self.config, self.get_copies(), self.env_runner), self.num_env_steps)
            results["distillation"]["validation"] = self._restarts.results()
        self._patience.look_at(results, self.num_env_steps)
        return results

    @override(DQN)
    @names_dead_learners
    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Run RLlib's evaluation. The students of a family are evaluated in turn: see `students` in the result."""
        check_can_play(self.config)
        if not self.config.members:
            evaluation = self._evaluate(*args, **kwargs)
            self._returns.take_evaluation(evaluation, of=None if self.config.is_multi_agent else DEFAULT_MODULE_ID)
            return evaluation
        self._choose_restarts()
        students = {}
        for name in self._students.names:
            self._let_act = methodcaller("let_act", name, self._restarts.weights(name))
            seconds = max(SECONDS_TO_ANSWER, self.config.evaluation_sample_timeout_s or 0.0)
            call_all(self.eval_env_runner_group, self._let_act, seconds=seconds)
            students[name] = self._evaluate(*args, **kwargs)
            self._returns.take_evaluation(students[name], of=name)
        return {**students[name], "students": students} if self.config.students else students[name]

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        try:
            evaluation = super().evaluate(*args, **kwargs)
        except ray.exceptions.RayTaskError as error:  # of a remote EnvRunner
            raise reason_in(error) or error from None
        return self._evaluations.checked(evaluation, self.eval_env_runner_group)

    @classmethod
    @override(DQN)
    def _should_create_evaluation_env_runners(cls, eval_config: AlgorithmConfig) -> bool:
        # Always: without a group of its own, evaluate() would sample the training EnvRunners, which act with π.
        return eval_config.env is not None

    @override(DQN)
    def restore_env_runners(self, env_runner_group: EnvRunnerGroup) -> list[int]:
        """Restore EnvRunners as RLlib does, without making the others wait, and send them the teacher again."""
        samples = env_runner_group is self.env_runner_group
        is_back = samples and self._sampling.requests.ping_the_dead()
        if samples and env_runner_group.num_healthy_remote_env_runners() and not is_back:
            return []
        restored = super().restore_env_runners(env_runner_group)
        if restored and samples:
            self._teachers.send_again(env_runner_group, restored)
        elif restored and self._let_act is not None:
            call_all(env_runner_group, self._let_act, remote_worker_ids=restored, local_env_runner=False)
        return restored

    @override(DQN)
    def cleanup(self) -> None:
        """Clean up as RLlib does, but also if the environment of a remote EnvRunner hangs."""
        if hasattr(self, "_sampling"):  # setup() got that far
            self._sampling.requests.kill_the_hung(seconds=_SECONDS_TO_STOP)
            if (group := self.eval_env_runner_group) is not None:
                kill_the_hung(group, seconds=_SECONDS_TO_STOP)
        super().cleanup()

    @override(DQN)
    def add_module(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse RLlib's way to add a policy: groups, teachers and checkpoints are those of the config.

        Raises:
            ValueError: always.
        """
        raise ValueError(_FIXED_POLICIES.format("add_module"))

    @override(DQN)
    def remove_module(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse RLlib's way to remove a policy, as in `add_module()`.

        Raises:
            ValueError: always.
        """
        raise ValueError(_FIXED_POLICIES.format("remove_module"))

    # --- Queries ------------------------------------------------------------------------------------------------------

    @override(DQN)
    def get_module(self, module_id: str = DEFAULT_MODULE_ID) -> RLModule:
        """Return the student: in a family, or with several agents, the one of that name; with restarts, its best copy.

        Raises:
            ValueError: there is a family, and the name is missing or not in it; or there is one student, of another
                name.
        """
        if family := self.config.students:
            if module_id not in family:
                raise ValueError(f"This is a family of students. Name one of {sorted(family)}, got '{module_id}'.")
        elif module_id != DEFAULT_MODULE_ID and not self.config.is_multi_agent:
            raise ValueError(f"There is one student, '{DEFAULT_MODULE_ID}', got the name '{module_id}'. Leave it out.")
        self._sampling.show_newest_student()
        self._choose_restarts()
        if not self.config.members:
            return super().get_module(module_id)
        module, weights = self.env_runner.family[module_id], self._restarts.weights(module_id)
        return module if weights is None else with_weights(module, weights)

    def _choose_restarts(self) -> None:
        """Let validation episodes choose a copy of each student, unless they have done so since the last update."""
        num_updates, env_steps = self._replay_ratio.num_updates, self.num_env_steps
        if self._restarts.is_choice_due(num_updates):
            players = Players.of(self.config, self.get_copies(), self.env_runner)
            self._restarts.choose(players, self.learner_group, num_updates=num_updates, env_steps=env_steps)

    def get_copies(self) -> dict[str, RLModule]:
        """Return the current modules by ID: all students of a family, and with restarts all copies. None is chosen.

        One student is `{"default_policy": module}`; with several agents, there is the student of each teacher.
        """
        self._sampling.show_newest_student()
        if not self.config.members:
            get_module = super().get_module
            return {name: get_module(name) for name in self._students.names}
        return dict(self.env_runner.family.items())

    def prefer_students(self, names: Sequence[str]) -> None:
        """Let some students of a family act four times as often as the others from now on; () prefers none.

        Raises:
            ValueError: there is no such student.
        """
        students = list(self.config.students)
        self._sampling.preferred = [students.index(name) for name in _in_order(names, students)]

    def rest_copies(self, names: Sequence[str]) -> None:
        """Let some copies of a family rest from now on, and the others learn faster; () lets all of them learn.

        Those that rest do not change, and do not act in new episodes. A checkpoint holds who rests.

        Args:
            names: IDs as in `get_copies()`: without restarts, names of students.

        Raises:
            ValueError: there is no such copy, or no other one.
        """
        family = list(self.config.members)
        resting = _in_order(names, family)
        if resting and resting == family:
            raise ValueError("All of the family would rest. Leave one out.")
        self._sampling.rest(resting)

    @property
    def num_env_steps(self) -> int:
        """Return the env steps sampled so far, including those before a restore."""
        return int(self.metrics.peek((ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME), default=0))

    @property
    def num_gradient_steps(self) -> int:
        """Return the gradient steps of each student so far, including those before a restore."""
        return self._replay_ratio.num_gradient_steps

    def __repr__(self) -> str:
        # Ray calls it after __init__ has failed in an actor, before there is a config: an error would hide the first.
        return super().__repr__() if self.config is not None else type(self).__name__


def _in_order(names: Sequence[str], family: Sequence[str]) -> list[str]:
    """Return names of students or copies in the order of their family, each once."""
    if isinstance(names, str):
        raise ValueError(f"Expected a list of names, got {names!r}. Write [{names!r}].")
    if unknown := [name for name in names if name not in family]:
        raise ValueError(f"There is no student {unknown[0]!r}. The family has {', '.join(family) or 'none'}.")
    return [name for name in family if name in names]


register_trainable("DistillDQN", DistillDQN)
