"""Whole episodes of several environments, as many in each: their returns."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from rllib_kd.env_runner.fragment import Fragment
from rllib_kd.environments.making import LIMITS

logger = logging.getLogger(__name__)

_LEAST_LIMIT = 10_000  # steps, after which an episode is cut where the environment has no longer limit of its own


class WholeEpisodes:
    """Counts episodes that are played to their end.

    Args:
        num_episodes: ≥ 1; each environment plays as many, so that short ones count no more than long ones.
        num_envs: environments, which begin new episodes.
        time_limit: the environments' own limit of an episode, in steps; None: none is known.
    """

    def __init__(self, num_episodes: int, *, num_envs: int, time_limit: int | None):
        self.returns: list[float] = []  # undiscounted, of those that have ended
        self._limit = max(_LEAST_LIMIT, time_limit or 0)
        self._due = _shares(num_episodes, num_envs)
        self._running, self._lengths = np.zeros(num_envs), np.zeros(num_envs, dtype=np.int64)
        self._num_cut = 0

    @property
    def are_complete(self) -> bool:
        """Return whether no environment has to play on."""
        return not self._due.any()

    def add(self, fragment: Fragment) -> None:
        """Count the rewards and ends of the next steps."""
        if fragment.restarted:
            self._running[:], self._lengths[:] = 0.0, 0
        for counts, rewards, ended in zip(*fragment.transitions(), strict=True):
            self._running += rewards * counts
            self._lengths += counts
            is_cut = ~ended & (self._lengths >= self._limit)
            counted = (ended | is_cut) & (self._due > 0)
            self.returns += self._running[counted].tolist()
            self._num_cut += int((is_cut & counted).sum())
            self._due -= counted
            self._due[is_cut] = 0  # a single environment cannot be reset: its next episode would be the rest of this
            self._running[ended | is_cut], self._lengths[ended | is_cut] = 0.0, 0

    def warn_of_cut(self, who: str) -> None:
        """Warn of episodes that did not end.

        Args:
            who: who has played them.
        """
        _warn_of_cut(self._num_cut, who, self._limit, LIMITS)


class EvenShares(int):
    """RLlib's `num_episodes` for several agents, which its loop reaches once each environment has played its share.

    RLlib ends when so many episodes have ended in any environments, so that short ones count more than long ones. What
    an environment plays beyond its share is kept by RLlib until all are done, and then dropped.
    """

    def __new__(cls, num_episodes: int, num_envs: int) -> EvenShares:
        """Make the number.

        Args:
            num_episodes: ≥ 1, of all environments together.
            num_envs: environments.
        """
        shares = super().__new__(cls, 2**62)  # which no count equals
        shares._due, shares._ids = _shares(num_episodes, num_envs), set()
        return shares

    _due: np.ndarray
    _ids: set[str]

    def end(self, env_index: int, episode_id: str) -> None:
        """Count an episode that an environment has ended, if it is in its share."""
        if self._due[env_index] > 0:
            self._due[env_index] -= 1
            self._ids.add(episode_id)

    def count(self, episode_id: str) -> bool:
        """Return whether an episode is in a share."""
        return episode_id in self._ids

    def __gt__(self, num_ended: int) -> bool:
        return bool(self._due.any())

    def __le__(self, num_ended: int) -> bool:
        return not self > num_ended


class StepLimit:
    """Cuts the episodes of multi-agent environments, which RLlib plays to their end. They are reset afterwards."""

    def __init__(self, time_limit: int | None):
        self._limit = max(_LEAST_LIMIT, time_limit or 0)
        self._num_cut = 0
        self._limited: list[tuple[Any, dict[str, Any]]] = []  # and their own `step`, if they have set one

    def put_on(self, envs: Sequence[Any]) -> None:
        """Limit environments that begin new episodes."""
        for env in envs:
            self._limited.append((env, {name: value for name, value in vars(env).items() if name == "step"}))
            env.step = partial(self._step, env.step, {"length": 0})

    def take_off(self) -> None:
        """Let all environments play without this limit again."""
        for env, own in self._limited:
            del env.step
            vars(env).update(own)

    def _step(self, step: Callable[[Any], Any], running: dict[str, int], actions: Any) -> Any:
        obs, rewards, terminateds, truncateds, infos = step(actions)
        running["length"] += 1
        has_ended = terminateds.get("__all__") or truncateds.get("__all__")
        if not has_ended and running["length"] >= self._limit:
            self._num_cut += 1
            has_ended, truncateds = True, {**truncateds, "__all__": True}
        if has_ended:
            running["length"] = 0
        return obs, rewards, terminateds, truncateds, infos

    def warn_of_cut(self, who: str) -> None:
        """Warn of episodes that did not end, as `WholeEpisodes` does."""
        _warn_of_cut(self._num_cut, who, self._limit, "truncateds['__all__'] = True after so many steps")


def _shares(num_episodes: int, num_envs: int) -> np.ndarray:
    """Return how many episodes each environment plays, `[num_envs]`."""
    shares = np.full(num_envs, num_episodes // num_envs)
    shares[: num_episodes % num_envs] += 1
    return shares


def _warn_of_cut(num_cut: int, who: str, limit: int, remedy: str) -> None:
    if num_cut:
        logger.warning(
            "%d episodes of %s had not ended after %d steps and count as they were then, so that its mean return, "
            "and the return ratio, may be wrong. Give the environment a limit: %s.",
            num_cut,
            who,
            limit,
            remedy,
        )
