"""What trees of one stream of states cost and reach, by how they are grown: to compare two versions of the package.

    python tests/benchmarks/tree_growth.py ENV TEACHER --states states.npz --rows rows.jsonl [--leaves 64]
        [--no-oblique] [--env-steps 60000] [--grown-on 60000 ...] [--seeds 4]

The first run trains a tree, and writes the states of its replay. Other versions, run with the same file, grow trees on
the same of them, 60,000 or so many as asked for (at most four in five). A row has the seconds of CPU time of one tree,
its Q-regret on the states that it was not grown on (return units), and its return ratio in episodes by which nothing
was chosen; for an environment of envpool, in envpool.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script: its own package, beside the installed one

from tests.benchmarks.tree_features import (  # isort: skip  # sets the threads
    FIRST_EPISODE,
    NUM_EPISODES,
    new_module,
    states_of,
    trained,
)
import numpy as np
import ray
import torch

from rllib_kd import load_teacher
from rllib_kd.algorithm.restarts import Players
from rllib_kd.certificates.games import Games
from rllib_kd.evaluation.validation import play_validation
from rllib_kd.learner.trees import MAX_STATES, VARIANTS
from rllib_kd.students.trees.growing import Grower, regrets

SHARE = 0.8


def q_regret(module: Any, obs: np.ndarray, labels: np.ndarray) -> float:
    """The mean Q-regret of a tree on some states."""
    actions = module.tree.actions[module.tree.leaves(module.features.values(obs))]
    return float(regrets(labels)[np.arange(len(obs)), actions].mean())


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each kind of growth and seed."""
    tree = {"max_leaf_nodes": args.leaves, "oblique": args.oblique}
    is_recorded = args.states.exists()
    algo = trained(args.env, args.teacher, tree, 1 if is_recorded else args.env_steps)
    if not is_recorded:
        obs, labels = states_of(algo)
        np.savez_compressed(args.states, obs=obs, labels=labels)
    recorded = np.load(args.states)
    obs, labels = recorded["obs"], recorded["labels"]
    modules, rows = {}, {}
    for most, (weighting, refine) in itertools.product(args.grown_on, VARIANTS):
        for seed in range(args.seeds):
            count = min(most, int(SHARE * len(obs)))
            chosen = np.random.default_rng(seed).choice(len(obs), count, replace=False)
            name, module = f"{count} {weighting} {refine} {seed}", new_module(algo.get_module(), tree)
            given = {"features": module.features, "max_leaf_nodes": args.leaves, "weighting": weighting}
            began = time.process_time()
            module.tree = Grower(obs[chosen], labels[chosen], seed=seed).grow(refine=refine, **given)
            seconds = time.process_time() - began
            regret = q_regret(module, *(np.delete(array, chosen, axis=0) for array in (obs, labels)))
            row = {"grown_on": count, "weighting": weighting, "refine": refine, "seed": seed}
            modules[name], rows[name] = module, {**row, "seconds": round(seconds, 2), "q_regret": round(regret, 4)}
    players = Players.of(algo.config, algo.get_copies(), algo.env_runner)
    assert players.make_env is not None
    played = play_validation(
        players.make_env, modules, players.pipeline, NUM_EPISODES, first_episode=FIRST_EPISODE
    ).returns
    games = Games(players.make_env, load_teacher(args.teacher), 0)
    teacher, random = games.validation_baselines(FIRST_EPISODE, NUM_EPISODES).mean(1)
    algo.stop()
    common = {"env": args.env, "leaves": args.leaves, "states": len(obs)}
    return [
        {**common, **row, "return_ratio": round(float((np.mean(played[name]) - random) / (teacher - random)), 3)}
        for name, row in rows.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env")
    parser.add_argument("teacher")
    parser.add_argument("--states", type=Path, required=True, help="file of the states, which the first run writes")
    parser.add_argument("--rows", type=Path, required=True, help="JSON, a line for each tree")
    parser.add_argument("--leaves", type=int, default=64)
    parser.add_argument("--oblique", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--env-steps", type=int, default=60_000)
    parser.add_argument("--grown-on", type=int, nargs="+", default=[MAX_STATES], help="states of a tree")
    parser.add_argument("--seeds", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    with args.rows.open("a") as file:
        for row in measure(args):
            print(row, flush=True)
            file.write(json.dumps(row) + "\n")
    ray.shutdown()


if __name__ == "__main__":
    main()
