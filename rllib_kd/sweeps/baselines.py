"""How teacher and random policy play before a sweep: they are played once, and kept in the sweep's folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import gymnasium as gym
import numpy as np
import torch

from rllib_kd.checkpoints.run_json import read_json, write_json
from rllib_kd.evaluation.playing import RandomActions, mask_view, play
from rllib_kd.evaluation.policies import GreedyQ
from rllib_kd.evaluation.seeds import SWEEP_SEED
from rllib_kd.learner.label_statistics import QStatistics
from rllib_kd.sweeps.trial import NUM_EPISODES
from rllib_kd.teachers.base import Teacher

_BASELINES = "baselines.json"  # in the sweep's folder


@dataclass(frozen=True)
class Baselines:
    """Episodes of the teacher and of a random policy.

    Args:
        teacher: returns of the greedy teacher.
        random: returns of a random policy.
        median_gap: the teacher's median action gap on the way.
    """

    teacher: list[float]
    random: list[float]
    median_gap: float


def baselines_of(teacher: Teacher, make_env: Callable[[], gym.Env], seed: int) -> Baselines:
    """Let the teacher and a random policy play the same episodes.

    Args:
        teacher: the teacher.
        make_env: makes one environment.
        seed: seed of the random actions.
    """
    seeds, num_actions = range(SWEEP_SEED, SWEEP_SEED + NUM_EPISODES), int(teacher.action_space.n)
    views = [teacher.start, lambda: mask_view(num_actions)]
    returns, (states, masks) = play(make_env, GreedyQ(teacher), seeds, views=views)
    random_returns, _ = play(make_env, RandomActions(num_actions, seed=seed), seeds)
    return Baselines(returns, random_returns, _median_gap(teacher, states, masks))


def keep_baselines(uri: str, baselines: Baselines) -> None:
    """Write the episodes into a sweep's folder, which exists, for `kept_baselines()`."""
    write_json(uri, _BASELINES, asdict(baselines))


def kept_baselines(uri: str) -> Baselines | None:
    """Return the episodes that a sweep began with; None for one of an older version, which did not keep them.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        kept = read_json(uri, _BASELINES)
        return None if kept is None else Baselines(**kept)
    except ValueError as error:
        raise ValueError(f"{error} Start a new sweep, with another name.") from error
    except TypeError as error:
        raise ValueError(f"'{uri}/{_BASELINES}' is damaged: {error}. Start a new sweep, with another name.") from error


def _median_gap(teacher: Teacher, states: np.ndarray, masks: np.ndarray) -> float:
    statistics = QStatistics(int(teacher.action_space.n))
    for chunk, mask in zip(*(torch.as_tensor(each).split(1_000) for each in (states, masks)), strict=True):
        statistics.update(teacher.q_values(chunk.float(), None if masks.all() else mask))
    return statistics.median_gap()
