"""Check that the episodes of a certificate are fresh: new environments must play other episodes on other seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils.env_checker import data_equivalence

from rllib_kd.environments.making import checked_call, close
from rllib_kd.environments.masked import with_masks_in_infos
from rllib_kd.evaluation.playing import RandomActions, taken_apart
from rllib_kd.observations.masks import LegalActions
from rllib_kd.observations.pipeline import Shown
from rllib_kd.terminal import say

_STEPS = 30  # of two episodes that are compared
_NUM_SEEDS = 8  # whose episodes may begin alike by chance


def check_fresh(make_env: Callable[[], gym.Env], name: str) -> None:
    """Check that new environments play different episodes; print a note if seeds determine nothing, or change nothing.

    An environment whose random numbers are seeded when it is made would repeat one episode in each new environment, and
    a certificate would count that episode many times.

    Args:
        make_env: makes one environment, with discrete actions.
        name: name of the environment, for the message.

    Raises:
        EnvFailedError: `reset()` takes no seed, or the environment fails.
        ValueError: new environments play the same episode, though later ones differ.
    """
    first, again = _beginnings(make_env, 0, 0)
    if data_equivalence(first, again):
        if all(data_equivalence(first, other) for other in _beginnings(make_env, *range(1, _NUM_SEEDS))):
            say(
                f"note: in '{name}' episodes begin alike whatever the seed, as far as {_STEPS} steps of {_NUM_SEEDS} "
                "seeds show. If they are one and the same, a certificate is about this one, however often it is "
                "played. If they should differ, draw all random numbers from self.np_random, which "
                "super().reset(seed=seed) seeds."
            )
        return
    (other,) = _beginnings(make_env, 1)
    if data_equivalence(first, other):
        raise ValueError(
            f"In '{name}' each new environment begins with the same episode, whatever the seed of reset(), and only "
            "later episodes differ. A certificate would count one episode many times. Draw all random numbers from "
            "self.np_random, which super().reset(seed=seed) seeds, and set all state in reset()."
        )
    say(
        f"note: in '{name}' equal seeds give different episodes, so that student and teacher do not play the same "
        "ones. A certificate holds, but needs more episodes, and equal runs differ. Pass the seed of reset() on to "
        "whatever is random."
    )


def _beginnings(make_env: Callable[[], gym.Env], *seeds: int) -> Iterator[list[Any]]:
    """Yield what one new environment shows at the beginning of episodes, one after the other."""
    envs = gym.vector.SyncVectorEnv([lambda: with_masks_in_infos(make_env())])
    try:
        for seed in seeds:
            yield _beginning(envs, seed)
    finally:
        close(envs)


def _beginning(envs: gym.vector.VectorEnv, seed: int) -> list[Any]:
    """Return the observations and rewards of an episode's first steps, with the same random actions for all seeds."""
    legal_actions = LegalActions(envs.single_observation_space, envs.single_action_space)
    act = RandomActions(int(envs.single_action_space.n), seed=0).player()
    obs, infos = checked_call(envs.reset, seed=[seed])
    seen, ended = [obs], np.zeros(1, dtype=bool)
    for doing in ("reset", *["step"] * (_STEPS - 1)):
        obs, mask = taken_apart(legal_actions, envs, obs, infos, ended, doing=doing)
        shown = Shown(obs, first=np.array([doing == "reset"]), mask=mask)
        obs, reward, terminated, truncated, infos = checked_call(envs.step, act(shown))
        seen += [obs, reward]
        if (ended := terminated | truncated).any():
            break
    return seen
