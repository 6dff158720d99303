"""Capture and restore the sampling state of an EnvRunner and its environments."""

from __future__ import annotations

import io
import logging
import pickle
from collections.abc import Iterable
from typing import Any

from gymnasium.envs.registration import EnvSpec
from ray import cloudpickle

from rllib_kd import _rllib
from rllib_kd.environments.failures import layers
from rllib_kd.random_state import policy_generator
from rllib_kd.text import plain, stable_text

logger = logging.getLogger(__name__)


def capture_sampling(env_runner: Any) -> bytes:
    """Return the state of an EnvRunner and its environments.

    Environments that cannot be captured (in other processes, in C++ without a way to save them, or pickled without
    their state) begin new episodes, both here and after a restore, so that both continue equally.
    """
    try:
        return _with_state(
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
        captured = _Unpickler(state, _spec(env_runner.env)).load()
        before, now = plain(captured["setting"]), _setting(env_runner)
        if stable_text(before) != stable_text(now):
            raise ValueError(f"they were {before}, and are {now}")
        if "env" in captured:
            _with_state(captured["env"])  # earlier versions saved what has none
            for layer, attributes in zip(layers(env_runner.env), captured["env"], strict=True):
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
            env_runner._rng = policy_generator(seed, salt)
        _rllib.set_seed(env_runner, int(env_runner._rng.integers(2**31)))
    _rllib.reset_next(env_runner)


def _with_state(value: Any) -> bytes:
    """Pickle a value; raise a PicklingError if an environment in it would come back without its state."""
    file = io.BytesIO()
    _Pickler(file).dump(value)
    return file.getvalue()


class _Pickler(cloudpickle.Pickler):
    """Leaves out how RLlib makes an environment of the user's, and refuses what would come back without its state.

    RLlib's function is in the environment's spec, and refers to the whole EnvRunner. Environments of Box2D, MuJoCo and
    ALE are pickled as the arguments of their constructors alone, by the EzPickle of gymnasium, gym or PettingZoo: after
    a restore, they would be in no episode.
    """

    def persistent_id(self, obj: Any) -> str | None:
        return "spec" if isinstance(obj, EnvSpec) and callable(obj.entry_point) else None

    def reducer_override(self, obj: Any) -> Any:
        get_state = getattr(type(obj), "__getstate__", None)
        if getattr(get_state, "__qualname__", None) == "EzPickle.__getstate__":
            raise pickle.PicklingError(f"{type(obj).__name__} is pickled without its state, by EzPickle")
        return super().reducer_override(obj)


class _Unpickler(pickle.Unpickler):
    """Reads what `_Pickler` wrote; environments get the spec of those that are there."""

    def __init__(self, state: bytes, spec: EnvSpec | None):
        super().__init__(io.BytesIO(state))
        self._spec = spec

    def persistent_load(self, pid: Any) -> EnvSpec | None:
        return self._spec


def _spec(env: Any) -> EnvSpec | None:
    """Return the spec of single environments of a vector env; None for none, or a multi-agent environment."""
    if env is None:
        return None
    single = getattr(env.unwrapped, "envs", [env])[0]
    return getattr(single.unwrapped, "spec", None)


def _setting(env_runner: Any) -> dict[str, Any]:
    """Return the values that must be equal for environments to continue, in JSON's terms."""
    env = env_runner.config.env
    return {
        # A class that is pickled by value has another module and qualified name where it arrives.
        "env": env.__name__ if isinstance(env, type) else str(env),
        "env_config": plain(env_runner.config.env_config),  # arrays and objects without __eq__ cannot be compared
        "num_envs": env_runner.num_envs,
        "layers": [type(layer).__qualname__ for layer in layers(env_runner.env)],
    }


def _attributes(env_runner: Any, names: Iterable[str]) -> dict[str, Any]:
    return {name: vars(env_runner)[name] for name in names if name in vars(env_runner)}


def _env_state(env: Any) -> list[dict[str, Any]]:
    """Return the attributes of a vector env and of its wrappers: restoring sets them, and keeps the objects."""
    return [{k: v for k, v in vars(layer).items() if k not in ("env", "env_fns", "spec")} for layer in layers(env)]
