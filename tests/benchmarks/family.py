"""Eight students from one stream of states, and 64 of mixed depths and activations, beside one."""

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


def students_of_64(largest: int) -> dict[str, dict[str, Any]]:
    """64 students, linear, with one layer and with two, of ReLU and of tanh, of up to so many units a layer."""
    widths = [width for width in (2, 4, 6, 8, 12, 16, 24, 32) if width <= largest]
    layers = [[width] * depth for depth in (1, 2) for width in widths]
    kinds = [([], "relu"), *((hidden, activation) for hidden in layers for activation in ("relu", "tanh"))]
    chosen = [kinds[i % len(kinds)] for i in range(64)]
    return {
        f"s{i}": {"fcnet_hiddens": hidden, "fcnet_activation": activation}
        for i, (hidden, activation) in enumerate(chosen)
    }


def learner_of_64(largest: int) -> Callable[[str], dict[str, Any]]:
    def run(name: str) -> dict[str, Any]:
        columns, own = labelled_states(STATES), {"students": students_of_64(largest)}
        return compare(
            name,
            "gradient steps/s of each student",
            lambda: our_learner(distillation_config().distillation(**own), CARTPOLE, 2, columns, STEPS // 5),
            lambda: our_learner(distillation_config(), CARTPOLE, 2, columns, STEPS),
        )

    return run


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
    "family_of_64_up_to_8_vs_one": learner_of_64(8),
    "family_of_64_up_to_32_vs_one": learner_of_64(32),
}
