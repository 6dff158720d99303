"""What a run that ends by itself leaves behind: its student, beside the same one after twice as many env steps.

    python tests/benchmarks/patience.py --rows rows.jsonl [--csv table.csv] --task TASK ... [--seeds 0 1]
        [--student STUDENT ...] [--patience 50000] [--most-env-steps 600000]

TASK is JSON, like '{"env": "CartPole-v1", "teacher": "cartpole"}', with "env_config" if there is one; STUDENT are
settings of `.distillation()`, like '{"student": {"fcnet_hiddens": [8]}}'. A run with the defaults and `patience` ends
by itself, or after so many env steps. It then goes on until it is twice as long. Both students play the same 200 fresh
episodes as their teacher. A run that is in the rows already is not made again.
"""

from __future__ import annotations

import argparse
import copy
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
STUDENTS: list[dict[str, Any]] = [
    {"student": {"fcnet_hiddens": [32]}},
    {"student": {"fcnet_hiddens": [8]}},
    {"student": "linear"},
]


def measure(task: dict[str, Any], student: dict[str, Any], seed: int, patience: int, most_steps: int) -> dict[str, Any]:
    """A row: when the run ended, and both return ratios."""
    where = {"env_config": task.get("env_config", {})}
    config = (
        DistillDQNConfig()
        .environment(task["env"], **where)
        .distillation(teacher=task["teacher"], patience=patience, num_baseline_episodes=0, **student)
        .debugging(seed=seed)
    )
    algo = config.build_algo()
    try:
        ended = False
        while not ended and algo.num_env_steps < most_steps:
            ended = algo.train()["done"]
        ended_at, then = algo.num_env_steps, copy.deepcopy(algo.get_module())
        while algo.num_env_steps < 2 * ended_at:
            algo.train()
        students = {"then": then, "later": algo.get_module()}
        played = compare_all(
            task["teacher"], students, task["env"], num_episodes=NUM_EPISODES, seed=FIRST_EPISODE_SEED, **where
        )
    finally:
        algo.stop()
    ratios = [round(result.return_ratio, 4) for result in played]
    return {
        "env": task["env"],
        "teacher": Path(task["teacher"]).name,
        "student": json.dumps(student),
        "seed": seed,
        "patience": patience,
        "ended_by_itself": bool(ended),
        "env_steps": ended_at,
        "return_ratio": ratios[0],
        "return_ratio_after_twice_as_many": ratios[1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True, help="JSON, a line for each run")
    parser.add_argument("--csv", type=Path, help="where to write the table")
    parser.add_argument("--task", type=json.loads, action="append", required=True, dest="tasks")
    parser.add_argument("--student", type=json.loads, action="append", dest="students")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--patience", type=int, default=50_000)
    parser.add_argument("--most-env-steps", type=int, default=600_000)
    args = parser.parse_args()
    runs = {
        json.dumps([task, student, seed, args.patience, args.most_env_steps]): partial(
            measure, task, student, seed, args.patience, args.most_env_steps
        )
        for task, student, seed in itertools.product(args.tasks, args.students or STUDENTS, args.seeds)
    }
    rows = measured(args.rows, runs)
    show(rows, args.csv)


if __name__ == "__main__":
    main()
