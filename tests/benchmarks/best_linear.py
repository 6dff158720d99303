"""How well do linear policies of MountainCar play? A search for a good one, on the return itself.

    python tests/benchmarks/best_linear.py [--seeds 0 1 2] [--generations 150]

Differential evolution over the policy's nine parameters, by the mean return of 50 episodes that change with each
generation, and then of 2,000 others. The environment is gymnasium's, in numpy, for all policies and episodes at once.
If a student is as good as the policy that is found, longer training is not expected to help it.
"""

from __future__ import annotations

import argparse

import numpy as np
from gymnasium.envs.classic_control.mountain_car import MountainCarEnv
from scipy.optimize import differential_evolution

MOST_STEPS = 200
VELOCITY_SCALE = 15.0  # position and velocity then have ranges of 1.8 and 2.1
NUM_EPISODES, NUM_JUDGED = 50, 2_000
BOUND = 10.0


def returns(policies: np.ndarray, num_episodes: int, rng: np.random.Generator) -> np.ndarray:
    """Mean returns `[P]` of linear policies `[P, 9]`: weights `[3, 2]` of position and scaled velocity, and biases."""
    env = MountainCarEnv()
    weights, biases = policies[:, :6].reshape(-1, 3, 2), policies[:, None, 6:]
    position = np.tile(rng.uniform(-0.6, -0.4, num_episodes), (len(policies), 1))
    velocity, steps = np.zeros_like(position), np.zeros_like(position)
    for _ in range(MOST_STEPS):
        running = position < env.goal_position
        steps += running
        values = np.einsum("pai,pei->pea", weights, np.stack([position, VELOCITY_SCALE * velocity], axis=-1))
        actions = (values + biases).argmax(axis=-1)
        faster = velocity + (actions - 1) * env.force - np.cos(3 * position) * env.gravity
        faster = faster.clip(-env.max_speed, env.max_speed)
        further = (position + faster).clip(env.min_position, env.max_position)
        faster[(further == env.min_position) & (faster < 0)] = 0.0
        position, velocity = np.where(running, further, position), np.where(running, faster, velocity)
    return -steps.mean(axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--generations", type=int, default=150)
    args = parser.parse_args()
    for seed in args.seeds:
        rng = np.random.default_rng(seed)
        found = differential_evolution(
            lambda points, rng=rng: -returns(points.T, NUM_EPISODES, rng),
            [(-BOUND, BOUND)] * 9,
            maxiter=args.generations,
            popsize=10,
            rng=rng,
            tol=0.0,
            polish=False,
            vectorized=True,
            updating="deferred",
        )
        judged = returns(found.x[None], NUM_JUDGED, np.random.default_rng(1_000 + seed))[0]
        print(f"seed {seed}: a mean return of {judged:.1f} in {NUM_JUDGED:,} episodes", flush=True)


if __name__ == "__main__":
    main()
