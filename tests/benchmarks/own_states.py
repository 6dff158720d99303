"""The students of a family that learn from their own states, beside those that learn from the states of all.

    python tests/benchmarks/own_states.py ENV TEACHER --rows rows.jsonl [--csv table.csv] [--seeds 0 1 2]
        [--env-steps 100000]

A family of 64, 32, 16 and 8 units and a linear student, with the defaults and with `own_states=False`. Each plays 100
episodes that no training has seen. A run that is in the rows already is not made again.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script: its own package, beside the installed one

from tests.benchmarks.learning import baselines, play_greedily, return_ratio  # isort: skip  # sets the threads
import ray
import torch
from rich.console import Console
from rich.table import Table

from rllib_kd import DistillDQNConfig
from rllib_kd.evaluation.sources import open_source

STUDENTS: dict[str, Any] = {**{str(units): {"fcnet_hiddens": [units]} for units in (64, 32, 16, 8)}, "linear": "linear"}
NUM_EPISODES = 100


def measure(env: str, teacher: Path, own_states: bool, seed: int, env_steps: int) -> dict[str, float]:
    """Return the return ratio of each student."""
    config = (
        DistillDQNConfig()
        .environment(env)
        .distillation(teacher=str(teacher), students=STUDENTS, own_states=own_states, num_baseline_episodes=0)
        .debugging(seed=seed)
    )
    algo = config.build_algo()
    try:
        while algo.train()["num_env_steps_sampled_lifetime"] < env_steps:
            pass
        students = {name: open_source(algo.get_module(name)).network() for name in STUDENTS}
        bounds = baselines(env, teacher, NUM_EPISODES)
        played = {name: play_greedily(student, env, NUM_EPISODES) for name, student in students.items()}
    finally:
        algo.stop()
    return {name: round(float(return_ratio(returns, *bounds)), 4) for name, returns in played.items()}


def show(rows: Sequence[dict[str, Any]], path: Path | None) -> None:
    """Print the rows, and write them as CSV where a path is given."""
    names = ["env", "own_states", "seed", "env_steps"]
    lines = [[*(row[name] for name in names), *row["return_ratios"].values()] for row in rows]
    table = Table(*names, *STUDENTS)
    for line in lines:
        table.add_row(*map(str, line))
    Console(width=100).print(table)
    if path is not None:
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([[*names, *STUDENTS], *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env")
    parser.add_argument("teacher", type=Path)
    parser.add_argument("--rows", type=Path, required=True, help="JSON, a line for each run")
    parser.add_argument("--csv", type=Path, help="where to write all rows")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--env-steps", type=int, default=100_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    rows = [json.loads(line) for line in args.rows.read_text().splitlines()] if args.rows.exists() else []
    for seed, own_states in itertools.product(args.seeds, (True, False)):
        run = {"env": args.env, "own_states": own_states, "seed": seed, "env_steps": args.env_steps}
        if any(run.items() <= row.items() for row in rows):
            continue
        rows.append({**run, "return_ratios": measure(args.env, args.teacher, own_states, seed, args.env_steps)})
        with args.rows.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    ray.shutdown()
    show(rows, args.csv)


if __name__ == "__main__":
    main()
