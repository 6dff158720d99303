"""Seconds of training until DQN plays CartPole-v1 at 475: this package's loop without a teacher, and RLlib's DQN.

    python tests/benchmarks/dqn.py [--units 64] [--seeds 3] [--json FILE]

Both with one config (`settings()`), one environment process and one thread. Every 2,500 env steps the greedy policy
plays 20 episodes, whose time does not count; the run ends when their mean is 475.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script: its own package, beside the installed one

from tests.benchmarks import harness  # isort: skip  # sets the number of threads

import numpy as np
import ray
import torch
from ray.rllib.algorithms.dqn import DQNConfig

from rllib_kd import DistillDQNConfig
from rllib_kd.environments.making import env_maker
from rllib_kd.evaluation.playing import play
from rllib_kd.evaluation.policies import GreedyQ
from rllib_kd.evaluation.sources import open_source

ENV = "CartPole-v1"
GOAL = 475.0
ENV_STEPS_BETWEEN, MAX_ENV_STEPS = 2_500, 100_000
FIRST_EPISODE_SEED, NUM_EPISODES = 1_000_000, 20


def settings(config: Any, units: int, seed: int) -> Any:
    """Dueling double DQN of two hidden layers, 3-step targets, a soft target, 64 rows learned from per env step."""
    # This package's replay is in the Learners, and has no type.
    replay_type = {} if isinstance(config, DistillDQNConfig) else {"type": "PrioritizedEpisodeReplayBuffer"}
    return (
        config.environment(ENV)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=8)
        .learners(num_learners=0)
        .rl_module(model_config={"fcnet_hiddens": [units, units], "fcnet_activation": "relu"})
        .training(
            dueling=True,
            double_q=True,
            n_step=3,
            gamma=0.99,
            lr=5e-4,
            grad_clip=10.0,
            train_batch_size_per_learner=128,
            training_intensity=64.0,
            num_steps_sampled_before_learning_starts=1_000,
            target_network_update_freq=0,  # env steps; 0: after each gradient step
            tau=0.01,
            epsilon=[[0, 1.0], [8_000, 0.05]],  # env steps
            replay_buffer_config={**replay_type, "capacity": 100_000, "alpha": 0.2, "beta": 0.2},
        )
        .reporting(min_sample_timesteps_per_iteration=1_000)
        .debugging(seed=seed, log_level="ERROR")
    )


def seconds_to_goal(config: Any, units: int, seed: int) -> dict[str, float]:
    """Of training, and the env steps that were needed; infinite where it was not reached."""
    algo = settings(config, units, seed).build_algo()
    seconds, next_look = 0.0, ENV_STEPS_BETWEEN
    try:
        while True:
            start = time.perf_counter()
            env_steps = int(algo.train()["num_env_steps_sampled_lifetime"])
            seconds += time.perf_counter() - start
            if env_steps >= next_look:
                next_look += ENV_STEPS_BETWEEN
                seeds = range(FIRST_EPISODE_SEED, FIRST_EPISODE_SEED + NUM_EPISODES)
                returns, _ = play(env_maker(ENV), GreedyQ(open_source(algo.get_module()).network()), seeds)
                if np.mean(returns) >= GOAL:
                    return {"seconds": seconds, "env_steps": env_steps}
            if env_steps >= MAX_ENV_STEPS:
                return {"seconds": np.inf, "env_steps": np.inf}
    finally:
        algo.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=64, help="of each of two hidden layers")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    runs: dict[str, list[dict[str, float]]] = {"value": [], "baseline": []}
    for seed in range(args.seeds):
        ours = DistillDQNConfig().distillation(teacher=None, td_coeff=1.0)
        for key, config in (("value", ours), ("baseline", DQNConfig())):
            runs[key].append(seconds_to_goal(config, args.units, seed))
            print(f"{'rllib_kd' if key == 'value' else 'RLlib DQN'}, seed {seed}: {runs[key][-1]}", flush=True)
    ray.shutdown()
    seconds = {key: [run["seconds"] for run in own] for key, own in runs.items()}
    row = harness.row("seconds_to_475_vs_rllib_dqn", "s", seconds)
    print(f"median {row['value']:.0f} s beside {row['baseline']:.0f} s: ratio {row['ratio']:.3f}")
    if args.json:
        args.json.write_text(json.dumps([row | {"runs": runs}], indent=1))


if __name__ == "__main__":
    main()
