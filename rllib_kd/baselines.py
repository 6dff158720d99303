"""Baseline returns, kept between runs: trials of a sweep need not all let the same teacher play."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import ray.cloudpickle
from ray.tune.registry import ENV_CREATOR, _global_registry

from rllib_kd.teachers.base import Teacher

logger = logging.getLogger(__name__)

#: Packages whose environments change with their version alone. Others may be edited between two runs.
_FIXED_ENVIRONMENTS = {"gymnasium": "gymnasium", "ale_py": "ale-py"}

#: Undiscounted returns of each episode, by who played.
Returns = dict[str, list[float]]


def cached(key: str | None, measure: Callable[[], Returns]) -> Returns:
    """What was measured once under this key, or is measured now. None as key: always now.

    The cache is a folder of small JSON files: `$XDG_CACHE_HOME/rllib_kd`, by default `~/.cache/rllib_kd`.
    """
    if key is None:
        return measure()
    path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rllib_kd" / f"baselines-{key}.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        pass  # not there, or half written
    returns = measure()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(returns, file)
        os.replace(file.name, path)  # other trials may read or write it
    except OSError as error:
        logger.info("The baselines cannot be kept in %s: %s", path.parent, error)
    return returns


def baseline_key(teacher: Teacher, env: Any, env_config: Mapping[str, Any], settings: Sequence[Any]) -> str | None:
    """Equal for equal teachers, environments and settings; None where an environment may change under its name.

    Args:
        teacher: that plays.
        env: as in `config.environment()`.
        env_config: of the environment.
        settings: whatever else the returns depend on.
    """
    if not isinstance(env, str) or env not in gym.registry or _global_registry.contains(ENV_CREATOR, env):
        return None
    package = str(gym.registry[env].entry_point).split(".")[0]
    if package not in _FIXED_ENVIRONMENTS:
        return None
    state = {name: value for name, value in teacher.get_state().items() if name not in ("source", "trained_return")}
    parts = (state, env, sorted(env_config.items()), tuple(settings), version(_FIXED_ENVIRONMENTS[package]))
    try:
        return hashlib.sha256(ray.cloudpickle.dumps(parts)).hexdigest()[:32]
    except Exception:  # what does not pickle is not kept
        return None
