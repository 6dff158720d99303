"""Playing: environments as RLlib makes them, one for each episode, and policies that play them side by side."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from ray.rllib.env.env_context import EnvContext
from ray.tune.registry import ENV_CREATOR, _global_registry

from rllib_kd import atari
from rllib_kd.env_failures import described, failure
from rllib_kd.observations import Shown, View

_ENVS_AT_ONCE = 50
_MAX_STATES = 10_000  # kept of what was seen; at least half as many, of longer play
_MAX_EPISODE_STEPS = 30_000  # Atari's own limit is 27,000

#: From what a vector env shows to actions `[N, ...]`. It may remember earlier steps.
Act = Callable[[Shown], np.ndarray]


class Player(Protocol):
    """Whatever can play."""

    def player(self) -> Act:
        """Plays one vector env."""


class RandomActions:
    """The random policy.

    Args:
        num_actions: it draws from all.
        seed: of its draws.
    """

    def __init__(self, num_actions: int, *, seed: int):
        self._num_actions = num_actions
        self._rng = np.random.default_rng(seed)

    def player(self) -> Act:
        """Plays one vector env."""
        return lambda shown: self._rng.integers(self._num_actions, size=len(shown.first))


class EpsilonGreedy:
    """Another player, with random actions in some of its steps: how scores of Atari games are usually taken.

    Args:
        player: whose actions it takes otherwise.
        num_actions: random ones are drawn from all.
        epsilon: share of random actions, in [0, 1].
        seed: of its draws.
    """

    def __init__(self, player: Player, num_actions: int, *, epsilon: float, seed: int):
        self._player = player
        self._num_actions = num_actions
        self._epsilon = epsilon
        self._rng = np.random.default_rng(seed)

    def player(self) -> Act:
        """Plays one vector env."""
        act = self._player.player()

        def play(shown: Shown) -> np.ndarray:
            actions = act(shown)
            is_random = self._rng.random(len(actions)) < self._epsilon
            return np.where(is_random, self._rng.integers(self._num_actions, size=len(actions)), actions)

        return play


class Reflex:
    """A policy that remembers nothing.

    Args:
        function: from observations `[N, ...]` to actions `[N, ...]`.
    """

    def __init__(self, function: Callable[[Any], np.ndarray]):
        self._function = function

    def player(self) -> Act:
        """Plays one vector env."""
        return lambda shown: self._function(shown.obs)


def play(
    make_env: Callable[[], gym.Env],
    policy: Player,
    seeds: Sequence[int],
    *,
    views: Sequence[Callable[[], View]] = (),
    num_envs: int = _ENVS_AT_ONCE,
    advance: Callable[[int], None] = lambda count: None,
) -> tuple[list[float], list[np.ndarray]]:
    """Play one episode for each seed, each in an environment of its own.

    Args:
        make_env: makes one environment.
        policy: that plays.
        seeds: of the resets.
        views: through each of which all states are seen as well, for what others would have done; called for each
            vector env.
        num_envs: episodes at once.
        advance: is told how many episodes have ended since it was last told.

    Raises:
        ValueError: an episode does not end.

    Returns:
        Undiscounted returns in the order of the seeds; and for each view what it saw, `[M, ...]`, in the same states:
        evenly from all episodes, and up to 10,000.
    """
    returns: list[float] = []
    seen = _Sample(len(views))
    for first in range(0, len(seeds), num_envs):
        chunk = list(seeds[first : first + num_envs])
        envs = gym.vector.SyncVectorEnv([lambda: _OneEpisode(make_env())] * len(chunk))
        try:
            returns += _play_chunk(envs, policy.player(), chunk, [view() for view in views], seen, advance)
        finally:
            envs.close()
    return returns, seen.states()


def _play_chunk(
    envs: gym.vector.VectorEnv,
    act: Act,
    seeds: list[int],
    views: list[View],
    seen: _Sample,
    advance: Callable[[int], None],
) -> list[float]:
    obs, _ = _called(envs.reset, seed=seeds)
    shown = Shown(obs, first=np.ones(len(seeds), dtype=bool))
    totals, running = np.zeros(len(seeds)), np.ones(len(seeds), dtype=bool)
    for _ in range(_MAX_EPISODE_STEPS):
        seen.add([np.asarray(view(shown))[running] for view in views])
        actions = act(shown)
        obs, rewards, terminateds, truncateds, _ = _called(envs.step, actions)
        shown = Shown(obs, ~running, actions, rewards)  # who has ended has nothing to remember
        totals += rewards * running
        ended = running & (terminateds | truncateds)
        running &= ~ended
        advance(int(ended.sum()))
        if not running.any():
            return totals.tolist()
    raise ValueError(
        f"An episode has not ended after {_MAX_EPISODE_STEPS} steps. Give the environment a limit: "
        "gymnasium.wrappers.TimeLimit, or max_episode_steps where it is registered."
    )


def _called(method: Any, *args: Any, **kwargs: Any) -> Any:
    """What a method of a vector env returns; what an environment raises there, in words."""
    try:
        return method(*args, **kwargs)
    except Exception as error:  # anything may stand there
        raise failure(_name_of(method.__self__), error, doing=method.__name__) from error


def _name_of(envs: gym.vector.SyncVectorEnv) -> str:
    env = envs.envs[0]
    return env.spec.id if env.spec is not None else type(env.unwrapped).__name__


class _OneEpisode(gym.Wrapper):
    """Stands still once its episode has ended, and costs nothing, while others of its vector env go on."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self._last: Any = None  # observation, of an episode that has ended

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        return self.env.reset(**kwargs) if self._last is None else (self._last, {})

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if self._last is not None:
            return self._last, 0.0, False, False, {}
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._last = obs if terminated or truncated else None
        return obs, reward, terminated, truncated, info


class _Sample:
    """States, evenly thinned whenever they become too many: frames of long episodes would fill the memory."""

    def __init__(self, num_views: int):
        self._kept: list[list[np.ndarray]] = [[] for _ in range(num_views)]
        self._stride = 1
        self._num_seen = 0

    def add(self, inputs: list[np.ndarray]) -> None:
        """The same states `[M, ...]` as each view saw them."""
        if not inputs:
            return
        indices = np.arange(self._num_seen, self._num_seen + len(inputs[0]))
        self._num_seen += len(inputs[0])
        chosen = np.flatnonzero(indices % self._stride == 0)
        for kept, rows in zip(self._kept, inputs, strict=True):
            kept += [rows[i].copy() for i in chosen]
        if len(self._kept[0]) > _MAX_STATES:
            self._kept = [kept[::2] for kept in self._kept]
            self._stride *= 2

    def states(self) -> list[np.ndarray]:
        """`[M, ...]` for each view."""
        return [np.stack(kept) for kept in self._kept]


def episode_seeds(num_episodes: int, seed: int) -> range:
    """One seed an episode.

    Raises:
        ValueError: there are to be none, or a seed is negative.
    """
    if num_episodes < 1:
        raise ValueError(f"`num_episodes` must be at least 1, got {num_episodes}.")
    if seed < 0:
        raise ValueError(f"`seed` must be at least 0, got {seed}.")
    return range(seed, seed + num_episodes)


# --- Environments -----------------------------------------------------------------------------------------------------


def env_maker(
    env: str | Callable[..., gym.Env],
    env_config: Mapping[str, Any] | None = None,
    *,
    render_mode: str | None = None,
) -> Callable[[], gym.Env]:
    """How RLlib makes single environments: registered names and callables get the config as one argument.

    What it returns raises a ValueError where the environment cannot be made.

    Args:
        env: what `config.environment()` takes: a gymnasium id, a name registered with Tune, the path of a class
            ("package.module.Class"), or a callable.
        env_config: passed to the env.
        render_mode: gymnasium's; an entry of the config, for environments that are no gymnasium ids.

    Raises:
        ValueError: gymnasium does not know the id, or there is no such class.
    """
    name = env if isinstance(env, str) else getattr(env, "__name__", str(env))
    config = dict(env_config or {}) | ({} if render_mode is None else {"render_mode": render_mode})
    if isinstance(env, str) and is_registered_with_tune(env):
        env = _global_registry.get(ENV_CREATOR, env)
    if isinstance(env, str):
        if not names_class(env):
            check_gymnasium_id(env)
            make = atari.make if atari.is_game(env) else gym.make
            return partial(_make, name, partial(make, env, **config))
        env = _class_at(env)
    return partial(_make, name, partial(env, EnvContext(config, worker_index=0)))


def _make(name: str, make: Callable[[], gym.Env]) -> gym.Env:
    try:
        return make()
    except Exception as error:  # anything may stand there
        raise ValueError(f"The environment '{name}' cannot be made: {described(error)}") from error


def names_class(env: str) -> bool:
    """Whether RLlib takes the name of an environment for the path of a class."""
    return "." in env and not is_registered(env)


def is_registered(env: str) -> bool:
    """Whether an environment has this name, in gymnasium or in Ray Tune."""
    return env in gym.registry or is_registered_with_tune(env)


def is_registered_with_tune(env: str) -> bool:
    """Whether it is a name in Ray Tune, which RLlib prefers to gymnasium's ids."""
    return _global_registry.contains(ENV_CREATOR, env)


def _class_at(path: str) -> Callable[..., gym.Env]:
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"There is no environment class '{path}': {error}.") from error


def check_gymnasium_id(env: str) -> None:
    """Whether gymnasium can make it: "Env-v0", or "module:Env-v0", of which it imports the module.

    Raises:
        ValueError: it cannot; the message has gymnasium's reason.
    """
    module, _, name = env.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        gym.spec(name)
    except (gym.error.Error, ModuleNotFoundError) as error:
        is_missing = env.startswith("ALE/") and isinstance(error, gym.error.NamespaceNotFound)
        hint = " pip install 'rllib-kd[atari]'" if is_missing else ""
        raise ValueError(
            f"The environment '{env}' is neither registered with Ray nor known to gymnasium: {error}{hint}"
        ) from error


def check_renders(make_env: Callable[[], gym.Env], mode: str) -> None:
    """Whether an environment shows something, before it plays.

    Args:
        make_env: makes an environment with this `render_mode`.
        mode: gymnasium's "human" or "rgb_array".

    Raises:
        ValueError: it does not; the message has the environment's reason.
    """
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")  # pygame complains at length where there is no sound card
    env = make_env()
    try:
        if env.render_mode != mode:
            raise ValueError(f"The environment cannot render as '{mode}': its render_mode is {env.render_mode!r}.")
        env.reset(seed=0)
        env.render()
    except ValueError:
        raise
    except Exception as error:  # a package or a display is missing
        raise ValueError(f"The environment cannot be shown: {described(error)}") from error
    finally:
        env.close()


def recording(make_env: Callable[[], gym.Env], folder: Path, *, name: str) -> Callable[[], gym.Env]:
    """The environment that writes its first episode to a video.

    Args:
        make_env: makes an environment that renders to arrays (`render_mode="rgb_array"`).
        folder: is made where it is missing.
        name: the file's begins with it.

    Raises:
        ValueError: the package that writes videos is missing.
    """
    try:
        import moviepy  # noqa: F401
    except ImportError as error:
        raise ValueError("Videos need the package 'moviepy'. pip install 'rllib-kd[video]'") from error

    def make() -> gym.Env:
        env = make_env()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there are videos in the folder: they have other names
            return gym.wrappers.RecordVideo(
                env, str(folder), episode_trigger=lambda i: i == 0, name_prefix=name, disable_logger=True
            )

    return make
