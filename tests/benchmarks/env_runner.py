"""The EnvRunner: labelled env steps beside a bare vector env with both networks, and beside RLlib's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from torch import nn

from rllib_kd import DistillDQNConfig, load_teacher
from rllib_kd.algorithm.students import shape_students
from rllib_kd.env_runner.single_agent import DistillEnvRunner
from rllib_kd.learner.group import DISTILLATION_COLUMNS, TD_COLUMNS
from tests.benchmarks.evaluation import Frames, teacher_of_pong
from tests.benchmarks.harness import NUM_ENVS, UNITS, VECTOR_STEPS, compare, distillation_config, rate


@contextlib.contextmanager
def our_env_runner() -> Iterator[Callable]:
    config = distillation_config()
    config.validate()
    runner = DistillEnvRunner(config=config, worker_index=0)
    runner.set_teacher(load_teacher("cartpole"))

    def run() -> None:
        runner.sample_columns(teacher_fraction=0.5, epsilon=0.05, names=DISTILLATION_COLUMNS, num_shards=1)

    yield lambda: rate(NUM_ENVS * VECTOR_STEPS, run)


@contextlib.contextmanager
def bare_env_loop() -> Iterator[Callable]:
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

    yield lambda: rate(NUM_ENVS * VECTOR_STEPS, run)


@contextlib.contextmanager
def rllib_env_runner() -> Iterator[Callable]:
    config = (
        DQNConfig()
        .environment("CartPole-v1")
        .env_runners(num_envs_per_env_runner=NUM_ENVS, gym_env_vectorize_mode="vector_entry_point")
        .rl_module(model_config={"fcnet_hiddens": [UNITS], "fcnet_activation": "relu"})
    )
    config.validate()
    runner = SingleAgentEnvRunner(config=config, worker_index=0)
    yield lambda: rate(2_048, lambda: runner.sample(num_timesteps=2_048))


class _Shows(gym.Wrapper):
    """CartPole that shows its four numbers in another way."""

    def __init__(self, config):
        super().__init__(gym.make("CartPole-v1"))
        self._way = config["way"]
        numbers, half = self.env.observation_space, gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        mask = gym.spaces.Box(0, 1, (2,), np.int8)
        spaces = {
            "dict": gym.spaces.Dict(at=half, speed=half),
            "discrete": gym.spaces.Discrete(100),
            "mask": gym.spaces.Dict(observations=numbers, action_mask=mask),
        }
        self.observation_space = spaces.get(self._way, numbers)
        self._mask = np.ones(2, np.int8)

    def reset(self, **kwargs):
        obs, info = self.env.reset(**kwargs)
        return self._shown(obs, info)

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        obs, info = self._shown(obs, info)
        return obs, reward, terminated, truncated, info

    def _shown(self, obs, info):
        if self._way == "dict":
            obs = {"at": obs[::2], "speed": obs[1::2]}
        elif self._way == "discrete":
            obs = max(0, min(99, int(obs[2] * 200 + 50)))
        elif self._way == "mask":
            obs = {"observations": obs, "action_mask": self._mask}
        elif self._way == "mask_in_info":
            info = {"action_mask": self._mask}
        return obs, info


class _Masks(_Shows):
    def action_masks(self):
        return self._mask


def showing(way: str) -> Callable:
    @contextlib.contextmanager
    def measured() -> Iterator[Callable]:
        config = (
            distillation_config()
            .environment(_Masks if way == "mask_method" else _Shows, env_config={"way": way})
            .env_runners(gym_env_vectorize_mode="sync", rollout_fragment_length=64)
            .distillation(teacher=None, td_coeff=1.0)
        )
        config.validate()
        runner = DistillEnvRunner(config=config, worker_index=0)

        def run() -> None:
            runner.sample_columns(teacher_fraction=0.0, epsilon=0.05, names=("obs", *TD_COLUMNS), num_shards=1)

        yield lambda: rate(NUM_ENVS * 64, run)

    return measured


def labelling(share: float) -> Callable:
    @contextlib.contextmanager
    def measured() -> Iterator[Callable]:
        config = (
            DistillDQNConfig()
            .environment("ALE/Pong-v5")
            .distillation(teacher="a network", student="rusu-net3", label_fraction=share, num_baseline_episodes=0)
        )
        teacher = teacher_of_pong(Frames())
        config.settle_environment()
        shape_students(config, {DEFAULT_MODULE_ID: teacher})
        config.validate()
        runner = DistillEnvRunner(config=config, worker_index=0)
        runner.set_teacher(teacher)

        def run() -> None:
            runner.sample_columns(teacher_fraction=0.0, epsilon=0.05, names=DISTILLATION_COLUMNS, num_shards=1)

        yield lambda: rate(config.num_envs_per_env_runner * config.get_rollout_fragment_length(), run)

    return measured


BENCHMARKS: dict[str, Callable[[str], dict[str, Any]]] = {
    "env_runner_vs_bare": lambda name: compare(name, "env steps/s", our_env_runner, bare_env_loop),
    "env_runner_vs_rllib": lambda name: compare(name, "env steps/s", our_env_runner, rllib_env_runner),
    "env_runner_label_fraction": lambda name: compare(name, "env steps/s", labelling(0.25), labelling(1.0)),
    **{
        f"env_runner_{way}": lambda name, way=way: compare(name, "env steps/s", showing(way), showing("plain"))
        for way in ("dict", "discrete", "mask", "mask_in_info", "mask_method")
    },
}
