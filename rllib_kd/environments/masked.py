"""Masks of legal actions that an environment gives by a method, as Stable-Baselines3 wants it: put into its infos."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

METHOD = "action_masks"
_KEY = "action_mask"  # where observations/masks.py finds it


class MasksInInfos(gym.Wrapper):
    """A wrapper that puts the results of the method `action_masks()` into infos, as "action_mask"."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Reset the environment."""
        obs, info = self.env.reset(**kwargs)
        return obs, {**info, _KEY: self._mask()}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment. Where an episode has terminated, there is no action to ask for."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        if not terminated:
            info = {**info, _KEY: self._mask()}
        return obs, reward, terminated, truncated, info

    def _mask(self) -> Any:
        return self.env.get_wrapper_attr(METHOD)()


def has_mask_method(env: Any) -> bool:
    """Return whether an environment gives its masks by a method."""
    if not isinstance(env, gym.Env) or isinstance(env, MasksInInfos):
        return False
    return env.has_wrapper_attr(METHOD) and callable(env.get_wrapper_attr(METHOD))


def with_masks_in_infos(env: Any) -> Any:
    """Return an environment that has its masks in infos, if it gives them by a method; otherwise the environment."""
    return MasksInInfos(env) if has_mask_method(env) else env
