"""Small folders of labelled rows of CartPole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pyarrow.parquet as pq
import torch

from rllib_kd import DistillDQNConfig
from rllib_kd.offline.schema import LabelledSchema, to_table
from rllib_kd.teachers.base import Teacher

RECORDED = ("actions", "rewards", "terminateds", "truncateds", "eps_id", "t")


def episodes(teacher: Teacher, *, num_rows: int = 3_000, max_length: int = 60, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows of CartPole in which a random policy acts, with the teacher's labels. `max_length` cuts episodes."""
    env, rng = gym.make("CartPole-v1"), np.random.default_rng(seed)
    rows: list[tuple[Any, ...]] = []
    episode = 0
    while len(rows) < num_rows:
        obs, _ = env.reset(seed=int(rng.integers(2**31)))
        for t in range(max_length):
            action = int(rng.integers(2))
            after, reward, terminated, _, _ = env.step(action)
            rows.append((obs, action, reward, terminated, not terminated and t == max_length - 1, f"e{episode}", t))
            obs = after
            if terminated:
                break
        episode += 1
    columns = [np.array(column) for column in zip(*rows[:num_rows], strict=True)]
    obs = columns[0].astype(np.float32)
    labels = {"teacher_q": teacher.q_values(torch.from_numpy(obs)).numpy()}
    return {"obs": obs, **dict(zip(RECORDED, columns[1:], strict=True)), **labels}


def write(
    folder: Path, columns: dict[str, np.ndarray], *, num_files: int = 2, row_group_size: int = 500, **schema: Any
) -> str:
    """Write rows as files of several row groups, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    recorded = tuple(name for name in RECORDED if name in columns)
    fields = {"obs_shape": columns["obs"].shape[1:], "obs_dtype": str(columns["obs"].dtype), "num_actions": 2}
    own = LabelledSchema(**fields | {"recorded": recorded, "teacher": "cartpole"} | schema)
    for number, rows in enumerate(np.array_split(np.arange(len(columns["obs"])), num_files)):
        part = {name: column[rows] for name, column in columns.items()}
        pq.write_table(to_table(part, own), folder / f"{number}.parquet", row_group_size=row_group_size)
    return str(folder)


def recorded_config(folder: str, teacher: Any, **distillation: Any) -> DistillDQNConfig:
    """A config without an environment that learns from such a folder in a second."""
    return (
        DistillDQNConfig()
        .offline_data(input_=folder)
        .training(train_batch_size_per_learner=32, training_intensity=4)
        .env_runners(num_envs_per_env_runner=4, rollout_fragment_length=32)
        .reporting(min_sample_timesteps_per_iteration=128)
        .rl_module(model_config={"fcnet_hiddens": [16], "fcnet_activation": "relu"})
        .distillation(teacher=teacher, **distillation)
        .debugging(seed=0)
    )
