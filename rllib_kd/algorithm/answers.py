"""The answers of remote EnvRunners: results, failures, or none."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import ray
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from rllib_kd import _rllib
from rllib_kd.environments.failures import SamplingFailedError
from rllib_kd.environments.returned import NotFiniteError

logger = logging.getLogger(__name__)

SECONDS_TO_ANSWER = 300.0  # for an EnvRunner, which may finish a sample first
_SECONDS_LOST = 5.0  # in which every ping of an EnvRunner is answered as for one that Ray does not restart


def answers(group: EnvRunnerGroup, results: Any) -> list[Any]:
    """Return the answers of remote EnvRunners. Errors are logged, with their reason.

    Args:
        group: the EnvRunners.
        results: results of its manager, including errors.

    Raises:
        NotFiniteError: an environment returned numbers that are not finite while baselines were played; a new one
            would, too.
        SamplingFailedError: an EnvRunner failed, and `fault_tolerance()` neither restarts nor ignores it.
        ray.exceptions.RayError: an EnvRunner died, and is neither restarted nor ignored.
    """
    is_tolerant = _rllib.ignores_errors(group)
    for result in results:
        reason = None if result.ok else reason_in(result.get())
        if reason is None:
            continue
        if not is_tolerant or isinstance(reason, NotFiniteError):
            raise reason
        logger.warning("EnvRunner %d failed. It is restarted if fault_tolerance() allows: %s", result.actor_id, reason)
    _rllib.actor_manager(group).handle_remote_call_result_errors(results, ignore_ray_errors=is_tolerant)
    return [result.get() for result in results.ignore_errors()]


def call_all(
    group: EnvRunnerGroup,
    function: Callable[[Any], Any],
    *,
    seconds: float = SECONDS_TO_ANSWER,
    remote_worker_ids: Collection[int] | None = None,
    local_env_runner: bool = True,
) -> None:
    """Call a function on EnvRunners. Remote ones that do not answer in time, as their environment hangs, are killed.

    Ray restarts them if `fault_tolerance()` allows.

    Args:
        group: the EnvRunners.
        function: a function of an EnvRunner.
        seconds: longest wait, s.
        remote_worker_ids: ids of the remote EnvRunners to call; None: all that have not been given up.
        local_env_runner: whether a local EnvRunner is called, too.

    Raises:
        TimeoutError: one does not answer, and is neither restarted nor ignored.
        SamplingFailedError: as `answers()`.
    """
    if local_env_runner and group.local_env_runner is not None:
        function(group.local_env_runner)
    manager, healthy = _rllib.actor_manager(group), set(group.healthy_env_runner_ids())
    asked = sorted(healthy if remote_worker_ids is None else healthy & set(remote_worker_ids))
    if not asked:  # RLlib would ask all
        return
    results = manager.foreach_actor(function, remote_actor_ids=asked, timeout_seconds=seconds)
    for worker_id in set(asked) - {result.actor_id for result in results}:
        if not _rllib.ignores_errors(group):
            raise TimeoutError(f"EnvRunner {worker_id} did not answer within {seconds:g} s. Does its environment hang?")
        logger.warning(
            "EnvRunner %d did not answer within %g s, so it is killed. Does its environment hang?", worker_id, seconds
        )
        ray.kill(manager.actors()[worker_id], no_restart=False)
        manager.set_actor_state(worker_id, healthy=False)
    answers(group, results)


def reason_in(error: Exception) -> SamplingFailedError | None:
    """Return the reason in a remote EnvRunner's error, or None."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, SamplingFailedError) else None


def reason_of(results: Any) -> Exception:
    """Return the reason why no remote EnvRunner answered, as an exception."""
    errors = [result.get() for result in results if not result.ok]
    reasons = [reason for error in errors if (reason := reason_in(error)) is not None]
    return next(iter([*reasons, *errors]), RuntimeError("No EnvRunner has answered."))


def given_up(group: EnvRunnerGroup) -> list[int]:
    """Return the ids of EnvRunners that RLlib has given up, and may restart later."""
    return sorted(set(_rllib.actor_manager(group).actor_ids()) - set(group.healthy_env_runner_ids()))


def kill_the_hung(group: EnvRunnerGroup, *, failed: Collection[int] = (), seconds: float) -> None:
    """Kill EnvRunners that do not answer in time.

    At once those that failed, which may take a minute to end, and those that RLlib has given up.
    """
    actors = dict(_rllib.actor_manager(group).actors())
    for worker_id in {*failed, *given_up(group)}:
        ray.kill(actors.pop(worker_id))
    by_ping = {actor.ping.remote(): actor for actor in actors.values()}
    if by_ping:
        _, hung = ray.wait(list(by_ping), num_returns=len(by_ping), timeout=seconds, fetch_local=False)
        for ping in hung:
            logger.warning("An EnvRunner did not finish its sample within %g s, so it is killed.", seconds)
            ray.kill(by_ping[ping])


class LostEnvRunners:
    """Notices that all remote EnvRunners have died, and that Ray restarts none: it answers pings for them at once."""

    def __init__(self) -> None:
        self._since: float | None = None  # the time of the first pings in a row that were all answered so

    def forget(self) -> None:
        """Note that one is alive."""
        self._since = None

    def check(self, pings: Any, *, num_all: int, reasons: Sequence[SamplingFailedError]) -> None:
        """Check that an EnvRunner may come back.

        Args:
            pings: answers to pings of all EnvRunners, without those that did not come.
            num_all: number of EnvRunners.
            reasons: why they failed.

        Raises:
            RuntimeError: none may; a SamplingFailedError if there is a reason.
        """
        deaths = [answer for ping in pings if isinstance(answer := ping.get(), ray.exceptions.ActorDiedError)]
        if len(deaths) < num_all:
            self.forget()
            return
        self._since = self._since or time.monotonic()
        if time.monotonic() - self._since < _SECONDS_LOST:
            time.sleep(0.1)
            return
        text = (
            f"All {num_all} EnvRunners have died, and Ray restarts none of them. "
            "fault_tolerance(restart_failed_env_runners=True, max_num_env_runner_restarts=...) sets how often it does."
        )
        if reasons:
            raise SamplingFailedError(f"{text} One had failed: {reasons[-1]}") from reasons[-1]
        raise RuntimeError(text) from deaths[-1]
