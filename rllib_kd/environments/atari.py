"""Atari games by ALE's names, such as "ALE/Pong-v5", with the preprocessing of Mnih et al. 2015.

Single environments and ALE's vector env in C++ have the same observations: stacks of 4 grey frames of 84 × 84, bytes,
channels first, each the maximum of the last two of 4 frames, after up to 30 no-op steps at a reset. Everything else is
as gymnasium registers the game (for "-v5": an action is repeated with a probability of 0.25), with all lives in one
episode, and unclipped rewards. The config of the environment, keyword arguments of
`ale_py.vector_env.AtariVectorEnv`, can change all of this.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np

with contextlib.suppress(ImportError):  # the extra [atari]
    import ale_py

    gym.register_envs(ale_py)  # in every process that reads a config: EnvRunners make the games by their names
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner in the output of commands


#: Settings with which ALE's vector env equals single environments; and as many threads as an EnvRunner has CPUs.
VECTOR_DEFAULTS = {"reward_clipping": False, "use_fire_reset": False, "num_threads": 1}
_VECTOR_ENTRY_POINT = "ale_py.vector_env:AtariVectorEnv"
_NUM_SEEDS = 2**31  # seeds that ALE's vector env distinguishes
#: Settings of the vector env without a meaning in a single environment.
_VECTOR_ONLY = ("batch_size", "num_threads", "thread_affinity_offset", "life_loss_info", "autoreset_mode")


def is_game(env: Any) -> bool:
    """Return whether this names one of ALE's games."""
    return isinstance(env, str) and env in gym.registry and gym.registry[env].vector_entry_point == _VECTOR_ENTRY_POINT


def single_config(config: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return a config without the entries that only the vector env reads, and without its defaults."""
    return {
        name: value
        for name, value in config.items()
        if name not in _VECTOR_ONLY and not (name in VECTOR_DEFAULTS and value is VECTOR_DEFAULTS[name])
    }


def make(game: str, *, render_mode: str | None = None, **config: Any) -> gym.Env:
    """Return a single environment with the observations of ALE's vector env.

    Args:
        game: ALE's name, like "ALE/Pong-v5".
        render_mode: gymnasium's render mode.
        config: config of the environment, as for the vector env.

    Raises:
        ValueError: an entry of the config is unknown, or only possible in the vector env.
    """
    config = single_config(config)
    frame_size = (config.pop("img_width", 84), config.pop("img_height", 84))
    preprocessing = {
        "noop_max": config.pop("noop_max", 30),
        "frame_skip": config.pop("frameskip", 4),
        "terminal_on_life_loss": config.pop("episodic_life", False),
        "screen_size": frame_size,
    }
    num_frames, clips = config.pop("stack_num", 4), config.pop("reward_clipping", False)
    for name, needed in (("grayscale", True), ("maxpool", True), ("use_fire_reset", False), ("continuous", False)):
        if config.pop(name, needed) != needed:
            raise ValueError(f"A single environment of '{game}' needs {name}={needed}. Leave it out of the env_config.")
    try:
        env = gym.make(game, frameskip=1, render_mode=render_mode, **config)
    except TypeError as error:
        raise ValueError(f"The environment '{game}' does not accept this env_config: {error}") from error
    env = gym.wrappers.AtariPreprocessing(env, **preprocessing)
    if clips:
        env = gym.wrappers.TransformReward(env, lambda reward: float(np.clip(reward, -1.0, 1.0)))
    return gym.wrappers.FrameStackObservation(env, num_frames, padding_type="zero")


def make_vector(game: str, num_envs: int, **config: Any) -> gym.vector.VectorEnv:
    """Return ALE's own vector env, which shows what `make()` shows.

    Args:
        game: as in `make()`.
        num_envs: environments in it.
        config: as in `make()`.
    """
    num_threads = min(num_envs, os.cpu_count() or 1)
    config = VECTOR_DEFAULTS | single_config(config) | {"num_threads": num_threads}
    return _OneSeedEach(gym.make_vec(game, num_envs, vectorization_mode="vector_entry_point", **config))


def time_limit(spec: Any, layers: Iterable[Any]) -> int | None:
    """Return after how many steps a game ends an episode; None if it does not, or if it is no game.

    ALE counts frames, of which a step takes as many as the environment and its preprocessing repeat an action for.

    Args:
        spec: gymnasium's spec of the environment or vector env, with its arguments.
        layers: the environment and what it wraps.
    """
    frames = spec.kwargs.get("max_num_frames_per_episode")
    if not frames:
        return None
    skipped = spec.kwargs.get("frameskip", 1)
    per_step = skipped[0] if isinstance(skipped, tuple | list) else skipped  # of the least and the most
    for layer in layers:
        if isinstance(layer, gym.wrappers.AtariPreprocessing):
            per_step *= layer.frame_skip
    return math.ceil(frames / per_step)


class _OneSeedEach(gym.vector.VectorWrapper):
    """Takes a list of seeds, of any size, as gymnasium's own vector envs do."""

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset all environments, or those of the `reset_mask` among the options."""
        seeds = None if seed is None else np.array([each % _NUM_SEEDS for each in seed])
        return self.env.reset(seed=seeds, options=options)
