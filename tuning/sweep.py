"""How small can the student be? A sweep by Ray Tune, whose result is the Pareto front of size and return.

python tuning/sweep.py --teacher cartpole --env CartPole-v1 [--address auto] [--num-samples 16] [--resume]
"""

from __future__ import annotations

import argparse
import logging
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rllib_kd import Sweep, sweep_loggers
from rllib_kd.environments.own import given_environment
from rllib_kd.experiment.files import parse_json
from rllib_kd.relay import printed_warnings
from rllib_kd.text import one_line, printable


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    teacher_help = "path or URI of a checkpoint, or 'cartpole'; read on this machine only; several are an ensemble"
    add("--teacher", required=True, action="append", help=teacher_help)
    add("--env", required=True, help="a gymnasium id, or FILE.py:Class")
    add("--import", action="append", dest="imports", metavar="FILE", help="file or module to import first; repeat")
    add("--address", help="Ray cluster to join: auto, or HOST:PORT; default: a Ray of its own on this machine")
    add("--num-samples", type=int, default=16, help="settings to try (default: 16)")
    add("--num-seeds", type=int, default=3, help="students of each setting, whose mean counts (default: 3)")
    add("--env-steps", type=int, default=20_000, help="that each student is trained for (default: 20,000)")
    add("--search", choices=("optuna", "random"), help="default: optuna; random with a scheduler")
    add("--scheduler", choices=("asha", "pbt", "none"), default="none")
    add("--config", default="{}", help='settings of all students, as JSON: {"loss": "kl"}; they are not searched')
    add("--space", help="Python file with a search_space(), like tuning/search_space.py")
    add("--storage-path", help="folder or URI of all results (default: ~/ray_results)")
    add("--name", help="of the sweep's folder there (default: sweep-ENV)")
    add("--resume", action="store_true", help="go on with the sweep of this name")
    add("--seed", type=int, default=0, help="of the search, and of the first student")
    add("--wandb-project", help="log to Weights & Biases too")
    add("--mlflow-uri", help="log to this MLflow tracking URI too: http://HOST:PORT, sqlite:///FILE")
    return parser.parse_args()


def read_space(path: str) -> Callable[..., Any]:
    if not Path(path).is_file():
        raise ValueError(f"--space: there is no file '{path}'.")
    space = runpy.run_path(path).get("search_space")
    if space is None:
        raise ValueError(f"--space: '{path}' defines no search_space(). tuning/search_space.py is an example.")
    return space


def main() -> None:
    args = parse()
    for name in ("ray.rllib", "ray._common.deprecation"):  # RLlib's notes on its own deprecations
        logging.getLogger(name).setLevel(logging.ERROR)
    start = time.perf_counter()
    optional: dict[str, Any] = {"space": read_space(args.space)} if args.space else {}
    sweep = Sweep(
        teacher=args.teacher[0] if len(args.teacher) == 1 else args.teacher,
        env=str(given_environment(args.env, args.imports or ())),
        num_samples=args.num_samples,
        search=args.search,
        scheduler=args.scheduler,
        num_seeds=args.num_seeds,
        env_steps=args.env_steps,
        config=parse_json(args.config, "--config"),
        storage_path=args.storage_path,
        name=args.name,
        seed=args.seed,
        callbacks=sweep_loggers(wandb_project=args.wandb_project, mlflow_uri=args.mlflow_uri),
        **optional,
    )
    result = sweep.run(resume=args.resume, address=args.address)
    print(result)
    seconds = time.perf_counter() - start
    print(f"\n{printable(sweep.path)}/report/index.html, pareto.png, sweep.csv, sweep.json ({seconds:.0f} s)")
    if not result.is_complete:
        sys.exit(1)


if __name__ == "__main__":
    try:
        with printed_warnings():
            main()
    except (ValueError, OSError) as error:  # the latter of storage
        sys.exit(f"error: {one_line(error)}")
