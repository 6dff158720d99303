"""What copies of small students are worth, by the activation of their hidden layers.

    python tests/benchmarks/activations.py ENV TEACHER --env-steps 100000 [--seeds 0 1] [--hiddens [16] [32] [64]]
        [--activations tanh relu] [--episodes 256] [--csv table.csv]

One run for each seed and activation trains all sizes, eight copies of each, as `rllib shrink` does. Then all copies
play the same episodes, by which nothing was chosen. A row has the return ratios of a size's copies, in the order of the
copies, the standard error of one of them, and how many units of the first layer are 0 or below before their activation
in all states of the teacher's episodes, of all copies: with relu, nothing reaches them any more. ENV may be one of
envpool's.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import ray
import torch

from rllib_kd import Teacher, load_teacher
from rllib_kd.certificates.games import Games
from rllib_kd.environments.making import env_maker
from rllib_kd.evaluation.comparing import check_players_fit
from rllib_kd.evaluation.playing import play
from rllib_kd.evaluation.policies import GreedyQ
from rllib_kd.evaluation.seeds import VALIDATION_SEED
from rllib_kd.networks.stacking import linears_of
from rllib_kd.shrink.candidates import Size, mlp
from rllib_kd.shrink.training import Trainer, training_config
from rllib_kd.students.restarts import by_student

FIRST_EPISODE = 700_000  # of validation, where no run gets
COPIES = 8


def rows_of(args: argparse.Namespace, activation: str, seed: int) -> Iterator[dict[str, Any]]:
    """Train all sizes with one activation, let all copies play, and yield a row for each size."""
    teacher, make_env = load_teacher(args.teacher), env_maker(args.env, {})
    sizes = [_with_activation(mlp(hiddens), activation) for hiddens in args.hiddens]
    trainer = Trainer(training_config(teacher, args.env, {}, sizes, restarts=COPIES, seed=seed))
    began = time.perf_counter()
    trainer.train(lambda: trainer.env_steps >= args.env_steps, lambda: None)
    seconds, env_steps, modules = time.perf_counter() - began, trainer.env_steps, trainer.copies()
    trainer.stop()
    seeds = range(VALIDATION_SEED + FIRST_EPISODE, VALIDATION_SEED + FIRST_EPISODE + args.episodes)
    (states,) = play(make_env, GreedyQ(teacher), seeds, views=[teacher.start], chooses=True)[1]
    baseline, random = Games(make_env, teacher, seed).validation_baselines(FIRST_EPISODE, args.episodes)
    scale = baseline.mean() - random.mean()
    players = {name: Teacher(module, source=name) for name, module in modules.items()}
    fitted = dict(zip(players, check_players_fit(make_env, players), strict=True))
    for size, names in by_student(modules).items():
        played = [np.array(play(make_env, GreedyQ(fitted[name]), seeds, chooses=True)[0]) for name in names]
        gains = [(returns - baseline) / scale for returns in played]
        ratios = [1 + float(np.mean(own)) for own in gains]
        yield {
            "env": args.env,
            "teacher_return": round(float(baseline.mean()), 2),
            "seed": seed,
            "size": size,
            "activation": activation,
            "env_steps": env_steps,
            "seconds": round(seconds, 1),
            "mean": round(float(np.mean(ratios)), 3),
            "best": round(max(ratios), 3),
            "standard_error": round(float(np.mean([np.std(own) for own in gains])) / args.episodes**0.5, 3),
            "silent_units": sum(silent_units(modules[name], states) for name in names),
            "ratios": " ".join(f"{one:.3f}" for one in ratios),
        }


@torch.no_grad()
def silent_units(module: Any, states: np.ndarray) -> int:
    """Return how many units of the first layer are 0 or below before their activation in all states."""
    outputs = linears_of(module)[0](torch.as_tensor(states).flatten(1))
    return int((outputs.amax(0) <= 0).sum())


def _with_activation(size: Size, activation: str) -> Size:
    assert not isinstance(size.shape, str)
    return size._replace(shape={**size.shape, "fcnet_activation": activation})


def write(row: dict[str, Any], path: Path) -> None:
    """Add a row to a table."""
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the rows as they are measured, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env")
    parser.add_argument("teacher")
    parser.add_argument("--env-steps", type=int, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--hiddens", nargs="+", type=json.loads, default=[[16], [32], [64]])
    parser.add_argument("--activations", nargs="+", default=["tanh", "relu"])
    parser.add_argument("--episodes", type=int, default=256)
    parser.add_argument("--csv", type=Path, help="table that the rows are added to")
    args = parser.parse_args(arguments)
    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    for seed, activation in itertools.product(args.seeds, args.activations):
        for row in rows_of(args, activation, seed):
            print(json.dumps(row), flush=True)
            if args.csv is not None:
                write(row, args.csv)


if __name__ == "__main__":
    main()
