"""Pairs of features that docs/pages/combinations.md allows, really trained.

python -m tests.algorithm.trained_pairs   # all of them, with a line each
"""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ray.rllib.examples.envs.classes.multi_agent import MultiAgentCartPole

from rllib_kd import DistillDQN, DistillDQNConfig, load_teacher
from rllib_kd.networks.trees.shape import is_tree
from tests.algorithm.combinations import Feature, allowed, config_of, settings_of
from tests.algorithm.resumable import weights
from tests.algorithm.weights import assert_equal_weights
from tests.conftest import start_ray
from tests.offline.labelled import episodes

REMOTE = {"num_env_runners", "num_learners"}
SMALL = {
    "num_envs_per_env_runner": 4,
    "rollout_fragment_length": 16,
    "num_cpus_per_env_runner": 0.1,
    "num_cpus_per_learner": 0.1,
    "train_batch_size_per_learner": 32,
    "num_steps_sampled_before_learning_starts": 64,
    "training_intensity": 8,
    "evaluation_duration": 1,
    "num_baseline_episodes": 1,
    "num_validation_episodes": 2,
    "seed": 0,
}


def cover(*, times: int = 2, seed: int = 0) -> list[tuple[Feature, Feature]]:
    """Return local pairs in which each feature is at least `times` times, chosen greedily in a random order."""
    pairs = [pair for pair in allowed() if not REMOTE & settings_of(*pair).keys()]
    random.Random(seed).shuffle(pairs)
    counts: Counter[str] = Counter()
    chosen: list[tuple[Feature, Feature]] = []

    def gain(pair: tuple[Feature, Feature]) -> int:
        return sum(counts[feature.name] < times for feature in pair)

    while gain(best := max(pairs, key=gain)):
        pairs.remove(best)
        chosen.append(best)
        counts.update(feature.name for feature in best)
    return chosen


def small_config(pair: tuple[Feature, Feature], folder: Path) -> DistillDQNConfig:
    """Return the config of a pair that trains in a second, with its files in this folder."""
    own = settings_of(*pair)
    if "input_" in own:
        own["input_"] = _recorded(folder / "recorded")
    if "output" in own:
        own["output"] = str(folder / "output")
    num_steps = 800 if is_tree(own.get("student")) else 200
    config = config_of({"min_sample_timesteps_per_iteration": num_steps, **SMALL, **own})
    is_multi_agent = "policies" in own
    env, env_config = (
        (MultiAgentCartPole, {"num_agents": 2}) if is_multi_agent else ("CartPole-v1", {"max_episode_steps": 60})
    )
    return config.environment(env, env_config=env_config)


def _recorded(folder: Path) -> str:
    """Write rows of CartPole without labels, and return the folder."""
    columns = episodes(load_teacher("cartpole"), num_rows=800)
    del columns["teacher_q"]
    obs = pa.FixedSizeListArray.from_arrays(columns.pop("obs").ravel(), 4)
    table = pa.table({"obs": obs, **columns})
    folder.mkdir()
    for number in range(2):
        pq.write_table(table.slice(400 * number, 400), folder / f"{number}.parquet", row_group_size=100)
    return str(folder)


def train(pair: tuple[Feature, Feature], folder: Path) -> None:
    """Train a pair twice, save, restore, and train on.

    Raises:
        AssertionError: a student has not learned, weights or losses are not finite, or restored weights differ.
        Exception: one of these steps has failed.
    """
    algos = [small_config(pair, folder).build_algo()]
    try:
        before = weights(algos[0])
        for _ in range(2):
            result = algos[0].train()
        after = weights(algos[0])
        changed = {name.split("/")[0] for name in after if not np.array_equal(after[name], before.get(name))}
        assert changed == {name.split("/")[0] for name in after}, "weights of some students have not changed"
        assert all(np.isfinite(array).all() for array in after.values() if _is_weight(array)), "weights are not finite"
        assert np.isfinite(_losses(result)).all(), f"losses are not finite: {_losses(result)}"
        assert bool(_losses(result)) != bool(algos[0].config.are_all_trees), "networks have losses, trees have none"
        algos.append(DistillDQN.from_checkpoint(algos[0].save_to_path(str(folder / "checkpoint"))))
        assert_equal_weights(weights(algos[1]), after)
        assert algos[1].train()["num_env_steps_sampled_lifetime"] > result["num_env_steps_sampled_lifetime"]
    finally:
        for algo in algos:
            algo.stop()


def _is_weight(array: np.ndarray) -> bool:
    return array.dtype.kind == "f"


def _losses(result: dict[str, Any]) -> list[float]:
    entries = result["learners"].values()
    return [value for entry in entries for name, value in entry.items() if name.endswith("_loss")]


def train_all() -> None:
    """Train all pairs that are allowed, and print a line for each."""
    start_ray(address="local", num_cpus=2, include_dashboard=False)
    for pair in allowed():
        begun, error = time.monotonic(), ""
        try:
            with TemporaryDirectory() as folder:
                train(pair, Path(folder))
        except Exception as failed:
            error = f"  {type(failed).__name__}: {failed}"
        print(f"{time.monotonic() - begun:6.1f} s  {' + '.join(each.name for each in pair)}{error}", flush=True)


if __name__ == "__main__":
    train_all()
