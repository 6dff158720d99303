"""Eight students from one stream of states, beside one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np

from rllib_kd import DistillDQNConfig
from tests.benchmarks.harness import UNITS, algorithm, compare, distillation_config, labelled_states, rate
from tests.benchmarks.learner import STATES, STEPS, our_learner

#: Of the mixed family, hidden units.
WIDTHS = (4, 8, 12, 16, 24, 32, 48, 64)
REPLAY_RATIO = 8
ENV_STEPS = 20_480  # of a repetition
CARTPOLE = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)


def equal_students(config: DistillDQNConfig) -> DistillDQNConfig:
    """Eight of one shape."""
    return config.distillation(students={f"s{i}": {"fcnet_hiddens": [UNITS]} for i in range(8)})


def mixed_students(config: DistillDQNConfig) -> DistillDQNConfig:
    """Eight of eight widths."""
    return config.distillation(students={f"s{width}": {"fcnet_hiddens": [width]} for width in WIDTHS})


def learner_of_8(name: str) -> dict[str, Any]:
    columns = labelled_states(STATES)
    return compare(
        name,
        "gradient steps/s of each student",
        lambda: our_learner(equal_students(distillation_config()), CARTPOLE, 2, columns, STEPS),
        lambda: our_learner(distillation_config(), CARTPOLE, 2, columns, STEPS),
    )


@contextlib.contextmanager
def training(config: DistillDQNConfig) -> Iterator[Callable[[], float]]:
    """Env steps/s of whole runs, with sampling, learning and weight syncs."""
    config = config.training(training_intensity=REPLAY_RATIO)
    config.env_runners(num_envs_per_env_runner=16, rollout_fragment_length=32)
    with algorithm(config) as algo:

        def train() -> None:
            goal = algo.num_env_steps + ENV_STEPS
            while algo.num_env_steps < goal:
                algo.train()

        yield lambda: rate(ENV_STEPS, train)


def training_of_8(name: str) -> dict[str, Any]:
    return compare(
        name,
        "env steps/s",
        lambda: training(mixed_students(distillation_config())),
        lambda: training(distillation_config()),
    )


BENCHMARKS: dict[str, Callable[[str], dict[str, Any]]] = {
    "family_of_8_vs_one": learner_of_8,
    "family_of_8_widths_vs_one": training_of_8,
}
