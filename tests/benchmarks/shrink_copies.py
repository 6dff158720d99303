"""What the copies of a run of `rllib shrink` are worth at each comparison: to see what its choices miss.

    python tests/benchmarks/shrink_copies.py ENV TEACHER FOLDER --env-steps 600000 [--seed 0] [--hiddens [8] [16]]
        [--episodes 256] [--certify-in-pool] [--csv table.csv]

The run writes its files into FOLDER, which does not exist. Then all of its copies, as they were at each comparison,
play the same episodes, by which nothing was chosen. A row has the return ratios of a size's copies at one time, in the
order of the copies, and the standard error of one of them. `shrink_choice.py` takes the table.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from rllib_kd import Shrink, Teacher, load_teacher
from rllib_kd.certificates.games import Games
from rllib_kd.environments.making import env_maker
from rllib_kd.evaluation.comparing import check_players_fit
from rllib_kd.evaluation.playing import play
from rllib_kd.evaluation.policies import GreedyQ
from rllib_kd.evaluation.seeds import VALIDATION_SEED
from rllib_kd.shrink.candidates import mlp
from rllib_kd.shrink.progress import Progress
from rllib_kd.students.restarts import by_student

FIRST_EPISODE = 700_000  # of validation, where no run gets


def trained(args: argparse.Namespace) -> dict[int, Mapping[str, Any]]:
    """Run the command; return all copies by the env steps of training."""
    copies: dict[int, Mapping[str, Any]] = {}

    def save_copies(self: Progress, env_steps: int, modules: Mapping[str, Any]) -> None:
        copies[env_steps] = modules
        save(self, env_steps, modules)

    save, limits = Progress.save_copies, {"env_steps": args.env_steps, "certify_in_pool": args.certify_in_pool}
    sizes = None if args.hiddens is None else {one.name: one.shape for one in map(mlp, args.hiddens)}
    with patch.object(Progress, "save_copies", save_copies):
        result = Shrink(args.teacher, args.env, seed=args.seed, sizes=sizes, out=args.folder, **limits).run()
    print(result.verdict)
    return copies


def rows_of(copies: Mapping[int, Mapping[str, Any]], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Let all copies play; a row for each time and size."""
    make_env, rows = env_maker(args.env, {}), []
    games = Games(make_env, load_teacher(args.teacher), args.seed)
    baselines = games.validation_baselines(FIRST_EPISODE, args.episodes)
    for env_steps, modules in copies.items():
        for found in judged(modules, make_env, baselines):
            row = {"env": args.env, "seed": args.seed, "sizes": len(by_student(modules)), "env_steps": env_steps}
            rows.append(row | found)
            print(json.dumps(rows[-1]), flush=True)
    return rows


def judged(modules: Mapping[str, Any], make_env: Any, baselines: np.ndarray) -> Iterator[dict[str, Any]]:
    """Let copies play the episodes of `baselines` (teacher, random policy) `[2, n]`, and yield a row for each size."""
    (teacher, random), count = baselines, baselines.shape[1]
    scale = teacher.mean() - random.mean()
    players = {name: Teacher(module, source=name) for name, module in modules.items()}
    fitted = dict(zip(players, check_players_fit(make_env, players), strict=True))
    for size, names in by_student(modules).items():
        gains = [(_returns(make_env, fitted[name], count) - teacher) / scale for name in names]
        ratios = [1 + float(np.mean(own)) for own in gains]
        error = float(np.mean([np.std(own) for own in gains])) / count**0.5
        yield {
            "size": size,
            "mean": round(float(np.mean(ratios)), 3),
            "best": round(max(ratios), 3),
            "standard_error": round(error, 3),
            "ratios": " ".join(f"{one:.3f}" for one in ratios),
        }


def _returns(make_env: Any, player: Any, count: int) -> np.ndarray:
    return np.array(play(make_env, GreedyQ(player), episodes(count), chooses=True)[0])


def episodes(count: int) -> range:
    """Return the seeds of so many episodes by which nothing was chosen."""
    return range(VALIDATION_SEED + FIRST_EPISODE, VALIDATION_SEED + FIRST_EPISODE + count)


def write(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Add rows to a table."""
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env")
    parser.add_argument("teacher")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--env-steps", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hiddens", nargs="+", type=json.loads, help="sizes (default: those of rllib shrink)")
    parser.add_argument("--episodes", type=int, default=256)
    parser.add_argument("--certify-in-pool", action="store_true")
    parser.add_argument("--csv", type=Path, help="table that the rows are added to")
    args = parser.parse_args()
    rows = rows_of(trained(args), args)
    if args.csv is not None:
        write(rows, args.csv)


if __name__ == "__main__":
    main()
