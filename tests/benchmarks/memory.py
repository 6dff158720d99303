"""Memory that does not grow, and a teacher that is there once."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import ray
from ray.rllib.algorithms.dqn.torch.default_dqn_torch_rl_module import DefaultDQNTorchRLModule

from rllib_kd import DistillDQNConfig, DistillEnvRunner
from rllib_kd.learner.group import DISTILLATION_COLUMNS, TD_COLUMNS
from rllib_kd.learner.replay import ColumnarReplay
from rllib_kd.observations.frames import observations
from rllib_kd.students.sizes import PRESETS
from rllib_kd.teachers.base import Teacher
from rllib_kd.wire import receive
from tests.benchmarks.harness import algorithm, distillation_config, row

WINDOWS = 5
STATES = 1_000_000
MB = 1e6
ATARI_STEPS = 64  # of a fragment, as in tuning/atari.py
ATARI_CAPACITY = 4_000  # rows


def kilobytes(field: str, file: str = "smaps_rollup") -> int:
    """Of this process, as Linux counts."""
    lines = Path(f"/proc/self/{file}").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(field))


def resident_mb(*_: Any) -> float:
    gc.collect()
    return kilobytes("Rss:") * 1e3 / MB


def memory_after_a_million_states(name: str) -> dict[str, Any]:
    """Of driver, Learner and an EnvRunner: while a million states pass, beside that when the replay was full."""
    config = distillation_config().env_runners(num_env_runners=1)
    config.training(training_intensity=1.0)
    config.reporting(min_sample_timesteps_per_iteration=STATES // WINDOWS)
    with algorithm(config) as algo:

        def total() -> float:
            return resident_mb() + sum(algo.env_runner_group.foreach_env_runner(resident_mb, local_env_runner=False))

        for _ in range(2):  # the replay is full after a quarter of the first
            algo.train()
        before = total()
        after = []
        for _ in range(WINDOWS):
            algo.train()
            after.append(total())
    return row(name, "MB", {"value": after, "baseline": [before]})


@ray.remote
class Holder:
    """A process that takes teachers as an EnvRunner does."""

    def private_mb(self) -> float:
        gc.collect()
        return (kilobytes("Private_Clean:") + kilobytes("Private_Dirty:")) * 1e3 / MB

    def take(self, reference: list[ray.ObjectRef]) -> float:
        """By how much that makes this process larger, without what it shares."""
        before = self.private_mb()
        self.teacher = ray.get(reference[0])
        return self.private_mb() - before


def teacher_memory_vs_weights(name: str) -> dict[str, Any]:
    """Memory that a teacher takes in one more process of a node, beside the size of its weights."""
    units = 4_096
    space = gym.spaces.Box(-1.0, 1.0, (8,), np.float32)
    config = {"fcnet_hiddens": [units, units], "dueling": False, "num_atoms": 1, "double_q": True, "epsilon": 0.0}
    module = DefaultDQNTorchRLModule(
        observation_space=space, action_space=gym.spaces.Discrete(2), model_config=config, inference_only=True
    )
    teacher = Teacher(module)
    reference = ray.put(teacher)
    holders = [Holder.remote() for _ in range(WINDOWS)]
    taken = [ray.get(holder.take.remote([reference])) for holder in holders]
    return row(name, "MB", {"value": taken, "baseline": [teacher.num_parameters * 4 / MB]})


def bytes_per_state(name: str) -> dict[str, Any]:
    """Of a full replay, for each state of a game of Atari that can be drawn, beside the bytes of its stack of frames.

    With or without the columns of TD; each figure is of another filling.
    """
    config = DistillDQNConfig().environment("ALE/Breakout-v5").env_runners(rollout_fragment_length=ATARI_STEPS)
    config.rl_module(model_config=PRESETS["rusu-net3"]).distillation(teacher="cartpole").settle_environment()
    runner = DistillEnvRunner(config=config, worker_index=0)
    runner.set_teacher(Teacher(runner.module))  # nobody need know the game
    names = DISTILLATION_COLUMNS + (TD_COLUMNS if "td" in name else ())
    replay, values, stack = ColumnarReplay(ATARI_CAPACITY), [], 0
    while len(values) < WINDOWS:
        for _ in range(1 + ATARI_CAPACITY // (config.num_envs_per_env_runner * ATARI_STEPS)):
            (reference,), _ = runner.sample_columns(teacher_fraction=1.0, epsilon=1.0, names=names, num_shards=1)
            fragment = receive(reference)
            replay.add(fragment)
        stack = observations(fragment, np.flatnonzero(fragment["valid"])[:1]).nbytes
        values.append(replay.nbytes / len(replay))
    return row(name, "bytes", {"value": values, "baseline": [stack]})


BENCHMARKS: dict[str, Callable[[str], dict[str, Any]]] = {
    "memory_after_a_million_states": memory_after_a_million_states,
    "teacher_memory_vs_weights": teacher_memory_vs_weights,
    "bytes_per_state": bytes_per_state,
    "bytes_per_state_with_td": bytes_per_state,
}
