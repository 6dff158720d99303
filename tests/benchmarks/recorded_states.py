"""Students of recorded states beside those of an online run with as many steps.

    python tests/benchmarks/recorded_states.py FOLDER --rows rows.jsonl [--csv table.csv] [--env CartPole-v1]

FOLDER holds the teachers of `learning.TASKS`. 200,000 states are recorded once in each environment: of the teacher, of
a random policy, and of the teacher with random actions in 30 % of all steps. They are labelled by `LabelJob`. Students
of 32 units learn from them at the defaults, and from states of their own online. The last student of each seed is
judged, in episodes that nothing else has seen. A run that is in the rows already is not made again.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script: its own package, beside the installed one

import gymnasium as gym
import numpy as np
import torch

from rllib_kd import DistillDQNConfig, load_teacher
from rllib_kd.evaluation.sources import open_source
from rllib_kd.offline.job import LabelJob
from tests.benchmarks.learning import (
    TASKS,
    baselines,
    groups_of,
    measured,
    play_greedily,
    return_ratio,
    show,
    study_parser,
    summary,
)

STATES = 200_000
NUM_EPISODES = 100
NUM_ENVS = 8
FILES = 4

#: Share of random actions of who was recorded; None: nobody, the student learns online.
SOURCES = {"online": None, "teacher": 0.0, "mixture": 0.3, "random": 1.0}


def record(env: str, epsilon: float, teacher: Path, folder: Path) -> Path:
    """Folder of labelled files with the states of an ε-greedy teacher, made if it is not there."""
    labelled = folder / f"{env}-{epsilon}"
    if labelled.exists():
        return labelled
    raw = folder / f"{env}-{epsilon}-raw"
    raw.mkdir(parents=True, exist_ok=True)
    network = load_teacher(teacher)
    envs = gym.make_vec(env, num_envs=NUM_ENVS, vectorization_mode="sync")
    rng = np.random.default_rng(0)
    obs, _ = envs.reset(seed=2_000_000)
    states = np.empty((STATES // NUM_ENVS, *obs.shape), np.float32)
    for step in range(len(states)):
        states[step] = obs
        greedy = network.q_values(torch.from_numpy(states[step])).argmax(-1).numpy()
        drawn = rng.integers(int(network.action_space.n), size=NUM_ENVS)
        obs, *_ = envs.step(np.where(rng.random(NUM_ENVS) < epsilon, drawn, greedy))
    envs.close()
    for i, part in enumerate(np.array_split(states.reshape(STATES, -1), FILES)):
        np.savez(raw / f"{i}.npz", obs=part)
    LabelJob(network, str(raw), str(labelled)).run()
    return labelled


def measure(env: str, source: str, seed: int, teachers: Path, folder: Path) -> dict[str, Any]:
    """A row: what the last student reached. Keys as in the rows of `learning.py`."""
    path = teachers / TASKS[env]
    teacher, random = baselines(env, path, NUM_EPISODES)
    config = DistillDQNConfig().rl_module(model_config={"fcnet_hiddens": [32]}).debugging(seed=seed)
    config.distillation(teacher=path, num_baseline_episodes=0)
    epsilon = SOURCES[source]
    if epsilon is None:
        config.environment(env)
    else:
        config.offline_data(input_=str(record(env, epsilon, path, folder)))
    algo = config.build_algo()
    try:
        while (result := algo.train())["num_env_steps_sampled_lifetime"] < STATES:
            pass
        returns = play_greedily(open_source(algo).network(), env, NUM_EPISODES)
        gradient_steps = algo.num_gradient_steps
    finally:
        algo.stop()
    return {
        "env": env,
        "hiddens": [32],
        "settings": [["states", source]],
        "env_steps": STATES,  # the end of the iteration in which they are reached
        "gradient_steps": gradient_steps,
        "num_episodes": NUM_EPISODES,
        "curve": 0,
        "seed": seed,
        "agreement": float((result["distillation"] | result["learners"]["default_policy"])["teacher_agreement"]),
        "teacher_returns": teacher.tolist(),
        "random_returns": random.tolist(),
        "returns": returns.tolist(),
        "return_ratio": float(return_ratio(returns, teacher, random)),
    }


def main() -> None:
    parser = study_parser(__doc__, TASKS, range(100, 105))
    parser.add_argument("--states", type=Path, default=Path("recorded_states"), help="where recorded files are kept")
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=list(SOURCES))
    args = parser.parse_args()

    runs = {
        json.dumps(run): partial(measure, *run, args.teachers, args.states)
        for run in product(args.env, args.sources, args.seeds)
    }
    groups = groups_of(measured(args.rows, runs))
    show([line | {"agreement": _mean_agreement(group)} for group in groups for line in summary(group)], args.csv)


def _mean_agreement(group: list[dict[str, Any]]) -> float:
    return round(float(np.mean([row["agreement"] for row in group])), 4)


if __name__ == "__main__":
    main()
