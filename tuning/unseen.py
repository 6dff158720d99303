"""Students of tasks that were written after the defaults had been chosen: those of unseen_environments.py.

    python tuning/unseen.py --teachers FOLDER [TASK ...] [--seeds N] [--out docs/results/unseen]
    python tuning/unseen.py --teachers FOLDER [TASK ...] --settings '{"own_states": true}' --out OTHER
    python tuning/unseen.py --teachers FOLDER [TASK ...] --students linear --settings '{"restarts": 16}' --out OTHER

A task's teacher is trained by this package's TD, once, into FOLDER. Students of five sizes (of images: four) then learn
in one run, with the defaults; they, their teacher and a random policy play the same fresh episodes. The rows are
written as `results.py` writes its own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import unseen_environments as environments  # isort: skip
from by_size import config_of  # isort: skip
from measuring import FIRST_SEED, start_ray, train_to  # isort: skip
from min_atar import NETWORK, td_settings  # isort: skip
from results import MLPS, Row, Task, measure_seeds  # isort: skip

from rllib_kd.evaluation.comparing import evaluate

VECTORS = {"fcnet_hiddens": [256, 256], "fcnet_activation": "relu"}
SHARES = {f"percent_{100 * share:g}": {"compression": share} for share in (0.25, 0.067, 0.037, 0.01)}


@dataclass(frozen=True)
class Teacher:
    """How a task's teacher is trained.

    Args:
        env: class of the environment.
        training: settings of `config.training()`, over those of all.
        env_steps: of its training.
        network: its model config.
        students: model configs of its students, by name.
    """

    env: Any
    training: Mapping[str, Any] = field(default_factory=dict)
    env_steps: int = 300_000
    network: Mapping[str, Any] = field(default_factory=lambda: VECTORS)
    students: Mapping[str, Any] = field(default_factory=lambda: MLPS)

    def task(self, name: str) -> Task:
        """Return the task of `results.py`."""
        source = f"`tuning/unseen.py`, TD, {self.env_steps:,} env steps"
        return Task(self.env, name, source, 200_000, num_episodes=200, label=name)

    def train(self, folder: Path) -> None:
        """Train the teacher, and save it in a folder."""
        config = (
            config_of(self.env, {}, seed=0)
            .rl_module(model_config=dict(self.network))
            .training(train_batch_size_per_learner=64, **td_settings(self.env_steps, self.env_steps // 5))
            .distillation(teacher=None, td_coeff=1.0)
        )
        train_to(config.training(**self.training), self.env_steps, folder)


TEACHERS = {
    "inventory": Teacher(environments.Inventory),
    "junction": Teacher(environments.Junction, {"gamma": 0.95}),
    "pendulum": Teacher(environments.Pendulum),
    "swing_up": Teacher(environments.SwingUp, {"n_step": 1}, 400_000),
    "merge_2048": Teacher(environments.Merge2048, {"gamma": 0.98}, 400_000),
    "rocks": Teacher(environments.Rocks, {"n_step": 3}, 400_000),
    "ghosts": Teacher(environments.Ghosts, network=NETWORK, students=SHARES),
    "juggler": Teacher(environments.Juggler, {"n_step": 3}, network={}, students=SHARES),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(TEACHERS)}; default: all")
    parser.add_argument("--teachers", type=Path, required=True, help="folder of the teachers, and of checkpoints")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--students", nargs="+", help="some of a task's students; default: all")
    parser.add_argument("--settings", type=json.loads, default={}, help="of config.distillation(), as JSON")
    parser.add_argument("--teacher-only", action="store_true", help="train the teachers, and print what they reach")
    parser.add_argument("--out", type=Path, default=Path("docs/results/unseen"), help="folder of the rows")
    asked = parser.parse_args()
    if unknown := set(asked.tasks) - TEACHERS.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}. Known are {', '.join(TEACHERS)}.")
    torch.set_num_threads(1)
    start_ray()
    asked.out.mkdir(parents=True, exist_ok=True)
    for name in asked.tasks or TEACHERS:
        teacher, folder = TEACHERS[name], asked.teachers.resolve() / name
        if not folder.exists():
            teacher.train(folder)
        if asked.teacher_only:
            played = evaluate(str(folder), teacher.env, num_episodes=200, seed=FIRST_SEED)
            print(f"teacher of {name}: {played.return_mean:.2f} ± {played.return_ci95:.2f}", flush=True)
            continue
        students = {student: teacher.students[student] for student in asked.students or teacher.students}
        row, file = Row(name, students, asked.settings), asked.out / f"{name}.json"
        measure_seeds(file, teacher.task(name), row, asked.seeds, str(folder), asked.out / "work")


if __name__ == "__main__":
    main()
