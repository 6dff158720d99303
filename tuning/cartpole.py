"""Distil the packaged CartPole-v1 teacher into a student of under 4 % of its size, and compare the two.

python tuning/cartpole.py [--seed N]
"""

from __future__ import annotations

import argparse
import logging
import time

from rllib_kd import DistillDQNConfig, compare

ENV = "CartPole-v1"
FRESH_SEED = 1_000_000  # of the episodes that judge the student: none that it was trained on

config = (
    DistillDQNConfig()
    .environment(ENV)
    .env_runners(gym_env_vectorize_mode="vector_entry_point")  # gymnasium's own vectorised CartPole
    .distillation(
        teacher="cartpole",
        loss="kl",
        rollout_policy="mixture",
        teacher_fraction=[[0, 1.0], [10_000, 0.0]],  # env steps
        compression=0.04,  # student parameters / teacher parameters, at most
    )
)
stop = {"num_env_steps_sampled_lifetime": 20_000}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seed", type=int, help="makes the run repeatable")
    args = parser.parse_args()
    for name in ("ray.rllib", "ray._common.deprecation"):  # RLlib's notes on its own deprecations
        logging.getLogger(name).setLevel(logging.ERROR)

    algo = config.debugging(seed=args.seed).build_algo()
    start = time.perf_counter()
    while True:
        result = algo.train()
        env_steps = result["num_env_steps_sampled_lifetime"]
        if result["training_iteration"] % 4 == 0 or env_steps >= stop["num_env_steps_sampled_lifetime"]:
            print(
                f"{env_steps:>7,.0f} env steps  "
                f"{result['distillation']['num_gradient_steps_lifetime']:>6,} gradient steps  "
                f"agreement {100 * result['learners']['default_policy']['teacher_agreement']:5.1f} %  "
                f"{time.perf_counter() - start:4.1f} s"
            )
        if env_steps >= stop["num_env_steps_sampled_lifetime"]:
            break
    print(compare("cartpole", algo, ENV, num_episodes=100, seed=FRESH_SEED))
    algo.stop()


if __name__ == "__main__":
    main()
