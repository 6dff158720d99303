"""Baselines: returns of teacher and random policy, played once and cached, so that the trials of a sweep share them."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import ray.cloudpickle
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from rllib_kd import _rllib
from rllib_kd.algorithm.answers import answers, reason_of
from rllib_kd.checkpoints.results import finite_number
from rllib_kd.environments.failures import name_of
from rllib_kd.environments.own import is_registered_with_tune
from rllib_kd.evaluation.return_ratio import doubt, has_higher_mean
from rllib_kd.paths import replace_file
from rllib_kd.teachers.base import Teacher
from rllib_kd.text import number

if TYPE_CHECKING:
    from rllib_kd.algorithm.config import DistillationConfig

logger = logging.getLogger(__name__)

#: Packages whose environments change only with their version. Others may be edited between two runs.
_FIXED_ENVIRONMENTS = {"gymnasium": "gymnasium", "ale_py": "ale-py"}
BASELINES = ("teacher", "random")
_NUM_EPISODES = 10  # by default, if evaluations count env steps
_LONG_PLAY = 120.0  # s

_MAY_DIFFER = (
    " It may have been trained too briefly, or in another environment, or with other wrappers and connectors (e.g. a "
    "missing frame stack or observation filter)."
)

#: Undiscounted return of each episode, by policy.
Played = dict[str, list[float]]


def play_baselines(
    config: DistillationConfig, teachers: Mapping[str, Teacher], group: EnvRunnerGroup
) -> dict[str, Played]:
    """Play episodes of the greedy teachers and of random policies on the EnvRunners, unless their returns are cached.

    Returns:
        Returns by group; empty if `num_baseline_episodes` is 0 or there is no teacher.

    Raises:
        ValueError: the teacher must be better than a random policy, but is not.
    """
    num_episodes = config.num_baseline_episodes
    if num_episodes is None:
        duration = config.evaluation_duration  # or "auto", in env steps
        counts_episodes = config.evaluation_duration_unit == "episodes" and isinstance(duration, int)
        num_episodes = duration if counts_episodes else _NUM_EPISODES
    if num_episodes == 0 or not teachers or config.env is None:
        return {}

    def play() -> dict[str, Played]:
        with _warning_of_long_play(num_episodes):
            returns = {
                who: _play_episodes(group, teachers, num_episodes, teacher=who == "teacher") for who in BASELINES
            }
        return {group_id: {who: returns[who][group_id] for who in BASELINES} for group_id in teachers}

    if config.is_multi_agent:
        played = play()
    else:
        key = None
        if not config.own_connectors & {"env_to_module", "module_to_env"}:
            counts = (num_episodes, config.num_env_runners, config.num_envs_per_env_runner, config.seed)
            key = baseline_key(teachers[DEFAULT_MODULE_ID], config.env, config.env_config, counts)
        played = {DEFAULT_MODULE_ID: cached(key, lambda: play()[DEFAULT_MODULE_ID])}
    for group_id, teacher in teachers.items():
        check_baselines(played[group_id], teacher, env=config.env, must_gain=config.kd_coeff == "qdagger")
    return played


@contextmanager
def _warning_of_long_play(num_episodes: int) -> Iterator[None]:
    """In this context, warn once if it takes long: an environment may hang, or its episodes be long."""
    text = (
        "The baselines are still playing after %g s: %d episodes of the teacher, and as many of a random policy. "
        "Training begins afterwards. If an environment hangs, it never begins. Set num_baseline_episodes=0 to leave "
        "them out."
    )
    timer = threading.Timer(_LONG_PLAY, logger.warning, (text, _LONG_PLAY, num_episodes))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def check_baselines(played: Played, teacher: Teacher, *, env: Any, must_gain: bool) -> None:
    """Warn of a teacher that plays no better than a random policy, or far worse than in its training.

    Args:
        played: returns of the "teacher" and the "random" policy.
        teacher: the teacher that played.
        env: its environment, as in the config, for messages.
        must_gain: whether the teacher must be better than a random policy.

    Raises:
        ValueError: the teacher must be better than a random policy, but is not.
    """
    num_episodes = len(played["teacher"])
    if not all(played[who] for who in BASELINES):
        unknown = (
            f"No agent of the teacher '{teacher.source}' acted in the baselines' episodes of '{name_of(env)}', so that "
            "the return ratio is not known. Set `num_baseline_episodes` to more."
        )
        if must_gain:
            raise ValueError(f"{unknown} kd_coeff='qdagger' needs it.")
        logger.warning(unknown)
        return
    teacher_return, random_return = (float(np.mean(played[who])) for who in BASELINES)
    gain = teacher_return - random_return
    trained_return = teacher.trained_return
    returns = [played[who] for who in BASELINES]
    if must_gain and not has_higher_mean(*returns):
        raise ValueError(
            "kd_coeff='qdagger' needs a teacher that is better than a random policy, but their mean returns are "
            f"{number(teacher_return)} and {number(random_return)} over {num_episodes} episodes. Check the teacher's "
            "environment, wrappers and connectors, or set `kd_coeff` to a number."
        )
    more = f"Set `num_baseline_episodes` to more than {num_episodes}, or to 0 if no return ratio is needed."
    if text := doubt(teacher.source, name_of(env), *returns, to_play_more=more):
        logger.warning("%s%s", text, "" if has_higher_mean(*returns) else _MAY_DIFFER)
    elif trained_return is not None and gain < 0.5 * (trained_return - random_return):
        logger.warning(
            "The teacher '%s' plays '%s' far worse than in its training: its mean return over %d episodes is %s, but "
            "was %s at the end of its training (a random policy: %s). The environment may differ in its wrappers, "
            "config or connectors from the one of its training.",
            teacher.source,
            name_of(env),
            num_episodes,
            number(teacher_return),
            number(trained_return),
            number(random_return),
        )


def cached(key: str | None, measure: Callable[[], Played]) -> Played:
    """Return the cached result for this key, or measure and cache it. Without a key (None), always measure.

    The cache is a folder of small JSON files: `$XDG_CACHE_HOME/rllib_kd`, by default `~/.cache/rllib_kd`.
    """
    if key is None:
        return measure()
    try:
        path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rllib_kd" / f"baselines-{key}.json"
    except RuntimeError:  # the home folder is unknown
        return measure()
    if (kept := _read(path)) is not None:
        return kept
    returns = measure()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() or not path.exists():  # a pipe would wait for a reader
            replace_file(path, json.dumps(returns).encode())  # other trials may read or write it
    except OSError as error:
        logger.info("The baselines cannot be kept in %s: %s", path.parent, error)
    return returns


def _read(path: Path) -> Played | None:
    """Return what `cached()` has written; None if the file is missing, incomplete, or not of this kind."""
    try:
        played = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None
    is_whole = isinstance(played, dict) and played.keys() == set(BASELINES) and all(map(_are_returns, played.values()))
    return played if is_whole else None


def _are_returns(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(finite_number(value) is not None for value in values)


def baseline_key(teacher: Teacher, env: Any, env_config: Mapping[str, Any], settings: Sequence[Any]) -> str | None:
    """Return a key that is equal for equal teachers, environments and settings.

    Args:
        teacher: the teacher that plays.
        env: as in `config.environment()`.
        env_config: config of the environment.
        settings: other values that the returns depend on.

    Returns:
        The key; None if the environment may change under its name.
    """
    if not isinstance(env, str) or env not in gym.registry or is_registered_with_tune(env):
        return None
    spec = gym.registry[env]
    package, *others = (
        str(entry_point).split(".")[0]
        for entry_point in (spec.entry_point, *(wrapper.entry_point for wrapper in spec.additional_wrappers))
    )
    if not {package, *others} <= _FIXED_ENVIRONMENTS.keys():
        return None
    state = {name: value for name, value in teacher.get_state().items() if name not in ("source", "trained_return")}
    # Versions without masks of legal actions had other random policies, others cut all episodes after 10,000 steps, or
    # played the same episodes in several EnvRunners.
    rules = ("masks", "time limits", "seeds", version(_FIXED_ENVIRONMENTS[package]))
    # The user may register a name again, with another time limit or other arguments.
    parts = (state, vars(spec), sorted(env_config.items()), tuple(settings), rules)
    try:
        return hashlib.sha256(ray.cloudpickle.dumps(parts)).hexdigest()[:32]
    except Exception:  # what does not pickle is not kept
        return None


def _play_episodes(
    group: EnvRunnerGroup, group_ids: Collection[str], num_episodes: int, *, teacher: bool
) -> dict[str, list[float]]:
    """Return the returns of each episode, by group; each EnvRunner plays its share."""
    if (num_runners := group.num_healthy_remote_workers()) == 0:
        return group.local_env_runner.play_episodes(num_episodes, teacher=teacher)
    share = math.ceil(num_episodes / num_runners)
    results = _rllib.actor_manager(group).foreach_actor(
        "play_episodes", kwargs={"num_episodes": share, "teacher": teacher}
    )
    parts = answers(group, results)
    if not parts:
        raise reason_of(results)
    return {group_id: [value for part in parts for value in part[group_id]] for group_id in group_ids}
