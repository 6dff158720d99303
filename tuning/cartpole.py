"""Distil the packaged CartPole-v1 teacher into a student of under 4 % of its size, and compare the two.

    python tuning/cartpole.py

20,000 env steps.
"""

from __future__ import annotations

import argparse

from rllib_kd import DistillDQNConfig, compare

ENV_STEPS = 20_000

config = (
    DistillDQNConfig()
    .environment("CartPole-v1")
    .env_runners(gym_env_vectorize_mode="vector_entry_point")  # gymnasium's vectorised CartPole
    .training(lr=[[0, 3e-3], [ENV_STEPS, 6e-5]])
    .distillation(teacher="cartpole", teacher_fraction=[[0, 1.0], [ENV_STEPS // 3, 0.0]])
)
stop = {"num_env_steps_sampled_lifetime": ENV_STEPS}


def main() -> None:
    """Train, and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args()
    algo = config.build_algo()
    while True:
        result = algo.train()
        steps = result["num_env_steps_sampled_lifetime"]
        if steps >= ENV_STEPS:
            break
    print(compare("cartpole", algo, "CartPole-v1", seed=1_000_000))
    algo.stop()


if __name__ == "__main__":
    main()
