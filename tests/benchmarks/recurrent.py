"""Recurrent students: whole updates beside a bare PyTorch loop over the same sequences, and beside RLlib's DQN."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.algorithms.dqn import DQNConfig
from torch import nn

from rllib_kd import DistillDQNConfig
from rllib_kd.learner import losses
from tests.benchmarks.harness import BATCH_SIZE, UNITS, algorithm, compare, distillation_config, rate
from tests.benchmarks.learner import our_learner, our_training

LENGTH = 20  # env steps of a sequence, RLlib's default
SEQUENCES = 1_000
STEPS = 100  # gradient steps of a repetition
MODEL = {"fcnet_hiddens": [UNITS], "fcnet_activation": "relu", "use_lstm": True, "lstm_cell_size": UNITS}
COUNT = round(BATCH_SIZE / LENGTH)  # sequences of a batch
#: RLlib's prioritized replay gives sequences of one step.
REPLAY = {"type": "EpisodeReplayBuffer", "capacity": 50_000}


def recurrent_config() -> DistillDQNConfig:
    return distillation_config().rl_module(model_config={**MODEL, "max_seq_len": LENGTH})


def labelled_sequences(seed: int = 0) -> dict[str, np.ndarray]:
    """Whole sequences of numbers, and labels of them."""
    rng = np.random.default_rng(seed)
    shape = (SEQUENCES, LENGTH)
    return {
        "obs": rng.normal(scale=0.5, size=(*shape, 4)).astype(np.float32),
        "teacher_q": rng.normal(size=(*shape, 2)).astype(np.float32),
        "learned": np.ones(shape, dtype=bool),
        "state_h": np.zeros((SEQUENCES, 1, UNITS), np.float32),
        "state_c": np.zeros((SEQUENCES, 1, UNITS), np.float32),
    }


class Plain(nn.Module):
    """The same network, as one writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Sequential(nn.Linear(4, UNITS), nn.ReLU()), nn.Linear(UNITS, 2)
        self.lstm = nn.LSTM(UNITS, UNITS, batch_first=True)

    def forward(self, obs: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return self.after(self.lstm(self.before(obs), (h, c))[0])


@contextlib.contextmanager
def bare_torch(columns: dict[str, np.ndarray]) -> Iterator[Callable[[], float]]:
    """Gradient steps/s of a loop with nothing in it but the draw, the loss and a fused Adam."""
    tensors = {name: torch.from_numpy(column) for name, column in columns.items()}
    student = Plain()
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3, fused=True)

    def run() -> None:
        for rows in torch.randint(SEQUENCES, (STEPS, COUNT)):
            obs, teacher_q, h, c = (
                tensors[name].index_select(0, rows) for name in ("obs", "teacher_q", "state_h", "state_c")
            )
            q = student(obs, h.transpose(0, 1).contiguous(), c.transpose(0, 1).contiguous())
            loss = losses.policy_kl(q, teacher_q, temperature=0.1, student_temperature=0.1).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    yield lambda: rate(STEPS, run)


def recurrent_learner_vs_torch(name: str) -> dict[str, Any]:
    columns = labelled_sequences()
    space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
    return compare(
        name,
        "gradient steps/s",
        lambda: our_learner(recurrent_config(), space, 2, columns, STEPS),
        lambda: bare_torch(columns),
    )


@contextlib.contextmanager
def rllib_recurrent_dqn() -> Iterator[Callable[[], float]]:
    """Gradient steps/s of RLlib's whole training loop with its LSTM: one for each env step, of about as many states."""
    steps = 20
    config = (
        DQNConfig()
        .environment("CartPole-v1")
        .env_runners(num_envs_per_env_runner=1)  # with several, its exploration fails
        .rl_module(model_config={**MODEL, "max_seq_len": LENGTH})
        .training(
            train_batch_size_per_learner=BATCH_SIZE,
            num_steps_sampled_before_learning_starts=200,
            replay_buffer_config=REPLAY,
        )
        .reporting(min_sample_timesteps_per_iteration=steps)
    )
    with algorithm(config) as algo:
        for _ in range(15):  # until it learns
            algo.train()
        yield lambda: rate(steps, algo.train)


def recurrent_vs_rllib_dqn(name: str) -> dict[str, Any]:
    """With as many states learned from for each env step."""
    return compare(
        name,
        "gradient steps/s",
        lambda: our_training(BATCH_SIZE, recurrent_config()),
        rllib_recurrent_dqn,
    )


BENCHMARKS: dict[str, Callable[[str], dict[str, Any]]] = {
    "recurrent_learner_vs_torch": recurrent_learner_vs_torch,
    "recurrent_vs_rllib_dqn": recurrent_vs_rllib_dqn,
}
