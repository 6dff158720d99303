"""Code that the measurements share: the seeds that judge, Ray, training to a checkpoint, and rows as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from rllib_kd import DistillDQNConfig

#: Of the resets that judge: far from those of training and validation.
FIRST_SEED = 3_000_000


def start_ray() -> None:
    """Start a local Ray of two CPUs, without a dashboard and logs."""
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")


def train_to(config: DistillDQNConfig, env_steps: int, folder: Path) -> str:
    """Train for so many env steps, and return the path of the checkpoint."""
    algo = config.build_algo()
    try:
        while algo.num_env_steps < env_steps:
            algo.train()
        return algo.save_to_path(str(folder))
    finally:
        algo.stop()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file of JSON lines; none if it does not exist."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add a row to a file of JSON lines, which is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
