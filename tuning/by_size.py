"""Students of several sizes, each trained alone with the defaults, beside their teacher: rows, and their table.

`min_atar.py` and `language.py` name the tasks. A row is printed and written as soon as it is measured; one that is in
the file is not measured again.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from rllib_kd import DistillDQNConfig, compare
from rllib_kd.evaluation.comparing import evaluate
from rllib_kd.export.deployment import deploy

from measuring import FIRST_SEED, append_row, read_rows, start_ray, train_to  # isort: skip
from results_page import cell, interval  # isort: skip

COMPRESSIONS = (0.25, 0.067, 0.037, 0.01)
NUM_EPISODES = 200
#: Of `config.training()`, which flags set in the place of the defaults.
SETTINGS = ("training_intensity", "lr")
_POLICIES = ("teacher", "student", "random")


@dataclass(frozen=True)
class Task:
    """An environment, and how its teacher is made.

    Args:
        name: in rows, and of the teacher's folder.
        env: as in `config.environment()`.
        train_teacher: trains a teacher for so many env steps, and saves it in a folder.
        env_config: passed to the env.
    """

    name: str
    env: Any
    train_teacher: Callable[[Task, int, Path], None]
    env_config: Mapping[str, Any] = field(default_factory=dict)

    def config(self, seed: int) -> DistillDQNConfig:
        """Return what teacher and student have in common."""
        return config_of(self.env, self.env_config, seed)


def config_of(env: Any, env_config: Mapping[str, Any], seed: int) -> DistillDQNConfig:
    """Return the defaults for an environment, with nothing beside training, and no replay in checkpoints."""
    config = (
        DistillDQNConfig()
        .environment(env, env_config=dict(env_config))
        .reporting(min_sample_timesteps_per_iteration=10_000)
        .evaluation(evaluation_interval=None)
        .distillation(num_baseline_episodes=0)
        .debugging(seed=seed)
    )
    config.store_buffer_in_checkpoints = False
    return config


def measure(
    task: Task,
    compression: float,
    seed: int,
    folder: Path,
    env_steps: int,
    training: Mapping[str, Any],
    *,
    num_episodes: int = NUM_EPISODES,
) -> dict[str, Any]:
    """Train a student beside its teacher in a folder, export it as C in integers, and return its row.

    Args:
        task: the task.
        compression: size.
        seed: of training.
        folder: of the teacher.
        env_steps: of the student.
        training: settings of `config.training()` in the place of the defaults; the row has them.
        num_episodes: of each policy, by which they are compared.
    """
    teacher, student = str(folder / task.name), folder / f"{task.name}-{compression:g}-{seed}"
    began = time.perf_counter()
    config = task.config(seed).distillation(teacher=teacher, compression=compression).training(**training)
    train_to(config, env_steps, student)
    seconds, own = time.perf_counter() - began, dict(task.env_config)
    played = compare(teacher, str(student), task.env, env_config=own, num_episodes=num_episodes, seed=FIRST_SEED)
    integers = deploy(
        str(student),
        student / "student.h",
        task.env,
        format="c",
        int8=True,
        env_config=own,
        num_episodes=NUM_EPISODES,
    )
    span = played.teacher.return_mean - played.random.return_mean
    return {
        "task": task.name,
        "compression": compression,
        "seed": seed,
        "env_steps": env_steps,
        **training,
        "parameters": played.student.num_parameters,
        "teacher_parameters": played.teacher.num_parameters,
        "return_ratio": round(played.return_ratio, 4),
        "int8_loses": round((integers.torch_return - integers.return_mean) / span, 4),
        "int8_agreement": round(integers.exported.agreement or 0.0, 4),
        "teacher_return": round(played.teacher.return_mean, 3),
        "random_return": round(played.random.return_mean, 3),
        "agreement": round(played.agreement_on_student_states, 4),
        "q_regret": round(played.q_regret_on_student_states, 4),
        "seconds": round(seconds, 1),
        **{f"{who}_returns": [round(value, 3) for value in getattr(played, who).returns] for who in _POLICIES},
    }


def is_of(row: Mapping[str, Any], key: Mapping[str, Any], training: Mapping[str, Any], num_episodes: int) -> bool:
    """Return whether a row has these keys, these settings and no others, and so many episodes."""
    return row.items() >= key.items() and settings_of(row) == training and len(row["student_returns"]) == num_episodes


def settings_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a row that are not the defaults."""
    return {name: row[name] for name in SETTINGS if name in row}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return ratios by task and size: interquartile means over seeds, with 95 % intervals as `results.py` has them."""
    by_size: dict[float, dict[str, list[Mapping[str, Any]]]] = {}
    for row in rows:
        by_size.setdefault(row["compression"], {}).setdefault(row["task"], []).append(row)
    tasks = sorted({row["task"] for row in rows})
    lines = [f"| parameters | {' | '.join(tasks)} | all |", "|---" * (len(tasks) + 2) + "|"]
    for size, of_tasks in sorted(by_size.items(), reverse=True):
        measured = {task: as_row(of_tasks[task]) for task in tasks if task in of_tasks}
        cells = [cell(*interval([measured[task]], "one")) if task in measured else "" for task in tasks]
        cells.append(cell(*interval(list(measured.values()), "one")))
        lines.append(f"| {100 * size:.3g} % | {' | '.join(cells)} |")
    return "\n".join(lines)


def as_row(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the runs of several seeds as a row of `results.py`, whose only student is "one"."""
    seeds: dict[str, Any] = {}
    for run in runs:
        played = {who: {"returns": run[f"{who}_returns"]} for who in _POLICIES}
        seeds[str(run["seed"])] = {"students": {"one": {**played, "return_ratio": run["return_ratio"]}}}
    return {"seeds": seeds}


def main(
    tasks: Sequence[Task],
    description: str,
    *,
    out: str,
    compressions: Sequence[float] = COMPRESSIONS,
    env_steps: int = 200_000,
    teacher_env_steps: int = 500_000,
) -> None:
    """Run the command of a file that names tasks.

    Args:
        tasks: all that it knows.
        description: of its help.
        out: its file of rows.
        compressions: sizes of students by default, in parameters of the teacher's.
        env_steps: of a student by default.
        teacher_env_steps: of a teacher by default.
    """
    known = {task.name: task for task in tasks}
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(known)}; default: all")
    parser.add_argument("--teachers", type=Path, required=True, help="folder of the teachers, and of checkpoints")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--compressions", type=float, nargs="+", default=compressions)
    parser.add_argument("--env-steps", type=int, default=env_steps)
    parser.add_argument("--training-intensity", type=float, help="of students, instead of the default")
    parser.add_argument("--lr", type=float, help="likewise")
    parser.add_argument("--episodes", type=int, default=NUM_EPISODES, help="of each policy, that judge a student")
    parser.add_argument("--teacher-env-steps", type=int, default=teacher_env_steps)
    parser.add_argument("--teacher-only", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(out))
    asked = parser.parse_args()
    if unknown := set(asked.tasks) - known.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}. Known are {', '.join(known)}.")
    chosen, teachers = [known[name] for name in asked.tasks or known], asked.teachers.resolve()
    start_ray()
    for task in chosen:
        folder = teachers / task.name
        if not folder.exists():
            task.train_teacher(task, asked.teacher_env_steps, folder)
            played = evaluate(
                str(folder), task.env, env_config=task.env_config, num_episodes=NUM_EPISODES, seed=FIRST_SEED
            )
            print(f"teacher of {task.name}: {played.return_mean:.2f} ± {played.return_ci95:.2f}", flush=True)
    training = {name: vars(asked)[name] for name in SETTINGS if vars(asked)[name] is not None}
    rows = read_rows(asked.out)
    for seed in range(asked.seeds) if not asked.teacher_only else ():
        for task in chosen:
            for compression in asked.compressions:
                key = {"task": task.name, "compression": compression, "seed": seed, "env_steps": asked.env_steps}
                if any(is_of(row, key, training, asked.episodes) for row in rows):
                    continue
                row = measure(task, compression, seed, teachers, asked.env_steps, training, num_episodes=asked.episodes)
                rows.append(row)
                append_row(asked.out, row)
                print({name: value for name, value in row.items() if not name.endswith("_returns")}, flush=True)
    print(table([row for row in rows if is_of(row, {"env_steps": asked.env_steps}, training, asked.episodes)]))
