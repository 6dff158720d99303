"""How well each copy of a student with restarts plays, and what would have told so.

    python tests/benchmarks/restarts.py ENV TEACHER --rows rows.jsonl [--csv table.csv] [--hiddens [2,2]]
        [--seeds 70 71] [--env-steps 100000] [--copies 16]
        [--settings '{"teacher_fraction": [[0, 1.0], [10000, 0.5]]}' ...]

One row for each copy: its weight of the Q-regret (in median action gaps), its Q-regret on the replay's states (return
units), and its return ratio in 100 episodes that had no part in any choice. A table has them by weight. A run that is
in the rows already is not made again.
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
from rllib_kd.algorithm.dead_learners import ask_learner
from rllib_kd.evaluation.sources import open_source

NUM_EPISODES = 100


def measure(
    env: str, teacher: Path, hiddens: Sequence[int], settings: dict[str, Any], seed: int, env_steps: int, copies: int
) -> list[dict[str, Any]]:
    """Rows of all copies of one student."""
    config = (
        DistillDQNConfig()
        .environment(env)
        .rl_module(model_config={"fcnet_hiddens": list(hiddens), "fcnet_activation": "tanh"})
        .distillation(teacher=teacher, restarts=copies, num_baseline_episodes=0, **settings)
        .debugging(seed=seed)
    )
    algo = config.build_algo()
    try:
        while algo.train()["num_env_steps_sampled_lifetime"] < env_steps:
            pass
        regrets = ask_learner(algo.learner_group, 0, lambda learner: learner.q_regret())
        students = ask_learner(algo.learner_group, 0, lambda learner: {name: learner.module[name] for name in regrets})
    finally:
        algo.stop()
    bounds = baselines(env, teacher, NUM_EPISODES)
    return [
        {
            "copy": name,
            "regret_coeff": config.regret_coeff_of(name),
            "q_regret": regrets[name],
            "return_ratio": float(
                return_ratio(play_greedily(open_source(student).network(), env, NUM_EPISODES), *bounds)
            ),
        }
        for name, student in students.items()
    ]


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the rows, a line for each run and weight."""
    table = Table("env", "student", "settings", "seed", "weight", "return ratio (Q-regret) of each copy")
    for key, own in itertools.groupby(rows, key=lambda row: row["key"]):
        run = json.loads(key)
        by_weight: dict[float, list[dict[str, Any]]] = {}
        for row in own:
            by_weight.setdefault(row["regret_coeff"], []).append(row)
        student = " × ".join(map(str, run["hiddens"])) or "linear"
        for weight, copies in by_weight.items():
            cells = [f"{copy['return_ratio']:.2f} ({copy['q_regret']:.3g})" for copy in copies]
            line = run["env"], student, run["settings"] or "defaults", run["seed"], weight, "  ".join(cells)
            table.add_row(*map(str, line))
    Console(width=160).print(table)


def write(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the rows as CSV."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        columns = "copy", "regret_coeff", "q_regret", "return_ratio"
        writer.writerow(["env", "student", "settings", "seed", "env_steps", *columns])
        for row in rows:
            run = json.loads(row["key"])
            student = " × ".join(map(str, run["hiddens"])) or "linear"
            settings = json.dumps(run["settings"]) if run["settings"] else "defaults"
            figures = row["copy"], row["regret_coeff"], round(row["q_regret"], 4), round(row["return_ratio"], 4)
            writer.writerow([run["env"], student, settings, run["seed"], run["env_steps"], *figures])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env")
    parser.add_argument("teacher", type=Path)
    parser.add_argument("--rows", type=Path, required=True, help="JSON, a line for each copy")
    parser.add_argument("--csv", type=Path, help="where to write all rows")
    parser.add_argument("--hiddens", nargs="+", type=json.loads, default=[[2, 2]])
    parser.add_argument("--settings", nargs="+", type=json.loads, default=[{}])
    parser.add_argument("--seeds", nargs="+", type=int, default=[70])
    parser.add_argument("--env-steps", type=int, default=100_000)
    parser.add_argument("--copies", type=int, default=16, help="of each student, at least 2")
    args = parser.parse_args()
    torch.set_num_threads(1)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    lines = args.rows.read_text().splitlines() if args.rows.exists() else []
    rows = [json.loads(line) for line in lines]
    done = {row["key"] for row in rows}
    for hiddens, settings, seed in itertools.product(args.hiddens, args.settings, args.seeds):
        run = {"env": args.env, "hiddens": hiddens, "settings": settings, "seed": seed, "env_steps": args.env_steps}
        run["copies"] = args.copies
        if (key := json.dumps(run)) in done:
            continue
        own = measure(args.env, args.teacher, hiddens, settings, seed, args.env_steps, args.copies)
        new = [{"key": key} | row for row in own]
        with args.rows.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in new)
        rows += new
    ray.shutdown()
    show(rows)
    if args.csv:
        write(rows, args.csv)


if __name__ == "__main__":
    main()
