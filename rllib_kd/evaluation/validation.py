"""Validation: several students play the same episodes side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch

from rllib_kd.environments.making import close
from rllib_kd.evaluation.playing import Act, choosing_envs, play_chunk
from rllib_kd.evaluation.seeds import VALIDATION_SEED
from rllib_kd.networks.family import FamilyQValues
from rllib_kd.networks.memories import PlayingSideBySide
from rllib_kd.observations.masks import legal_only
from rllib_kd.observations.pipeline import ObservationPipeline, Shown

_ENVS_AT_ONCE = 64


class Validation(NamedTuple):
    """The results of students in validation episodes.

    Args:
        returns: undiscounted returns by student, in the order of the episodes' seeds.
        env_steps: total env steps of all students.
        seconds: duration, s.
    """

    returns: dict[str, list[float]]
    env_steps: int
    seconds: float

    def __add__(self, more: Validation) -> Validation:  # type: ignore[override]  # more episodes, not a longer tuple
        """Return the results of both, of which the second may have fewer students."""
        returns = {name: own + more.returns.get(name, []) for name, own in self.returns.items()}
        return Validation(returns, self.env_steps + more.env_steps, self.seconds + more.seconds)

    def best(self, names: Sequence[str], count: int = 1) -> list[str]:
        """Return the students with the highest mean returns, the best first; of equal ones the first in `names`."""
        return sorted(names, key=lambda name: -float(np.mean(self.returns[name])))[:count]


def play_validation(
    make_env: Callable[[], gym.Env],
    students: Mapping[str, Any],
    pipeline: ObservationPipeline,
    num_episodes: int,
    *,
    first_episode: int = 0,
    advance: Callable[[int], None] = lambda count: None,
) -> Validation:
    """Play the same episodes with several students, greedily.

    Args:
        make_env: makes one environment.
        students: RLModules with Q-values, by name.
        pipeline: from the environment's observations to the students' inputs.
        num_episodes: episodes of each student, ≥ 1.
        first_episode: number of the first of them: each has another seed.
        advance: called after each step with the number of episodes that have ended since its last call.

    Raises:
        ValueError: an episode does not end.
    """
    began, names = time.perf_counter(), list(students)
    modules = list(students.values())
    family = None if any(module.is_stateful() for module in modules) else FamilyQValues(students)
    seeds = range(VALIDATION_SEED + first_episode, VALIDATION_SEED + first_episode + num_episodes)
    episodes = ((place, seed) for place in range(len(names)) for seed in seeds)
    returns: dict[str, list[float]] = {name: [] for name in names}
    env_steps = 0
    while chunk := list(islice(episodes, _ENVS_AT_ONCE)):
        envs = choosing_envs(make_env, len(chunk))
        acting = np.array([place for place, _ in chunk])
        try:
            q_values = PlayingSideBySide(modules, acting) if family is None else _without_memory(family, acting)
            played, steps = play_chunk(envs, _greedy(q_values, pipeline), [seed for _, seed in chunk], advance=advance)
        finally:
            close(envs)
        env_steps += steps
        for (place, _), value in zip(chunk, played, strict=True):
            returns[names[place]].append(value)
    return Validation(returns, env_steps, time.perf_counter() - began)


#: A function from inputs `[N, ...]`, and from whether episodes begin with them `[N]`, to Q-values `[N, A]`.
_QValues = Callable[[torch.Tensor, np.ndarray], torch.Tensor]


def _without_memory(family: FamilyQValues, acting: np.ndarray) -> _QValues:
    return lambda obs, first: family(obs, acting)


def _greedy(q_values: _QValues, pipeline: ObservationPipeline) -> Act:
    """Return a function that takes the best action of the student that plays in each environment."""
    view = pipeline.start()

    def act(shown: Shown) -> np.ndarray:
        obs = torch.from_numpy(np.asarray(view(shown), dtype=np.float32))
        return legal_only(q_values(obs, shown.first).numpy(), shown.mask).argmax(-1)

    return act
