"""The environment in which policies play: the requested one, or the one that their checkpoints record."""

from __future__ import annotations

import enum
import json
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import gymnasium as gym
import numpy as np

from rllib_kd.checkpoints.pickles import CheckpointError, Name
from rllib_kd.environments import atari, pools
from rllib_kd.environments.familiar import is_familiar, record
from rllib_kd.environments.making import check_gymnasium_id, names_class
from rllib_kd.environments.own import is_registered, parsed, settled, short_name
from rllib_kd.environments.untrusted import is_harmless, refusals, without_numpy_scalars
from rllib_kd.evaluation.sources import Source, open_source, open_sources

_SET_IT = "with --env-config (env_config=...)"
_TRUST_IT = "--trust-checkpoint (trust_checkpoint=True) if you trust the checkpoint"


class PlayedEnvironment(NamedTuple):
    """An environment and its complete config, including what checkpoints record."""

    env: str | Callable[..., gym.Env]  # as `config.environment()` takes it
    env_config: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Return the id, or the name of a class or function, without its file."""
        return short_name(self.env)

    def config_as_json(self) -> dict[str, Any]:
        """Return the config; values that JSON lacks are texts."""
        return _json_of(self.env_config)

    def __str__(self) -> str:
        return described(self.name, self.config_as_json())


def described(name: str, env_config: Mapping[str, Any]) -> str:
    """Return an environment with its config as --env-config takes it: 'FrozenLake-v1 {"is_slippery": false}'.

    Args:
        name: name of the environment.
        env_config: its config, as JSON.
    """
    ordered = dict(sorted(env_config.items(), key=lambda item: str(item[0])))  # equal configs are equal texts
    config = json.dumps(ordered).replace("\x7f", "\\u007f")  # all other control characters are escaped already
    return f"{name} {config}" if env_config else name


class NoEnvironmentError(ValueError):
    """No environment is named, and no checkpoint records one."""


def resolve_environment(
    policies: Mapping[str, Any],
    env: str | Callable[..., gym.Env] | PlayedEnvironment | None = None,
    env_config: Mapping[str, Any] | None = None,
    *,
    teacher: Any = None,
    trust_checkpoint: bool = False,
) -> PlayedEnvironment:
    """Determine the environment in which policies play, and its config.

    The environment is `env`, or else the one that the policies' checkpoints record. The config that is recorded for
    this environment is used, and `env_config` changes single keys of it. The config of another environment is dropped.

    Args:
        policies: policies by name, each as in `compare()`. Those that record an environment must agree.
        env: as in `compare()`; a `PlayedEnvironment` is returned as it is.
        env_config: keys to change.
        teacher: as in `compare()`, used if no policy records the environment.
        trust_checkpoint: whether a checkpoint may choose any environment and config.

    Raises:
        ValueError: no environment is named; policies record different ones; or an untrusted checkpoint chooses one that
            is neither of gymnasium or ALE nor one of the user's own that was given before, or a config that is neither
            known to be harmless nor the user's; or `env_config` is not a dict.
    """
    if not isinstance(env_config, Mapping | None):
        raise ValueError(f"`env_config` must be a dict of the environment's settings, got {env_config!r:.200}.")
    asked = dict(env_config or {})
    if isinstance(env, PlayedEnvironment):
        return PlayedEnvironment(env.env, {**env.env_config, **asked})
    env = cast("str | Callable[..., gym.Env] | None", settled(env))
    recorded: dict[str, PlayedEnvironment] = {}
    sources = open_sources(policies.values(), trust_checkpoint=trust_checkpoint)
    for name, source in zip(policies, sources, strict=True):
        if (own := _recorded(source, env, asked, trust_checkpoint=trust_checkpoint)) is not None:
            recorded[name] = own
    if recorded:
        _check_agreement(recorded)
        return next(iter(recorded.values()))
    if teacher is not None:
        source = open_source(teacher, trust_checkpoint=trust_checkpoint)
        if (own := _recorded(source, env, asked, trust_checkpoint=trust_checkpoint)) is not None:
            return own
    if env is not None:
        return PlayedEnvironment(env, asked)
    recorded_names = (member.environment()[0] for source in sources for member in source.members())
    if classes := [name for name in recorded_names if isinstance(name, Name)]:
        raise ValueError(
            f"The checkpoint was trained in the class '{classes[0]}', which is not imported because a checkpoint names "
            f"it. Pass env=..., or --env path/to/file.py:{classes[0].name.split('.')[-1]} on the command line."
        )
    raise NoEnvironmentError(
        "The checkpoint does not record its environment (only those of whole Algorithms do, if it has a name). Pass "
        "env=..., or --env on the command line."
    )


def _recorded(
    policy: Source, env: str | Callable[..., gym.Env] | None, asked: Mapping[str, Any], *, trust_checkpoint: bool
) -> PlayedEnvironment | None:
    """Return a policy's record of the environment (of any if it is None), with the requested keys changed.

    For an ensemble, return the record of the first member that has one.
    """
    for member in policy.members():
        own_env, own_config = pools.played(*member.environment())
        if env is None and (own_env is None or isinstance(own_env, Name)):
            continue
        if env is not None and not _is_same(own_env, env):
            continue
        chosen = own_env if env is None else env
        if isinstance(_id_of(chosen), str) and atari.is_game(_id_of(chosen)):
            own_config = atari.single_config(own_config)
        left = {key: value for key, value in own_config.items() if key not in asked}
        if member.path is not None:  # others are objects of this process
            if env is None:
                _check_files(own_env, member.path)
                if not trust_checkpoint:
                    _check_environment(str(own_env), member.path)
            if left and not is_familiar(_line(own_env, own_config)):
                _check_config(chosen, left, member.path, trust_checkpoint=trust_checkpoint)
        return PlayedEnvironment(chosen, {**left, **asked})
    return None


def _id_of(env: Any) -> Any:
    """Return an id that does not depend on how the environment is named: without a module, and classes by path."""
    if isinstance(env, type):
        return f"{env.__module__}.{env.__qualname__}"
    if isinstance(env, Name):
        return str(env)
    return env.rpartition(":")[2] if isinstance(env, str) else env


def _is_same(own: Any, other: Any) -> bool:
    if own is None:
        return False
    ids = _id_of(own), _id_of(other)
    if ids[0] == ids[1]:
        return True
    is_in_file = any(isinstance(env, str) and ":" in env for env in (own, other))
    return is_in_file and len({str(env_id).rpartition(".")[2] for env_id in ids}) == 1  # one by its file, one by class


# --- What untrusted checkpoints may choose ----------------------------------------------------------------------------


def _check_files(env: Any, source: str) -> None:
    """Check that the files that a checkpoint names exist, without running them."""
    own = parsed(env)
    missing = [] if own is None else [name for name in own.files if not os.path.isfile(name)]
    if own is not None and missing:
        raise CheckpointError(
            f"'{source}' was trained in '{env}', but there is no file '{missing[0]}' here. Name its new place with "
            f"--env FILE.py:{own.name} (env=...)."
        )


def _check_environment(env: str, source: str) -> None:
    if (own := parsed(env)) is not None and is_familiar(env):  # the user has run this code
        return
    if own is not None or names_class(env):  # gymnasium, RLlib or this package would run what stands before the name
        what = "names a file to run" if own is not None and own.files else "names a module to import"
    elif is_registered(env) and not is_harmless(env):
        what = "is not an environment of gymnasium or ALE"
    else:
        check_gymnasium_id(env)
        return
    raise CheckpointError(
        f"'{source}' was trained in '{env}', which {what}. Give it yourself with --env (env=...), or pass {_TRUST_IT}."
    )


def _check_config(env: Any, env_config: Mapping[Any, Any], source: str, *, trust_checkpoint: bool) -> None:
    if trust_checkpoint:
        refused = [f"'{key}'" for key, value in env_config.items() if not _is_data(value)]
        if refused:
            raise CheckpointError(
                f"'{source}' has objects in its env_config that cannot be unpickled here: "
                f"{', '.join(refused)}. Make their classes importable, or set these keys yourself {_SET_IT}."
            )
        return
    env_id = _id_of(env)
    if refused := refusals(env_id if isinstance(env_id, str) else None, env_config):
        raise CheckpointError(
            f"'{source}' was refused: its env_config has entries that are not known to be harmless: "
            f"{', '.join(refused)}. Set these keys yourself {_SET_IT}, or pass {_TRUST_IT}."
        )


def _is_data(value: Any) -> bool:
    """Return whether a value is the original one, and not a placeholder for an object that could not be loaded."""
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple | set) else ()
    return not isinstance(value, Name | CheckpointError) and all(map(_is_data, parts))


def record_config(env: Any, env_config: Mapping[str, Any]) -> None:
    """Add a config, with which the user trains in an environment of their own, to the record of what is familiar."""
    if env_config and parsed(env) is not None:
        record(_line(env, env_config))


def _line(env: Any, env_config: Mapping[str, Any]) -> str:
    return f"{env} {json.dumps(_json_of(env_config), sort_keys=True)}"


def _check_agreement(recorded: Mapping[str, PlayedEnvironment]) -> None:
    (first_name, first), *others = recorded.items()
    for name, other in others:
        if not _is_same(first.env, other.env) or first.config_as_json() != other.config_as_json():
            raise ValueError(
                f"'{first_name}' and '{name}' were trained in different environments: {first} and {other}. Choose one, "
                "with --env and --env-config (env=..., env_config=...)."
            )


# --- In JSON ----------------------------------------------------------------------------------------------------------


def _json_of(value: Any) -> Any:
    value = without_numpy_scalars(value)
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _json_of(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_json_of(part) for part in value]
    if value is None or (isinstance(value, bool | int | float | str) and not isinstance(value, enum.Enum)):
        return value
    if isinstance(value, enum.Enum | os.PathLike):
        return str(value)
    return getattr(value, "__qualname__", type(value).__qualname__)  # not its repr, which may hold an address
