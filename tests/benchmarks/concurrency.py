"""Sampling and learning at once, and many EnvRunners.

Environments sleep here, as if they were heavy, so that a small machine can be measured: what they cost elsewhere takes
no core from the Learner, and what is left is the coordination.
"""

from __future__ import annotations

import contextlib
import functools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import ray
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from ray import cloudpickle

from tests.benchmarks import harness
from tests.benchmarks.harness import algorithm, compare, distillation_config, labelled_states, row

NUM_ENVS, VECTOR_STEPS = 16, 32  # of a fragment: 512 env steps
FRAGMENT = NUM_ENVS * VECTOR_STEPS
FRAGMENTS = 20  # of a repetition, for each EnvRunner
SLEEP_S = 0.01  # each step of the vector env: 1,600 env steps/s an EnvRunner


class SleepingCartPole(CartPoleVectorEnv):
    """CartPole's own vector env, each step of which takes a while."""

    def __init__(self, config: dict[str, Any]):
        super().__init__(config["num_envs"])
        self.sleep_s = config["sleep_s"]

    def step(self, actions: Any) -> Any:
        time.sleep(self.sleep_s)
        return super().step(actions)


cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers of Ray may not find the tests


def sleeping_config(num_env_runners: int, sleep_s: float) -> Any:
    return (
        distillation_config()
        .environment(SleepingCartPole, env_config={"sleep_s": sleep_s})
        .env_runners(
            num_env_runners=num_env_runners,
            num_envs_per_env_runner=NUM_ENVS,
            rollout_fragment_length=VECTOR_STEPS,
        )
        .training(num_steps_sampled_before_learning_starts=0)
        .reporting(min_sample_timesteps_per_iteration=FRAGMENTS * num_env_runners * FRAGMENT)
    )


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


# --- Both at once -----------------------------------------------------------------------------------------------------


def learning_seconds(algo: Any) -> float:
    """Of the Learner alone, for the states of one iteration."""
    data = [ray.put(labelled_states(FRAGMENT)) for _ in range(FRAGMENTS)]
    num_steps = int(algo.config.training_intensity * FRAGMENT) // algo.config.total_train_batch_size

    def learn() -> None:
        for shard in data:
            algo.learner_group.update(
                batch_refs=[shard], defer_solve_refs_to_learner=True, num_gradient_steps=num_steps
            )

    return seconds(learn)


def sampling_seconds(algo: Any) -> float:
    """Of the EnvRunner alone, for the states of one iteration."""
    kwargs = {"teacher_fraction": 0.5, "epsilon": 0.05, "names": ("obs", "teacher_q"), "num_shards": 1}

    def sample() -> None:
        for _ in range(FRAGMENTS):
            algo.env_runner_group.foreach_env_runner("sample_columns", kwargs=kwargs, local_env_runner=False)

    return seconds(sample)


def iteration_vs_slower_half(num_learners: int) -> Callable[[str], dict[str, Any]]:
    """Seconds of an iteration, where sampling and learning take equally long: one half alone is the best there is."""

    def run(name: str) -> dict[str, Any]:
        with algorithm(sleeping_config(1, 0.0).learners(num_learners=num_learners)) as algo:
            learning_seconds(algo)
            learning = statistics.median(learning_seconds(algo) for _ in range(3))
            sampling = statistics.median(sampling_seconds(algo) for _ in range(3))
        sleep_s = max(0.0, learning - sampling) / (FRAGMENTS * VECTOR_STEPS)

        @contextlib.contextmanager
        def both() -> Iterator[Callable]:
            with algorithm(sleeping_config(1, sleep_s).learners(num_learners=num_learners)) as algo:
                yield lambda: seconds(algo.train)

        @contextlib.contextmanager
        def slower_half() -> Iterator[Callable]:
            with algorithm(sleeping_config(1, sleep_s).learners(num_learners=num_learners)) as algo:
                yield lambda: max(learning_seconds(algo), sampling_seconds(algo))

        return compare(name, "s", both, slower_half)

    return run


# --- Many EnvRunners --------------------------------------------------------------------------------------------------


@functools.cache
def scaled(num_env_runners: int) -> dict[str, list[float]]:
    """Env steps/s, and CPU seconds of the driver per million env steps, of each repetition.

    The Learner is an actor: what remains is the driver's own work. It learns little, so that it holds up nobody.
    """
    config = sleeping_config(num_env_runners, SLEEP_S).learners(num_learners=1, num_cpus_per_learner=1)
    config.training(training_intensity=1.0)
    runs: dict[str, list[float]] = {"rate": [], "cpu": []}
    with algorithm(config) as algo:
        algo.train()
        for _ in range(harness.REPETITIONS):
            before, cpu = algo.num_env_steps, time.process_time()
            duration = seconds(algo.train)
            steps = algo.num_env_steps - before
            runs["rate"].append(steps / duration)
            runs["cpu"].append((time.process_time() - cpu) / steps * 1e6)
    return runs


def efficiency(num_env_runners: int) -> Callable[[str], dict[str, Any]]:
    """Env steps/s beside as many times those of one EnvRunner."""

    def run(name: str) -> dict[str, Any]:
        baseline = [num_env_runners * value for value in scaled(1)["rate"]]
        return row(name, "env steps/s", {"value": scaled(num_env_runners)["rate"], "baseline": baseline})

    return run


def driver_cpu(num_env_runners: int) -> Callable[[str], dict[str, Any]]:
    """CPU of the driver for the same number of states, beside that with one EnvRunner."""

    def run(name: str) -> dict[str, Any]:
        return row(name, "CPU s/M states", {"value": scaled(num_env_runners)["cpu"], "baseline": scaled(1)["cpu"]})

    return run


BENCHMARKS: dict[str, Callable[[str], dict[str, Any]]] = {
    "iteration_vs_slower_half": iteration_vs_slower_half(0),
    "iteration_vs_slower_half_remote": iteration_vs_slower_half(1),
    **{f"env_runners_{n}_vs_1": efficiency(n) for n in (2, 4, 8, 16)},
    **{f"driver_cpu_{n}_vs_1": driver_cpu(n) for n in (2, 4, 8, 16)},
}
