"""What students reach with other shares of random actions in training.

    python tests/benchmarks/exploration.py --rows rows.jsonl [--csv table.csv] --task TASK ... [--seeds 0 1 2]
        [--epsilons 0.05 0.02 0] [--env-steps 100000]

TASK is JSON, like '{"env": "CartPole-v1", "teacher": "cartpole"}', with "env_config" if there is one, and with
"settings" of `.distillation()` with a family of `students`, by default one of 32 and 8 units and a linear student. All
else is the defaults. Each student plays 200 fresh episodes, without random actions. A run that is in the rows already
is not made again. Atari is too slow for this: see atari.py.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script: its own package, beside the installed one

from tests.benchmarks.learning import FIRST_EPISODE_SEED, measured, show  # isort: skip  # sets the threads
from rllib_kd import DistillDQNConfig, compare_all

NUM_EPISODES = 200
FAMILY = {"students": {"32": {"fcnet_hiddens": [32]}, "8": {"fcnet_hiddens": [8]}, "linear": "linear"}}


def measure(task: dict[str, Any], epsilon: float, seed: int, env_steps: int) -> dict[str, Any]:
    """A row: the return ratio of each student."""
    where, settings = {"env_config": task.get("env_config", {})}, task.get("settings", FAMILY)
    config = (
        DistillDQNConfig()
        .environment(task["env"], **where)
        .training(epsilon=epsilon)
        .distillation(teacher=task["teacher"], num_baseline_episodes=0, **settings)
        .debugging(seed=seed)
    )
    algo = config.build_algo()
    try:
        while algo.num_env_steps < env_steps:
            algo.train()
        modules = {name: algo.get_module(name) for name in settings["students"]}
        played = compare_all(
            task["teacher"], modules, task["env"], num_episodes=NUM_EPISODES, seed=FIRST_EPISODE_SEED, **where
        )
    finally:
        algo.stop()
    row = {"env": task["env"], "teacher": Path(task["teacher"]).name}
    row |= {"epsilon": epsilon, "seed": seed, "env_steps": env_steps}
    return row | {name: round(result.return_ratio, 4) for name, result in zip(modules, played, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True, help="JSON, a line for each run")
    parser.add_argument("--csv", type=Path, help="where to write the table")
    parser.add_argument("--task", type=json.loads, action="append", required=True, dest="tasks")
    parser.add_argument("--epsilons", nargs="+", type=float, default=[0.05, 0.02, 0.0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--env-steps", type=int, default=100_000)
    args = parser.parse_args()
    runs = {
        json.dumps([task, epsilon, seed, args.env_steps]): partial(measure, task, epsilon, seed, args.env_steps)
        for task, epsilon, seed in itertools.product(args.tasks, args.epsilons, args.seeds)
    }
    rows = measured(args.rows, runs)
    show(rows, args.csv)


if __name__ == "__main__":
    main()
