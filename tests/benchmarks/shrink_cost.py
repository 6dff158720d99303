"""What an env step of `rllib shrink` costs, by who rests.

    python tests/benchmarks/shrink_cost.py ENV TEACHER [--iterations 5]

Prints a row for all copies of the default sizes, for half of each size's copies, and for those halves of the three
sizes around 16 units: CPU time of an env step with its gradient steps, ms.
"""

from __future__ import annotations

import argparse
import json
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import ray

from rllib_kd import load_teacher
from rllib_kd.environments.making import close, env_maker
from rllib_kd.shrink.candidates import default_restarts, default_sizes
from rllib_kd.shrink.training import Trainer, running, training_config
from rllib_kd.students.restarts import copy_number, student_of


def milliseconds(trainer: Trainer, iterations: int) -> float:
    """Return the CPU time of an env step: ms."""

    def train(number: int) -> None:
        left = iter([False] * number + [True])
        trainer.train(lambda: next(left), lambda: None)

    train(1)
    before, began = trainer.env_steps, time.process_time()
    train(iterations)
    return 1_000 * (time.process_time() - began) / (trainer.env_steps - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env")
    parser.add_argument("teacher")
    parser.add_argument("--iterations", type=int, default=5)
    args = parser.parse_args()
    ray.init("local", include_dashboard=False, log_to_driver=False)
    teacher = load_teacher(args.teacher)
    env = env_maker(args.env, {})()
    sizes, restarts = default_sizes(teacher, env.observation_space), default_restarts(env.observation_space)
    close(env)
    with running(training_config(teacher, args.env, {}, sizes, restarts=restarts, seed=0)) as trainer:
        copies = list(trainer.copies())
        half = [name for name in copies if copy_number(name) < restarts / 2]
        middle = [name for name in half if student_of(name) in ("units-11", "units-16", "units-23")]
        for learning in (copies, half, middle):
            trainer.prefer([], resting=[name for name in copies if name not in learning])
            row = {"env": args.env, "copies": len(learning), "cpu_ms": round(milliseconds(trainer, args.iterations), 3)}
            print(json.dumps(row), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
