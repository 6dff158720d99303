"""Requests for samples that are under way at remote EnvRunners, while the Learner learns."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from typing import Any

import ray
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from rllib_kd.environments.failures import EnvFailedError
from rllib_kd.wire import Sample

logger = logging.getLogger(__name__)


_SAMPLE, _PING = "sample", "ping"  # tags of requests


_NOT_AWAITED = 2**62  # a weights_seq_no that is never stale


class SampleRequests:
    """Keeps remote EnvRunners sampling.

    Args:
        group: whose remote EnvRunners sample, each with `max_requests_in_flight_per_env_runner` requests at most.
        max_staleness: how many updates may lie between the student that samples and the one that learns from the
            sample, ≥ 0. Low: EnvRunners wait for each other and, at 0, for the Learner. None: they never do.
        timeout_s: for how long to wait for samples.
    """

    def __init__(self, group: EnvRunnerGroup, *, max_staleness: int | None, timeout_s: float | None):
        self._group = group
        self._manager = group._worker_manager  # who knows which requests are under way; the group does not say
        self._max_staleness = max_staleness
        self._timeout_s = timeout_s
        self._sent_with: dict[ray.ObjectRef, int] = {}  # weights_seq_no by request under way
        self._has_sampled = False
        self._failures: dict[int, EnvFailedError] = {}  # by EnvRunner, whose environment has raised last

    def __len__(self) -> int:
        """Requests under way, with those whose results were not fetched yet."""
        return len(self._under_way())

    def send(self, kwargs: Mapping[str, Any], *, weights_seq_no: int, only_to_idle: bool = False) -> None:
        """Ask for samples, as many as may be under way.

        Args:
            kwargs: of `DistillEnvRunner.set_state_and_sample()`.
            weights_seq_no: of the student in them.
            only_to_idle: one each, and only from EnvRunners that have no request.
        """
        ids: Collection[int] = self._group.healthy_env_runner_ids()
        if only_to_idle:
            ids = set(ids) - set(self._manager._filter_calls_by_tag(_SAMPLE)[1])
        # An empty list of ids means all to RLlib.
        while ids and self._group.foreach_env_runner_async(
            _answer, tag=_SAMPLE, kwargs=dict(kwargs), remote_worker_ids=sorted(ids)
        ):
            if only_to_idle:
                break
        self._sent_with = {ref: self._sent_with.get(ref, weights_seq_no) for ref in self._under_way()}

    def fetch(self, *, weights_seq_no: int) -> list[Sample]:
        """The samples that are there, in the order of their EnvRunners.

        Waits for the first one, and for all that would be too stale after the next update.

        Args:
            weights_seq_no: of the student that learns next.

        Returns:
            At least one, unless no EnvRunner is left, or none answers in time.

        Raises:
            EnvFailedError: an environment has raised, and its EnvRunner is not to be restarted or done without; or all
                have raised before there was any sample.
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
                logger.warning("%d samples have not come within sample_timeout_s=%s.", len(missing), self._timeout_s)
                self._sent_with |= dict.fromkeys(missing, _NOT_AWAITED)
                break
        fresh = [sample for sample in samples if not self._is_stale(sample.weights_seq_no, weights_seq_no)]
        return sorted(fresh, key=lambda sample: sample.worker_index)

    def forget(self) -> None:
        """Take no result of what is under way: it belongs to another student, or another teacher."""
        for actor_id in set(self._manager._filter_calls_by_tag(_SAMPLE)[1]):
            self._manager._remove_async_state(actor_id)

    def kill_the_hung(self, *, seconds: float) -> None:
        """End EnvRunners that do not answer in time: what RLlib asks of them at the end, it waits for endlessly."""
        actors = dict(self._manager.actors())
        for worker_id in self._failures:  # they end by themselves, but may take a minute
            ray.kill(actors.pop(worker_id))
        kill_the_hung(actors, seconds=seconds)

    def ping_the_dead(self) -> bool:
        """Whether an EnvRunner that died has answered since: without waiting for it."""
        dead = set(self._manager.actor_ids()) - set(self._group.healthy_env_runner_ids())
        if not dead:
            return False
        back = self._manager.fetch_ready_async_reqs(tags=_PING, mark_healthy=True).ignore_errors()
        answered = {result.actor_id for result in back}
        if silent := dead - answered:
            self._manager.foreach_actor_async("ping", tag=_PING, healthy_only=False, remote_actor_ids=sorted(silent))
        return bool(answered)

    def _fetch_ready(self) -> list[Sample]:
        """As RLlib's, with what it drops: why an environment has failed."""
        results = self._manager.fetch_ready_async_reqs(tags=_SAMPLE)
        for result in results:
            if result.ok:
                self._has_sampled = True
                self._failures.pop(result.actor_id, None)
            elif reason := reason_in(result.get()):
                self._failures[result.actor_id] = reason
        samples = answers(self._group, results)
        if not self._has_sampled and self._failures.keys() >= set(self._manager.actor_ids()):
            raise next(iter(self._failures.values()))
        return samples

    def _under_way(self) -> list[ray.ObjectRef]:
        return self._manager._filter_calls_by_tag(_SAMPLE)[0]

    def _is_stale(self, weights_seq_no: int, learner_weights_seq_no: int) -> bool:
        return self._max_staleness is not None and learner_weights_seq_no - weights_seq_no > self._max_staleness


def reason_in(error: Exception) -> EnvFailedError | None:
    """The failure of an environment that a remote EnvRunner has answered with, if it is one."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, EnvFailedError) else None


def answers(group: EnvRunnerGroup, results: Any) -> list[Any]:
    """What remote EnvRunners have answered. Errors are logged, with an environment's reason.

    Args:
        group: of EnvRunners.
        results: of its manager, errors among them.

    Raises:
        EnvFailedError: an environment has raised, and `fault_tolerance()` neither restarts nor ignores its EnvRunner.
        ray.exceptions.RayError: the same of an EnvRunner that has died.
    """
    for result in results:
        reason = None if result.ok else reason_in(result.get())
        if reason is None:
            continue
        if not group._ignore_ray_errors_on_env_runners:
            raise reason
        logger.warning("EnvRunner %d ends, and is restarted if it may be: %s", result.actor_id, reason)
    group._worker_manager.handle_remote_call_result_errors(
        results, ignore_ray_errors=group._ignore_ray_errors_on_env_runners
    )
    return [result.get() for result in results.ignore_errors()]


def kill_the_hung(actors: Mapping[int, Any], *, seconds: float) -> None:
    """End EnvRunners that do not answer in time."""
    by_ping = {actor.ping.remote(): actor for actor in actors.values()}
    if by_ping:
        _, hung = ray.wait(list(by_ping), num_returns=len(by_ping), timeout=seconds, fetch_local=False)
        for ping in hung:
            logger.warning("An EnvRunner does not end its sample within %g s, and is killed.", seconds)
            ray.kill(by_ping[ping])


def _answer(env_runner: Any, **kwargs: Any) -> Sample:
    # A function of a module pickles in no time; what RLlib makes of a method's name does not.
    return env_runner.set_state_and_sample(**kwargs)
