"""Sampling by EnvRunners: pending requests while the Learner learns, and the student that they carry."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import ray
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME, WEIGHTS_SEQ_NO

from rllib_kd import _rllib
from rllib_kd.algorithm.answers import LostEnvRunners, answers, call_all, kill_the_hung, reason_in
from rllib_kd.algorithm.dead_learners import ask_learners
from rllib_kd.env_runner.capture import capture_sampling, put_back_sampling, restart_sampling
from rllib_kd.environments.failures import SamplingFailedError
from rllib_kd.random_state import capture_random_state, put_back_random_state
from rllib_kd.schedules import value_at
from rllib_kd.wire import Sample, pack_weights

if TYPE_CHECKING:
    from rllib_kd.algorithm.config import DistillationConfig
    from rllib_kd.algorithm.teachers import Teachers

logger = logging.getLogger(__name__)

_SAMPLE, _PING = "sample", "ping"  # tags of requests
_SECONDS_TO_PING = 1.0  # if all EnvRunners are dead
_NOT_AWAITED = 2**62  # a weights_seq_no that is never stale


@dataclass(frozen=True)
class StudentState:
    """The student that acts next, on its way from the Learners to the EnvRunners; in a family, all students.

    Args:
        weights: weights by module, or a reference to them from `pack_weights()`.
        seq_no: number of updates of the student.
        env_steps: env steps sampled until then, including those before a restore.
    """

    weights: Any
    seq_no: int
    env_steps: int

    @classmethod
    def of(cls, learner_state: Mapping[str, Any], env_steps: int) -> StudentState:
        """Take the weights and their number from the state of a Learner."""
        return cls(learner_state[COMPONENT_RL_MODULE], learner_state[WEIGHTS_SEQ_NO], env_steps)

    def packed(self) -> StudentState:
        """Return the same student with weights packed for many processes."""
        return dataclasses.replace(self, weights=pack_weights(self.weights))

    def for_env_runners(self) -> dict[str, Any]:
        """Return the state that RLlib's `EnvRunner.set_state()` takes."""
        return {
            COMPONENT_RL_MODULE: self.weights,
            WEIGHTS_SEQ_NO: self.seq_no,
            NUM_ENV_STEPS_SAMPLED_LIFETIME: self.env_steps,
        }


class Sampling:
    """The sampling of a run: the students of its EnvRunners, and the requests to them.

    Args:
        config: config of the run.
        group: the EnvRunners: remote ones, or a local one.
        learner_group: the Learners, from which the student comes.
    """

    #: Attributes that are not checkpointed. Pending requests are of the student before a restore, and are dropped.
    NOT_SAVED: ClassVar = frozenset(
        {
            "_config",
            "_group",
            "_learner_group",
            "requests",
            "_student",
            "_staleness",
            "_connector_states",
            "_to_put_back",
        }
    )

    def __init__(self, config: DistillationConfig, group: EnvRunnerGroup, learner_group: LearnerGroup):
        self._config = config
        self._group = group
        self.preferred: list[int] = []  # students of a family that act more often than the others
        self.resting: list[str] = []  # copies that neither act nor learn
        self._learner_group = learner_group
        self.requests = SampleRequests(group, max_staleness=config.max_staleness, timeout_s=config.sample_timeout_s)
        self._student: StudentState | None = None  # the newest for remote EnvRunners; None: the Learners are asked
        self._staleness: list[int] = []  # of the samples of this iteration, in updates
        self._connector_states: dict[int, dict[str, Any]] = {}  # by EnvRunner with connectors of its own
        self._to_put_back: dict[str, Any] = {}  # of a restored state, until everything else is restored

    @property
    def is_remote(self) -> bool:
        """Return whether EnvRunners sample in other processes, while the Learners learn."""
        return self._group.num_remote_env_runners() > 0

    @property
    def stores_rows(self) -> bool:
        """Return whether checkpoints need the rows of the replays: environments do not show them again."""
        return True

    @property
    def is_again(self) -> bool:
        """Return whether samples before learning were counted before a restore."""
        return False

    def rest(self, names: Sequence[str]) -> None:
        """Let copies of a family rest, by ID, here and in the Learners."""
        ask_learners(self._learner_group, lambda learner: learner.rest(names))
        self.resting = list(names)

    def before_learning(self) -> Iterator[list[Sample]]:
        """Yield samples that are learned from only when all are there: none of EnvRunners."""
        yield from ()

    def meet(self, teachers: Teachers) -> None:
        """Send the teachers to the EnvRunners."""
        teachers.send(self._group)

    def held_out_results(self) -> dict[str, dict[str, float]]:
        """Return the agreement on held-out rows, by student: EnvRunners hold none out."""
        return {}

    def progress(self, num_gradient_steps: int, num_env_steps: int) -> dict[str, float]:
        """Return how often recorded rows were learned from: EnvRunners have none."""
        return {}

    def replays_are(self, *, restored: bool) -> None:
        """Do nothing: EnvRunners sample into replays in any case."""

    def sample(self, env_steps: int) -> list[Sample]:
        """Return new samples; none if no EnvRunner is left. Ray may restart some of them before the next step.

        Args:
            env_steps: env steps sampled so far, including those before a restore.
        """
        samples = self._sample_remotely(env_steps) if self.is_remote else [self._sample_here(env_steps)]
        self._staleness += [self._seq_no - sample.weights_seq_no for sample in samples]
        return samples

    def _sample_here(self, env_steps: int) -> Sample:
        env_runner = self._group.local_env_runner
        shards, metrics = env_runner.sample_columns(**self._request(env_steps))
        return Sample(0, shards, metrics, self._seq_no, {}, env_runner.not_finite)

    def _sample_remotely(self, env_steps: int) -> list[Sample]:
        """Return the samples that have arrived; every EnvRunner has a request afterwards, and so while Learners learn.

        Queues are filled after the Learner is done, so that requests carry its newest student.
        """
        if self._student is None:
            self._student = self._ask_for_student(env_steps).packed()
        request = {**self._request(env_steps), "state": self._student.for_env_runners()}
        takes_turns = self._config.max_staleness == 0
        self.requests.send(request, weights_seq_no=self._seq_no, only_to_idle=takes_turns)
        samples = self.requests.fetch(weights_seq_no=self._seq_no)
        if not takes_turns:
            self.requests.send(request, weights_seq_no=self._seq_no, only_to_idle=True)
        self._connector_states |= {
            each.worker_index: each.connector_states for each in samples if each.connector_states
        }
        return samples

    def _request(self, env_steps: int) -> dict[str, Any]:
        config = self._config
        resting = [place for place, name in enumerate(config.members) if name in self.resting] if self.resting else []
        turns = {"preferred": self.preferred, "resting": resting}
        return {
            **{name: students for name, students in turns.items() if students},
            "teacher_fraction": config.teacher_fraction_at(env_steps),
            "epsilon": value_at(config.epsilon, env_steps) if config.explore else 0.0,
            "names": config.replay_columns,
            "num_shards": max(1, config.num_learners),
        }

    @property
    def _seq_no(self) -> int:
        """Return the updates of the newest student for remote EnvRunners; 0 for a local one, which has the newest."""
        return 0 if self._student is None else self._student.seq_no

    def take_student(self, learner_state: Mapping[str, Any] | None, env_steps: int) -> None:
        """Use the updated student for acting: at once in this process, with the next requests elsewhere.

        Args:
            learner_state: state of a Learner after the update, with packed weights; None: the Learners are asked.
            env_steps: env steps sampled so far, including those before a restore.
        """
        if self.is_remote:
            assert learner_state is not None
            self._student = StudentState.of(learner_state, env_steps)
        else:  # as RLlib's sync_weights(), without its way through the object store
            self._group.local_env_runner.set_state(self._ask_for_student(env_steps).for_env_runners())

    def take_newest_student(self, env_steps: int, evaluation_group: EnvRunnerGroup | None) -> None:
        """Use the Learners' current student for acting and for evaluations, outside of an update.

        Args:
            env_steps: env steps sampled so far, including those before a restore.
            evaluation_group: EnvRunners of evaluations; None if there are none.
        """
        student = self._ask_for_student(env_steps).packed()
        state = student.for_env_runners()
        if self._group.local_env_runner is not None:
            _force(self._group.local_env_runner, state)
        if evaluation_group is not None:
            call_all(evaluation_group, partial(_force, state=state))
        if self.is_remote:
            self._student = student

    def _ask_for_student(self, env_steps: int) -> StudentState:
        component = f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}"
        state = self._learner_group.get_state(component, inference_only=True)[COMPONENT_LEARNER]
        return StudentState.of(state, env_steps)

    def show_newest_student(self) -> None:
        """Set the newest student in this process: get_module(), validation and restarted EnvRunners take it from here.

        It is done when it is needed: after each update it would be a fifth of the driver's work.
        """
        if self._student is not None and self._group.local_env_runner is not None:
            self._group.local_env_runner.set_state(self._student.for_env_runners())

    def end_iteration(self, env_steps: int, *, env_to_module: Any, module_to_env: Any) -> list[int]:
        """Set the newest student in this process, and synchronize connectors, without calling busy EnvRunners.

        Args:
            env_steps: env steps sampled so far, including those before a restore.
            env_to_module: the Algorithm's connectors, if there is no local EnvRunner.
            module_to_env: the same in the other direction.

        Returns:
            The staleness of each sample of this iteration, in updates of the student.
        """
        self.show_newest_student()
        if self._connector_states or not self.is_remote:
            self._group.sync_env_runner_states(
                config=self._config,
                connector_states=list(self._connector_states.values()),
                env_steps_sampled=env_steps,
                env_to_module=env_to_module,
                module_to_env=module_to_env,
            )
        staleness, self._staleness, self._connector_states = self._staleness, [], {}
        return staleness

    def forget(self) -> None:
        """Drop pending requests: they are of the student, and perhaps of the teacher, before a restore."""
        self.requests.forget()
        self._student, self._staleness, self._connector_states = None, [], {}

    def get_state(self) -> dict[str, Any]:
        """Return what a local EnvRunner needs to go on, and with a seed the global random generators."""
        if self._config.output is not None and not self.is_remote:
            self._group.local_env_runner.write_recorded()  # what is resumed records what comes after
        return {
            "preferred": self.preferred,
            "resting": self.resting,
            "env_runner": None if self.is_remote else capture_sampling(self._group.local_env_runner),
            "random_state": None if self._config.seed is None else capture_random_state(),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Keep the state of `get_state()` until `resume()`, since restoring other parts changes generators."""
        self._to_put_back = dict(state)
        self.preferred, self.resting = state.get("preferred", []), state.get("resting", [])  # older versions had none

    def resume(self, env_steps: int) -> None:
        """Continue sampling after a restore: a local EnvRunner exactly at its position, remote ones with new episodes.

        Args:
            env_steps: env steps sampled so far, including those before a restore: remote EnvRunners seed new episodes
                by it.
        """
        state, self._to_put_back = self._to_put_back, {}
        self.rest(self.resting)
        if self.is_remote:
            call_all(self._group, partial(restart_sampling, salt=env_steps), local_env_runner=False)
        elif state.get("env_runner") is not None:
            put_back_sampling(self._group.local_env_runner, state["env_runner"])
        if state.get("random_state") is not None:
            put_back_random_state(state["random_state"])


def _force(env_runner: Any, state: Mapping[str, Any]) -> None:
    """Set the state of an EnvRunner with the student, even if it has made no more updates than the present one."""
    _rllib.accept_older_weights(env_runner)
    env_runner.set_state(state)


class SampleRequests:
    """Keeps remote EnvRunners sampling.

    Args:
        group: the remote EnvRunners, each with at most `max_requests_in_flight_per_env_runner` requests.
        max_staleness: maximum policy lag, in updates between the student that samples and the one that learns from the
            sample, ≥ 0. Low: EnvRunners wait for each other and, at 0, for the Learner. None: they never wait.
        timeout_s: longest wait for samples, s; None: no limit.
    """

    def __init__(self, group: EnvRunnerGroup, *, max_staleness: int | None, timeout_s: float | None):
        self._group = group
        self._manager = _rllib.actor_manager(group)
        self._max_staleness = max_staleness
        self._timeout_s = timeout_s
        self._sent_with: dict[ray.ObjectRef, int] = {}  # weights_seq_no by request under way
        self._has_sampled = False
        self._num_failures: Counter[int] = Counter()  # by EnvRunner, since the last sample of any
        self._failures: dict[int, SamplingFailedError] = {}  # the last one, by EnvRunner
        self._lost = LostEnvRunners()

    def __len__(self) -> int:
        """Return the number of pending requests, including those whose results were not fetched yet."""
        return len(self._under_way())

    def send(self, kwargs: Mapping[str, Any], *, weights_seq_no: int, only_to_idle: bool = False) -> None:
        """Request as many samples as the limit of pending requests permits.

        Args:
            kwargs: arguments of `DistillEnvRunner.set_state_and_sample()`.
            weights_seq_no: number of updates of the student in them.
            only_to_idle: send one request to each EnvRunner that has none, and none to others.
        """
        ids: Collection[int] = self._group.healthy_env_runner_ids()
        if only_to_idle:
            ids = set(ids) - set(_rllib.calls_under_way(self._manager, _SAMPLE)[1])
        # RLlib reads an empty list of ids as all.
        while ids and self._group.foreach_env_runner_async(
            _answer, tag=_SAMPLE, kwargs=dict(kwargs), remote_worker_ids=sorted(ids)
        ):
            if only_to_idle:
                break
        self._sent_with = {ref: self._sent_with.get(ref, weights_seq_no) for ref in self._under_way()}

    def fetch(self, *, weights_seq_no: int) -> list[Sample]:
        """Return the samples that have arrived, in the order of their EnvRunners.

        Waits for the first one, and for all that would be too stale after the next update.

        Args:
            weights_seq_no: number of updates of the student that learns next.

        Returns:
            At least one sample, unless no EnvRunner is left, or none answers in time.

        Raises:
            SamplingFailedError: an EnvRunner failed, and `fault_tolerance()` neither restarts nor ignores it; or all
                failed before there was any sample, or again after they were restarted.
        """
        deadline = None if self._timeout_s is None else time.monotonic() + self._timeout_s
        samples: list[Sample] = []
        while under_way := self._under_way():
            urgent = [ref for ref in under_way if self._is_stale(self._sent_with[ref], weights_seq_no + 1)]
            if samples and not urgent:
                break
            awaited, num_returns = (urgent, len(urgent)) if urgent else (under_way, 1)
            wait_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            # RLlib itself waits for all requests, or for none.
            ready, _ = ray.wait(awaited, num_returns=num_returns, timeout=wait_s, fetch_local=False)
            samples += self._fetch_ready()
            if len(ready) < num_returns:
                missing = set(awaited) - set(ready)
                logger.warning("%d samples did not arrive within sample_timeout_s=%s.", len(missing), self._timeout_s)
                self._sent_with |= dict.fromkeys(missing, _NOT_AWAITED)
                break
        fresh = [sample for sample in samples if not self._is_stale(sample.weights_seq_no, weights_seq_no)]
        return sorted(fresh, key=lambda sample: sample.worker_index)

    def forget(self) -> None:
        """Ignore the results of pending requests: they belong to another student, or another teacher."""
        for actor_id in set(_rllib.calls_under_way(self._manager, _SAMPLE)[1]):
            _rllib.forget_calls(self._manager, actor_id)

    def kill_the_hung(self, *, seconds: float) -> None:
        """Kill EnvRunners that do not answer in time: RLlib's calls at the end would wait for them without limit."""
        kill_the_hung(self._group, failed=self._failures, seconds=seconds)

    def ping_the_dead(self) -> bool:
        """Ping EnvRunners that died without waiting; return whether one has answered since.

        Raises:
            RuntimeError: all have died for some seconds, and Ray restarts none of them; a SamplingFailedError if the
                reason of one is known.
        """
        all_ids, healthy = set(self._manager.actor_ids()), set(self._group.healthy_env_runner_ids())
        if healthy:
            self._lost.forget()
        if not (dead := all_ids - healthy):
            return False
        if dead == all_ids:  # there is nothing else to do
            pings = self._manager.foreach_actor("ping", healthy_only=False, timeout_seconds=_SECONDS_TO_PING)
            self._lost.check(pings, num_all=len(dead), reasons=list(self._failures.values()))
            return False
        back = self._manager.fetch_ready_async_reqs(tags=_PING, mark_healthy=True).ignore_errors()
        answered = {result.actor_id for result in back}
        if silent := dead - answered:
            self._manager.foreach_actor_async("ping", tag=_PING, healthy_only=False, remote_actor_ids=sorted(silent))
        return bool(answered)

    def _fetch_ready(self) -> list[Sample]:
        """Fetch results as RLlib does, and report why an EnvRunner failed, which RLlib drops."""
        results = self._manager.fetch_ready_async_reqs(tags=_SAMPLE)
        for result in results:
            if result.ok:
                self._has_sampled = True
                self._num_failures.clear()
                self._failures.pop(result.actor_id, None)
            elif reason := reason_in(result.get()):
                self._failures[result.actor_id] = reason
                self._num_failures[result.actor_id] += 1
        samples = answers(self._group, results)
        # What fails now and then is restarted as often as the config admits. What fails in all EnvRunners, and again in
        # all after their restart, will not stop.
        tolerated = 1 if self._has_sampled else 0
        if self._failures and all(self._num_failures[index] > tolerated for index in self._manager.actor_ids()):
            raise next(iter(self._failures.values()))
        return samples

    def _under_way(self) -> list[ray.ObjectRef]:
        return _rllib.calls_under_way(self._manager, _SAMPLE)[0]

    def _is_stale(self, weights_seq_no: int, learner_weights_seq_no: int) -> bool:
        return self._max_staleness is not None and learner_weights_seq_no - weights_seq_no > self._max_staleness


def _answer(env_runner: Any, **kwargs: Any) -> Sample:
    # A function of a module pickles fast; the closure that RLlib makes from a method's name does not.
    return env_runner.set_state_and_sample(**kwargs)
