"""Can a student end above its teacher? CartPole-v1, with a teacher that has not learned to the end.

    python tests/benchmarks/weak_teacher.py [--seeds 5] [--csv FILE]

The teacher of each seed is DQN of 64 units after 5,000 env steps. Its student has as many units, and learns for
40,000: from the teacher and by TD at first, by TD alone later. Beside it stands TD without a teacher, from the same
seed and as long. All play the same 100 episodes, greedily, with their last weights.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script: its own package, beside the installed one

from tests.benchmarks.learning import play_greedily, show  # isort: skip  # sets the number of threads
import ray
import torch

from rllib_kd import DistillDQNConfig
from rllib_kd.evaluation.sources import open_source

ENV = "CartPole-v1"
TEACHER_ENV_STEPS, STUDENT_ENV_STEPS = 5_000, 40_000
NUM_EPISODES = 100

WITHOUT_TEACHER: dict[str, Any] = {"teacher": None, "td_coeff": 1.0}
FROM_TEACHER: dict[str, Any] = {
    "td_coeff": 1.0,
    "kd_coeff": [[0, 1.0], [STUDENT_ENV_STEPS // 2, 0.0]],  # env steps
    "teacher_fraction": [[0, 1.0], [TEACHER_ENV_STEPS, 0.0]],  # env steps
    "loss": "kl",
    "num_baseline_episodes": 0,
}


def config(seed: int, **distillation: Any) -> DistillDQNConfig:
    """DQN with 3-step targets, a soft target, and 64 rows learned from per env step."""
    return (
        DistillDQNConfig()
        .environment(ENV)
        .env_runners(num_envs_per_env_runner=8)
        .rl_module(model_config={"fcnet_hiddens": [64, 64], "fcnet_activation": "relu"})
        .training(
            n_step=3,
            lr=[[0, 1e-3], [STUDENT_ENV_STEPS, 1e-4]],  # env steps
            grad_clip=10.0,
            train_batch_size_per_learner=128,
            training_intensity=64.0,
            target_network_update_freq=0,  # env steps; 0: after each gradient step
            tau=0.01,
            epsilon=[[0, 1.0], [5_000, 0.05]],  # env steps
        )
        .distillation(**distillation)
        .debugging(seed=seed, log_level="ERROR")
    )


def train(config: DistillDQNConfig, env_steps: int, path: Path | None = None) -> float:
    """Mean return after training; where `path` is given, what was trained lies there then."""
    algo = config.build_algo()
    try:
        while algo.num_env_steps < env_steps:
            algo.train()
        if path:
            algo.save_to_path(str(path))
        return float(play_greedily(open_source(algo).network(), ENV, NUM_EPISODES).mean())
    finally:
        algo.stop()


def measure(seed: int, folder: Path) -> dict[str, float]:
    """A row of the table."""
    path = folder / f"teacher_{seed}"
    return {
        "seed": seed,
        "teacher": train(config(seed, **WITHOUT_TEACHER), TEACHER_ENV_STEPS, path),
        "student": train(config(100 + seed, teacher=path, **FROM_TEACHER), STUDENT_ENV_STEPS),
        "without_teacher": train(config(100 + seed, **WITHOUT_TEACHER), STUDENT_ENV_STEPS),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--csv", type=Path, help="where to write the table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(seed, Path(folder)) for seed in range(args.seeds)]
    ray.shutdown()
    show(rows, args.csv)


if __name__ == "__main__":
    main()
