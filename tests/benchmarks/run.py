"""How fast it is, always beside a baseline in the same run.

    python tests/benchmarks/run.py [--only NAME] [--json FILE]

Every figure is the median of several repetitions, on one thread. Ratios travel between machines, absolute figures do
not. `learner_vs_torch` compares whole updates with a bare PyTorch loop over the same student, loss, fused Adam and
replay draw; `learner_vs_rllib_dqn` compares them with RLlib's own `DQN.train()` at equal batch and network;
`env_runner_vs_bare` and `env_runner_vs_rllib` compare labelled env steps with a bare vector env and both networks, and
with RLlib's EnvRunner.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import gymnasium as gym
import numpy as np
import ray
import torch
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from rich.console import Console
from rich.table import Table
from torch import nn

from rllib_kd import DistillDQNConfig, load_teacher, losses
from rllib_kd.env_runner import DistillEnvRunner
from rllib_kd.learning import DISTILLATION_COLUMNS

BATCH_SIZE = 256
UNITS = 32
STATES = 20_000
STEPS = 500  # gradient steps of a repetition
REPETITIONS = 5
NUM_ENVS = 64
VECTOR_STEPS = 256


def labelled_states(seed: int = 0) -> dict[str, np.ndarray]:
    """States like CartPole's, with the packaged teacher's labels."""
    obs = np.random.default_rng(seed).normal(scale=0.5, size=(STATES, 4)).astype(np.float32)
    return {"obs": obs, "teacher_q": load_teacher("cartpole").q_values(torch.from_numpy(obs)).numpy()}


def rate(count: int, run: Callable[[], Any]) -> list[float]:
    """Units per second of each repetition, after one to warm up."""
    rates = []
    for _ in range(REPETITIONS + 1):
        start = time.perf_counter()
        run()
        rates.append(count / (time.perf_counter() - start))
    return rates[1:]


def distillation_config() -> DistillDQNConfig:
    return (
        DistillDQNConfig()
        .environment("CartPole-v1")
        .env_runners(num_envs_per_env_runner=NUM_ENVS, rollout_fragment_length=VECTOR_STEPS)
        .rl_module(model_config={"fcnet_hiddens": [UNITS], "fcnet_activation": "relu"})
        .training(train_batch_size_per_learner=BATCH_SIZE)
        .distillation(teacher="cartpole", loss="kl", num_baseline_episodes=0)
        .env_runners(gym_env_vectorize_mode="vector_entry_point")
    )


def our_learner() -> list[float]:
    algo = distillation_config().build_algo()
    learner = algo.learner_group._learner
    learner.update([ray.put(labelled_states())])
    try:
        return rate(STEPS, lambda: learner.update([], num_gradient_steps=STEPS))
    finally:
        algo.stop()


def bare_torch() -> list[float]:
    columns = {name: torch.from_numpy(column) for name, column in labelled_states().items()}
    student = nn.Sequential(nn.Linear(4, UNITS), nn.ReLU(), nn.Linear(UNITS, 2))
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3, fused=True)

    def run() -> None:
        draws = torch.randint(STATES, (STEPS, BATCH_SIZE))
        for rows in draws:
            obs, teacher_q = columns["obs"].index_select(0, rows), columns["teacher_q"].index_select(0, rows)
            loss = losses.policy_kl(student(obs), teacher_q, temperature=0.01, student_temperature=0.1).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    return rate(STEPS, run)


def rllib_dqn() -> list[float]:
    """Gradient steps per second of RLlib's whole training loop, as its users see it."""
    algo = (
        DQNConfig()
        .environment("CartPole-v1")
        .rl_module(model_config={"fcnet_hiddens": [UNITS], "fcnet_activation": "relu"})
        .training(train_batch_size_per_learner=BATCH_SIZE, num_steps_sampled_before_learning_starts=0)
        .reporting(min_sample_timesteps_per_iteration=20)
        .build_algo()
    )
    steps = 20
    try:
        return rate(steps, algo.train)
    finally:
        algo.stop()


def our_training() -> list[float]:
    """Gradient steps per second of the whole training loop, sampling and weight sync included."""
    algo = distillation_config().env_runners(num_envs_per_env_runner=16, rollout_fragment_length=32).build_algo()
    algo.train()
    try:
        rates = []
        for _ in range(REPETITIONS + 1):
            before = algo.num_gradient_steps
            start = time.perf_counter()
            for _ in range(5):
                algo.train()
            rates.append((algo.num_gradient_steps - before) / (time.perf_counter() - start))
        return rates[1:]
    finally:
        algo.stop()


def our_env_runner() -> list[float]:
    config = distillation_config()
    config.validate()
    runner = DistillEnvRunner(config=config, worker_index=0)
    runner.set_teacher(load_teacher("cartpole"))

    def run() -> None:
        runner.sample_columns(teacher_fraction=0.5, epsilon=0.05, names=DISTILLATION_COLUMNS, num_shards=1)

    return rate(NUM_ENVS * VECTOR_STEPS, run)


def bare_env_loop() -> list[float]:
    envs = gym.make_vec("CartPole-v1", NUM_ENVS, vectorization_mode="vector_entry_point")
    teacher = load_teacher("cartpole")
    student = nn.Sequential(nn.Linear(4, UNITS), nn.ReLU(), nn.Linear(UNITS, 2))
    rng = np.random.default_rng(0)
    obs, _ = envs.reset(seed=0)

    def run() -> None:
        nonlocal obs
        seen, labels = [], []
        for _ in range(VECTOR_STEPS):
            states = torch.from_numpy(obs.copy())
            teacher_q = teacher.q_values(states).numpy()
            with torch.inference_mode():
                student_q = student(states).numpy()
            actions = np.where(rng.random(NUM_ENVS) < 0.5, teacher_q.argmax(1), student_q.argmax(1))
            actions = np.where(rng.random(NUM_ENVS) < 0.05, rng.integers(2, size=NUM_ENVS), actions)
            seen.append(states)
            labels.append(teacher_q)
            obs, *_ = envs.step(actions)

    return rate(NUM_ENVS * VECTOR_STEPS, run)


def rllib_env_runner() -> list[float]:
    config = (
        DQNConfig()
        .environment("CartPole-v1")
        .env_runners(num_envs_per_env_runner=NUM_ENVS, gym_env_vectorize_mode="vector_entry_point")
        .rl_module(model_config={"fcnet_hiddens": [UNITS], "fcnet_activation": "relu"})
    )
    config.validate()
    runner = SingleAgentEnvRunner(config=config, worker_index=0)
    return rate(2_048, lambda: runner.sample(num_timesteps=2_048))


BENCHMARKS = {
    "learner_vs_torch": (our_learner, bare_torch, "gradient steps/s"),
    "learner_vs_rllib_dqn": (our_training, rllib_dqn, "gradient steps/s"),
    "env_runner_vs_bare": (our_env_runner, bare_env_loop, "env steps/s"),
    "env_runner_vs_rllib": (our_env_runner, rllib_env_runner, "env steps/s"),
}


def measure(name: str) -> dict[str, Any]:
    """One row: the value, its baseline, and their ratio, all medians."""
    ours, baseline, unit = BENCHMARKS[name]
    runs = {"value": ours(), "baseline": baseline()}
    value, base = (statistics.median(runs[key]) for key in ("value", "baseline"))
    return {"name": name, "value": value, "unit": unit, "baseline": base, "ratio": value / base, "runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=BENCHMARKS, help="one benchmark instead of all")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    args = parser.parse_args()
    torch.set_num_threads(1)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    rows = [measure(name) for name in ([args.only] if args.only else BENCHMARKS)]
    ray.shutdown()
    table = Table()
    for column in ("name", "value", "baseline", "unit", "ratio"):
        table.add_column(column, justify="left" if column in ("name", "unit") else "right")
    for row in rows:
        table.add_row(
            row["name"], f"{row['value']:,.0f}", f"{row['baseline']:,.0f}", row["unit"], f"{row['ratio']:.2f}"
        )
    Console(width=80).print(table)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
