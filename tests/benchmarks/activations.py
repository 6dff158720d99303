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
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import ray
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script: its own package, beside the installed one

from rllib_kd import load_teacher
from rllib_kd.certificates.games import Games
from rllib_kd.environments.making import env_maker
from rllib_kd.evaluation.playing import play
from rllib_kd.evaluation.policies import GreedyQ
from rllib_kd.networks.stacking import linears_of
from rllib_kd.shrink.candidates import mlp
from rllib_kd.shrink.training import Trainer, training_config
from rllib_kd.students.restarts import by_student
from tests.benchmarks.shrink_copies import FIRST_EPISODE, episodes, judged, write

COPIES = 8


def rows_of(args: argparse.Namespace, activation: str, seed: int) -> Iterator[dict[str, Any]]:
    """Train all sizes with one activation, let all copies play, and yield a row for each size."""
    teacher, make_env = load_teacher(args.teacher), env_maker(args.env, {})
    sizes = [mlp(hiddens, activation) for hiddens in args.hiddens]
    trainer = Trainer(training_config(teacher, args.env, {}, sizes, restarts=COPIES, seed=seed))
    began = time.perf_counter()
    trainer.train(lambda: trainer.env_steps >= args.env_steps, lambda: None)
    seconds, env_steps, modules = time.perf_counter() - began, trainer.env_steps, trainer.copies()
    trainer.stop()
    (states,) = play(make_env, GreedyQ(teacher), episodes(args.episodes), views=[teacher.start], chooses=True)[1]
    baselines = Games(make_env, teacher, seed).validation_baselines(FIRST_EPISODE, args.episodes)
    for found in judged(modules, make_env, baselines):
        yield {
            "env": args.env,
            "teacher_return": round(float(baselines[0].mean()), 2),
            "seed": seed,
            "activation": activation,
            "env_steps": env_steps,
            "seconds": round(seconds, 1),
            "silent_units": sum(silent_units(modules[name], states) for name in by_student(modules)[found["size"]]),
            **found,
        }


@torch.no_grad()
def silent_units(module: Any, states: np.ndarray) -> int:
    """Return how many units of the first layer are 0 or below before their activation in all states."""
    outputs = linears_of(module)[0](torch.as_tensor(states).flatten(1))
    return int((outputs.amax(0) <= 0).sum())


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
                write([row], args.csv)


if __name__ == "__main__":
    main()
