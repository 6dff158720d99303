"""What students of an Atari teacher reach with the defaults, while they learn.

    python tests/benchmarks/atari.py GAME TEACHER --out FOLDER [--env-steps 1800000] [--every 300000]
        [--student rusu-net3] [--seed 0] [--games 50] [--settings '{"max_regret": 10}']
        [--training '{"training_intensity": 8}'] [--restore FOLDER/600000] [--sticky 0.25] [--epsilon 0.005]

GAME is a name such as SpaceInvaders. By default actions never stick; `--sticky` is the probability that one does, in
training and in the games that judge. One EnvRunner labels states while the Learner learns, so that two cores are busy.
Every so many env steps the student is saved under FOLDER; then student, teacher and a random policy play the same
games, with seeds that no training used, and teacher and student with a share `--epsilon` of random actions. Rows are
printed and appended to FOLDER/rows.jsonl as they come: env steps, seconds of training, return ratio, and both policies'
mean returns with the half width of their 95 % intervals. `--restore` goes on from such a student, with a replay that is
empty at first.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's default is 15: EnvRunners would starve beside the Learner

import ray
import torch

from rllib_kd import DistillDQNConfig, compare, load_teacher

FIRST_GAME_SEED = 7_000_000


def config_of(game: str, args: argparse.Namespace) -> DistillDQNConfig:
    """The defaults, and what a run on images needs beside them."""
    config = (
        DistillDQNConfig()
        .environment(f"ALE/{game}-v5", env_config={"repeat_action_probability": args.sticky})
        .env_runners(num_env_runners=1)
        .distillation(teacher=args.teacher, student=args.student, num_baseline_episodes=0, **args.settings)
        .training(**args.training)
        .reporting(min_sample_timesteps_per_iteration=20_000)
        .debugging(seed=args.seed)
    )
    config.store_buffer_in_checkpoints = False
    return config


def judged(game: str, args: argparse.Namespace, teacher: Any, student: Any) -> dict[str, float]:
    """How a student plays, beside its teacher."""
    result = compare(
        teacher,
        student,
        f"ALE/{game}-v5",
        num_episodes=args.games,
        seed=FIRST_GAME_SEED,
        epsilon=args.epsilon,
        env_config={"repeat_action_probability": args.sticky},
    )
    return {
        "return_ratio": result.return_ratio,
        "student": result.student.return_mean,
        "student_ci95": result.student.return_ci95,
        "teacher": result.teacher.return_mean,
        "teacher_ci95": result.teacher.return_ci95,
        "q_regret_on_student_states": result.q_regret_on_student_states,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("game")
    parser.add_argument("teacher")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--env-steps", type=int, default=1_800_000)
    parser.add_argument("--every", type=int, default=300_000, help="env steps between the students that are judged")
    parser.add_argument("--student", default="rusu-net3")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--games", type=int, default=50)
    parser.add_argument("--restore", type=Path, help="a student of an earlier run, to go on from")
    parser.add_argument("--sticky", type=float, default=0.0, help="probability that an action is repeated")
    parser.add_argument("--epsilon", type=float, default=0.005, help="share of random actions in the games that judge")
    parser.add_argument("--settings", type=json.loads, default={}, help="more of .distillation()")
    parser.add_argument("--training", type=json.loads, default={}, help="more of .training()")
    args = parser.parse_args()

    torch.set_num_threads(1)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    args.out.mkdir(parents=True, exist_ok=True)
    teacher = load_teacher(args.teacher)
    algo = config_of(args.game, args).build_algo()
    training = 0.0
    try:
        if args.restore:
            algo.restore_from_path(str(args.restore.resolve()))
        due = (algo.num_env_steps // args.every + 1) * args.every
        while due <= args.env_steps:
            began = time.perf_counter()
            env_steps = int(algo.train()["num_env_steps_sampled_lifetime"])
            training += time.perf_counter() - began
            if env_steps < due:
                continue
            algo.save_to_path(str(args.out.resolve() / str(due)))
            row: dict[str, Any] = {
                "game": args.game,
                "student": args.student,
                "seed": args.seed,
                "sticky": args.sticky,
                "epsilon": args.epsilon,
                "settings": args.settings,
                "training": args.training,
            }
            row |= {"env_steps": env_steps, "seconds": round(training)} | judged(args.game, args, teacher, algo)
            print(json.dumps(row), flush=True)
            with (args.out / "rows.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            due += args.every
    finally:
        algo.stop()
        ray.shutdown()


if __name__ == "__main__":
    main()
