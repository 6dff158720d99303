"""compare() and evaluate(): policies play the same episodes, and are compared on the states that they visit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.core.rl_module.rl_module import RLModule

from rllib_kd.environments.making import close, env_maker
from rllib_kd.environments.video import check_recorder, check_renders, recording
from rllib_kd.evaluation.intervals import mean_and_ci95
from rllib_kd.evaluation.measures import agreement, confusion_and_regret, latency_ms
from rllib_kd.evaluation.played_environment import PlayedEnvironment, resolve_environment
from rllib_kd.evaluation.playing import ENVS_AT_ONCE, EpsilonGreedy, Player, RandomActions, mask_view, play
from rllib_kd.evaluation.policies import GreedyQ, LikeliestAction
from rllib_kd.evaluation.result import Comparison, PolicyReport
from rllib_kd.evaluation.return_ratio import doubt, has_higher_mean, return_ratio
from rllib_kd.evaluation.seeds import FRESH_SEED, episode_seeds
from rllib_kd.evaluation.sources import open_source, open_sources
from rllib_kd.evaluation.trees import tree_figures
from rllib_kd.numeric import check_integer
from rllib_kd.observations.masks import features_space
from rllib_kd.observations.pipeline import View
from rllib_kd.observations.spaces import brief, same_space, told_apart
from rllib_kd.public import public
from rllib_kd.teachers.base import Teacher
from rllib_kd.teachers.byte_images import warn_of_bytes
from rllib_kd.terminal import bar
from rllib_kd.wire import LOG_PROBS

logger = logging.getLogger(__name__)


@public
def compare(
    teacher: Any,
    student: RLModule | Any,
    env: str | Callable[..., gym.Env] | PlayedEnvironment | None = None,
    *,
    num_episodes: int = 100,
    seed: int = FRESH_SEED,
    epsilon: float = 0.0,
    env_config: Mapping[str, Any] | None = None,
    trust_checkpoint: bool = False,
    progress: bool = False,
) -> Comparison:
    """Play the same episodes with teacher, student and a random policy, and compare them.

    Each policy gets observations through the connectors with which it was trained, if its checkpoint has them. The
    statistics of filters stay fixed. All but the random policy take their best action, an actor-critic its likeliest.

    Args:
        teacher: as in `.distillation(teacher=...)`, or as the student.
        student: an RLModule with `compute_q_values()`, the Algorithm that trains it, or path or URI of a checkpoint.
        env: as in `config.environment()`: a gymnasium id, a name registered with Tune, or a callable. None (default):
            the environment that the student's checkpoint records, or else the teacher's. Without trust, only
            environments of gymnasium and ALE, and those of your own that you have given before on this machine, are
            taken from checkpoints.
        num_episodes: episodes of each policy, ≥ 1; episode i is reset with `seed + i`.
        seed: seed of the first episode, ≥ 0; by default, that of the `rllib` command. Use seeds that were not used for
            choosing the student.
        epsilon: share of random actions of teacher and student, in [0, 1]. Scores of Atari games are usually measured
            with some (0.05 in Mnih et al. 2015): in games without randomness, a greedy policy may repeat itself
            without end.
        env_config: keys to change in the environment's config. The others are taken from the checkpoint, if it was
            trained in the same environment; without trust, only keys and values that are known to be harmless, and
            configs with which you have trained in an environment of your own on this machine.
        trust_checkpoint: whether code in checkpoints may be run, for custom modules and connectors; and whether they
            may choose any environment and config.
        progress: whether to show a bar on a terminal.

    Returns:
        The comparison. `str()` of it is a table.

    Raises:
        ValueError: teacher or student cannot be loaded, no environment is named, an untrusted checkpoint chooses an
            environment or config that is not known to be harmless, the spaces differ, or `epsilon` is not in [0, 1].
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


@public
def compare_all(
    teacher: Any,
    students: Mapping[str, RLModule | Any],
    env: str | Callable[..., gym.Env] | PlayedEnvironment | None = None,
    *,
    num_episodes: int = 100,
    seed: int = FRESH_SEED,
    epsilon: float = 0.0,
    env_config: Mapping[str, Any] | None = None,
    trust_checkpoint: bool = False,
    progress: bool = False,
) -> list[Comparison]:
    """Compare several students with one teacher, which plays its episodes once, as the random policy does.

    Args:
        teacher: as in `compare()`.
        students: students by name, each as in `compare()`; at least one.
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
        ValueError: there are no students, they were trained in different environments, or as `compare()`.
    """
    seeds = episode_seeds(num_episodes, seed)
    if not students or not isinstance(students, Mapping):
        raise ValueError(f"`students` must be students by name, such as {{'small': path}}, got {students!r:.200}.")
    first, *others = open_sources([teacher, *students.values()], trust_checkpoint=trust_checkpoint)
    sources = dict(zip(students, others, strict=True))
    played = resolve_environment(sources, env, env_config, teacher=first, trust_checkpoint=trust_checkpoint)
    make_env = env_maker(*played)
    named = {"The teacher": first} | {f"The student {name!r}": source for name, source in sources.items()}
    teacher, *fitted = check_players_fit(make_env, {name: source.network() for name, source in named.items()})
    networks = dict(zip(students, fitted, strict=True))
    teacher_player = _with_epsilon(GreedyQ(teacher), epsilon, seed=seed)
    with bar("episodes", total=(2 + len(networks)) * num_episodes, shown=progress) as advance:
        game = partial(_play, make_env, seeds, advance)
        returns, teacher_states = game(teacher_player, [teacher, *networks.values()])
        random_returns, _ = game(RandomActions(int(teacher.action_space.n), seed=seed), [])
        baselines = (
            _report("teacher", returns, teacher, teacher_states[_eyes(teacher)]),
            _report("random", random_returns),
        )
        if num_episodes > 1:
            _warn_of_teacher(teacher.source, played.name, returns, random_returns)
        comparisons = []
        for name, network in networks.items():
            player = _with_epsilon(GreedyQ(network), epsilon, seed=seed)
            returns, states = game(player, [teacher, network])
            reports = (_report(name, returns, network, states[_eyes(network)]), *baselines)
            figures = _figures(teacher, network, {"teacher": teacher_states, "student": states})
            comparisons.append(_comparison(played, epsilon, reports, figures))
    return comparisons


#: Inputs `[M, ...]` of networks in the same states, by `_eyes()`; and the legal actions there, as `_MASKS`.
_States = dict[Hashable, np.ndarray]
_MASKS = "masks"


def _play(
    make_env: Callable[[], gym.Env],
    seeds: Sequence[int],
    advance: Callable[[int], None],
    player: Player,
    networks: Sequence[Teacher],
) -> tuple[list[float], _States]:
    """Play one episode for each seed; return the returns, and the visited states as inputs of each network."""
    views: dict[Hashable, Callable[[], View]] = {_eyes(network): network.start for network in networks}
    if networks:
        views[_MASKS] = lambda: mask_view(int(networks[0].action_space.n))
    returns, seen = play(make_env, player, seeds, views=list(views.values()), advance=advance)
    return returns, dict(zip(views, seen, strict=True))


def _figures(teacher: Teacher, student: Teacher, states: Mapping[str, _States]) -> dict[str, Any]:
    """Return the fields of a `Comparison` that compare a student's network with its teacher's.

    Args:
        teacher: the teacher.
        student: its student.
        states: states by the policy that visited them, "teacher" or "student".
    """
    figures: dict[str, Any] = {
        "compression": student.num_parameters / teacher.num_parameters,
        "regret_unit": "nats" if teacher.outputs == LOG_PROBS else "return units",
    }
    for whose, inputs in states.items():
        confusion, regret = confusion_and_regret(
            teacher, student, inputs[_eyes(teacher)], inputs[_eyes(student)], inputs[_MASKS]
        )
        figures[f"agreement_on_{whose}_states"] = agreement(confusion)
        figures[f"q_regret_on_{whose}_states"] = regret
        figures[f"confusion_on_{whose}_states"] = confusion.tolist()
    own = states["student"]
    tree = tree_figures(teacher, student, own[_eyes(teacher)], own[_eyes(student)], own[_MASKS])
    return figures | {"tree": tree}


def _comparison(
    played: PlayedEnvironment,
    epsilon: float,
    reports: tuple[PolicyReport, PolicyReport, PolicyReport],
    figures: Mapping[str, Any],
) -> Comparison:
    """Return a comparison from the reports of student, teacher and random policy, and the result of `_figures()`."""
    student, teacher, random = reports
    return Comparison(
        env=played.name,
        num_episodes=len(student.returns),
        epsilon=epsilon,
        teacher=teacher,
        student=student,
        random=random,
        return_ratio=return_ratio(student.return_mean, teacher.return_mean, random.return_mean),
        env_config=played.config_as_json(),
        **figures,
    )


def evaluate(
    policy: Any,
    env: str | Callable[..., gym.Env] | PlayedEnvironment | None = None,
    *,
    num_episodes: int = 100,
    seed: int = FRESH_SEED,
    epsilon: float = 0.0,
    env_config: Mapping[str, Any] | None = None,
    trust_checkpoint: bool = False,
    video_dir: Path | None = None,
    num_videos: int = 3,
    render: bool = False,
    progress: bool = False,
) -> PolicyReport:
    """Play episodes with a policy: a Q-network takes its best action, any other RLModule its likeliest.

    Args:
        policy: teacher or student, as in `compare()`; or an RLModule, Algorithm or checkpoint of another algorithm.
        env: as in `compare()`.
        num_episodes: ≥ 1; episode i is reset with `seed + i`.
        seed: as in `compare()`.
        epsilon: share of random actions, in [0, 1], as in `compare()`.
        env_config: as in `compare()`.
        trust_checkpoint: as in `compare()`.
        video_dir: folder to which the first episodes are written as MP4 files; None: none are written.
        num_videos: number of episodes to write, ≥ 1.
        render: whether to show the episodes on the screen, one after the other (`render_mode="human"`).
        progress: whether to show a bar on a terminal.

    Returns:
        The policy's returns and what is known of its network.

    Raises:
        ValueError: as `compare()`, or the environment cannot be rendered.
    """
    seeds = episode_seeds(num_episodes, seed)
    check_integer("num_videos", num_videos, low=1)
    if render and video_dir is not None:
        raise ValueError("An environment renders either to the screen or to videos, but both were given. Choose one.")
    if video_dir is not None:
        check_recorder()
    source = open_source(policy, trust_checkpoint=trust_checkpoint)
    played = resolve_environment({"the policy": source}, env, env_config, trust_checkpoint=trust_checkpoint)
    (policy,) = check_players_fit(env_maker(*played), {"The policy": source.policy()})
    player = _with_epsilon(policy, epsilon, seed=seed)
    mode = "human" if render else "rgb_array" if video_dir is not None else None
    make_shown = env_maker(*played, render_mode=mode)
    if mode is not None:
        check_renders(make_shown, mode)
    filmed = seeds[: num_videos if video_dir is not None else 0]
    returns: list[float] = []
    with bar("episodes", total=num_episodes, shown=progress) as advance:
        for film_seed in filmed:
            make_filmed = recording(make_shown, Path(str(video_dir)), name=f"seed-{film_seed}")
            returns += play(make_filmed, player, [film_seed], advance=advance)[0]
        make_env, num_envs = (make_shown, 1) if render else (env_maker(*played), ENVS_AT_ONCE)
        returns += play(make_env, player, seeds[len(filmed) :], num_envs=num_envs, advance=advance)[0]
    if isinstance(policy, GreedyQ):
        return _report("policy", returns, policy.network, np.zeros((1, *(policy.network.input_space.shape or ()))))
    return _report("policy", returns, num_parameters=policy.num_parameters)


def _warn_of_teacher(source: str, env: str, returns: Sequence[float], random_returns: Sequence[float]) -> None:
    more = "Play more: --episodes on the command line, `num_episodes` in Python."
    if text := doubt(source, env, returns, random_returns, to_play_more=more, same_seeds=True):
        is_higher = has_higher_mean(returns, random_returns)
        what = "may be far off" if is_higher else "has no meaning"
        logger.warning("%s The return ratio %s then.", text, what)


def _with_epsilon(policy: GreedyQ | LikeliestAction, epsilon: float, *, seed: int) -> Player:
    if not isinstance(epsilon, Real) or not 0.0 <= epsilon <= 1.0:
        raise ValueError(f"`epsilon` must be in [0, 1], a share of random actions, got {epsilon!r}.")
    if epsilon == 0.0:
        return policy
    if not isinstance(policy.action_space, gym.spaces.Discrete):
        raise ValueError(
            f"`epsilon` needs discrete actions, but the policy has {brief(policy.action_space)}. Set it to 0."
        )
    return EpsilonGreedy(policy, int(policy.action_space.n), epsilon=epsilon, seed=seed)


def _report(
    name: str,
    returns: list[float],
    network: Teacher | None = None,
    inputs: np.ndarray | None = None,
    *,
    num_parameters: float | None = None,
) -> PolicyReport:
    mean, half_width = mean_and_ci95(returns)
    latency = None
    if network is not None and inputs is not None:
        num_parameters = network.num_parameters
        if network.is_recurrent:
            latency = latency_ms(network.first_q_values, torch.zeros(1, *(network.input_space.shape or ())))
        else:
            latency = latency_ms(network.q_values, torch.as_tensor(inputs[:1]).float())
    return PolicyReport(name, returns, mean, half_width, num_parameters, latency)


def _eyes(network: Teacher) -> Hashable:
    """Return a key that is equal for networks with the same inputs: the same pipeline, or the same images."""
    if network.is_recurrent:
        return id(network)
    if network.pipeline is not None and network.pipeline.stages:
        return id(network.pipeline)
    return network.known_pipeline.images


def check_players_fit(
    make_env: Callable[[], gym.Env], networks: Mapping[str, Any], *, for_files: bool = False
) -> list[Any]:
    """Check that policies fit the environment, before PyTorch fails in the middle of an episode.

    Policies that take vectors fit vectors of this length, and observations of which such vectors are made; if a file
    records of which parts its vectors are made, only observations of these parts.

    Args:
        make_env: makes the environment.
        networks: policies by name, as at the beginning of a sentence.
        for_files: whether they are Q-networks for files, which contain no conversion of images but a stage.

    Returns:
        The policies for this environment, in their order.

    Raises:
        ValueError: one of them does not fit; the message names both spaces.
    """
    env = make_env()
    spaces = features_space(env.observation_space), env.action_space
    close(env)
    fitted = {name: network.for_space(spaces[0]) for name, network in networks.items()}
    for name, network in fitted.items():
        own = network.observation_space, network.action_space
        if not network.takes(spaces[0]) or not same_space(own[1], spaces[1]):
            seen, shown = told_apart(own[0], spaces[0]), told_apart(spaces[0], own[0])
            raise ValueError(
                f"{name} was made for observations {seen} and actions {brief(own[1])}, but the environment "
                f"has {shown} and {brief(spaces[1])}. Choose the environment in which it was trained."
            )
        q_network = network.network if isinstance(network, GreedyQ) else network
        if isinstance(q_network, Teacher):
            warn_of_bytes(q_network, spaces[0])
    return [network.with_image_stage(spaces[0]) if for_files else network for network in fitted.values()]
