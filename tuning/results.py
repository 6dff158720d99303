"""What students reach on real environments: distils, plays, and writes the page of results.

    python tuning/results.py --teachers FOLDER [--only ROW ...] [--seeds N]

FOLDER holds the teachers that `TASKS` names; `cartpole` needs none. Rows without their teacher are left out, with a
note on its origin. The figures of each seed of a row are written to `docs/results/sizes/ROW.json`. A seed in this file
is not trained again: an interrupted command continues, and a long run continues from its last checkpoint. To measure a
row again, delete its file. `docs/results/sizes/README.md` and its figure are made of these files.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import runpy
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import ray
import torch

from rllib_kd import DistillDQNConfig, compare_all
from rllib_kd.environments import pools
from rllib_kd.students.sizes import activation_for

from measuring import FIRST_SEED, start_ray  # isort: skip
from results_page import write_page  # isort: skip

HERE = Path(__file__).parent
RESULTS = HERE.parent / "docs" / "results" / "sizes"
SECONDS_BETWEEN_CHECKPOINTS = 300


@dataclass(frozen=True)
class Task:
    """An environment and its teacher.

    Args:
        env: gymnasium's id or a class, or envpool's name, which samples; gymnasium's environment judges.
        teacher: folder or file below `--teachers`, or "cartpole".
        source: where that teacher comes from.
        env_steps: env steps of each student's training.
        experiment: file in this folder whose config the students share; None: the defaults.
        env_config: passed to the env.
        training: settings of `.training()`, over those of the file.
        epsilon: share of random actions that teacher and students play with.
        num_episodes: episodes that teacher, students and a random policy each play.
        label: name in the tables; by default the environment's.
    """

    env: Any
    teacher: str
    source: str
    env_steps: int
    experiment: str | None = None
    env_config: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    epsilon: float = 0.0
    num_episodes: int = 100
    label: str = ""

    def config(self) -> DistillDQNConfig:
        """Return the config that its rows share."""
        base = runpy.run_path(str(HERE / self.experiment))["config"] if self.experiment else DistillDQNConfig()
        base.environment(self.env, env_config=dict(self.env_config)).training(**self.training)
        return base.distillation(num_baseline_episodes=0)

    @property
    def name(self) -> str:
        """Return the environment's name in the tables."""
        return self.label or pools.own_name(self.env)


_ZOO = "Stable-Baselines3's zoo (DLR-RM/rl-trained-agents), DQN"
_OURS = "`rllib train file tuning/{0}_teacher.py --experiment-name {0}`"
_BREAKOUT_ENV_STEPS = 800_000
_STEADY = {"repeat_action_probability": 0.0}
TASKS = {
    "cartpole": Task("CartPole-v1", "cartpole", "packaged: `tuning/train_cartpole_teacher.py`", 50_000),
    "acrobot": Task("Acrobot-v1", "sb3/dqn-Acrobot-v1.zip", _ZOO, 200_000),
    "mountaincar": Task("MountainCar-v0", "sb3/dqn-MountainCar-v0.zip", _ZOO, 200_000),
    "lunarlander": Task("LunarLander-v3", "lunarlander", _OURS.format("lunarlander"), 200_000),
    "lunarlander_ppo": Task(
        "LunarLander-v3",
        "sb3/ppo-LunarLander-v2.zip",
        _ZOO.replace("DQN", "PPO"),
        200_000,
        label="LunarLander-v3, PPO",
    ),
    "highway": Task("envpool/highway-fast-v0", "highway", _OURS.format("highway"), 120_000, num_episodes=50),
    "pong": Task("ALE/Pong-v5", "atari/pong", "RLlib DQN, NatureCNN", 600_000, "atari.py", _STEADY, num_episodes=30),
    "breakout": Task(
        "ALE/Breakout-v5",
        "atari/breakout",
        "RLlib DQN, NatureCNN",
        _BREAKOUT_ENV_STEPS,
        "atari.py",
        _STEADY,
        training={
            "lr": [[0, 1e-3], [_BREAKOUT_ENV_STEPS, 1e-4]],
            "train_batch_size_per_learner": 32,
            "epsilon": 0.02,  # with 0.05 games end early, and their later states are seen too seldom
            "replay_buffer_config": {"capacity": 400_000},
        },
        epsilon=0.005,  # as when the teacher's score was measured: without it, the teacher stands still in most games
    ),
}


@dataclass(frozen=True)
class Row:
    """A family of students, trained on the same states with every seed.

    Args:
        task: a name of `TASKS`.
        students: their model configs by name, as in `.distillation(students=...)`.
        settings: settings of `.distillation()`, beside the task's own.
        num_seeds: number of its seeds by default; seed i trains with `seed=i`.
    """

    task: str
    students: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    num_seeds: int = 5


MLPS: dict[str, Any] = {
    str(n): {"fcnet_hiddens": [n], "fcnet_activation": activation_for([n])} for n in (64, 32, 16, 8)
}
MLPS["linear"] = "linear"
_CNNS: dict[str, Any] = {f"net{n}": f"rusu-net{n}" for n in (1, 2, 3)}
_CNNS["percent1"] = {"compression": 0.01}
#: What of them learns together: the more in one run, the longer it takes.
_GAMES = {
    "pong-small": ("net3", "percent1"),
    "pong-large": ("net1", "net2"),
    **{f"breakout-{student}": (student,) for student in _CNNS},
}
_GAME_SETTINGS: dict[str, dict[str, Any]] = {
    "pong": {},
    "breakout": {
        # Small students cannot follow the teacher everywhere: better one good action than a share of every good one.
        "loss": "reverse_kl",
        "temperature": 0.1,
        # A student that plays alone meets its own mistakes. With the teacher in half of the steps, they are corrected
        # before they cost a ball.
        "teacher_fraction": [[0, 1.0], [50_000, 0.5], [_BREAKOUT_ENV_STEPS, 0.0]],
    },
}


def _rows() -> dict[str, Row]:
    rows = {
        f"{task}-{loss}-{states}": Row(task, MLPS, {"loss": loss, "rollout_policy": states})
        for task in ("cartpole", "acrobot", "mountaincar", "lunarlander")
        for loss in ("kl", "mse")
        for states in ("mixture", "student", "teacher")
    }
    for task in ("lunarlander_ppo", "highway"):
        rows[f"{task}-kl-mixture"] = Row(task, MLPS, {"loss": "kl", "rollout_policy": "mixture"})
    for name, students in _GAMES.items():
        game = name.split("-")[0]
        rows[name] = Row(game, {student: _CNNS[student] for student in students}, _GAME_SETTINGS[game], num_seeds=1)
    return rows


ROWS = _rows()


# --- Measuring --------------------------------------------------------------------------------------------------------


def measure_seeds(file: Path, task: Task, row: Row, num_seeds: int, teacher: str, work: Path) -> None:
    """Measure a row's seeds that its file does not have, and print what its students reach.

    Args:
        file: of the row; written after each seed.
        task: of the row.
        row: the row.
        num_seeds: its seeds.
        teacher: its path.
        work: folder for checkpoints of what is running.
    """
    done: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"row": file.stem, "seeds": {}}
    done |= {"env": task.name, "source": task.source, "settings": dict(row.settings)}
    for seed in range(num_seeds):
        if str(seed) not in done["seeds"]:
            done["seeds"][str(seed)] = measure(task, row, seed, teacher, work / f"{file.stem}-{seed}")
            partial = file.with_suffix(".partial")
            partial.write_text(json.dumps(done))
            partial.replace(file)
        students = done["seeds"][str(seed)]["students"]
        ratios = "  ".join(f"{student}: {c['return_ratio']:.3f}" for student, c in students.items())
        print(f"{file.stem}, seed {seed}: {ratios}", flush=True)


def measure(task: Task, row: Row, seed: int, teacher: str, work: Path) -> dict[str, Any]:
    """Train the students of a row with one seed, and let them play.

    Args:
        task: of the row.
        row: the row.
        seed: seed of the training.
        teacher: its path.
        work: folder for checkpoints, which is removed at the end.

    Returns:
        The comparison of each student with its teacher, and what the training took.
    """
    env, env_config = pools.played(task.env, task.env_config)
    settings = {"teacher": teacher, "student": None, "students": dict(row.students), **row.settings}
    config = task.config().distillation(**settings).debugging(seed=seed)
    algo = config.build_algo()
    try:
        seconds = _train(algo, task.env_steps, work)
        folders = algo.save_to_path(str(work / "end"))
        paths = {student: f"{folders}/learner_group/learner/rl_module/{student}" for student in row.students}
        comparisons = compare_all(
            teacher,
            paths,
            env,
            env_config=env_config,
            num_episodes=task.num_episodes,
            seed=FIRST_SEED,
            epsilon=task.epsilon,
            progress=True,
        )
        measured = {
            "env_steps": algo.num_env_steps,
            "gradient_steps": algo.num_gradient_steps,
            "seconds": round(seconds, 1),
            "machine": machine(),
            "students": {comparison.student.name: comparison.to_dict() for comparison in comparisons},
        }
    finally:
        algo.stop()
    shutil.rmtree(work)
    return measured


def _train(algo: Any, env_steps: int, work: Path) -> float:
    """Train to the end, from the last checkpoint in `work` if there is one; returns seconds of training."""
    clock, checkpoint = work / "seconds.json", work / "checkpoint"
    spent = 0.0
    if clock.exists():
        algo.restore_from_path(str(checkpoint))
        spent = json.loads(clock.read_text())
    start = saved = time.perf_counter()
    while algo.num_env_steps < env_steps:
        algo.train()
        now = time.perf_counter()
        if now - saved > SECONDS_BETWEEN_CHECKPOINTS:
            algo.save_to_path(str(checkpoint))
            clock.write_text(json.dumps(spent + now - start))
            saved = time.perf_counter()
    return spent + time.perf_counter() - start


def machine() -> dict[str, Any]:
    """Return the machine on which it was measured."""
    names = ("ray", "torch", "gymnasium", "numpy")
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def teacher_path(task: Task, teachers: Path | None) -> str | None:
    """Return the path of a task's teacher; None if it is missing."""
    if task.teacher == "cartpole":
        return task.teacher
    path = teachers / task.teacher if teachers else None
    return str(path.resolve()) if path and path.exists() else None


def chosen(names: Sequence[str] | None) -> list[str]:
    """Return the rows that a name stands for: its own, or those that begin with it."""
    if not names:
        return list(ROWS)
    named = {name: [row for row in ROWS if row == name or row.startswith(f"{name}-")] for name in names}
    if unknown := [name for name, rows in named.items() if not rows]:
        raise SystemExit(f"There is no row {', '.join(unknown)}. There are: {', '.join(ROWS)}.")
    return [row for row in ROWS if any(row in rows for rows in named.values())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--teachers", type=Path, help="folder of the teachers")
    add("--only", nargs="+", metavar="ROW", help="a row, or all that begin with a name: acrobot, acrobot-kl")
    add("--seeds", type=int, help="of each row (default: 5; images: 1)")
    add("--work", type=Path, default=Path("~/rllib_kd_results"), help="folder for checkpoints of what is running")
    add("--list", action="store_true", help="print the names of the rows, and end")
    args = parser.parse_args()

    names = chosen(args.only)
    if args.list:
        print("\n".join(names))
        return
    torch.set_num_threads(1)
    start_ray()
    RESULTS.mkdir(exist_ok=True)
    for name in names:
        row = ROWS[name]
        task = TASKS[row.task]
        path = teacher_path(task, args.teachers)
        if path is None:
            print(f"{name}: left out, --teachers has no {task.teacher} ({task.source})")
            continue
        file, num_seeds = RESULTS / f"{name}.json", args.seeds or row.num_seeds
        measure_seeds(file, task, row, num_seeds, path, args.work.expanduser())
    ray.shutdown()
    print(write_page(RESULTS))


if __name__ == "__main__":
    main()
