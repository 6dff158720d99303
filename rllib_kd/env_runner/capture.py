"""Where an EnvRunner and its environments stand, captured and put back."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from ray import cloudpickle

logger = logging.getLogger(__name__)


#: Attributes of RLlib's EnvRunners that sampling goes on from, as far as an EnvRunner has them. Our classes have lists
#: of their own: `SAMPLING_STATE`, and `LASTING_STATE` for environments that begin anew.
RLLIB_SAMPLING_STATE = (
    "_seed",
    "_needs_initial_reset",
    "_ongoing_episodes",
    "_cached_to_module",
    "_shared_data",
    "_done_episodes_for_metrics",
    "_ongoing_episodes_for_metrics",
)


def capture_sampling(env_runner: Any) -> bytes:
    """Where an EnvRunner and its environments stand.

    Environments that cannot be captured (in other processes, or written in C++ without a way to save them) begin new
    episodes, here and where the state is put back, so that both go on alike.
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
        logger.info("The environments cannot be captured (%s): they begin new episodes at every checkpoint.", error)
        restart_sampling(env_runner)
        return cloudpickle.dumps(
            {"runner": _attributes(env_runner, env_runner.LASTING_STATE), "setting": _setting(env_runner)}
        )


def put_back_sampling(env_runner: Any, state: bytes) -> None:
    """Go on from `capture_sampling()`; where that fails, with new episodes."""
    try:
        captured = cloudpickle.loads(state)
        if captured["setting"] != _setting(env_runner):
            raise ValueError(f"they were {captured['setting']}, and are {_setting(env_runner)}")
        if "env" in captured:
            for layer, attributes in zip(_layers(env_runner.env), captured["env"], strict=True):
                vars(layer).update(attributes)
        vars(env_runner).update(captured["runner"])
    except Exception as error:  # another config, or another version of the environment's package
        logger.warning("The environments of the checkpoint do not fit (%s): they begin new episodes.", error)
        env_runner.make_env()
        restart_sampling(env_runner)


def restart_sampling(env_runner: Any, salt: int | None = None) -> None:
    """Begin new episodes, and not those that the EnvRunner began with.

    Args:
        env_runner: which has a random generator, `_rng`.
        salt: any number, for another order of random numbers; None goes on with the present one.
    """
    if env_runner._seed is not None:
        if salt is not None:
            env_runner._rng = np.random.default_rng((env_runner._seed, salt))
        env_runner._seed = int(env_runner._rng.integers(2**31))
    env_runner._needs_initial_reset = True


def _setting(env_runner: Any) -> dict[str, Any]:
    """What must be equal, so that environments can go on."""
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
    """The attributes of a vector env and of its wrappers: it is filled, and not replaced, when they are put back."""
    return [{k: v for k, v in vars(layer).items() if k not in ("env", "env_fns")} for layer in _layers(env)]


def _layers(env: Any) -> Iterator[Any]:
    while env is not None:
        yield env
        env = vars(env).get("env")
