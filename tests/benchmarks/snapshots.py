"""What is gained by choosing among times of training, too, and not among copies of one time alone.

    python tests/benchmarks/snapshots.py FOLDER --rows rows.jsonl [--csv table.csv] [--env NAME ...]
        [--hiddens [4,4] []] [--seeds 90 91] [--env-steps 200000] [--every 20000] [--capacity 1000000 ...]

FOLDER holds the teachers of `learning.py`. A student with 16 restarts is trained, and at each point of time the same
64 validation episodes choose a copy, as a checkpoint would. The table has two return ratios in 100 episodes that
nothing was chosen by: `last` is that of the copy of this time, `best` that of the copy with the highest validation
return so far, over all points. `--capacity` sets how many states the replay keeps. A run that is in the rows already is
not made again.
"""

from __future__ import annotations

import copy
import csv
import itertools
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script: its own package, beside the installed one

from tests.benchmarks.learning import (  # isort: skip  # sets the threads
    TASKS,
    baselines,
    measured,
    play_greedily,
    return_ratio,
    study_parser,
)
import numpy as np
from rich.console import Console
from rich.table import Table

from rllib_kd import DistillDQNConfig
from rllib_kd.environments.making import env_maker
from rllib_kd.evaluation.halving import halve
from rllib_kd.evaluation.sources import open_source
from rllib_kd.evaluation.validation import validate
from rllib_kd.observations.pipeline import ObservationPipeline
from rllib_kd.students.restarts import by_student

NUM_COPIES, NUM_VALIDATION, NUM_FRESH = 16, 64, 100


def measure(
    env: str, teacher: Path, hiddens: Sequence[int], seed: int, env_steps: int, every: int, capacity: int | None
) -> dict[str, Any]:
    """A row: at each point of time the chosen copy, its return in validation, and its return ratio."""
    config = (
        DistillDQNConfig()
        .environment(env)
        .rl_module(model_config={"fcnet_hiddens": list(hiddens), "fcnet_activation": "tanh"})
        .distillation(teacher=teacher, restarts=NUM_COPIES, num_baseline_episodes=0, num_validation_episodes=0)
        .debugging(seed=seed)
    )
    if capacity is not None:
        config.training(replay_buffer_config={"capacity": capacity})
    algo = config.build_algo()
    bounds = baselines(env, teacher, NUM_FRESH)
    points: list[dict[str, Any]] = []
    try:
        while (now := algo.train()["num_env_steps_sampled_lifetime"]) < env_steps:
            if now >= (len(points) + 1) * every:
                points.append(_point(algo.get_copies(), env, bounds) | {"env_steps": now})
        points.append(_point(algo.get_copies(), env, bounds) | {"env_steps": now})
    finally:
        algo.stop()
    return {"env": env, "hiddens": list(hiddens), "seed": seed, "capacity": capacity, "points": points}


def _point(copies: dict[str, Any], env: str, bounds: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
    pipeline = ObservationPipeline(next(iter(copies.values())).observation_space)

    def play(names: Sequence[str], first: int, count: int) -> Any:
        return validate(
            env_maker(env, {}), {name: copies[name] for name in names}, pipeline, count, first_episode=first
        )

    left = by_student(copies)
    played = halve(left, NUM_VALIDATION, play)
    ((names),) = left.values()
    (name,) = played.best(names)
    returns = play_greedily(open_source(copy.deepcopy(copies[name])).network(), env, NUM_FRESH)
    mean = float(np.mean(played.returns[name]))
    return {"copy": name, "validation": mean, "return_ratio": float(return_ratio(returns, *bounds))}


def table_of(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each run and time."""
    lines = []
    for row in rows:
        best = row["points"][0]
        for point in row["points"]:
            best = max(best, point, key=lambda one: one["validation"])
            lines.append(
                {
                    "env": row["env"],
                    "student": " × ".join(map(str, row["hiddens"])) or "linear",
                    "capacity": row["capacity"] or "default",
                    "seed": row["seed"],
                    "env_steps": point["env_steps"],
                    "last": round(point["return_ratio"], 3),
                    "best": round(best["return_ratio"], 3),
                    "best_of": best["env_steps"],
                }
            )
    return lines


def main() -> None:
    parser = study_parser(__doc__, TASKS, [90, 91, 92])
    parser.add_argument("--hiddens", nargs="+", type=json.loads, default=[[]])
    parser.add_argument("--env-steps", type=int, default=200_000)
    parser.add_argument("--every", type=int, default=20_000)
    parser.add_argument("--capacity", nargs="+", type=int, default=[None])
    args = parser.parse_args()
    runs = {}
    for env in args.env:
        for hiddens, capacity, seed in itertools.product(args.hiddens, args.capacity, args.seeds):
            what = (hiddens, seed, args.env_steps, args.every, capacity)
            runs[json.dumps([env, *what])] = partial(measure, env, args.teachers / TASKS[env], *what)
    lines = table_of(measured(args.rows, runs))
    table = Table(*lines[0])
    for line in lines:
        table.add_row(*map(str, line.values()))
    Console().print(table)
    if args.csv:
        with args.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, lines[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)


if __name__ == "__main__":
    main()
