"""Report remote EnvRunners that fail in an evaluation: RLlib continues without them, and drops the reason."""

from __future__ import annotations

import logging
from typing import Any

import ray
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME

from rllib_kd import _rllib
from rllib_kd.algorithm.answers import given_up
from rllib_kd.environments.failures import SamplingFailedError
from rllib_kd.environments.returned import NotFiniteError

logger = logging.getLogger(__name__)

_SECONDS_TO_ANSWER = 10.0


class Evaluations:
    """Checks each evaluation of a run: which EnvRunners failed, why, and whether it has results. Not checkpointed."""

    def __init__(self) -> None:
        self._num_steps: Any = None  # env steps of all evaluations, after the last one with results
        self._is_first = True
        self._had_results = False  # the last evaluation

    def checked(self, evaluation: dict[str, Any], group: EnvRunnerGroup | None) -> dict[str, Any]:
        """Return the evaluation without stale results, and warn of EnvRunners that failed in it.

        An environment that raises now and then is restarted. If failures end the first evaluation, or two in a row, in
        all EnvRunners, they are assumed to come always.

        Args:
            evaluation: RLlib's results: the previous ones, or none, if all EnvRunners have failed.
            group: the evaluation's EnvRunners; None if it has none of its own.

        Raises:
            SamplingFailedError: all EnvRunners have failed, repeatedly or in the first evaluation.
            NotFiniteError: an environment returned numbers that are not finite; a new one would, too.
        """
        num_steps = evaluation.get(ENV_RUNNER_RESULTS, {}).get(NUM_ENV_STEPS_SAMPLED_LIFETIME)
        has_results = num_steps is not None and num_steps != self._num_steps
        had_results, is_first = self._had_results, self._is_first
        self._num_steps, self._had_results, self._is_first = num_steps, has_results, False
        if group is None or group.num_remote_env_runners() == 0:
            return evaluation
        reasons = reasons_of_the_failed(group)
        for reason in reasons.values():
            if isinstance(reason, NotFiniteError):
                raise reason
        is_lost = not has_results and group.num_healthy_remote_workers() == 0
        if is_lost and (is_first or not had_results):
            for reason in filter(None, reasons.values()):
                raise reason
        for worker_id, own in reasons.items():
            why = "it has died." if own is None else own
            logger.warning(
                "Evaluation EnvRunner %d failed. It is restarted if fault_tolerance() allows: %s", worker_id, why
            )
        if is_lost:
            logger.warning("All evaluation EnvRunners failed, so this iteration has no evaluation.")
        return {} if is_lost else evaluation


def reasons_of_the_failed(group: EnvRunnerGroup) -> dict[int, SamplingFailedError | None]:
    """Return why the EnvRunners that RLlib has given up failed; None if that is unknown."""
    actors = _rllib.actor_manager(group).actors()
    return {worker_id: _reason(actors[worker_id]) for worker_id in given_up(group)}


def _reason(actor: Any) -> SamplingFailedError | None:
    ask = getattr(actor, "reason_of_failure", None)  # a user's EnvRunner may be RLlib's own
    try:
        return None if ask is None else ray.get(ask.remote(), timeout=_SECONDS_TO_ANSWER)
    except ray.exceptions.RayError:  # it has died, or hangs
        return None
