"""Environments in C++ for sampling: "envpool/LunarLander-v3" is gymnasium's LunarLander-v3, sampled by envpool.

EnvRunners sample from envpool (Weng et al. 2022, arXiv 2206.10558), and validation episodes, which choose students, are
played there. All else, evaluation and `compare` too, plays gymnasium's own environment of the same name, so that
figures are of that one.

A pool has random numbers of its own: a seed gives other episodes than gymnasium's. It is seeded when it is made, and
cannot be pickled.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import gymnasium as gym
import numpy as np

from rllib_kd.numeric import is_integer

_PREFIX = "envpool/"

_HIGHWAYS = ("exit", "highway", "intersection", "lane", "merge", "parking", "racetrack", "roundabout", "two", "u")
#: Packages that register an environment with gymnasium, by the beginning of its name.
_PACKAGES = dict.fromkeys(_HIGHWAYS, "highway_env") | dict.fromkeys(("BabyAI", "MiniGrid"), "minigrid")

_NUM_SEEDS = 2**31  # seeds that a pool distinguishes


def is_pool(env: Any) -> bool:
    """Return whether this names an environment that is sampled by envpool."""
    return isinstance(env, str) and env.startswith(_PREFIX)


def own_name(env: str) -> str:
    """Return gymnasium's name of the environment that a pool stands for."""
    return env.removeprefix(_PREFIX)


def played(env: Any, env_config: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    """Return gymnasium's own environment, with its config, for one that is sampled by envpool; others as they are."""
    return (own_name(env), {}) if is_pool(env) else (env, env_config)


def check(env: str, env_config: Mapping[str, Any]) -> None:
    """Check that envpool can sample an environment, before anything starts.

    Raises:
        ValueError: it cannot; the message has the reason.
    """
    register(env)
    _check_config(own_name(env), env_config)
    pool = Pool(1, name=own_name(env), **env_config)
    pool.reset()
    pool.close()
    own = gym.make(own_name(env))
    _, info = own.reset()
    own.close()
    if "action_mask" in info:
        raise ValueError(
            f"envpool does not show which actions are legal, as gymnasium's '{own_name(env)}' does. Use that name."
        )


def register(env: Any) -> None:
    """Register the name with gymnasium in this process, if it is a pool's.

    Raises:
        ValueError: gymnasium has no environment to evaluate in.
    """
    if not is_pool(env) or env in gym.registry:
        return
    name = own_name(env)
    package = _PACKAGES.get(re.split(r"[-_]", name)[0])
    if package is not None and name not in gym.registry:
        with suppress(ImportError):
            importlib.import_module(package)
    if name not in gym.registry:
        install = "" if package is None else f" Install it: pip install {package.replace('_', '-')}."
        raise ValueError(
            f"'{env}' is sampled by envpool and evaluated in gymnasium's '{name}', but gymnasium has no '{name}'."
            f"{install}"
        )
    spec = gym.spec(name)
    if not isinstance(spec.entry_point, str) or spec.entry_point.startswith("ale_py"):
        raise ValueError(f"'{env}': ALE's games have a vector env in C++ of their own. Use the name 'ALE/...' instead.")
    gym.register(
        env,
        entry_point=f"{__name__}:single",
        vector_entry_point=f"{__name__}:Pool",
        kwargs={"name": name},
        disable_env_checker=True,
    )


def single(*, name: str, num_threads: int = 1, **config: Any) -> gym.Env:
    """Return gymnasium's own environment.

    Args:
        name: gymnasium's name.
        num_threads: not used; it is a setting of `Pool`.
        config: its keyword arguments.
    """
    return gym.make(name, **config)


class Pool(gym.vector.VectorEnv):
    """A vector env of envpool, with gymnasium's spaces.

    Args:
        num_envs: environments in it.
        name: gymnasium's name, which is envpool's, too.
        num_threads: threads that step the environments, ≥ 1.
        config: must be empty: envpool's settings are not gymnasium's.

    Raises:
        ValueError: there is another setting.
    """

    metadata: dict[str, Any] = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}  # noqa: RUF012 (gymnasium's)

    def __init__(self, num_envs: int, *, name: str, num_threads: int = 1, **config: Any):
        self._pool: Any = None
        _check_config(name, {**config, "num_threads": num_threads})
        env = gym.make(name)
        self.spec = env.spec
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = env.observation_space, env.action_space
        self.observation_space = gym.vector.utils.batch_space(env.observation_space, num_envs)
        self.action_space = gym.vector.utils.batch_space(env.action_space, num_envs)
        env.close()
        self._name, self._num_threads = name, num_threads

    def _made(self, seeds: list[int]) -> Any:
        try:
            import envpool
        except ImportError as error:
            raise ValueError(
                f"'{_PREFIX}{self._name}' needs envpool, which is not installed: pip install 'rllib-kd[envpool]'."
            ) from error
        if self._name not in envpool.list_all_envs():
            raise ValueError(f"envpool {envpool.__version__} has no environment '{self._name}'. Use '{self._name}'.")
        pool = envpool.make(
            self._name, env_type="gymnasium", num_envs=self.num_envs, num_threads=self._num_threads, seed=seeds
        )
        _check_shows_the_same(self._name, pool, self.single_observation_space, self.single_action_space)
        return pool

    def reset(self, *, seed: Any = None, options: Mapping[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin new episodes. With a seed, or a list of one for each environment, a new pool is made.

        Raises:
            ValueError: envpool is not installed, lacks the environment, or has other spaces for it.
        """
        if seed is not None or self._pool is None:
            seed = np.random.default_rng().integers(_NUM_SEEDS, size=self.num_envs) if seed is None else seed
            seeds = range(seed, seed + self.num_envs) if isinstance(seed, int | np.integer) else seed
            self.close_extras()
            self._pool = self._made([int(each) % _NUM_SEEDS for each in seeds])
        obs, _ = self._pool.reset()
        return self._shown(obs), {}

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take a step in all environments; those whose episode has ended begin a new one."""
        obs, rewards, terminateds, truncateds, _ = self._pool.step(np.asarray(actions, np.int32))
        return self._shown(obs), rewards.astype(np.float64), terminateds, truncateds, {}

    def close_extras(self, **kwargs: Any) -> None:
        """End the pool's threads."""
        if self._pool is not None:
            self._pool.close()

    def _shown(self, obs: Any) -> Any:
        """Return observations as gymnasium shows them: texts are bytes in a pool."""
        space = self.single_observation_space
        if not isinstance(space, gym.spaces.Dict):
            return obs
        return {key: _texts(obs[key]) if part.shape is None else obs[key] for key, part in space.spaces.items()}

    def __reduce__(self) -> Any:
        raise TypeError(f"a pool of envpool, '{_PREFIX}{self._name}', cannot be saved")


def _check_config(name: str, config: Mapping[str, Any]) -> None:
    if unknown := sorted(map(str, config.keys() - {"num_threads"})):
        raise ValueError(
            f"'{_PREFIX}{name}' takes no env_config but num_threads, got {', '.join(unknown)}: envpool's settings are "
            f"not gymnasium's. Leave them out, or use '{name}'."
        )
    threads = config.get("num_threads", 1)
    if not is_integer(threads, 1):  # envpool ends the process
        raise ValueError(f"The env_config of '{_PREFIX}{name}' has num_threads={threads!r}: expected an integer ≥ 1.")


def _texts(rows: np.ndarray) -> tuple[str, ...]:
    return tuple(row.tobytes().rstrip(b"\0").decode(errors="replace") for row in rows)


def _check_shows_the_same(name: str, pool: Any, observations: gym.Space, actions: gym.Space) -> None:
    """Check that a pool has gymnasium's spaces. Bounds of numbers do not matter; texts are bytes in a pool."""
    shown = pool.observation_space
    pairs = [(observations, shown), (actions, pool.action_space)]
    if isinstance(observations, gym.spaces.Dict) and isinstance(shown, gym.spaces.Dict):
        keys = observations.keys() | shown.keys()
        pairs = [*((observations.get(key), shown.get(key)) for key in keys), pairs[1]]
    for own, other in pairs:
        is_text = not isinstance(own, gym.spaces.Tuple) and getattr(own, "shape", ()) is None
        if not (is_text and isinstance(other, gym.spaces.Box)) and _sizes(own) != _sizes(other):
            raise ValueError(
                f"envpool's '{name}' shows {shown} and takes {pool.action_space}; gymnasium's shows {observations} and "
                f"takes {actions}. They are different environments: use '{name}'."
            )


def _sizes(space: gym.Space | None) -> tuple[Any, ...]:
    return (getattr(space, "shape", None), getattr(space, "n", None))
