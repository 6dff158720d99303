"""Whether envpool's environments are gymnasium's: one teacher plays episodes in both.

    python tests/benchmarks/pools.py FOLDER [--env LunarLander-v3] [--episodes 500] [--json FILE]

FOLDER holds the teachers of `learning.TASKS`. Each row has the mean returns and lengths with 95 % intervals, the
p-value of a Kolmogorov-Smirnov test of the returns, and the env steps/s of both with the teacher, on one thread. Needs
envpool.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script: its own package, beside the installed one

import gymnasium as gym
import numpy as np
import scipy.stats
import torch

from rllib_kd import load_teacher
from rllib_kd.environments.pools import Pool
from rllib_kd.evaluation.intervals import mean_and_ci95
from rllib_kd.teachers.base import Teacher
from tests.benchmarks.learning import TASKS

NUM_ENVS = 20


def play(
    make: Callable[[], gym.vector.VectorEnv], teacher: Teacher, num_episodes: int, seed: int = 7_000_000
) -> dict[str, Any]:
    """Returns and lengths of episodes, as many in each environment, and env steps/s.

    The order is that of their beginnings: an early end puts no episode first.
    """
    envs = make()
    due = np.full(NUM_ENVS, num_episodes // NUM_ENVS)
    running, lengths, begins = np.zeros(NUM_ENVS), np.zeros(NUM_ENVS, int), np.zeros(NUM_ENVS, bool)
    found: list[tuple[int, int, float, int]] = []  # episodes that are still due there, environment; return, length
    obs, _ = envs.reset(seed=seed)
    start, steps = time.perf_counter(), 0
    while due.any():
        actions = teacher.q_values(torch.from_numpy(np.asarray(obs, np.float32))).argmax(-1).numpy()
        obs, rewards, terminateds, truncateds, _ = envs.step(actions)
        running += np.where(begins, 0.0, rewards)  # the step after an end is the reset
        lengths += ~begins
        begins = terminateds | truncateds
        steps += NUM_ENVS
        for i in np.flatnonzero(begins & (due > 0)):
            found.append((-due[i], i, running[i], lengths[i]))
            due[i] -= 1
        running[begins], lengths[begins] = 0.0, 0
    rate = steps / (time.perf_counter() - start)
    envs.close()
    _, _, returns, counts = map(np.array, zip(*sorted(found), strict=True))
    return {"returns": returns, "lengths": counts, "rate": rate}


def row(env: str, teachers: Path, num_episodes: int) -> dict[str, Any]:
    teacher = load_teacher(teachers / TASKS[env])
    both = {
        "gymnasium": play(lambda: gym.make_vec(env, NUM_ENVS, vectorization_mode="sync"), teacher, num_episodes),
        "envpool": play(lambda: Pool(NUM_ENVS, name=env), teacher, num_episodes),
    }
    found: dict[str, Any] = {"env": env, "episodes": num_episodes}
    for name, played in both.items():
        for what in ("returns", "lengths"):
            mean, half = mean_and_ci95(played[what])
            found[f"{name}_{what}"] = f"{mean:.1f} ± {half:.1f}"
        found[f"{name}_steps_per_s"] = round(played["rate"])
    found["p"] = float(scipy.stats.ks_2samp(both["gymnasium"]["returns"], both["envpool"]["returns"]).pvalue)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teachers", type=Path)
    parser.add_argument("--env", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--episodes", type=int, default=500)
    parser.add_argument("--json", type=Path, help="where to write the rows")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for env in args.env:
        rows.append(row(env, args.teachers, args.episodes))
        print(json.dumps(rows[-1]), flush=True)
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
