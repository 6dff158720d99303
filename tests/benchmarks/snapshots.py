"""What is gained by choosing among times of training, too, and not among copies of one time alone.

    python tests/benchmarks/snapshots.py FOLDER --rows rows.jsonl [--csv table.csv] [--env NAME ...]
        [--hiddens [4,4] []] [--seeds 90 91] [--env-steps 100000 200000] [--capacity 1000000 ...]

FOLDER holds the teachers of `learning.py`. A student with 16 restarts is trained, and at each of the lengths the same
validation episodes choose twice: among the copies of now (`last`), and among the snapshots of earlier looks, too
(`looks`). The table has return ratios in 200 episodes that nothing was chosen by. `--capacity` sets how many states the
replay keeps. A run that is in the rows already is not made again.
"""

from __future__ import annotations

import copy
import csv
import itertools
import json
import sys
import time
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
from rllib_kd.evaluation.sources import open_source

NUM_COPIES, NUM_FRESH = 16, 200


def measure(
    env: str, teacher: Path, hiddens: Sequence[int], seed: int, env_steps: Sequence[int], capacity: int | None
) -> dict[str, Any]:
    """A row: at each length of training the return ratios of both choices, and the time of the second one."""
    config = (
        DistillDQNConfig()
        .environment(env)
        .rl_module(model_config={"fcnet_hiddens": list(hiddens), "fcnet_activation": "tanh"})
        .distillation(teacher=teacher, restarts=NUM_COPIES, num_baseline_episodes=0)
        .debugging(seed=seed)
    )
    if capacity is not None:
        config.training(replay_buffer_config={"capacity": capacity})
    algo = config.build_algo()
    bounds = baselines(env, teacher, NUM_FRESH)
    points: list[dict[str, Any]] = []
    began = time.process_time()
    try:
        for length in env_steps:
            while algo.num_env_steps < length:
                algo.train()
            ratios = {"looks": _ratio(algo.get_module(), env, bounds)}
            chosen = algo._restarts.results()
            kept, algo._restarts._kept = algo._restarts._kept, {}
            algo._restarts._chosen_at = -1  # to choose once more
            ratios["last"] = _ratio(algo.get_module(), env, bounds)
            algo._restarts._kept, algo._restarts._chosen_at = kept, -1
            points.append({"env_steps": algo.num_env_steps, **ratios, "chosen": chosen})
    finally:
        algo.stop()
    seconds = time.process_time() - began
    return {"env": env, "hiddens": list(hiddens), "seed": seed, "capacity": capacity, "points": points, "cpu": seconds}


def _ratio(module: Any, env: str, bounds: tuple[np.ndarray, np.ndarray]) -> float:
    returns = play_greedily(open_source(copy.deepcopy(module)).network(), env, NUM_FRESH)
    return float(return_ratio(returns, *bounds))


def table_of(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each run and length."""
    return [
        {
            "env": row["env"],
            "student": " × ".join(map(str, row["hiddens"])) or "linear",
            "capacity": row["capacity"] or "default",
            "seed": row["seed"],
            "env_steps": point["env_steps"],
            "last": round(point["last"], 3),
            "looks": round(point["looks"], 3),
            "looks_chose": point["chosen"]["chosen_at_env_steps"]["default_policy"],
            "validation_env_steps": point["chosen"]["env_steps_lifetime"],
            "validation_seconds": round(point["chosen"]["seconds_lifetime"], 1),
        }
        for row in rows
        for point in row["points"]
    ]


def main() -> None:
    parser = study_parser(__doc__, TASKS, [90, 91, 92])
    parser.add_argument("--hiddens", nargs="+", type=json.loads, default=[[]])
    parser.add_argument("--env-steps", nargs="+", type=int, default=[100_000, 200_000])
    parser.add_argument("--capacity", nargs="+", type=int, default=[None])
    args = parser.parse_args()
    runs = {}
    for env in args.env:
        for hiddens, capacity, seed in itertools.product(args.hiddens, args.capacity, args.seeds):
            what = (hiddens, seed, args.env_steps, capacity)
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
