"""What students of highway-fast-v0 reach, sampled and judged in envpool's environment.

    python tests/benchmarks/highway.py TEACHER --rows rows.jsonl [--seeds 0 1 2 3 4] [--units 32 16] [--leaves 64]
        [--env-steps 100000 200000] [--episodes 400] [--keep 0.9 --certificate-episodes 4000]

TEACHER is the experiment of tuning/highway_teacher.py. Each student learns alone, with the defaults: networks of one
hidden layer, and oblique trees of 12 copies, chosen in 512 validation episodes. After so many env steps it plays
episodes that nothing else has seen, as do its teacher, a random policy, and one that always takes "slower", since that
one is hard to tell from a good one. With `--keep`, the last state of each student is tested as by `rllib shrink`, in
further episodes: whether its return ratio is at least so high, with a confidence of 95 %. Trees are compared there with
VIPER's plain recipe: four trees of 60,000 of the same states, since scikit-learn takes half a minute for one, chosen in
as many episodes. Needs envpool, highway-env and scikit-learn. A run that is in the rows already is not made again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script: its own package, beside the installed one

from tests.benchmarks.pools import NUM_ENVS, play  # isort: skip  # sets the threads
import highway_env  # noqa: F401  # registers the environment
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rllib_kd import DistillDQNConfig
from rllib_kd.algorithm.restarts import Players
from rllib_kd.certificates.certification import certify
from rllib_kd.environments.pools import Pool
from rllib_kd.evaluation.intervals import mean_and_ci95
from rllib_kd.evaluation.sources import open_source
from rllib_kd.evaluation.validation import play_validation
from rllib_kd.learner.trees import MAX_STATES
from tuning.trees import plain_trees

ENV = "highway-fast-v0"
NUM_ACTIONS = 5
SLOWER = 4
FIRST_SEED, FIRST_CERTIFICATE_SEED = 7_000_000, 8_000_000
NUM_VALIDATION_EPISODES = 512  # of trees


class Policy:
    """What `play()` calls a teacher."""

    def __init__(self, choose: Callable[[Tensor], Any]):
        self._choose = choose

    def q_values(self, obs: Tensor) -> Tensor:
        """Return 1 for the chosen action of each observation `[N, 5, 5]`, and 0 for the others."""
        return F.one_hot(torch.as_tensor(self._choose(obs)), NUM_ACTIONS)


def greedy(source: Any) -> Policy:
    """The network of a checkpoint or an algorithm, whose input is one vector."""
    network = open_source(source).network()
    return Policy(lambda obs: network.q_values(obs.flatten(1)).argmax(-1))


def returns_of(policy: Any, num_episodes: int, seed: int = FIRST_SEED) -> np.ndarray:
    """Returns of so many episodes; the same first states for all policies."""
    return play(lambda: Pool(NUM_ENVS, name=ENV), policy, num_episodes, seed)["returns"]


def tested(policy: Any, others: np.ndarray, keep: float) -> dict[str, Any]:
    """What a certificate finds of a policy; `others` has the teacher's and the random policy's returns, `[2, n]`."""
    returns = np.stack([returns_of(policy, others.shape[1], FIRST_CERTIFICATE_SEED), *others])
    (found,) = certify(
        1,
        lambda place, first, count: returns[:, first : first + count],
        keep=keep,
        alpha=0.05,
        max_episodes=returns.shape[1],
        seen=np.zeros(0),
    )
    return {
        "keep": keep,
        "verdict": found.certificate.verdict,
        "certificate_episodes": found.certificate.num_episodes,
        "return_ratio_in_all": ratio_of(returns),
        "all_episodes": returns.shape[1],
    }


def ratio_of(returns: np.ndarray) -> float:
    """The return ratio, by returns of student, teacher and random policy `[3, n]`."""
    student, teacher, random = returns.mean(1)
    return round(float((student - random) / (teacher - random)), 4)


def plain_tree(algo: Any) -> Policy:
    """The best of four trees by VIPER's plain recipe, on states of a run."""
    players = Players.of(algo.config, algo.get_copies(), algo.env_runner)
    candidates = plain_trees(algo, algo.get_module(), num_trees=4, most_states=MAX_STATES)
    assert players.make_env is not None
    played = play_validation(players.make_env, candidates, players.pipeline, NUM_VALIDATION_EPISODES)
    best = candidates[played.best(list(candidates))[0]]
    return Policy(lambda obs: best.tree.actions[best.tree.leaves(best.features.values(obs.flatten(1).numpy()))])


def student_settings(kind: str, size: int) -> dict[str, Any]:
    """Settings of `.distillation()` for a network of so many "units", or a tree of so many "leaves"."""
    if kind == "units":
        return {"student": {"fcnet_hiddens": [size], "fcnet_activation": "relu"}}
    tree = {"max_leaf_nodes": size, "oblique": True}
    return {"student": {"tree": tree}, "restarts": 12, "num_validation_episodes": NUM_VALIDATION_EPISODES}


def measure(
    teacher: str,
    kind: str,
    size: int,
    seed: int,
    lengths: list[int],
    reference: dict[str, Any],
    others: np.ndarray | None,
    keep: float | None,
) -> list[dict[str, Any]]:
    """The rows of one student, at several lengths of its training; the last with what a certificate finds.

    `others` are the returns of teacher and random policy in the certificate's episodes, `[2, n]`.
    """
    config = (
        DistillDQNConfig()
        .environment(f"envpool/{ENV}")
        .distillation(teacher=teacher, num_baseline_episodes=0, **student_settings(kind, size))
        .evaluation(evaluation_interval=None)
        .debugging(seed=seed)
    )
    algo, rows, seconds = config.build_algo(), [], 0.0
    try:
        for length in lengths:
            began = time.perf_counter()
            while algo.num_env_steps < length:
                algo.train()
            seconds += time.perf_counter() - began
            returns = returns_of(greedy(algo), reference["episodes"])
            mean, half = mean_and_ci95(returns)
            span = reference["teacher"] - reference["random"]
            ratio = (mean - reference["random"]) / span
            row = {kind: size, "seed": seed, "env_steps": length, "seconds": round(seconds, 1), "return": mean}
            rows.append(row | {"return_ratio": round(ratio, 4), "half_width": round(half / span, 4)} | reference)
        if others is not None and keep is not None:
            rows[-1] |= tested(greedy(algo), others, keep)
            if kind == "leaves":
                plain = returns_of(plain_tree(algo), others.shape[1], FIRST_CERTIFICATE_SEED)
                rows[-1]["plain_return_ratio_in_all"] = ratio_of(np.stack([plain, *others]))
    finally:
        algo.stop()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=range(5))
    parser.add_argument("--units", type=int, nargs="*", default=[32, 16])
    parser.add_argument("--leaves", type=int, nargs="*", default=[])
    parser.add_argument("--env-steps", type=int, nargs="+", default=[100_000, 200_000])
    parser.add_argument("--episodes", type=int, default=400)
    parser.add_argument("--keep", type=float, help="return ratio of a certificate")
    parser.add_argument("--certificate-episodes", type=int, default=4_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    policies = {
        "teacher": greedy(args.teacher),
        "random": Policy(lambda obs: rng.integers(NUM_ACTIONS, size=len(obs))),
        "slower": Policy(lambda obs: np.full(len(obs), SLOWER)),
    }
    reference = {name: float(returns_of(policy, args.episodes).mean()) for name, policy in policies.items()}
    reference["episodes"] = args.episodes
    print(json.dumps(reference), flush=True)
    others = None
    if args.keep is not None:
        num, first = args.certificate_episodes, FIRST_CERTIFICATE_SEED
        others = np.stack([returns_of(policies[name], num, first) for name in ("teacher", "random")])
    rows = [json.loads(line) for line in args.rows.read_text().splitlines()] if args.rows.exists() else []
    for seed in args.seeds:
        for kind, size in [*(("units", n) for n in args.units), *(("leaves", n) for n in args.leaves)]:
            key = {kind: size, "seed": seed, "env_steps": max(args.env_steps)} | reference
            if any(row.items() >= key.items() for row in rows):
                continue
            for row in measure(args.teacher, kind, size, seed, sorted(args.env_steps), reference, others, args.keep):
                print(json.dumps(row), flush=True)
                with args.rows.open("a") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
