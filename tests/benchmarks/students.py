"""What the benchmarks of learning share: tasks, the last student of a run, and its return ratio with an interval."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import ray
import scipy.stats
import torch

from rllib_kd import DistillDQNConfig, load_teacher
from rllib_kd.playing import RandomActions, env_maker, play
from rllib_kd.policies import GreedyQ, as_q_network

UNITS = 32
#: Resets of the episodes that judge a student: far from any seed of training.
FIRST_EPISODE_SEED = 3_000_000
BOOTSTRAPS = 10_000


@dataclass(frozen=True)
class Task:
    """A teacher in its environment."""

    env: str
    teacher: str  # file in the folder of teachers
    vectorize_mode: str = "sync"


TASKS = {
    task.env: task
    for task in (
        Task("CartPole-v1", "dqn-CartPole-v1.zip", "vector_entry_point"),  # gymnasium's own vectorised CartPole
        Task("Acrobot-v1", "dqn-Acrobot-v1.zip"),
        Task("MountainCar-v0", "dqn-MountainCar-v0.zip"),
    )
}


def start() -> None:
    """One thread, and a Ray of its own."""
    torch.set_num_threads(1)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")


def make_config(task: Task, teachers: Path, *, seed: int, units: int = UNITS, **settings: Any) -> DistillDQNConfig:
    """Defaults, but for the student's width and what `settings` say: `.distillation()`'s words, or `.training()`'s."""
    config = (
        DistillDQNConfig()
        .environment(task.env)
        .env_runners(gym_env_vectorize_mode=task.vectorize_mode)
        .rl_module(model_config={"fcnet_hiddens": [units], "fcnet_activation": "relu"})
        .distillation(teacher=teachers / task.teacher, num_baseline_episodes=0)
        .debugging(seed=seed)
    )
    for name, value in settings.items():
        if not hasattr(config, name):
            raise ValueError(f"There is no setting {name!r}.")
        setattr(config, name, value)
    return config


def last_student(config: DistillDQNConfig, env_steps: int) -> Any:
    """The student at the end of a run of that length, as a Q-network that plays."""
    algo = config.build_algo()
    try:
        while algo.train()["num_env_steps_sampled_lifetime"] < env_steps:
            pass
        return as_q_network(algo)
    finally:
        algo.stop()


def returns_of(policy: Any, env: str, num_episodes: int, first_seed: int = FIRST_EPISODE_SEED) -> np.ndarray:
    """Undiscounted returns `[num_episodes]`; episode i is reset with `first_seed + i`."""
    return np.asarray(play(env_maker(env), policy, range(first_seed, first_seed + num_episodes))[0])


@cache
def baselines(
    env: str, teacher: Path, num_episodes: int, first_seed: int = FIRST_EPISODE_SEED
) -> tuple[np.ndarray, np.ndarray]:
    """Returns of the teacher and of a random policy in the same episodes."""
    network = load_teacher(teacher)
    return (
        returns_of(GreedyQ(network), env, num_episodes, first_seed),
        returns_of(RandomActions(int(network.action_space.n), seed=0), env, num_episodes, first_seed),
    )


def return_ratio(student: np.ndarray, teacher: np.ndarray, random: np.ndarray) -> np.ndarray:
    """(student − random) / (teacher − random) of mean returns over the last axis."""
    return (student.mean(-1) - random.mean(-1)) / (teacher.mean(-1) - random.mean(-1))


def ratio_interval(
    students: np.ndarray, teacher: np.ndarray, random: np.ndarray, *, seed: int = 0
) -> Mapping[str, Any]:
    """Mean return ratio over training seeds, and two 95 % intervals of it.

    Two things vary: which students training yields, and which episodes they play. Every policy plays the same episodes,
    so these are drawn once for all of them (paired), and crossed with the training seeds.

    Args:
        students: `[seeds, episodes]`.
        teacher: `[episodes]`.
        random: `[episodes]`.
        seed: of the bootstrap.

    Returns:
        `mean`; `bootstrap`, percentiles over draws of both seeds and episodes, which is a little narrow where seeds are
        few; and `student_t`, over the ratios of the seeds, which takes the episodes as they are.
    """
    ratios = return_ratio(students, teacher, random)
    num_seeds, num_episodes = students.shape
    rng = np.random.default_rng(seed)
    draws = np.empty(BOOTSTRAPS)
    for i in range(BOOTSTRAPS):
        rows, columns = rng.integers(num_seeds, size=num_seeds), rng.integers(num_episodes, size=num_episodes)
        draws[i] = return_ratio(students[rows][:, columns].mean(0), teacher[columns], random[columns])
    half = scipy.stats.t.ppf(0.975, num_seeds - 1) * ratios.std(ddof=1) / np.sqrt(num_seeds)
    return {
        "mean": float(ratios.mean()),
        "bootstrap": np.percentile(draws, [2.5, 97.5]).tolist(),
        "student_t": [float(ratios.mean() - half), float(ratios.mean() + half)],
    }


def mean_of(values: Sequence[float]) -> float:
    """The mean."""
    return float(np.mean(values))
