"""What integers cost: students as 32-bit floats, and their files of 8 bits, in the same episodes.

    python tests/benchmarks/integers.py FOLDER --rows rows.jsonl [--csv table.csv] [--env CartPole-v1]

FOLDER holds the teachers of `learning.TASKS`. A family of students learns at the defaults, and one that learns for 8
bits (`quantize="int8"`). The last student of each is exported as C and as ONNX, both with int8. PyTorch and the files
play the same episodes, which nothing else has seen. A run that is in the rows already is not made again.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script: its own package, beside the installed one

import numpy as np

from rllib_kd import DistillDQNConfig, Teacher
from rllib_kd.environments.making import env_maker
from rllib_kd.evaluation.playing import play
from rllib_kd.evaluation.policies import GreedyQ
from rllib_kd.evaluation.sources import open_source
from rllib_kd.export.artifact import q_function
from rllib_kd.export.export import artifact_view, export
from tests.benchmarks.learning import FIRST_EPISODE_SEED, TASKS, baselines, measured, return_ratio, show, study_parser

ENV_STEPS = 100_000
NUM_EPISODES = 100
SEEDS = range(FIRST_EPISODE_SEED, FIRST_EPISODE_SEED + NUM_EPISODES)
STUDENTS: dict[str, Any] = {
    "linear": "linear",
    "4_4": {"fcnet_hiddens": [4, 4]},
    "8": {"fcnet_hiddens": [8]},
    "32": {"fcnet_hiddens": [32]},
    "64_64": {"fcnet_hiddens": [64, 64]},
}
FILES = {"c": "student.h", "onnx": "student.onnx"}


class File:
    """An exported student as a player."""

    def __init__(self, q_values: Callable[..., np.ndarray], student: Teacher):
        self._q_values, self._student = q_values, student

    def player(self) -> Any:
        view = artifact_view(self._student)()
        return lambda shown: self._q_values(view(shown)).argmax(-1)


def measure(env: str, quantize: str | None, seed: int, teachers: Path) -> dict[str, Any]:
    """A row: return ratios and agreements of all students."""
    path = teachers / TASKS[env]
    teacher, random = baselines(env, path, NUM_EPISODES)
    config = DistillDQNConfig().environment(env).debugging(seed=seed)
    config.distillation(teacher=path, students=STUDENTS, quantize=quantize, num_baseline_episodes=0)
    algo = config.build_algo()
    try:
        while algo.train()["num_env_steps_sampled_lifetime"] < ENV_STEPS:
            pass
        networks = {name: open_source(algo.get_module(name)).network() for name in STUDENTS}
        students = {name: _played(network, env, teacher, random) for name, network in networks.items()}
    finally:
        algo.stop()
    return {"env": env, "quantize": quantize, "seed": seed, "env_steps": ENV_STEPS, "students": students}


def _played(student: Teacher, env: str, teacher: np.ndarray, random: np.ndarray) -> dict[str, Any]:
    make_env = env_maker(env)
    returns, (states,) = play(make_env, GreedyQ(student), SEEDS, views=[artifact_view(student)])
    row: dict[str, Any] = {"num_parameters": student.num_parameters}
    row["float"] = float(return_ratio(np.array(returns), teacher, random))
    with tempfile.TemporaryDirectory() as folder:
        for kind, name in FILES.items():
            exported = export(student, Path(folder) / name, format=kind, obs=states, int8=True)
            returns, _ = play(make_env, File(q_function(exported.path), student), SEEDS)
            row[kind] = float(return_ratio(np.array(returns), teacher, random))
            row[f"{kind}_agreement"] = exported.agreement
    return row


def line(rows: list[dict[str, Any]], env: str, quantize: str | None, name: str) -> dict[str, Any]:
    """A line of the table: means over seeds, and the largest loss of one seed."""
    own = [row["students"][name] for row in rows if (row["env"], row["quantize"]) == (env, quantize)]
    found: dict[str, Any] = {"env": env, "student": name, "quantize": quantize or "", "seeds": len(own)}
    found["float"] = round(float(np.mean([each["float"] for each in own])), 4)
    for kind in FILES:
        losses = [each["float"] - each[kind] for each in own]
        found |= {f"{kind} loses": round(float(np.mean(losses)), 4), f"{kind} loses at most": round(max(losses), 4)}
        found[f"{kind} agreement"] = round(float(np.mean([each[f"{kind}_agreement"] for each in own])), 4)
    return found


def main() -> None:
    args = study_parser(__doc__, TASKS, range(110, 113)).parse_args()

    runs = {
        json.dumps(run): partial(measure, *run, args.teachers) for run in product(args.env, (None, "int8"), args.seeds)
    }
    rows = measured(args.rows, runs)
    show([line(rows, *each) for each in product(args.env, (None, "int8"), STUDENTS)], args.csv)


if __name__ == "__main__":
    main()
