"""How well a student plays, and how well it knows its teacher: both play the same episodes, and are asked about all."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import scipy.stats
import torch
from ray.rllib.core.rl_module.rl_module import RLModule
from torch import Tensor

from rllib_kd.observations import View
from rllib_kd.played_environment import PlayedEnvironment, described, resolve_environment
from rllib_kd.playing import (
    EpsilonGreedy,
    Player,
    RandomActions,
    check_renders,
    env_maker,
    episode_seeds,
    play,
    recording,
)
from rllib_kd.policies import GreedyQ, LikeliestAction, as_policy, as_q_network
from rllib_kd.progress import bar
from rllib_kd.spaces import brief, same_space
from rllib_kd.teachers.base import Teacher
from rllib_kd.text import cell, means_and_intervals, number, printable, ratio, rendered

_STATES_AT_ONCE = 1_000  # in one forward pass: 10,000 stacks of frames and their features would fill the memory
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
    """A student beside its teacher.

    `confusion_on_..._states[i][j]` counts the states in which the teacher chooses action i and the student action j;
    agreement is its diagonal's share.
    """

    env: str
    num_episodes: int
    epsilon: float  # share of random actions that teacher and student played with
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
    env_config: dict[str, Any] = field(default_factory=dict)  # of the environment; what is not JSON, as a text

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON; what has no finite value is None."""
        return finite_or_none(asdict(self))

    @property
    def played_in(self) -> str:
        """The environment, with its config."""
        return described(self.env, self.env_config)

    @property
    def conditions(self) -> str:
        """How all have played."""
        episodes = "1 episode" if self.num_episodes == 1 else f"{self.num_episodes:,} episodes"
        return f"{episodes} each, same seeds" + (f", ε = {self.epsilon:g}" if self.epsilon else "")

    def __str__(self) -> str:
        """A table of at most 80 columns."""
        from rich.table import Table

        conditions = self.conditions if self.env_config else f"{self.env}, {self.conditions}"
        table = Table(title=cell(conditions, "table.title"))
        table.add_column("")
        for name in ("teacher", self.student.name, "student / teacher"):
            table.add_column(cell(name), justify="right")
        teacher, student = self.teacher, self.student
        table.add_row(
            "return, mean ± 95 % CI",
            *means_and_intervals([(report.return_mean, report.return_ci95) for report in (teacher, student)]),
            f"{ratio(self.return_ratio)}*",
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
        random_return = number(self.random.return_mean, self.random.return_ci95)
        table.caption = f"* return ratio, where a random policy ({random_return}) counts as 0"
        return (f"played in {printable(self.played_in)}\n" if self.env_config else "") + rendered(table)


def compare(
    teacher: Any,
    student: RLModule | Any,
    env: str | Callable[..., gym.Env] | PlayedEnvironment | None = None,
    *,
    num_episodes: int = 100,
    seed: int = 0,
    epsilon: float = 0.0,
    env_config: Mapping[str, Any] | None = None,
    trust_checkpoint: bool = False,
    progress: bool = False,
) -> Comparison:
    """Let teacher, student and a random policy play the same episodes, and compare them.

    Each sees the environment through the connectors with which it was trained, where its checkpoint has them. Filters
    stay as they are.

    Args:
        teacher: as in `.distillation(teacher=...)`, or as the student.
        student: an RLModule with `compute_q_values()`, the Algorithm that trains it, or path or URI of a checkpoint.
        env: what `config.environment()` takes: a gymnasium id, a name registered with Tune, or a callable. None
            (default): the environment that the student's checkpoint records, or else the teacher's. Without trust only
            environments of gymnasium and ALE are taken from checkpoints.
        num_episodes: that each policy plays, > 0; episode i is reset with `seed + i`.
        seed: of the first episode. Use seeds that were not used for choosing the student.
        epsilon: share of random actions, in [0, 1], that teacher and student play with. Scores of Atari games are
            usually taken with one (0.05 in Mnih et al. 2015): a greedy policy may do the same for ever, in games
            without randomness of their own.
        env_config: keys to set. The checkpoint's config of the same environment gives the others; without trust only
            keys and values that are known to be harmless.
        trust_checkpoint: whether what checkpoints hold may be executed, for modules and connectors of one's own; and
            whether they may choose any environment and config.
        progress: whether to show a bar on a terminal.

    Raises:
        ValueError: teacher or student cannot be loaded, nothing names an environment, an untrusted checkpoint chooses
            one or a config that is not known to be harmless, the spaces differ, or `epsilon` is not in [0, 1].
    """
    comparisons = compare_all(
        teacher,
        {"student": student},
        env,
        num_episodes=num_episodes,
        seed=seed,
        epsilon=epsilon,
        env_config=env_config,
        trust_checkpoint=trust_checkpoint,
        progress=progress,
    )
    return comparisons[0]


def compare_all(
    teacher: Any,
    students: Mapping[str, RLModule | Any],
    env: str | Callable[..., gym.Env] | PlayedEnvironment | None = None,
    *,
    num_episodes: int = 100,
    seed: int = 0,
    epsilon: float = 0.0,
    env_config: Mapping[str, Any] | None = None,
    trust_checkpoint: bool = False,
    progress: bool = False,
) -> list[Comparison]:
    """Compare several students with one teacher, which plays its episodes once, as the random policy does.

    Args:
        teacher: as in `compare()`.
        students: by name, each as in `compare()`; at least one.
        env: as in `compare()`.
        num_episodes: as in `compare()`.
        seed: as in `compare()`.
        epsilon: as in `compare()`.
        env_config: as in `compare()`.
        trust_checkpoint: as in `compare()`.
        progress: as in `compare()`.

    Returns:
        One comparison for each student, in their order; `.student.name` is the name.

    Raises:
        ValueError: no students, students that were trained in different environments, or one of the errors of
            `compare()`.
    """
    seeds = episode_seeds(num_episodes, seed)
    if not students:
        raise ValueError("`students` is empty. Give at least one, by name: compare_all(teacher, {'small': path}, env).")
    played = resolve_environment(students, env, env_config, teacher=teacher, trust_checkpoint=trust_checkpoint)
    teacher = as_q_network(teacher, trust_checkpoint=trust_checkpoint)
    networks = {name: as_q_network(student, trust_checkpoint=trust_checkpoint) for name, student in students.items()}
    make_env = env_maker(*played)

    def playing(network: Teacher) -> Player:
        return _with_epsilon(GreedyQ(network), epsilon, seed=seed)

    teacher_player = playing(teacher)
    check_fit(make_env, {"The teacher": teacher} | {f"The student {name!r}": n for name, n in networks.items()})

    with bar("episodes", total=(2 + len(networks)) * num_episodes, shown=progress) as advance:
        views = _views([teacher, *networks.values()])
        teacher_returns, seen = play(make_env, teacher_player, seeds, views=list(views.values()), advance=advance)
        teacher_states = dict(zip(views, seen, strict=True))
        random_policy = RandomActions(int(teacher.action_space.n), seed=seed)
        random_returns, _ = play(make_env, random_policy, seeds, advance=advance)
        teacher_report = _report("teacher", teacher_returns, teacher, teacher_states[_eyes(teacher)])
        random_report = _report("random", random_returns)
        gap = teacher_report.return_mean - random_report.return_mean

        comparisons = []
        for name, network in networks.items():
            views = _views([teacher, network])
            returns, seen = play(make_env, playing(network), seeds, views=list(views.values()), advance=advance)
            student_states = dict(zip(views, seen, strict=True))
            report = _report(name, returns, network, student_states[_eyes(network)])
            on_teacher_states, teacher_regret = confusion_and_regret(
                teacher, network, teacher_states[_eyes(teacher)], teacher_states[_eyes(network)]
            )
            on_student_states, student_regret = confusion_and_regret(
                teacher, network, student_states[_eyes(teacher)], student_states[_eyes(network)]
            )
            comparisons.append(
                Comparison(
                    env=played.name,
                    num_episodes=num_episodes,
                    epsilon=epsilon,
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
                    env_config=played.config_as_json(),
                )
            )
    return comparisons


def evaluate(
    policy: Any,
    env: str | Callable[..., gym.Env] | PlayedEnvironment | None = None,
    *,
    num_episodes: int = 100,
    seed: int = 0,
    epsilon: float = 0.0,
    env_config: Mapping[str, Any] | None = None,
    trust_checkpoint: bool = False,
    video_dir: Path | None = None,
    num_videos: int = 3,
    render: bool = False,
    progress: bool = False,
) -> PolicyReport:
    """Play a policy: a Q-network takes its best action, any other RLModule its likeliest.

    Args:
        policy: teacher or student, as in `compare()`; or an RLModule, Algorithm or checkpoint of another algorithm.
        env: as in `compare()`.
        num_episodes: > 0; episode i is reset with `seed + i`.
        seed: of the first episode.
        epsilon: share of random actions, in [0, 1], as in `compare()`.
        env_config: as in `compare()`.
        trust_checkpoint: as in `compare()`.
        video_dir: folder to which the first episodes are written as MP4 files.
        num_videos: how many of them, > 0.
        render: show the episodes on the screen, one after the other (`render_mode="human"`).
        progress: whether to show a bar on a terminal.

    Raises:
        ValueError: one of the errors of `compare()`, or the environment cannot be rendered.
    """
    seeds = episode_seeds(num_episodes, seed)
    played = resolve_environment({"the policy": policy}, env, env_config, trust_checkpoint=trust_checkpoint)
    policy = as_policy(policy, trust_checkpoint=trust_checkpoint)
    player = _with_epsilon(policy, epsilon, seed=seed)
    if render and video_dir is not None:
        raise ValueError("An environment renders to the screen or to videos, not to both. Choose one.")
    check_fit(env_maker(*played), {"The policy": policy})
    mode = "human" if render else "rgb_array" if video_dir is not None else None
    make_shown = env_maker(*played, render_mode=mode)
    if mode is not None:
        check_renders(make_shown, mode)
    make_env = make_shown if render else env_maker(*played)
    filmed = seeds[: num_videos if video_dir is not None else 0]
    returns: list[float] = []
    with bar("episodes", total=num_episodes, shown=progress) as advance:
        for film_seed in filmed:
            make_filmed = recording(make_shown, Path(str(video_dir)), name=f"seed-{film_seed}")
            returns += play(make_filmed, player, [film_seed], advance=advance)[0]
        rest = seeds[len(filmed) :]
        returns += play(make_env, player, rest, num_envs=1 if render else 50, advance=advance)[0]
    if isinstance(policy, GreedyQ):
        return _report("policy", returns, policy.network, np.zeros((1, *(policy.network.input_space.shape or ()))))
    return _report("policy", returns, num_parameters=policy.num_parameters)


def _with_epsilon(policy: GreedyQ | LikeliestAction, epsilon: float, *, seed: int) -> Player:
    if not 0.0 <= epsilon <= 1.0:
        raise ValueError(f"`epsilon` is a share of random actions, in [0, 1], got {epsilon}.")
    if epsilon == 0.0:
        return policy
    if not isinstance(policy.action_space, gym.spaces.Discrete):
        raise ValueError(f"`epsilon` needs discrete actions, but the policy has {brief(policy.action_space)}. Set 0.")
    return EpsilonGreedy(policy, int(policy.action_space.n), epsilon=epsilon, seed=seed)


def confusion_and_regret(
    teacher: Teacher, student: Teacher, teacher_inputs: np.ndarray, student_inputs: np.ndarray
) -> tuple[np.ndarray, float]:
    """Who chooses what, and what the student's choices cost by the teacher's Q-values.

    Args:
        teacher: from its inputs `[M, ...]` to Q-values `[M, A]`.
        student: the same; it has as many actions.
        teacher_inputs: states as the teacher's network takes them, `[M, ...]`, M > 0.
        student_inputs: the same states as the student's network takes them.

    Returns:
        Counts of states `[A, A]`, rows the teacher's choice, columns the student's; and the mean of
        max_a Q_T(s, a) − Q_T(s, a_S), in return units, ≥ 0.
    """
    teacher_q = _all_q_values(teacher, teacher_inputs)  # [M, A]
    student_q = _all_q_values(student, student_inputs)  # [M, A]
    num_actions = teacher_q.shape[-1]
    best, chosen = teacher_q.argmax(-1), student_q.argmax(-1)  # [M]
    confusion = torch.bincount(best * num_actions + chosen, minlength=num_actions**2).reshape(num_actions, num_actions)
    regret = (teacher_q.max(-1).values - teacher_q.gather(-1, chosen[:, None])[:, 0]).mean()
    return confusion.numpy(), regret.item()


def _all_q_values(network: Teacher, inputs: np.ndarray) -> Tensor:
    chunks = torch.as_tensor(inputs).float().split(_STATES_AT_ONCE)
    return torch.cat([network.q_values(chunk) for chunk in chunks])


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
    name: str,
    returns: list[float],
    network: Teacher | None = None,
    inputs: np.ndarray | None = None,
    *,
    num_parameters: int | None = None,
) -> PolicyReport:
    mean, half_width = mean_and_ci95(returns)
    latency = None
    if network is not None and inputs is not None:
        num_parameters = network.num_parameters
        latency = latency_ms(network.q_values, torch.as_tensor(inputs[:1]).float())
    return PolicyReport(name, returns, mean, half_width, num_parameters, latency)


def _eyes(network: Teacher) -> int | None:
    """Equal for networks that see the same: None without stages."""
    has_stages = network.pipeline is not None and network.pipeline.stages
    return id(network.pipeline) if has_stages else None


def _views(networks: Sequence[Teacher]) -> dict[int | None, Callable[[], View]]:
    """What starts the view of each, once for all that see the same."""
    return {_eyes(network): network.start for network in networks}


def check_fit(make_env: Callable[[], gym.Env], networks: Mapping[str, Any]) -> None:
    """Whether policies fit the environment, before torch fails in the middle of an episode.

    Args:
        make_env: makes the environment.
        networks: by what to call them at the beginning of a sentence.

    Raises:
        ValueError: one of them does not; the message names both spaces.
    """
    env = make_env()
    spaces = env.observation_space, env.action_space
    env.close()
    for name, network in networks.items():
        own = network.observation_space, network.action_space
        if not network.takes(spaces[0]) or not same_space(own[1], spaces[1]):
            raise ValueError(
                f"{name} was made for observations {brief(own[0])} and actions {brief(own[1])}, but the environment "
                f"has {brief(spaces[0])} and {brief(spaces[1])}. Networks play where they were trained."
            )


def finite_or_none(value: Any) -> Any:
    """The value, in which numbers that are not finite, for which JSON has no word, are None."""
    if isinstance(value, dict):
        return {key: finite_or_none(part) for key, part in value.items()}
    if isinstance(value, list):
        return [finite_or_none(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
