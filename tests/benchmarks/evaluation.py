"""Playing episodes with a policy: states/s of `evaluate()` beside a bare loop over the same vector env and network."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from rllib_kd import Teacher, load_teacher
from rllib_kd.evaluation.comparing import evaluate
from tests.benchmarks.harness import compare, rate

NUM_EPISODES, EPISODE_STEPS = 100, 500  # a good player of CartPole never fails
NUM_GAMES, GAME_STEPS = 20, 150  # the first point of Pong takes longer
FRAME_SKIP = 4
GAME = {"repeat_action_probability": 0.0, "noop_max": 0, "max_num_frames_per_episode": FRAME_SKIP * GAME_STEPS}
NUM_ACTIONS = 6


class Frames(nn.Module):
    """The network of Mnih et al. 2015 with random weights, the same ones each time, on stacks of bytes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        convolutions = [nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Conv2d(64, 64, 3, 1)]
        dense = [nn.ReLU(), nn.Flatten(), nn.Linear(3_136, 512), nn.ReLU(), nn.Linear(512, NUM_ACTIONS)]
        self.layers = nn.Sequential(*convolutions, *dense)

    def forward(self, stacks: Tensor) -> Tensor:
        return self.layers(stacks / 255.0)


@contextlib.contextmanager
def our_evaluation(policy: Any, env: str, config: dict[str, Any], num_episodes: int, steps: int) -> Iterator[Callable]:
    def run() -> None:
        evaluate(policy, env, num_episodes=num_episodes, env_config=config)

    yield lambda: rate(num_episodes * steps, run)


@contextlib.contextmanager
def bare_loop(
    make: Callable[[], Any], q_values: Callable[[Tensor], Tensor], num_envs: int, steps: int
) -> Iterator[Callable]:
    def run() -> None:
        envs = make()
        obs, _ = envs.reset(seed=0)
        for _ in range(steps):
            with torch.inference_mode():
                actions = q_values(torch.as_tensor(obs, dtype=torch.float32)).argmax(-1).numpy()
            obs, *_ = envs.step(actions)
        envs.close()

    yield lambda: rate(num_envs * steps, run)


def cartpole(name: str) -> dict[str, Any]:
    teacher = load_teacher("cartpole")
    return compare(
        name,
        "states/s",
        lambda: our_evaluation(teacher, "CartPole-v1", {}, NUM_EPISODES, EPISODE_STEPS),
        lambda: bare_loop(
            lambda: gym.vector.SyncVectorEnv([lambda: gym.make("CartPole-v1")] * NUM_EPISODES),
            teacher.q_values,
            NUM_EPISODES,
            EPISODE_STEPS,
        ),
    )


def teacher_of_pong(network: Frames) -> Teacher:
    """A teacher that sees ALE's stacks of frames."""
    return Teacher.from_callable(
        network,
        observation_space=gym.spaces.Box(0, 255, (4, 84, 84), np.uint8),
        action_space=gym.spaces.Discrete(NUM_ACTIONS),
    )


def atari(name: str) -> dict[str, Any]:
    from ale_py.vector_env import AtariVectorEnv  # the extra [atari]

    network = Frames()
    teacher = teacher_of_pong(network)
    return compare(
        name,
        "states/s",
        lambda: our_evaluation(teacher, "ALE/Pong-v5", GAME, NUM_GAMES, GAME_STEPS),
        lambda: bare_loop(
            lambda: AtariVectorEnv(
                "pong", num_envs=NUM_GAMES, num_threads=1, use_fire_reset=False, reward_clipping=False, **GAME
            ),
            network,
            NUM_GAMES,
            GAME_STEPS,
        ),
    )


BENCHMARKS = {"evaluation_vs_bare": cartpole, "evaluation_vs_bare_atari": atari}
