"""EnvRunners that explain their failures, and the seeds of their environments."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any

import gymnasium as gym
import numpy as np
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.env.env_errors import StepFailedRecreateEnvError
from ray.rllib.env.env_runner import ENV_STEP_FAILURE, NUM_ENV_STEP_FAILURES_LIFETIME
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import ENV_STEP_TIMER

from rllib_kd import _rllib
from rllib_kd.environments import pools
from rllib_kd.environments.failures import EnvFailedError, SamplingFailedError, described, users_errors
from rllib_kd.environments.returned import NotFiniteError, check_returned, explained
from rllib_kd.observations.flattening import with_text_arrays
from rllib_kd.observations.spaces import has_texts

logger = logging.getLogger(__name__)

#: An environment that fails is replaced at most so many times in a row: a crash now and then is tolerated.
_MOST_REMADE = 10

#: Added to the seeds of evaluations, far from those of evaluation/seeds.py.
_EVALUATION_SEED = 1_100_000_000


class ExplainsFailures:
    """A mixin for EnvRunners that reports what the environment, the teacher or a connector raised, and where.

    Numbers that are not finite are a failure, too; but in training their states are dropped, and a description of the
    first ones is kept: a run of days does not end because of a single NaN.

    RLlib's EnvRunner raises an error without a message, and a remote one ends without reporting the reason, again and
    again. This one answers with the reason first, and ends at the next request, with RLlib's delay; the config may
    restart it.
    """

    config: Any
    env: Any
    metrics: Any
    worker_index: int | None
    make_env: Callable[[], None]
    _log_env_steps: Callable[..., None]
    _metrics_num_try_env_step: Any
    #: The error message for the first numbers in training that were not finite; empty if there were none.
    not_finite: str = ""
    _failure: SamplingFailedError | None = None
    _num_remade = 0  # environments in a row, of which none lasted for a whole episode or sample
    _is_training = False  # whether states of numbers that are not finite are dropped

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        if self.config.seed is not None:
            _rllib.set_seed(self, int(self.config.seed) + offset_of_seeds(self))

    def _try_env_reset(self, *args: Any, **kwargs: Any) -> Any:
        try:
            obs, infos = super()._try_env_reset(*args, **kwargs)  # type: ignore[misc]  # RLlib's
        except EnvFailedError:
            raise  # RLlib's tries again by calling this
        except users_errors() as error:
            raise explained(self.config.env, self.env, error, doing="reset") from error
        self._check(self._check_returned, obs, doing="reset")
        return obs, infos

    def _try_env_step(self, actions: Any) -> Any:
        handles_each = self._handles_each_step()
        try:
            results = self._step(actions, is_logged=handles_each)
        except users_errors() as error:
            raise self._explained_step(error) from error
        if handles_each and results != ENV_STEP_FAILURE:
            obs, rewards, terminateds, truncateds, _ = results
            self._check(self._check_returned, obs, rewards, doing="step() or reset")  # vector envs reset in a step
            if self._num_remade and not self._is_training and self._ends_episode(terminateds, truncateds):
                self._has_lasted()
        return results

    def _step(self, actions: Any, *, is_logged: bool) -> Any:
        """Step the env as RLlib does, which replaces one that always fails without end.

        Args:
            actions: as the env takes them.
            is_logged: whether to log the step: that takes a third of a step of 64 CartPoles.
        """
        try:
            if not is_logged:
                return self.env.step(actions)
            with self.metrics.log_time(ENV_STEP_TIMER):
                results = self.env.step(actions)
            self._log_env_steps(self._metrics_num_try_env_step, 1)
            return results
        except users_errors() as error:
            self.metrics.log_value(NUM_ENV_STEP_FAILURES_LIFETIME, 1, reduce="lifetime_sum")
            if not self.config.restart_failed_sub_environments or self._num_remade == _MOST_REMADE:
                raise
            if not isinstance(error, StepFailedRecreateEnvError):
                logger.exception("The environment failed in step(), and is replaced by a new one.")
            self._num_remade += 1
            self.make_env()
            return ENV_STEP_FAILURE

    def _explained_step(self, error: BaseException) -> EnvFailedError:
        """Return the failure to raise from an error of a step that is not tolerated."""
        reason = explained(self.config.env, self.env, error, doing="step")
        if self._num_remade < _MOST_REMADE:
            return reason
        self._has_lasted()  # the next request, if there is one, may try as often again
        return type(reason)(
            f"{str(reason).rstrip('.')}. fault_tolerance(restart_failed_sub_environments=True) has replaced the "
            f"environment {_MOST_REMADE} times in a row, and none of the new ones lasted for a whole sample."
        )

    @staticmethod
    def _ends_episode(terminateds: Any, truncateds: Any) -> bool:
        """Return whether a step ended an episode that counts, although others may fail later in the same sample."""
        return bool(np.any(terminateds) or np.any(truncateds))

    def _has_lasted(self) -> None:
        """Note that the environment did not fail for a whole episode or sample: failures are counted anew."""
        self._num_remade = 0

    @contextmanager
    def _training(self) -> Iterator[None]:
        """In this context, numbers that are not finite are not an error."""
        self._is_training = True
        try:
            yield
        finally:
            self._is_training = False

    def _check(self, check: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        """Call a check that may raise a `NotFiniteError`; in training, keep the first one instead of raising it."""
        if self._is_training and self.not_finite:
            return
        try:
            check(*args, **kwargs)
        except NotFiniteError as error:
            if not self._is_training:
                raise
            self.not_finite = str(error)

    def _handles_each_step(self) -> bool:
        """Return whether each step is logged and its numbers are checked, and not many steps together."""
        return True

    def _check_returned(self, obs: Any, rewards: Any = None, *, doing: str) -> None:
        check_returned(self.config.env, self.env, obs, rewards, doing=doing)

    def apply(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call `func` as RLlib does, but answer with the reason of a failure before this process ends."""

        def answer(env_runner: Any, *args: Any, **kwargs: Any) -> Any:
            if self._failure is not None:
                raise self._failure
            try:
                return func(env_runner, *args, **kwargs)
            except SamplingFailedError as reason:
                self._failure = reason
            except users_errors() as error:
                logger.exception("EnvRunner %s failed.", self.worker_index)
                self._failure = SamplingFailedError(f"An EnvRunner failed: {described(error)}")
            return None

        was_whole = self._failure is None
        result = super().apply(answer, *args, **kwargs)  # type: ignore[misc]  # RLlib's
        if was_whole and self._failure is not None:
            raise self._failure
        return result

    def reason_of_failure(self) -> SamplingFailedError | None:
        """Return why this EnvRunner failed, or None: to be called before this process ends."""
        return self._failure

    def ping(self) -> str:
        """Answer as RLlib does; after a failure, end this process instead."""
        return self.apply(lambda env_runner: "pong")


class ExplainingEnvRunner(ExplainsFailures, SingleAgentEnvRunner):
    """RLlib's single-agent EnvRunner, which explains its failures, and takes texts as observations."""

    @override(ExplainsFailures)
    def _try_env_reset(self, *args: Any, **kwargs: Any) -> Any:
        obs, infos = super()._try_env_reset(*args, **kwargs)
        return self._with_text_arrays(obs), infos

    @override(ExplainsFailures)
    def _try_env_step(self, actions: Any) -> Any:
        results = super()._try_env_step(actions)
        if results == ENV_STEP_FAILURE:
            return results
        obs, *others = results
        return self._with_text_arrays(obs), *others

    def _with_text_arrays(self, obs: Any) -> Any:
        return with_text_arrays(self.env.single_observation_space, obs) if self._has_texts else obs

    @override(SingleAgentEnvRunner)
    def make_env(self) -> None:
        pools.register(self.config.env)
        gym.registry.pop(_rllib.OWN_ENVIRONMENT, None)  # gymnasium warns of every second registration in a process
        with _no_garbage_for_forks() if _is_in_processes(self.config) else nullcontext():
            super().make_env()
        check_vectorized(self.config, self.env.single_observation_space)

    @cached_property
    def _has_texts(self) -> bool:
        return has_texts(self.env.single_observation_space)


def check_vectorized(config: AlgorithmConfig, space: gym.Space) -> None:
    """Check that a config's vector envs return the observations of their environments.

    Args:
        config: config of any algorithm.
        space: space of the environment's observations.

    Raises:
        ValueError: they do not.
    """
    if _is_in_processes(config) and has_texts(space):
        raise ValueError(
            "Observations contain texts, which gymnasium's vector envs in other processes do not pass on: "
            "got gym_env_vectorize_mode='async'. Set it to 'sync'."
        )


@contextmanager
def _no_garbage_for_forks() -> Iterator[None]:
    """In this context, let forks of this process collect nothing that was there before.

    References to Ray's objects that a fork collects speak over the connection of this process, whose next request then
    waits without end.
    """
    gc.collect()
    was_frozen = gc.get_freeze_count() > 0  # as in the workers that are forks themselves
    gc.freeze()
    try:
        yield
    finally:
        if not was_frozen:
            gc.unfreeze()


def _is_in_processes(config: AlgorithmConfig) -> bool:
    """Return whether each environment of a vector env has a process of its own."""
    mode = getattr(config.gym_env_vectorize_mode, "value", config.gym_env_vectorize_mode)
    return mode.lower() == "async"


def offset_of_seeds(env_runner: Any) -> int:
    """Return the seed of an EnvRunner's first environment, less that of the config.

    Environment i of a vector env has the seed of the first one + i. RLlib's offset is the index of the EnvRunner, so
    that most environments of two EnvRunners would play the same episodes, and evaluations those of training.
    """
    index, num_envs = env_runner.worker_index or 0, env_runner.config.num_envs_per_env_runner
    first = _EVALUATION_SEED if env_runner.config.in_evaluation else 0
    return first + (1 + (index - 1) * num_envs if index else 0)
