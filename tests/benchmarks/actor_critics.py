"""Students of actor-critics: 32 units, over training seeds, beside PPO, APPO and IMPALA.

    python tests/benchmarks/actor_critics.py FOLDER --rows rows.jsonl [--csv table.csv] [--teacher ppo-CartPole-v1.zip]

FOLDER holds the zips of Stable-Baselines3's zoo. RLlib's own teachers are trained on CartPole by this command, into the
same folder if they are not there. Each student learns at the defaults for 100,000 env steps; its last state and the
teacher, which always takes its most likely action, then play the same 500 episodes, which nothing else has seen. A run
that is in the rows already is not made again.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script: its own package, beside the installed one

import numpy as np
from ray.tune.registry import get_trainable_cls

from rllib_kd import DistillDQNConfig
from rllib_kd.evaluation.sources import open_source
from tests.benchmarks.learning import (
    baselines,
    bootstrap_interval,
    interval_over_seeds,
    measured,
    play_greedily,
    return_ratio,
    show,
    study_parser,
)

ENV_STEPS = 100_000
NUM_EPISODES = 500
STUDENT = {"fcnet_hiddens": [32], "fcnet_activation": "relu"}
ZOO = {
    "ppo-CartPole-v1.zip": "CartPole-v1",
    "ppo-Acrobot-v1.zip": "Acrobot-v1",  # with the running statistics of its observations beside it
    "ppo-LunarLander-v2.zip": "LunarLander-v3",
}
#: Algorithm and env steps of RLlib's own; but for the networks' size, their settings are RLlib's defaults.
TRAINED = {"PPO": 200_000, "APPO": 200_000, "IMPALA": 400_000}
TEACHERS = ZOO | dict.fromkeys(TRAINED, "CartPole-v1")


def train(name: str, folder: Path) -> None:
    """Train an algorithm of RLlib, and save the iteration with the best mean return of its latest episodes."""
    config = get_trainable_cls(name).get_default_config().environment("CartPole-v1").debugging(seed=0)
    config.env_runners(num_env_runners=0, num_envs_per_env_runner=8).learners(num_learners=0)
    config.rl_module(model_config={"fcnet_hiddens": [64, 64], "vf_share_layers": name == "IMPALA"})
    algo = config.build_algo()
    best, sampled = -np.inf, 0
    try:
        while sampled < TRAINED[name]:
            result = algo.train()
            sampled = int(result["env_runners"].get("num_env_steps_sampled_lifetime", sampled))
            reached = result["env_runners"].get("episode_return_mean", -np.inf)
            if reached > best:
                best = reached
                algo.save_to_path(str(folder / name))
    finally:
        algo.stop()


def measure(name: str, seed: int, folder: Path) -> dict[str, Any]:
    """A row: what a student and its teacher reached."""
    if name in TRAINED and not (folder / name).exists():
        train(name, folder)
    env = TEACHERS[name]
    teacher, random = baselines(env, folder / name, NUM_EPISODES)
    config = DistillDQNConfig().environment(env).rl_module(model_config=STUDENT).debugging(seed=seed)
    algo = config.distillation(teacher=folder / name, num_baseline_episodes=0).build_algo()
    try:
        while algo.train()["num_env_steps_sampled_lifetime"] < ENV_STEPS:
            pass
        student = play_greedily(open_source(algo).network(), env, NUM_EPISODES)
    finally:
        algo.stop()
    returns = {"returns": student, "teacher_returns": teacher, "random_returns": random}
    return {"teacher": name, "env": env, "seed": seed, **{key: value.tolist() for key, value in returns.items()}}


def line(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A line of the table: the seeds of one teacher."""
    students, teacher, random = (
        np.array(values)
        for values in ([row["returns"] for row in rows], rows[0]["teacher_returns"], rows[0]["random_returns"])
    )
    ratios = return_ratio(students, teacher, random)
    found = {"teacher": rows[0]["teacher"], "env": rows[0]["env"], "seeds": len(rows)}
    found |= {"teacher_return": round(teacher.mean(), 2), "student_return": round(students.mean(), 2)}
    found |= {"ratios": " ".join(f"{ratio:.3f}" for ratio in ratios), "ratio": round(ratios.mean(), 4)}
    if len(rows) > 1:
        found["ratio_lower_t"] = round(interval_over_seeds(ratios)[1], 4)
        found["ratio_lower_bootstrap"] = round(bootstrap_interval(students, teacher, random)[0], 4)
    return found


def main() -> None:
    parser = study_parser(__doc__, set(TEACHERS.values()), range(5))
    parser.add_argument("--teacher", nargs="+", choices=TEACHERS, default=list(TEACHERS))
    args = parser.parse_args()
    teachers = [name for name in args.teacher if TEACHERS[name] in args.env]
    runs = {json.dumps(run): partial(measure, *run, args.teachers) for run in product(teachers, args.seeds)}
    rows = measured(args.rows, runs)
    show([line([row for row in rows if row["teacher"] == name]) for name in teachers], args.csv)


if __name__ == "__main__":
    main()
