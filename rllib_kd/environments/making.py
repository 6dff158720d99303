"""Environments as RLlib makes them: from ids, registered names, classes and callables."""

from __future__ import annotations

import copy
import importlib
import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gymnasium as gym
from ray.rllib.env.env_context import EnvContext
from ray.rllib.env.multi_agent_env import MultiAgentEnv
from ray.tune.registry import ENV_CREATOR

from rllib_kd import _rllib
from rllib_kd.environments import atari, pools
from rllib_kd.environments.failures import described, layers, name_of, users_errors
from rllib_kd.environments.imports import make_importable
from rllib_kd.environments.own import (
    OwnEnvironment,
    OwnName,
    check_takes_config,
    is_gymnasiums,
    is_of_old_gym,
    is_registered,
    is_registered_with_tune,
    parsed,
)
from rllib_kd.environments.returned import check_returned, explained

logger = logging.getLogger(__name__)


def checked_call(method: Any, *args: Any, **kwargs: Any) -> Any:
    """Call `reset()` or `step()` of a vector env, and check what its environments return.

    Args:
        method: bound method of the vector env.
        args: its arguments.
        kwargs: its keyword arguments.

    Returns:
        The method's results.

    Raises:
        EnvFailedError: an environment raised, or returned numbers that are not finite.
    """
    envs, doing = method.__self__, method.__name__
    try:
        obs, *others = method(*args, **kwargs)
    except users_errors() as error:
        raise explained(name_in(envs), envs, error, doing=doing) from error
    check_returned(name_in(envs), envs, obs, others[0] if doing == "step" else None, doing=doing)
    return obs, *others


def name_in(envs: Any) -> str:
    """Return the name of an environment, or of those in a vector env: the id, else the class."""
    env = envs.envs[0] if hasattr(envs, "envs") else envs
    return env.spec.id if env.spec is not None else type(env.unwrapped).__name__


#: How an environment gets a limit of its own, for messages.
LIMITS = "gymnasium.wrappers.TimeLimit, or max_episode_steps when it is registered"


def time_limit_of(envs: Any) -> int | None:
    """Return after how many steps an environment, or each of a vector env, ends an episode; None if that is unknown."""
    unwrapped = envs.unwrapped
    env = unwrapped.envs[0] if hasattr(unwrapped, "envs") else envs
    stack = list(layers(env))
    # Only gymnasium's own environments have a spec: a class or function may set its limit by this wrapper alone.
    limits = [layer._max_episode_steps for layer in stack if isinstance(layer, gym.wrappers.TimeLimit)]
    if limits or env.spec is None:
        return min(limits, default=None)
    return env.spec.max_episode_steps or atari.time_limit(env.spec, stack)


def close(envs: Any) -> None:
    """Close an environment, or all those of a vector env. Errors become one warning: what was played counts.

    Args:
        envs: the environment or vector env.
    """
    is_one_by_one = isinstance(envs, gym.vector.SyncVectorEnv)  # its own close() ends at the first error
    errors = []
    for env in envs.envs if is_one_by_one else [envs]:
        try:
            env.close()
        except users_errors() as error:
            errors.append(error)
    if is_one_by_one:
        envs.closed = True  # or it closes them again when it is deleted
    if errors:
        logger.warning("The environment '%s' raised in close(): %s", name_in(envs), described(errors[0]))


class EnvMaker:
    """Makes single environments, a new one at each call; and vector envs, if the environment has a faster one.

    Args:
        name: of the environment, for errors.
        make: makes one.
        make_vector: makes a vector env of a given number of environments, which shows the same; None if there is none.
        make_stand_in: likewise; its vector env has random numbers of its own.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], gym.Env],
        make_vector: Callable[[int], gym.vector.VectorEnv] | None = None,
        make_stand_in: Callable[[int], gym.vector.VectorEnv] | None = None,
    ):
        self._name, self._make, self._make_vector, self._make_stand_in = name, make, make_vector, make_stand_in

    def __call__(self) -> gym.Env:
        """Return a new environment.

        Raises:
            ValueError: it cannot be made, or lacks a space.
        """
        env = self._explained(self._make)
        check_has_spaces(env, self._name)
        return env

    def vector(self, num_envs: int) -> gym.vector.VectorEnv | None:
        """Return the environment's own vector env, or None if it has none.

        It takes a seed for each environment, and `reset_mask` as an option of `reset()`.

        Raises:
            ValueError: it cannot be made.
        """
        make = self._make_vector
        return None if make is None else self._explained(lambda: make(num_envs))

    def stand_in(self, num_envs: int) -> gym.vector.VectorEnv | None:
        """Return a vector env in which students are chosen, but not judged; None if they play the environment itself.

        It takes a seed for each environment once, before its first step.

        Raises:
            ValueError: it cannot be made.
        """
        make = self._make_stand_in
        return None if make is None else self._explained(lambda: make(num_envs))

    def _explained(self, make: Callable[[], Any]) -> Any:
        try:
            return make()
        except users_errors() as error:
            raise ValueError(f"The environment '{self._name}' cannot be made: {described(error)}") from error


def check_has_spaces(env: gym.Env, name: str) -> None:
    """Check that an environment has its two spaces, and close it otherwise. Those of several agents may lack them.

    Args:
        env: the environment.
        name: its name, for the message.

    Raises:
        ValueError: one is missing, or is not a space of gymnasium, and the message names it; or it is no environment.
    """
    if isinstance(env, MultiAgentEnv):
        return
    if not isinstance(env, gym.Env):
        old = " The package gym is old: import gymnasium as gym." if is_of_old_gym(type(env)) else ""
        raise ValueError(
            f"The maker of the environment '{name}' returned {type(env).__name__}, expected a gymnasium.Env.{old}"
        )
    for space, example in (("observation_space", "Box(low, high, shape)"), ("action_space", "Discrete(n)")):
        value = getattr(env, space, None)
        if not isinstance(value, gym.Space):
            close(env)
            got = "no" if value is None else f"a {type(value).__module__}.{type(value).__qualname__} as"
            raise ValueError(
                f"The environment '{name}' has {got} {space}. Set it in __init__: "
                f"self.{space} = gymnasium.spaces.{example}."
            )


def env_maker(
    env: str | Callable[..., gym.Env],
    env_config: Mapping[str, Any] | None = None,
    *,
    render_mode: str | None = None,
) -> EnvMaker:
    """Return what makes environments as RLlib does: registered names and callables get the config as argument.

    Args:
        env: as in `config.environment()`: a gymnasium id, a name registered with Tune, "path/to/file.py:Name" or
            "module:Name" (own.py), the path of a class ("package.module.Class"), or a callable.
        env_config: config of the environment.
        render_mode: gymnasium's render mode; an entry of the config if `env` is not a gymnasium id.

    Raises:
        ValueError: gymnasium has no such id, there is no such file, module or class, or it is made already.
    """
    if not isinstance(env, str) and not callable(env):
        raise ValueError(
            f"An environment is named, or made by a class or function, got {env!r:.200}. Name it, such as "
            "'CartPole-v1', or pass what makes it: lambda config: ..."
        )
    pools.register(env)
    name = name_of(env)
    config = dict(env_config or {}) | ({} if render_mode is None else {"render_mode": render_mode})
    if isinstance(env, str) and is_registered_with_tune(env):
        env = _rllib.registered(ENV_CREATOR, env)
    elif (own := parsed(env)) is not None:
        env = _own(own, str(env))
    if isinstance(env, str):
        if not names_class(env):
            check_gymnasium_id(env)
            if pools.is_pool(env) and "render_mode" not in config:
                stand_in = partial(pools.Pool, name=pools.own_name(env), **config)
                return EnvMaker(name, partial(gym.make, env, **config), make_stand_in=stand_in)
            if not atari.is_game(env):
                return EnvMaker(name, partial(gym.make, env, **config))
            own_vector = None if "render_mode" in config else partial(atari.make_vector, env, **config)
            return EnvMaker(name, partial(atari.make, env, **config), own_vector)
        env = _class_at(env)
    check_takes_config(env)
    return EnvMaker(name, partial(_with_copy, env, EnvContext(config, worker_index=0)))


def _with_copy(make: Callable[..., gym.Env], context: EnvContext) -> gym.Env:
    """Return an environment with a copy of its config: a constructor may take entries out of its own."""
    return make(copy.copy(context))


def _own(own: OwnName, env: str) -> str | OwnEnvironment:
    """Return what makes an environment of the user's own; its name if gymnasium makes it."""
    environment = OwnEnvironment(own)
    environment.check()
    return env if is_gymnasiums(own) else environment


def names_class(env: str) -> bool:
    """Return whether RLlib reads the name of an environment as the path of a class."""
    return "." in env and ":" not in env and not is_registered(env)


def _class_at(path: str) -> Callable[..., gym.Env]:
    module, _, name = path.rpartition(".")
    make_importable(os.getcwd())
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"There is no environment class '{path}': {error}.") from error


def check_gymnasium_id(env: str) -> None:
    """Check that gymnasium can make "Env-v0" or "module:Env-v0", whose module it imports.

    Raises:
        ValueError: it cannot; the message has gymnasium's reason.
    """
    if not env.strip():
        raise ValueError(f"The name of the environment is empty, got '{env}'. Expected a name like 'CartPole-v1'.")
    module, _, name = env.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        gym.spec(name)
    except (gym.error.Error, ModuleNotFoundError) as error:
        is_missing = env.startswith("ALE/") and isinstance(error, gym.error.NamespaceNotFound)
        hint = " pip install 'rllib-kd[atari]'" if is_missing else ""
        if not module and not is_missing:  # nothing has been imported that could have registered it
            hint = f" If it is in a file or another package, name that first: path/to/file.py:{env} or module:{env}."
        reason = str(error).rstrip(". ")
        raise ValueError(
            f"The environment '{env}' is registered neither with Ray nor with gymnasium: "
            f"{reason}{'' if reason.endswith('?') else '.'}{hint}"
        ) from error
