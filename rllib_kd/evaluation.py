"""How well a student plays, and how well it knows its teacher: both play the same episodes, and are asked about all."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import scipy.stats
import torch
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.env.env_context import EnvContext
from ray.tune.registry import ENV_CREATOR, _global_registry
from torch import Tensor

from rllib_kd.teachers import load_teacher
from rllib_kd.teachers.base import Teacher

_ENVS_AT_ONCE = 50
_MAX_STATES = 10_000  # of each policy, for agreement and regret
_LATENCY_CALLS = 500


@dataclass(frozen=True)
class PolicyReport:
    """What one policy is and does."""

    name: str
    returns: list[float] = field(repr=False)  # of each episode, undiscounted
    return_mean: float
    return_ci95: float  # half width of the 95 % confidence interval of the mean (Student's t)
    num_parameters: int | None = None  # that act: without target networks
    latency_ms: float | None = None  # median of one forward pass of one observation, on one thread


@dataclass(frozen=True)
class Comparison:
    """A student beside its teacher; agreement and regret are None where a set of states is empty."""

    env: str
    num_episodes: int
    teacher: PolicyReport
    student: PolicyReport
    random: PolicyReport
    return_ratio: float  # (student − random) / (teacher − random)
    compression: float  # student parameters / teacher parameters
    agreement_on_teacher_states: float  # share of states in which both choose one action, in [0, 1]
    agreement_on_student_states: float
    q_regret_on_teacher_states: float  # mean of max_a Q_T(s, a) − Q_T(s, a_S), return units, ≥ 0
    q_regret_on_student_states: float

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """A table of at most 80 columns."""
        from rich.console import Console
        from rich.table import Table

        table = Table(title=f"{self.env}, {self.num_episodes} episodes each, same seeds")
        table.add_column("")
        for name in ("teacher", "student", "student / teacher"):
            table.add_column(name, justify="right")
        teacher, student = self.teacher, self.student
        table.add_row(
            "return, mean ± 95 % CI",
            *(f"{report.return_mean:.1f} ± {report.return_ci95:.1f}" for report in (teacher, student)),
            f"{self.return_ratio:.3f}*",
        )
        table.add_row(
            "parameters",
            f"{teacher.num_parameters:,}",
            f"{student.num_parameters:,}",
            f"{100 * self.compression:.2f} %",
        )
        if teacher.latency_ms and student.latency_ms:
            table.add_row(
                "latency, batch of 1",
                *(f"{1e3 * report.latency_ms:.0f} µs" for report in (teacher, student) if report.latency_ms),
                f"{student.latency_ms / teacher.latency_ms:.2f}",
            )
        table.add_row(
            "agreement on its states",
            *(f"{100 * a:.1f} %" for a in (self.agreement_on_teacher_states, self.agreement_on_student_states)),
            "",
        )
        table.add_row(
            "Q-regret on its states",
            *(f"{regret:.3g}" for regret in (self.q_regret_on_teacher_states, self.q_regret_on_student_states)),
            "",
        )
        table.caption = f"* return ratio, where a random policy ({self.random.return_mean:.1f}) counts as 0"
        console = Console(width=80, highlight=False)
        with console.capture() as capture:
            console.print(table)
        return capture.get().rstrip("\n")


def compare(
    teacher: Teacher | str | os.PathLike[str],
    student: RLModule | Any,
    env: str | Callable[..., gym.Env],
    *,
    num_episodes: int = 100,
    seed: int = 0,
    env_config: Mapping[str, Any] | None = None,
) -> Comparison:
    """Let teacher, student and a random policy play the same episodes, and compare them.

    Args:
        teacher: as in `.distillation(teacher=...)`, or one that is loaded.
        student: an RLModule with `compute_q_values()`, the Algorithm that trains it, or path or URI of a checkpoint.
        env: what `config.environment()` takes: a gymnasium id, a name registered with Tune, or a callable.
        num_episodes: that each policy plays, > 0; episode i is reset with `seed + i`.
        seed: of the first episode. Use seeds that were not used for choosing the student.
        env_config: passed to the env.

    Raises:
        ValueError: teacher or student cannot be loaded, or their spaces differ from the environment's.
    """
    if num_episodes < 1:
        raise ValueError(f"`num_episodes` must be at least 1, got {num_episodes}.")
    teacher = teacher if isinstance(teacher, Teacher) else load_teacher(teacher)
    student = _as_q_network(student)
    make_env = _env_maker(env, env_config)
    seeds = range(seed, seed + num_episodes)
    teacher_returns, teacher_states = play(make_env, _greedy(teacher), seeds)
    student_returns, student_states = play(make_env, _greedy(student), seeds)
    num_actions = int(teacher.action_space.n)
    rng = np.random.default_rng(seed)
    random_returns, _ = play(make_env, lambda obs: rng.integers(num_actions, size=len(obs)), seeds)

    on_teacher_states = agreement_and_regret(teacher, student, teacher_states)
    on_student_states = agreement_and_regret(teacher, student, student_states)
    means = [float(np.mean(returns)) for returns in (teacher_returns, student_returns, random_returns)]
    gap = means[0] - means[2]
    return Comparison(
        env=env if isinstance(env, str) else getattr(env, "__name__", str(env)),
        num_episodes=num_episodes,
        teacher=_report("teacher", teacher_returns, teacher, teacher_states),
        student=_report("student", student_returns, student, teacher_states),
        random=_report("random", random_returns),
        return_ratio=(means[1] - means[2]) / gap if gap else math.nan,
        compression=student.num_parameters / teacher.num_parameters,
        agreement_on_teacher_states=on_teacher_states[0],
        agreement_on_student_states=on_student_states[0],
        q_regret_on_teacher_states=on_teacher_states[1],
        q_regret_on_student_states=on_student_states[1],
    )


def evaluate(
    policy: Any,
    env: str | Callable[..., gym.Env],
    *,
    num_episodes: int = 100,
    seed: int = 0,
    env_config: Mapping[str, Any] | None = None,
) -> PolicyReport:
    """Play a Q-network greedily.

    Args:
        policy: teacher or student, as in `compare()`.
        env: as in `compare()`.
        num_episodes: > 0; episode i is reset with `seed + i`.
        seed: of the first episode.
        env_config: passed to the env.

    Raises:
        ValueError: the policy cannot be loaded.
    """
    if num_episodes < 1:
        raise ValueError(f"`num_episodes` must be at least 1, got {num_episodes}.")
    network = _as_q_network(policy)
    returns, states = play(_env_maker(env, env_config), _greedy(network), range(seed, seed + num_episodes))
    return _report("policy", returns, network, states)


def play(
    make_env: Callable[[], gym.Env], policy: Callable[[np.ndarray], np.ndarray], seeds: Sequence[int]
) -> tuple[list[float], np.ndarray]:
    """Play one episode for each seed, each in an environment of its own.

    Args:
        make_env: makes one environment.
        policy: from observations `[N, ...]` to actions `[N]`.
        seeds: of the resets.

    Returns:
        Undiscounted returns in the order of the seeds; and states `[M, ...]` on the way, evenly from all episodes.
    """
    returns: list[float] = []
    states: list[np.ndarray] = []
    for first in range(0, len(seeds), _ENVS_AT_ONCE):
        chunk = list(seeds[first : first + _ENVS_AT_ONCE])
        envs = gym.vector.SyncVectorEnv([make_env] * len(chunk))
        obs, _ = envs.reset(seed=chunk)
        totals, running = np.zeros(len(chunk)), np.ones(len(chunk), dtype=bool)
        while running.any():
            states.append(obs[running].copy())
            obs, rewards, terminateds, truncateds, _ = envs.step(policy(obs))
            totals += rewards * running
            running &= ~(terminateds | truncateds)
        envs.close()
        returns += totals.tolist()
    visited = np.concatenate(states)
    return returns, visited[:: math.ceil(len(visited) / _MAX_STATES)]


def agreement_and_regret(teacher: Teacher, student: Teacher, states: np.ndarray) -> tuple[float, float]:
    """Share of states in which both choose one action, and mean Q-regret (return units) of the student's choices."""
    obs = torch.as_tensor(states).float()
    teacher_q, student_q = teacher.q_values(obs), student.q_values(obs)
    chosen = student_q.argmax(-1, keepdim=True)
    agreement = (chosen.squeeze(-1) == teacher_q.argmax(-1)).float().mean()
    regret = (teacher_q.max(-1).values - teacher_q.gather(-1, chosen).squeeze(-1)).mean()
    return agreement.item(), regret.item()


def latency_ms(q_values: Callable[[Tensor], Tensor], obs: Tensor) -> float:
    """Median time of one forward pass, in milliseconds, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = []
        for _ in range(_LATENCY_CALLS):
            start = time.perf_counter()
            q_values(obs)
            times.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return 1e3 * statistics.median(times)


def mean_and_ci95(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half width of its 95 % confidence interval (Student's t; infinite for one value)."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.inf
    half_width = scipy.stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return mean, float(half_width)


def _report(
    name: str, returns: list[float], network: Teacher | None = None, states: np.ndarray | None = None
) -> PolicyReport:
    mean, half_width = mean_and_ci95(returns)
    measured: dict[str, Any] = {}
    if network is not None and states is not None:
        observation = torch.as_tensor(states[:1]).float()
        measured = {
            "num_parameters": network.num_parameters,
            "latency_ms": latency_ms(network.q_values, observation),
        }
    return PolicyReport(name, returns, mean, half_width, **measured)


def _as_q_network(student: Any) -> Teacher:
    """Any student as a frozen copy that can be asked for Q-values."""
    if isinstance(student, Teacher):
        return student
    if isinstance(student, str | os.PathLike):
        return load_teacher(student)
    module = student.get_module() if hasattr(student, "get_module") else student
    if not hasattr(module, "compute_q_values"):
        raise ValueError(
            f"The student is a {type(module).__name__} without compute_q_values(). Expected an RLModule with Q-values, "
            "an Algorithm, or the path of a checkpoint."
        )
    return Teacher(module, source="student")


def _greedy(network: Teacher) -> Callable[[np.ndarray], np.ndarray]:
    return lambda obs: network.q_values(torch.as_tensor(obs).float()).argmax(-1).numpy()


def check_gymnasium_id(env: str) -> None:
    """Whether gymnasium can make it.

    Raises:
        ValueError: it cannot; the message has gymnasium's reason.
    """
    try:
        gym.spec(env)
    except (gym.error.Error, ModuleNotFoundError) as error:
        raise ValueError(
            f"The environment '{env}' is neither registered with Ray nor known to gymnasium: {error}"
        ) from error


def _env_maker(env: str | Callable[..., gym.Env], env_config: Mapping[str, Any] | None) -> Callable[[], gym.Env]:
    """How RLlib makes single environments: registered names and callables get the config as one argument."""
    config = dict(env_config or {})
    if isinstance(env, str) and _global_registry.contains(ENV_CREATOR, env):
        env = _global_registry.get(ENV_CREATOR, env)
    if isinstance(env, str):
        check_gymnasium_id(env)
        return partial(gym.make, env, **config)
    return partial(env, EnvContext(config, worker_index=0))
