"""What all benchmarks share: one thread, tasks, and pairs of measurements that take turns."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch

from rllib_kd import DistillDQNConfig, load_teacher

BATCH_SIZE = 256
UNITS = 32
NUM_ENVS = 64
VECTOR_STEPS = 256
REPETITIONS = 5

#: Prepares something, and hands out what measures it once.
Measurement = Callable[[], AbstractContextManager[Callable[[], float]]]


def compare(
    name: str, unit: str, ours: Measurement, baseline: Measurement, *, repetitions: int | None = None
) -> dict[str, Any]:
    """A row: ours and its baseline by turns, so that what else the machine does meets both; each once to warm up."""
    runs: dict[str, list[float]] = {"value": [], "baseline": []}
    with ours() as measure_ours, baseline() as measure_baseline:
        for _ in range(1 + (REPETITIONS if repetitions is None else repetitions)):
            runs["value"].append(measure_ours())
            runs["baseline"].append(measure_baseline())
    return row(name, unit, {key: values[1:] for key, values in runs.items()})


def row(name: str, unit: str, runs: dict[str, list[float]]) -> dict[str, Any]:
    """Medians of the runs of `value` and `baseline`, and their ratio."""
    value, base = (statistics.median(runs[key]) for key in ("value", "baseline"))
    return {"name": name, "value": value, "unit": unit, "baseline": base, "ratio": value / base, "runs": runs}


def rate(count: int, run: Callable[[], Any]) -> float:
    """Units per second of a run that makes `count` of them."""
    start = time.perf_counter()
    run()
    return count / (time.perf_counter() - start)


@contextlib.contextmanager
def algorithm(config: DistillDQNConfig) -> Iterator[Any]:
    """A built algorithm, stopped at the end."""
    algo = config.build_algo()
    try:
        yield algo
    finally:
        algo.stop()


def distillation_config() -> DistillDQNConfig:
    """Distillation of the packaged teacher into 32 units, on CartPole's own vector env."""
    return (
        DistillDQNConfig()
        .environment("CartPole-v1")
        .env_runners(
            num_envs_per_env_runner=NUM_ENVS,
            rollout_fragment_length=VECTOR_STEPS,
            gym_env_vectorize_mode="vector_entry_point",
        )
        .rl_module(model_config={"fcnet_hiddens": [UNITS], "fcnet_activation": "relu"})
        .training(train_batch_size_per_learner=BATCH_SIZE)
        .distillation(teacher="cartpole", loss="kl", num_baseline_episodes=0)
    )


def labelled_states(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """States like CartPole's, with the packaged teacher's labels."""
    obs = np.random.default_rng(seed).normal(scale=0.5, size=(count, 4)).astype(np.float32)
    return {"obs": obs, "teacher_q": load_teacher("cartpole").q_values(torch.from_numpy(obs)).numpy()}
