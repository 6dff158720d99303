"""What remote EnvRunners answer: results, the reasons of environments that have failed, or nothing."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

import ray
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from rllib_kd import _rllib
from rllib_kd.environments.failures import EnvFailedError
from rllib_kd.environments.returned import NotFiniteError

logger = logging.getLogger(__name__)


def answers(group: EnvRunnerGroup, results: Any) -> list[Any]:
    """What remote EnvRunners have answered. Errors are logged, with an environment's reason.

    Args:
        group: of EnvRunners.
        results: of its manager, errors among them.

    Raises:
        NotFiniteError: an environment has returned such numbers in baselines: made anew, it would do so again.
        EnvFailedError: an environment has raised, and `fault_tolerance()` neither restarts nor ignores its EnvRunner.
        ray.exceptions.RayError: the same of an EnvRunner that has died.
    """
    is_tolerant = _rllib.ignores_errors(group)
    for result in results:
        reason = None if result.ok else reason_in(result.get())
        if reason is None:
            continue
        if not is_tolerant or isinstance(reason, NotFiniteError):
            raise reason
        logger.warning("EnvRunner %d ends, and is restarted if it may be: %s", result.actor_id, reason)
    _rllib.actor_manager(group).handle_remote_call_result_errors(results, ignore_ray_errors=is_tolerant)
    return [result.get() for result in results.ignore_errors()]


def reason_in(error: Exception) -> EnvFailedError | None:
    """The failure of an environment that a remote EnvRunner has answered with, if it is one."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, EnvFailedError) else None


def reason_of(results: Any) -> Exception:
    """Why no remote EnvRunner has answered."""
    errors = [result.get() for result in results if not result.ok]
    reasons = [reason for error in errors if (reason := reason_in(error)) is not None]
    return next(iter([*reasons, *errors]), RuntimeError("No EnvRunner has answered."))


def given_up(group: EnvRunnerGroup) -> list[int]:
    """The EnvRunners that RLlib has given up, and may restart later."""
    return sorted(set(_rllib.actor_manager(group).actor_ids()) - set(group.healthy_env_runner_ids()))


def kill_the_hung(group: EnvRunnerGroup, *, failed: Collection[int], seconds: float) -> None:
    """End EnvRunners that do not answer in time, and at once those that have failed: these may take a minute to end."""
    actors = dict(_rllib.actor_manager(group).actors())
    for worker_id in failed:
        ray.kill(actors.pop(worker_id))
    by_ping = {actor.ping.remote(): actor for actor in actors.values()}
    if by_ping:
        _, hung = ray.wait(list(by_ping), num_returns=len(by_ping), timeout=seconds, fetch_local=False)
        for ping in hung:
            logger.warning("An EnvRunner does not end its sample within %g s, and is killed.", seconds)
            ray.kill(by_ping[ping])
