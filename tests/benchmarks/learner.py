"""The Learner: whole updates beside a bare PyTorch loop, and the training loop beside RLlib's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import ray
import torch
from ray.rllib.algorithms.dqn import DQNConfig
from torch import nn

from rllib_kd import DistillDQNConfig
from rllib_kd.learner import losses
from rllib_kd.learner.learner import DistillDQNTorchLearner
from tests.benchmarks.harness import (
    BATCH_SIZE,
    UNITS,
    algorithm,
    compare,
    distillation_config,
    labelled_states,
    rate,
)

STATES = 20_000
STEPS = 500  # gradient steps of a repetition
#: The Atari students of Rusu et al. 2015, arXiv 1511.06295: convolutions, units of the fully connected layer.
ATARI_NETWORKS = {"net1": ((16, 32, 32), 256), "net2": ((16, 16, 16), 128), "net3": ((16, 16, 16), 64)}
ATARI_ACTIONS = 18
ATARI_STATES = 1_000
ATARI_STEPS = 5
_STRIDES = ((8, 4), (4, 2), (3, 1))  # kernel, stride


@contextlib.contextmanager
def our_learner(config: Any, space: gym.Space, num_actions: int, columns: dict, steps: int) -> Iterator[Callable]:
    """Gradient steps/s of `update()` calls, with all that belongs to them."""
    config.validate()
    spaces = {"default_policy": (space, gym.spaces.Discrete(num_actions))}
    spec = config.get_multi_rl_module_spec(spaces=spaces, inference_only=False)
    learner = DistillDQNTorchLearner(config=config, module_spec=spec)
    learner.build()
    learner.update([ray.put(columns)])
    yield lambda: rate(steps, lambda: learner.update([], num_gradient_steps=steps))


@contextlib.contextmanager
def bare_torch(student: nn.Module, columns: dict, steps: int) -> Iterator[Callable]:
    """Gradient steps/s of a loop with nothing in it but the draw, the loss and a fused Adam."""
    tensors = {name: torch.from_numpy(column) for name, column in columns.items()}
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3, fused=True)

    def run() -> None:
        draws = torch.randint(len(tensors["obs"]), (steps, BATCH_SIZE))
        for rows in draws:
            obs, teacher_q = tensors["obs"].index_select(0, rows), tensors["teacher_q"].index_select(0, rows)
            obs = obs / 255.0 if obs.dtype == torch.uint8 else obs
            loss = losses.policy_kl(student(obs), teacher_q, temperature=0.01, student_temperature=0.1).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    yield lambda: rate(steps, run)


def learner_vs_torch(name: str) -> dict[str, Any]:
    columns = labelled_states(STATES)
    space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
    student = nn.Sequential(nn.Linear(4, UNITS), nn.ReLU(), nn.Linear(UNITS, 2))
    return compare(
        name,
        "gradient steps/s",
        lambda: our_learner(distillation_config(), space, 2, columns, STEPS),
        lambda: bare_torch(student, columns, STEPS),
    )


def atari_learner_vs_torch(network: str) -> Callable[[str], dict[str, Any]]:
    """On what ALE shows: stacks of four frames of 84 × 84 bytes, the frames first."""
    channels, units = ATARI_NETWORKS[network]

    def run(name: str) -> dict[str, Any]:
        rng = np.random.default_rng(0)
        obs = rng.integers(256, size=(ATARI_STATES, 4, 84, 84), dtype=np.uint8)
        columns = {"obs": obs, "teacher_q": rng.normal(size=(ATARI_STATES, ATARI_ACTIONS)).astype(np.float32)}
        config = distillation_config().rl_module(
            model_config={
                "conv_filters": [[c, *shape, "valid"] for c, shape in zip(channels, _STRIDES, strict=True)],
                "conv_activation": "relu",
                "head_fcnet_hiddens": [units],
                "head_fcnet_activation": "relu",
            }
        )
        config.training(replay_buffer_config={"capacity": ATARI_STATES})
        return compare(
            name,
            "gradient steps/s",
            lambda: our_learner(
                config, gym.spaces.Box(0, 1, (84, 84, 4), np.float32), ATARI_ACTIONS, columns, ATARI_STEPS
            ),
            lambda: bare_torch(atari_student(channels, units), columns, ATARI_STEPS),
        )

    return run


def atari_student(channels: Sequence[int], units: int) -> nn.Module:
    """The same network, as one writes it."""
    layers: list[nn.Module] = []
    depth = 4
    for width, (kernel, stride) in zip(channels, _STRIDES, strict=True):
        layers += [nn.Conv2d(depth, width, kernel, stride), nn.ReLU()]
        depth = width
    layers += [nn.Flatten(), nn.Linear(7 * 7 * depth, units), nn.ReLU(), nn.Linear(units, ATARI_ACTIONS)]
    return nn.Sequential(*layers)


@contextlib.contextmanager
def rllib_dqn() -> Iterator[Callable]:
    """Gradient steps/s of RLlib's whole training loop, as its users see it: one for each env step."""
    steps = 20
    config = (
        DQNConfig()
        .environment("CartPole-v1")
        .rl_module(model_config={"fcnet_hiddens": [UNITS], "fcnet_activation": "relu"})
        .training(train_batch_size_per_learner=BATCH_SIZE, num_steps_sampled_before_learning_starts=0)
        .reporting(min_sample_timesteps_per_iteration=steps)
    )
    with algorithm(config) as algo:
        yield lambda: rate(steps, algo.train)


@contextlib.contextmanager
def our_training(training_intensity: float, config: DistillDQNConfig | None = None) -> Iterator[Callable]:
    """Gradient steps/s of the whole training loop, sampling and weight sync included."""
    config = (config or distillation_config()).env_runners(num_envs_per_env_runner=16, rollout_fragment_length=32)
    config.training(training_intensity=training_intensity)
    with algorithm(config) as algo:

        def run() -> float:
            before = algo.num_gradient_steps
            seconds = 1 / rate(1, lambda: [algo.train() for _ in range(5)])
            return (algo.num_gradient_steps - before) / seconds

        while not algo.num_gradient_steps:
            algo.train()
        yield run


def training_vs_rllib_dqn(training_intensity: float) -> Callable[[str], dict[str, Any]]:
    """With so many rows learned from for each env step."""
    return lambda name: compare(name, "gradient steps/s", lambda: our_training(training_intensity), rllib_dqn)


BENCHMARKS: dict[str, Callable[[str], dict[str, Any]]] = {
    "learner_vs_torch": learner_vs_torch,
    **{f"learner_vs_torch_atari_{network}": atari_learner_vs_torch(network) for network in ATARI_NETWORKS},
    "learner_vs_rllib_dqn": training_vs_rllib_dqn(BATCH_SIZE),  # as RLlib's DQN: a gradient step for each env step
    "learner_vs_rllib_dqn_at_8": training_vs_rllib_dqn(BATCH_SIZE / 8),  # 8 env steps for each gradient step
}
