"""Capture and restore the sampling state of an EnvRunner and its environments."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from ray import cloudpickle

from rllib_kd import _rllib

logger = logging.getLogger(__name__)


def capture_sampling(env_runner: Any) -> bytes:
    """Return the state of an EnvRunner and its environments.

    Environments that cannot be captured (in other processes, or in C++ without a way to save them) begin new episodes,
    both here and after a restore, so that both continue equally.
    """
    try:
        return cloudpickle.dumps(
            {
                "runner": _attributes(env_runner, env_runner.SAMPLING_STATE),
                "env": _env_state(env_runner.env),
                "setting": _setting(env_runner),
            }
        )
    except Exception as error:  # each environment has its own reason why it cannot be pickled
        logger.info("The environments cannot be saved (%s), so they begin new episodes at every checkpoint.", error)
        restart_sampling(env_runner)
        return cloudpickle.dumps(
            {"runner": _attributes(env_runner, env_runner.LASTING_STATE), "setting": _setting(env_runner)}
        )


def put_back_sampling(env_runner: Any, state: bytes) -> None:
    """Continue from `capture_sampling()`; if that fails, with new episodes."""
    try:
        captured = cloudpickle.loads(state)
        if captured["setting"] != _setting(env_runner):
            raise ValueError(f"they were {captured['setting']}, and are {_setting(env_runner)}")
        if "env" in captured:
            for layer, attributes in zip(_layers(env_runner.env), captured["env"], strict=True):
                vars(layer).update(attributes)
        vars(env_runner).update(captured["runner"])
    except Exception as error:  # another config, or another version of the environment's package
        logger.warning("The environments of the checkpoint do not fit (%s), so new episodes begin.", error)
        env_runner.make_env()
        restart_sampling(env_runner)


def restart_sampling(env_runner: Any, salt: int | None = None) -> None:
    """Begin new episodes that differ from the EnvRunner's first ones.

    Args:
        env_runner: an EnvRunner with a random generator, `_rng`.
        salt: any number, to seed a new generator; None: the present generator continues.
    """
    seed = _rllib.seed(env_runner)
    if seed is not None:
        if salt is not None:
            env_runner._rng = np.random.default_rng((seed, salt))
        _rllib.set_seed(env_runner, int(env_runner._rng.integers(2**31)))
    _rllib.reset_next(env_runner)


def _setting(env_runner: Any) -> dict[str, Any]:
    """Return the values that must be equal for environments to continue."""
    env = env_runner.config.env
    return {
        # A class that is pickled by value has another module and qualified name where it arrives.
        "env": env.__name__ if isinstance(env, type) else str(env),
        "env_config": dict(env_runner.config.env_config),
        "num_envs": env_runner.num_envs,
        "layers": [type(layer).__qualname__ for layer in _layers(env_runner.env)],
    }


def _attributes(env_runner: Any, names: Iterable[str]) -> dict[str, Any]:
    return {name: vars(env_runner)[name] for name in names if name in vars(env_runner)}


def _env_state(env: Any) -> list[dict[str, Any]]:
    """Return the attributes of a vector env and of its wrappers: restoring sets them, and keeps the objects."""
    return [{k: v for k, v in vars(layer).items() if k not in ("env", "env_fns")} for layer in _layers(env)]


def _layers(env: Any) -> Iterator[Any]:
    while env is not None:
        yield env
        env = vars(env).get("env")
