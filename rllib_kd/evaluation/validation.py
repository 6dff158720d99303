"""Validation: several students play the same episodes, all of them side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch

from rllib_kd.evaluation.playing import Act, one_episode_each, play_chunk
from rllib_kd.networks.family import FamilyQValues
from rllib_kd.observations.pipeline import ObservationPipeline, Shown

_ENVS_AT_ONCE = 64


#: Validation episodes have seeds of their own: what they chose is judged on others.
_FIRST_SEED = 1_500_000_000


class Validation(NamedTuple):
    """What students reached in validation episodes.

    Args:
        returns: undiscounted, by student, in the order of the episodes' seeds.
        env_steps: that they took, of all students together.
        seconds: that they took.
    """

    returns: dict[str, list[float]]
    env_steps: int
    seconds: float

    def best(self, names: Sequence[str]) -> str:
        """Return which of these students has the highest mean return; of several the first."""
        return max(names, key=lambda name: float(np.mean(self.returns[name])))


def validate(
    make_env: Callable[[], gym.Env], students: Mapping[str, Any], pipeline: ObservationPipeline, num_episodes: int
) -> Validation:
    """Let students play greedily, each the same episodes.

    Args:
        make_env: makes one environment.
        students: RLModules with Q-values, by name.
        pipeline: from what the environment shows to what the students take.
        num_episodes: of each student, ≥ 1.

    Raises:
        ValueError: an episode does not end.
    """
    began, names = time.perf_counter(), list(students)
    q_values = FamilyQValues(students)
    episodes = ((place, _FIRST_SEED + number) for place in range(len(names)) for number in range(num_episodes))
    returns: dict[str, list[float]] = {name: [] for name in names}
    env_steps = 0
    while chunk := list(islice(episodes, _ENVS_AT_ONCE)):
        envs = one_episode_each(make_env, len(chunk))
        acting = np.array([place for place, _ in chunk])
        try:
            played, steps = play_chunk(envs, _greedy(q_values, pipeline, acting), [seed for _, seed in chunk])
        finally:
            envs.close()
        env_steps += steps
        for (place, _), value in zip(chunk, played, strict=True):
            returns[names[place]].append(value)
    return Validation(returns, env_steps, time.perf_counter() - began)


def _greedy(q_values: FamilyQValues, pipeline: ObservationPipeline, acting: np.ndarray) -> Act:
    """The best action of whoever plays in each environment (`[N]`, places of students)."""
    view = pipeline.start()

    def act(shown: Shown) -> np.ndarray:
        obs = torch.from_numpy(np.asarray(view(shown), dtype=np.float32))
        return q_values(obs, acting).argmax(-1).numpy()

    return act
