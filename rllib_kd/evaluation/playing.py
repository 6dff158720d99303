"""Policies play episodes side by side, one environment for each episode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import compress
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from rllib_kd.allocator import keep_freed_memory
from rllib_kd.environments.making import LIMITS, EnvMaker, checked_call, close, name_in, time_limit_of
from rllib_kd.environments.masked import with_masks_in_infos
from rllib_kd.environments.returned import unusable_mask
from rllib_kd.observations.masks import LegalActions, MaskError, random_actions
from rllib_kd.observations.pipeline import Shown, View
from rllib_kd.random_state import policy_generator, seeded

ENVS_AT_ONCE = 50
_GAMES_AT_ONCE = 16  # in a vector env of its own kind, which plays one episode after the other in each place
_MAX_STATES = 10_000  # kept of what was seen; about half as many or more, of longer play
_MAX_BYTES, _FEWEST_STATES = 2**29, 1_000  # of large images so many bytes, or states, are enough
_MAX_EPISODE_STEPS = 30_000  # where the environment has no longer limit of its own; Atari's is 27,000
#: A function from a vector env's observations to actions `[N, ...]`, or a dict or tuple of them. It may remember
#: earlier steps.
Act = Callable[[Shown], Any]


class Player(Protocol):
    """An object that can play episodes."""

    def player(self) -> Act:
        """Plays one vector env."""


class RandomActions:
    """The random policy.

    Args:
        num_actions: number of actions, drawn uniformly from the legal ones.
        seed: seed of the draws.
    """

    def __init__(self, num_actions: int, *, seed: int):
        self._num_actions = num_actions
        self._rng = policy_generator(seed)

    def player(self) -> Act:
        """Plays one vector env."""
        return lambda shown: random_actions(self._rng, self._num_actions, len(shown.first), shown.mask)


class EpsilonGreedy:
    """A player that takes random actions in some steps, as scores of Atari games are usually measured.

    Args:
        player: the player of the other steps.
        num_actions: number of actions, drawn uniformly from the legal ones.
        epsilon: share of random actions, in [0, 1].
        seed: seed of the draws.
    """

    def __init__(self, player: Player, num_actions: int, *, epsilon: float, seed: int):
        self._player = player
        self._num_actions = num_actions
        self._epsilon = epsilon
        self._rng = policy_generator(seed)

    def player(self) -> Act:
        """Plays one vector env."""
        act = self._player.player()

        def play(shown: Shown) -> np.ndarray:
            actions = act(shown)
            is_random = self._rng.random(len(actions)) < self._epsilon
            drawn = random_actions(self._rng, self._num_actions, len(actions), shown.mask)
            return np.where(is_random, drawn, actions)

        return play


def play(
    make_env: Callable[[], gym.Env],
    policy: Player,
    seeds: Sequence[int],
    *,
    views: Sequence[Callable[[], View]] = (),
    num_envs: int = ENVS_AT_ONCE,
    advance: Callable[[int], None] = lambda count: None,
    chooses: bool = False,
) -> tuple[list[float], list[np.ndarray]]:
    """Play one episode for each seed, each in a separate environment.

    The global random generators, from which an environment may draw instead, are seeded by the first seed. Otherwise a
    process that begins like another one (it resumes a run, or is a fork) would play that one's episodes again.

    Args:
        make_env: makes one environment.
        policy: the player.
        seeds: seeds of the resets; without any, nothing is played.
        views: functions that start a view, by which all states are recorded as inputs of other networks; called for
            each vector env.
        num_envs: number of episodes at the same time, ≥ 1.
        advance: called with the number of episodes that have ended since its last call.
        chooses: whether the episodes choose students, and are not reported: they are played in `choosing_envs()`.

    Returns:
        Undiscounted returns in the order of the seeds; and for each view its inputs `[M, ...]` in the same states,
        evenly from all episodes, M ≤ 10,000.

    Raises:
        ValueError: an episode does not end.
    """
    returns: list[float] = []
    seen = VisitedStates(len(views))
    own_vector = None if chooses or not seeds else _own_vector(make_env, min(_GAMES_AT_ONCE, num_envs, len(seeds)))
    make_envs = choosing_envs if chooses else one_episode_each
    at_once = num_envs if own_vector is None else len(seeds)
    with seeded(next(iter(seeds), 0)):
        for first in range(0, len(seeds), at_once):
            chunk = list(seeds[first : first + at_once])
            envs = make_envs(make_env, len(chunk)) if own_vector is None else own_vector
            try:
                returns += play_chunk(envs, policy.player(), chunk, [view() for view in views], seen, advance)[0]
            finally:
                close(envs)
    return returns, seen.states()


def mask_view(num_actions: int) -> View:
    """Return a view that records the legal actions `[N, A]`; all, if an environment has no masks."""
    return lambda shown: np.ones((len(shown.first), num_actions), dtype=bool) if shown.mask is None else shown.mask


class MaskRecorder:
    """A recorder of legal actions, and of whether an environment has masks at all.

    Args:
        num_actions: number of actions.
    """

    def __init__(self, num_actions: int):
        self._view, self._has_masks = mask_view(num_actions), False

    def start(self) -> View:
        """Return a view, as `mask_view()`."""

        def view(shown: Shown) -> np.ndarray:
            self._has_masks |= shown.mask is not None
            return self._view(shown)

        return view

    def masks_of(self, recorded: np.ndarray) -> np.ndarray | None:
        """Return the recorded masks `[N, A]` as truth values; None if the environment has no masks."""
        return np.asarray(recorded, bool) if self._has_masks else None


def one_episode_each(make_env: Callable[[], gym.Env], num_envs: int) -> gym.vector.VectorEnv:
    """Return a vector env for `play_chunk()`, in which each environment plays one episode."""
    own_vector = _own_vector(make_env, num_envs)
    if own_vector is not None:
        return own_vector
    return gym.vector.SyncVectorEnv([lambda: _OneEpisode(with_masks_in_infos(make_env()))] * num_envs)


def choosing_envs(make_env: Callable[[], gym.Env], num_envs: int) -> gym.vector.VectorEnv:
    """Return a vector env for `play_chunk()`, with a place for each episode, in which students are chosen.

    Where EnvRunners sample from an environment in C++, this is one, too. What is reported is never played here.
    """
    stand_in = make_env.stand_in(num_envs) if isinstance(make_env, EnvMaker) else None
    return one_episode_each(make_env, num_envs) if stand_in is None else stand_in


def _own_vector(make_env: Callable[[], gym.Env], num_envs: int) -> gym.vector.VectorEnv | None:
    """Return the environment's own vector env; None if it has none."""
    return make_env.vector(num_envs) if isinstance(make_env, EnvMaker) else None


def play_chunk(
    envs: gym.vector.VectorEnv,
    act: Act,
    seeds: list[int],
    views: Sequence[View] = (),
    seen: VisitedStates | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> tuple[list[float], int]:
    """Play one episode for each seed: side by side, and one after the other if there are fewer environments.

    Args:
        envs: environments that have not been reset yet, at most as many as seeds. If there are fewer, they take
            `reset_mask` as an option.
        act: chooses the actions.
        seeds: seeds of the resets.
        views: views by which all states are recorded.
        seen: stores the recorded inputs.
        advance: called with the number of episodes that have ended since its last call.

    Returns:
        The undiscounted returns, and the total number of env steps.

    Raises:
        ValueError: an episode does not end.
    """
    keep_freed_memory()
    num_envs = envs.num_envs
    legal_actions = LegalActions(envs.single_observation_space, envs.single_action_space)
    obs, infos = checked_call(envs.reset, seed=seeds[:num_envs])
    obs, mask = taken_apart(legal_actions, envs, obs, infos, np.zeros(num_envs, dtype=bool), doing="reset")
    shown = Shown(obs, first=np.ones(num_envs, dtype=bool), mask=mask)
    totals, lengths = np.zeros(len(seeds)), np.zeros(len(seeds), dtype=int)
    episodes, running = np.arange(num_envs), np.ones(num_envs, dtype=bool)  # which seed's each plays, and if still
    num_begun, limit = num_envs, max(_MAX_EPISODE_STEPS, time_limit_of(envs) or 0)
    while lengths[episodes[running]].max() < limit:
        if seen is not None:
            seen.add([np.asarray(view(shown))[running] for view in views])
        actions = act(shown)
        obs, rewards, terminateds, truncateds, infos = checked_call(envs.step, actions)
        totals[episodes] += rewards * running
        lengths[episodes] += running
        ended = running & (terminateds | truncateds)
        advance(int(ended.sum()))
        running &= ~ended
        begins = np.zeros(num_envs, dtype=bool)
        begins[np.flatnonzero(ended)[: len(seeds) - num_begun]] = True
        if begins.any():
            episodes[begins] = np.arange(num_begun, num_begun := num_begun + int(begins.sum()))
            next_seeds = [seeds[episode] for episode in episodes[begins]]
            obs, infos = checked_call(envs.reset, seed=next_seeds, options={"reset_mask": begins})
            running |= begins
        if not running.any():
            return totals.tolist(), int(lengths.sum())
        obs, mask = taken_apart(legal_actions, envs, obs, infos, ~running, doing="step")
        shown = Shown(obs, ~running | begins, actions, rewards, mask)  # who has ended has nothing to remember
    raise ValueError(
        f"An episode of the environment '{name_in(envs)}' has not ended after {limit} steps. Give it a limit: {LIMITS}."
    )


def taken_apart(
    legal_actions: LegalActions, envs: gym.vector.VectorEnv, obs: Any, infos: Any, ended: np.ndarray, *, doing: str
) -> tuple[Any, np.ndarray | None]:
    """Return a vector env's observations without masks, and its legal actions `[N, A]`; None if it has no masks.

    Args:
        legal_actions: what takes them apart.
        envs: the vector env.
        obs: its observations.
        infos: its infos.
        ended: `[N]`, whether an episode has ended.
        doing: the method that returned them.

    Raises:
        EnvFailedError: a mask cannot be used.
    """
    try:
        return legal_actions(obs, infos, ended)
    except MaskError as error:
        raise unusable_mask(name_in(envs), error, doing=doing) from error


class _OneEpisode(gym.Wrapper):
    """A wrapper that does nothing after its episode has ended, while others of its vector env continue."""

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


class VisitedStates:
    """A sample of states, thinned at random whenever there are too many: frames of long episodes would fill the memory.

    Each state draws a key, and stays while its key is below a share that is halved again and again. Every second state
    would not do: rows come in the order of the environments, and of some of these none would stay.
    """

    def __init__(self, num_views: int):
        self._kept: list[list[np.ndarray]] = [[] for _ in range(num_views)]
        self._keys: list[float] = []
        self._share = 1.0
        self._rng = policy_generator(0, 1)  # of its own: keys have nothing to do with what players draw

    def add(self, inputs: list[np.ndarray]) -> None:
        """Add the same states `[M, ...]` as recorded by each view."""
        if not inputs:
            return
        keys = self._rng.random(len(inputs[0]))
        chosen = np.flatnonzero(keys < self._share)
        self._keys += keys[chosen].tolist()
        for kept, rows in zip(self._kept, inputs, strict=True):
            kept += [rows[i].copy() for i in chosen]
        if len(self._keys) > _FEWEST_STATES and len(self._keys) > self._most():
            self._share /= 2
            stays = [key < self._share for key in self._keys]
            self._keys = list(compress(self._keys, stays))
            self._kept = [list(compress(kept, stays)) for kept in self._kept]

    def _most(self) -> int:
        row_bytes = sum(kept[0].nbytes for kept in self._kept)
        return max(_FEWEST_STATES, min(_MAX_STATES, _MAX_BYTES // max(1, row_bytes)))

    def states(self) -> list[np.ndarray]:
        """Return the states `[M, ...]` for each view."""
        return [np.stack(kept) for kept in self._kept]
