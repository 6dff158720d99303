"""Distilling from files: gradient steps beside those of a Learner with the same rows."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pyarrow.parquet as pq

from rllib_kd.offline.schema import LabelledSchema, to_table
from tests.benchmarks.harness import algorithm, compare, distillation_config, labelled_states, rate
from tests.benchmarks.learner import STATES, STEPS, our_learner


@contextlib.contextmanager
def recorded_training(capacity: int | None) -> Iterator[Callable]:
    """Gradient steps/s of `algo.train()` from files, with rows that pass and agreement on those held out."""
    columns = labelled_states(STATES)
    with tempfile.TemporaryDirectory() as folder:
        table = to_table(columns, LabelledSchema((4,), "float32", 2, teacher="cartpole"))
        pq.write_table(table, Path(folder, "0.parquet"), row_group_size=2_000)
        config = distillation_config().offline_data(input_=folder, dataset_num_iters_per_learner=STEPS)
        config.training(replay_buffer_config={"capacity": capacity}).reporting(min_sample_timesteps_per_iteration=0)
        with algorithm(config) as algo:
            algo.train()  # rows are read before the first gradient step
            yield lambda: rate(STEPS, algo.train)


def recorded_vs_learner(capacity: int | None) -> Callable[[str], dict[str, Any]]:
    """With a replay of all rows, or one that they pass through."""
    space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
    return lambda name: compare(
        name,
        "gradient steps/s",
        lambda: recorded_training(capacity),
        lambda: our_learner(distillation_config(), space, 2, labelled_states(STATES), STEPS),
    )


BENCHMARKS: dict[str, Callable[[str], dict[str, Any]]] = {
    "recorded_vs_learner": recorded_vs_learner(None),
    "recorded_stream_vs_learner": recorded_vs_learner(STATES // 2),
}
