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
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.env.env_context import EnvContext
from ray.tune.registry import ENV_CREATOR, _global_registry
from torch import Tensor

from rllib_kd.env_runner import has_plain_connectors
from rllib_kd.spaces import brief, same_space
from rllib_kd.teachers import load_teacher
from rllib_kd.teachers.base import Teacher

_ENVS_AT_ONCE = 50
_MAX_STATES = 10_000  # of each policy, for agreement and regret
_STATES_AT_ONCE = 1_000  # in one forward pass: 10,000 stacks of frames and their features would fill the memory
_LATENCY_CALLS = 500
_MAX_EPISODE_STEPS = 30_000  # Atari's own limit is 27,000


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
    """A student beside its teacher.

    `confusion_on_..._states[i][j]` counts the states in which the teacher chooses action i and the student action j;
    agreement is its diagonal's share.
    """

    env: str
    num_episodes: int
    teacher: PolicyReport
    student: PolicyReport
    random: PolicyReport
    return_ratio: float  # (student − random) / (teacher − random); NaN where the teacher is no better than random
    compression: float  # student parameters / teacher parameters
    agreement_on_teacher_states: float  # share of states in which both choose one action, in [0, 1]
    agreement_on_student_states: float
    q_regret_on_teacher_states: float  # mean of max_a Q_T(s, a) − Q_T(s, a_S), return units, ≥ 0
    q_regret_on_student_states: float
    confusion_on_teacher_states: list[list[int]] = field(repr=False)  # [A][A], counts
    confusion_on_student_states: list[list[int]] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON; what has no finite value is None."""
        return finite_or_none(asdict(self))

    def __str__(self) -> str:
        """A table of at most 80 columns."""
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        episodes = "1 episode" if self.num_episodes == 1 else f"{self.num_episodes} episodes"
        table = Table(title=escape(f"{self.env}, {episodes} each, same seeds"))
        table.add_column("")
        for name in ("teacher", self.student.name, "student / teacher"):
            table.add_column(escape(name), justify="right")
        teacher, student = self.teacher, self.student
        table.add_row(
            "return, mean ± 95 % CI",
            *(f"{report.return_mean:.1f} ± {report.return_ci95:.1f}" for report in (teacher, student)),
            f"{self.return_ratio:.3f}*" if math.isfinite(self.return_ratio) else "–*",
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
    teacher: Any,
    student: RLModule | Any,
    env: str | Callable[..., gym.Env],
    *,
    num_episodes: int = 100,
    seed: int = 0,
    env_config: Mapping[str, Any] | None = None,
) -> Comparison:
    """Let teacher, student and a random policy play the same episodes, and compare them.

    Args:
        teacher: as in `.distillation(teacher=...)`, or as the student.
        student: an RLModule with `compute_q_values()`, the Algorithm that trains it, or path or URI of a checkpoint.
            Networks see what the environment shows: an Algorithm with connectors of its own is refused.
        env: what `config.environment()` takes: a gymnasium id, a name registered with Tune, or a callable.
        num_episodes: that each policy plays, > 0; episode i is reset with `seed + i`.
        seed: of the first episode. Use seeds that were not used for choosing the student.
        env_config: passed to the env.

    Raises:
        ValueError: teacher or student cannot be loaded, or their spaces differ from the environment's.
    """
    students = {"student": student}
    return compare_all(teacher, students, env, num_episodes=num_episodes, seed=seed, env_config=env_config)[0]


def compare_all(
    teacher: Any,
    students: Mapping[str, RLModule | Any],
    env: str | Callable[..., gym.Env],
    *,
    num_episodes: int = 100,
    seed: int = 0,
    env_config: Mapping[str, Any] | None = None,
) -> list[Comparison]:
    """Compare several students with one teacher, which plays its episodes once, as the random policy does.

    Args:
        teacher: as in `compare()`.
        students: by name, each as in `compare()`; at least one.
        env: as in `compare()`.
        num_episodes: as in `compare()`.
        seed: as in `compare()`.
        env_config: as in `compare()`.

    Returns:
        One comparison for each student, in their order; `.student.name` is the name.

    Raises:
        ValueError: no students, or one of the errors of `compare()`.
    """
    seeds = episode_seeds(num_episodes, seed)
    if not students:
        raise ValueError("`students` is empty. Give at least one, by name: compare_all(teacher, {'small': path}, env).")
    teacher = as_q_network(teacher)
    networks = {name: as_q_network(student) for name, student in students.items()}
    make_env = env_maker(env, env_config)
    _check_spaces(make_env, {"The teacher": teacher} | {f"The student {name!r}": n for name, n in networks.items()})
    teacher_returns, teacher_states = play(make_env, greedy(teacher), seeds)
    num_actions = int(teacher.action_space.n)
    rng = np.random.default_rng(seed)
    random_returns, _ = play(make_env, lambda obs: rng.integers(num_actions, size=len(obs)), seeds)
    teacher_report = _report("teacher", teacher_returns, teacher, teacher_states)
    random_report = _report("random", random_returns)
    gap = teacher_report.return_mean - random_report.return_mean

    comparisons = []
    for name, network in networks.items():
        returns, student_states = play(make_env, greedy(network), seeds)
        report = _report(name, returns, network, teacher_states)
        on_teacher_states, teacher_regret = confusion_and_regret(teacher, network, teacher_states)
        on_student_states, student_regret = confusion_and_regret(teacher, network, student_states)
        comparisons.append(
            Comparison(
                env=env if isinstance(env, str) else getattr(env, "__name__", str(env)),
                num_episodes=num_episodes,
                teacher=teacher_report,
                student=report,
                random=random_report,
                return_ratio=(report.return_mean - random_report.return_mean) / gap if gap > 0 else math.nan,
                compression=network.num_parameters / teacher.num_parameters,
                agreement_on_teacher_states=agreement(on_teacher_states),
                agreement_on_student_states=agreement(on_student_states),
                q_regret_on_teacher_states=teacher_regret,
                q_regret_on_student_states=student_regret,
                confusion_on_teacher_states=on_teacher_states.tolist(),
                confusion_on_student_states=on_student_states.tolist(),
            )
        )
    return comparisons


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
        ValueError: the policy cannot be loaded, or its spaces differ from the environment's.
    """
    seeds = episode_seeds(num_episodes, seed)
    network, make_env = as_q_network(policy), env_maker(env, env_config)
    _check_spaces(make_env, {"The policy": network})
    returns, states = play(make_env, greedy(network), seeds)
    return _report("policy", returns, network, states)


def episode_seeds(num_episodes: int, seed: int) -> range:
    """One seed an episode.

    Raises:
        ValueError: there are to be none.
    """
    if num_episodes < 1:
        raise ValueError(f"`num_episodes` must be at least 1, got {num_episodes}.")
    return range(seed, seed + num_episodes)


def play(
    make_env: Callable[[], gym.Env], policy: Callable[[np.ndarray], np.ndarray], seeds: Sequence[int]
) -> tuple[list[float], np.ndarray]:
    """Play one episode for each seed, each in an environment of its own.

    Args:
        make_env: makes one environment.
        policy: from observations `[N, ...]` to actions `[N]`.
        seeds: of the resets.

    Raises:
        ValueError: an episode does not end.

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
        steps = 0
        while running.any():
            if (steps := steps + 1) > _MAX_EPISODE_STEPS:
                raise ValueError(
                    f"An episode has not ended after {_MAX_EPISODE_STEPS} steps. Give the environment a limit: "
                    "gymnasium.wrappers.TimeLimit, or max_episode_steps where it is registered."
                )
            states.append(obs[running].copy())
            obs, rewards, terminateds, truncateds, _ = envs.step(policy(obs))
            totals += rewards * running
            running &= ~(terminateds | truncateds)
        envs.close()
        returns += totals.tolist()
    visited = np.concatenate(states)
    return returns, visited[:: math.ceil(len(visited) / _MAX_STATES)]


def confusion_and_regret(teacher: Teacher, student: Teacher, states: np.ndarray) -> tuple[np.ndarray, float]:
    """Who chooses what, and what the student's choices cost by the teacher's Q-values.

    Args:
        teacher: from observations `[M, ...]` to Q-values `[M, A]`.
        student: the same; it has as many actions.
        states: observations `[M, ...]`, M > 0.

    Returns:
        Counts of states `[A, A]`, rows the teacher's choice, columns the student's; and the mean of
        max_a Q_T(s, a) − Q_T(s, a_S), in return units, ≥ 0.
    """
    chunks = torch.as_tensor(states).split(_STATES_AT_ONCE)
    teacher_q = torch.cat([teacher.q_values(obs.float()) for obs in chunks])  # [M, A]
    student_q = torch.cat([student.q_values(obs.float()) for obs in chunks])  # [M, A]
    num_actions = teacher_q.shape[-1]
    best, chosen = teacher_q.argmax(-1), student_q.argmax(-1)  # [M]
    confusion = torch.bincount(best * num_actions + chosen, minlength=num_actions**2).reshape(num_actions, num_actions)
    regret = (teacher_q.max(-1).values - teacher_q.gather(-1, chosen[:, None])[:, 0]).mean()
    return confusion.numpy(), regret.item()


def agreement(confusion: np.ndarray) -> float:
    """Share of states, in [0, 1], in which both choose one action, of counts `[A, A]`."""
    return float(confusion.trace() / confusion.sum())


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


def as_q_network(student: Any) -> Teacher:
    """Any student as a frozen copy that can be asked for Q-values."""
    if isinstance(student, Teacher):
        return student
    if isinstance(student, str | os.PathLike):
        return load_teacher(student)
    if isinstance(student, Algorithm):
        if student.env_runner is not None and not has_plain_connectors(student.env_runner):
            raise ValueError(
                "compare() shows networks what the environment shows, but this Algorithm has connectors of its own in "
                "between. Evaluate it by algo.evaluate()."
            )
        student = student.get_module()
    if not hasattr(student, "compute_q_values"):
        raise ValueError(
            f"Expected an RLModule with Q-values, an Algorithm, or the path of a checkpoint, got a "
            f"{type(student).__name__} without compute_q_values()."
        )
    return Teacher(student, source=type(student).__name__)


def _check_spaces(make_env: Callable[[], gym.Env], networks: Mapping[str, Teacher]) -> None:
    """Say which network does not fit the environment, before torch fails in the middle of an episode."""
    env = make_env()
    spaces = env.observation_space, env.action_space
    env.close()
    for name, network in networks.items():
        own = network.observation_space, network.action_space
        if not all(map(same_space, own, spaces)):
            raise ValueError(
                f"{name} was made for observations {brief(own[0])} and actions {brief(own[1])}, but the environment "
                f"has {brief(spaces[0])} and {brief(spaces[1])}. Compare networks where they were trained."
            )


def finite_or_none(value: Any) -> Any:
    """The value, in which numbers that are not finite, for which JSON has no word, are None."""
    if isinstance(value, dict):
        return {key: finite_or_none(part) for key, part in value.items()}
    if isinstance(value, list):
        return [finite_or_none(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def greedy(network: Teacher) -> Callable[[np.ndarray], np.ndarray]:
    """The policy that `play()` takes: from observations `[N, ...]` to the best actions `[N]`."""
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


def env_maker(env: str | Callable[..., gym.Env], env_config: Mapping[str, Any] | None = None) -> Callable[[], gym.Env]:
    """How RLlib makes single environments: registered names and callables get the config as one argument."""
    config = dict(env_config or {})
    if isinstance(env, str) and _global_registry.contains(ENV_CREATOR, env):
        env = _global_registry.get(ENV_CREATOR, env)
    if isinstance(env, str):
        check_gymnasium_id(env)
        return partial(gym.make, env, **config)
    return partial(env, EnvContext(config, worker_index=0))
