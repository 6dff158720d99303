"""What students of an Atari teacher reach with the defaults, while they learn.

    python tests/benchmarks/atari.py GAME TEACHER --out FOLDER [--env-steps 1800000] [--every 300000]
        [--student rusu-net3 ...] [--seed 0] [--games 50] [--settings '{"max_regret": 10}']
        [--training '{"training_intensity": 8}'] [--restore FOLDER/600000] [--sticky 0.25] [--epsilon 0.005]

GAME is a name such as SpaceInvaders. By default actions never stick; `--sticky` is the probability that one does, in
training and in the games that judge. One EnvRunner labels states while the Learner learns, so that two cores are busy.
Several students learn in one run, as a family. Every so many env steps they are saved under FOLDER; then students,
teacher and a random policy play the same games, with seeds that no training used, and teacher and students with a share
`--epsilon` of random actions. Rows, one of each student, are printed and appended to FOLDER/rows.jsonl as they come:
env steps, seconds of training, return ratio, and both policies' mean returns with the half width of their 95 %
intervals. `--restore` goes on from such a checkpoint, with a replay that is empty at first.
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

from rllib_kd import DistillDQNConfig, compare_all, load_teacher

FIRST_GAME_SEED = 7_000_000
#: Arguments that rows have.
SETTINGS = ("seed", "sticky", "epsilon", "settings", "training")


def config_of(game: str, args: argparse.Namespace) -> DistillDQNConfig:
    """The defaults, and what a run on images needs beside them."""
    config = (
        DistillDQNConfig()
        .environment(f"ALE/{game}-v5", env_config={"repeat_action_probability": args.sticky})
        .env_runners(num_env_runners=1)
        .distillation(teacher=args.teacher, num_baseline_episodes=0, **students_of(args), **args.settings)
        .training(**args.training)
        .reporting(min_sample_timesteps_per_iteration=20_000)
        .debugging(seed=args.seed)
    )
    config.store_buffer_in_checkpoints = False
    return config


def students_of(args: argparse.Namespace) -> dict[str, Any]:
    """One student, or a family, whose members have the names of their networks."""
    first, *others = args.student
    return {"students": {name: name for name in args.student}} if others else {"student": first}


def judged(game: str, args: argparse.Namespace, teacher: Any, checkpoint: Path) -> list[dict[str, Any]]:
    """How the students of a checkpoint play, beside their teacher."""
    family = checkpoint / "learner_group" / "learner" / "rl_module"
    results = compare_all(
        teacher,
        {name: str(family / name if len(args.student) > 1 else checkpoint) for name in args.student},
        f"ALE/{game}-v5",
        num_episodes=args.games,
        seed=FIRST_GAME_SEED,
        epsilon=args.epsilon,
        env_config={"repeat_action_probability": args.sticky},
    )
    return [
        {
            "student": result.student.name,
            "return_ratio": result.return_ratio,
            "student_return": result.student.return_mean,
            "student_ci95": result.student.return_ci95,
            "teacher": result.teacher.return_mean,
            "teacher_ci95": result.teacher.return_ci95,
            "q_regret_on_student_states": result.q_regret_on_student_states,
        }
        for result in results
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("game")
    parser.add_argument("teacher")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--env-steps", type=int, default=1_800_000)
    parser.add_argument("--every", type=int, default=300_000, help="env steps between the students that are judged")
    parser.add_argument("--student", nargs="+", default=["rusu-net3"])
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
            checkpoint = args.out.resolve() / str(due)
            algo.save_to_path(str(checkpoint))
            run = {"game": args.game} | {name: vars(args)[name] for name in SETTINGS}
            run |= {"env_steps": env_steps, "seconds": round(training)}
            for result in judged(args.game, args, teacher, checkpoint):
                row = json.dumps(run | result)
                print(row, flush=True)
                with (args.out / "rows.jsonl").open("a") as file:
                    file.write(row + "\n")
            due += args.every
    finally:
        algo.stop()
        ray.shutdown()


if __name__ == "__main__":
    main()
