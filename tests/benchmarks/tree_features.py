"""Which features an oblique tree needs: trees of one stream of states, which may compare differences, sums, products.

    python tests/benchmarks/tree_features.py ENV TEACHER --rows rows.jsonl [--leaves 64] [--env-steps 120000]
        [--seeds 3]

An oblique tree is trained on so many env steps. From the states of its replay, trees are grown with each set of
features, refined and uniformly weighted, on 60,000 other states with each seed. They play episodes by which nothing was
chosen; for an environment of envpool, in envpool. A row has the mean return of each tree, and its parameters.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script: its own package, beside the installed one

import numpy as np
import ray
import torch

from rllib_kd import DistillDQNConfig, load_teacher
from rllib_kd.algorithm.restarts import Players
from rllib_kd.certificates.games import Games
from rllib_kd.evaluation.validation import play_validation
from rllib_kd.learner.trees import MAX_STATES
from rllib_kd.networks.dqn_module import student_module_spec
from rllib_kd.students.trees.growing import Grower

FEATURES: dict[str, Any] = {
    "entries": False,
    "differences": ["differences"],
    "differences, products": ["differences", "products"],
    "differences, sums": ["differences", "sums"],
    "all": True,
}
FIRST_EPISODE, NUM_EPISODES = 10_000, 200


def new_module(like: Any, tree: Mapping[str, Any]) -> Any:
    """A tree without tests, for the spaces of a module."""
    spec = student_module_spec({"tree": dict(tree)})
    spec.observation_space, spec.action_space, spec.inference_only = like.observation_space, like.action_space, True
    return spec.build()


def trained(env: str, teacher: str, tree: Mapping[str, Any], env_steps: int) -> Any:
    """An algorithm that has trained a tree on so many env steps."""
    config = DistillDQNConfig().environment(env).debugging(seed=0)
    config.distillation(teacher=teacher, student={"tree": dict(tree)}, num_baseline_episodes=0)
    algo = config.build_algo()
    while algo.num_env_steps < env_steps:
        algo.train()
    return algo


def states_of(algo: Any) -> tuple[np.ndarray, np.ndarray]:
    """Observations and labels of its replay."""
    (replay,) = algo.learner_group.foreach_learner(lambda learner: learner.replay_arrays()).result_or_errors
    columns = {name.rpartition("columns/")[2]: own for name, own in replay.get().items()}
    return columns["obs"], columns["teacher_q"]


def measure(env: str, teacher: str, *, leaves: int, env_steps: int, seeds: int) -> list[dict[str, Any]]:
    """A row for each set of features and seed, and one for teacher and random policy."""
    tree = {"max_leaf_nodes": leaves, "oblique": True}
    algo = trained(env, teacher, tree, env_steps)
    obs, labels = states_of(algo)
    players = Players.of(algo.config, algo.get_copies(), algo.env_runner)
    modules, keys = {}, {}
    for seed in range(seeds):
        chosen = np.random.default_rng(seed).choice(len(obs), min(MAX_STATES, len(obs)), replace=False)
        for name, oblique in FEATURES.items():
            module = new_module(algo.get_module(), {**tree, "oblique": oblique})
            given = {"features": module.features, "max_leaf_nodes": leaves, "weighting": "uniform"}
            module.tree = Grower(obs[chosen], labels[chosen], seed=seed).grow(**given)
            modules[f"{name} {seed}"], keys[f"{name} {seed}"] = module, {"features": name, "seed": seed}
            print(f"{name}, seed {seed}: {module.tree.num_leaves} leaves", flush=True)
    assert players.make_env is not None
    played = play_validation(
        players.make_env, modules, players.pipeline, NUM_EPISODES, first_episode=FIRST_EPISODE
    ).returns
    games = Games(players.make_env, load_teacher(teacher), 0)
    bounds = games.validation_baselines(FIRST_EPISODE, NUM_EPISODES).mean(1).round(2).tolist()
    algo.stop()
    common = {"env": env, "leaves": leaves, "teacher": bounds[0], "random": bounds[1]}
    rows = []
    for name, returns in played.items():
        result = {"return": round(float(np.mean(returns)), 2), "parameters": modules[name].num_parameters}
        rows.append({**common, **keys[name], **result})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env")
    parser.add_argument("teacher")
    parser.add_argument("--rows", type=Path, required=True, help="JSON, a line for each tree")
    parser.add_argument("--leaves", type=int, default=64)
    parser.add_argument("--env-steps", type=int, default=120_000)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    rows = measure(args.env, args.teacher, leaves=args.leaves, env_steps=args.env_steps, seeds=args.seeds)
    with args.rows.open("a") as file:
        for row in rows:
            print(row, flush=True)
            file.write(json.dumps(row) + "\n")
    ray.shutdown()


if __name__ == "__main__":
    main()
