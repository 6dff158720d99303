"""Environments and settings that an untrusted checkpoint may choose: only those known to be harmless.

An environment is code, and its config contains arguments of that code: a path to open, a class to import, a map of any
size. So an untrusted checkpoint may only name environments of gymnasium and ALE, and set the keys below, each within
its bounds. The user's own `env` and `env_config` are not restricted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from rllib_kd.environments.own import package_of
from rllib_kd.numeric import is_finite

_PACKAGES = ("gymnasium", "ale_py")
_MAX_MAP = 64  # rows and columns; FrozenLake makes 6 MiB of tables of it, for each of 50 environments at once
_MAX_WEIGHT = 1e6  # of a part of a reward
_MAX_STEPS = 10**9  # where an environment is registered without a limit, which can only be made shorter


class _Allowed(NamedTuple):
    """The values that a key may have."""

    what: str
    admits: Callable[[Any], bool]


def is_harmless(env: str) -> bool:
    """Return whether the code of an environment is gymnasium's or ALE's: any package can register any name."""
    return package_of(env) in _PACKAGES


def refusals(env: str | None, env_config: Mapping[Any, Any]) -> list[str]:
    """Return the entries of a config that are not known to be harmless, each with the allowed values.

    Args:
        env: id of the environment; None if it has none.
        env_config: config as an untrusted checkpoint records it.
    """
    allowed = _allowed(gym.registry[env]) if env is not None and is_harmless(env) else {}
    refused = []
    for key, value in env_config.items():
        if key not in allowed:
            refused.append(f"'{key}'")
        elif not allowed[key].admits(without_numpy_scalars(value)):
            refused.append(f"'{key}' (only {allowed[key].what})")
    return refused


def without_numpy_scalars(value: Any) -> Any:
    """Convert numpy scalars to Python numbers, also those in a list.

    Not in lists of lists: a few that share their parts may contain millions.
    """
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in (list, tuple):
        return type(value)([part.item() if isinstance(part, np.generic) else part for part in value])
    return value


# --- Kinds of values --------------------------------------------------------------------------------------------------


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and is_finite(value)


def _number(low: float, high: float) -> _Allowed:
    return _Allowed(f"a number from {low:g} to {high:g}", lambda value: _is_number(value) and low <= value <= high)


def _whole(low: int, high: int) -> _Allowed:
    return _Allowed(f"an integer from {low} to {high}", lambda value: type(value) is int and low <= value <= high)


def _one_of(*values: str) -> _Allowed:
    return _Allowed(" or ".join(map(repr, values)), lambda value: type(value) is str and value in values)


def _numbers(count: int) -> _Allowed:
    return _Allowed(
        f"{count} numbers of at most {_MAX_WEIGHT:g}",
        lambda value: (
            type(value) in (list, tuple)
            and len(value) == count
            and all(_is_number(part) and abs(part) <= _MAX_WEIGHT for part in value)
        ),
    )


def _or_none(allowed: _Allowed) -> _Allowed:
    return _Allowed(f"{allowed.what}, or none", lambda value: value is None or allowed.admits(value))


def _is_map(value: Any) -> bool:
    if type(value) not in (list, tuple) or not 0 < len(value) <= _MAX_MAP:
        return False
    if any(type(row) is not str or not 0 < len(row) <= _MAX_MAP or set(row) - set("SFHG") for row in value):
        return False
    return len({len(row) for row in value}) == 1 and any("S" in row for row in value)


def _is_frameskip(value: Any) -> bool:
    """Return whether a value is a number of frames, or the two numbers between which it is drawn."""
    if type(value) in (list, tuple):
        return len(value) == 2 and all(map(_FRAMES.admits, value)) and value[0] < value[1]
    return _FRAMES.admits(value)


# --- The list ---------------------------------------------------------------------------------------------------------

_FLAG = _Allowed("true or false", lambda value: type(value) is bool)
_WEIGHT = _number(-_MAX_WEIGHT, _MAX_WEIGHT)
_SHARE = _number(0, 1)
_FRAMES = _whole(1, 20)
_PIXELS = _whole(1, 256)

#: Arguments of the environments of gymnasium 1.2 and ale_py 0.12, except for files (`xml_file`), cameras, sizes of
#: windows, another game, and texts that are printed.
_HARMLESS: dict[str, _Allowed] = {
    # gym.make()
    "disable_env_checker": _or_none(_FLAG),
    "render_mode": _or_none(_one_of("rgb_array", "ansi")),  # that open no window
    # classic control
    "g": _number(-100, 100),
    "goal_velocity": _number(-1, 1),
    "sutton_barto_reward": _FLAG,
    # toy text
    "desc": _or_none(_Allowed(f"a map of S, F, H and G, at most {_MAX_MAP} x {_MAX_MAP}", _is_map)),
    "fickle_passenger": _FLAG,
    "is_rainy": _FLAG,
    "is_slippery": _FLAG,
    "map_name": _or_none(_one_of("4x4", "8x8")),
    "natural": _FLAG,
    "reward_schedule": _numbers(3),
    "sab": _FLAG,
    "success_rate": _SHARE,
    # Box2D
    "continuous": _FLAG,
    "domain_randomize": _FLAG,
    "enable_wind": _FLAG,
    "gravity": _number(-12, 0),
    "hardcore": _FLAG,
    "lap_complete_percent": _SHARE,
    "turbulence_power": _number(0, 2),
    "wind_power": _number(0, 20),
    # MuJoCo
    "contact_cost_range": _numbers(2),
    "contact_cost_weight": _WEIGHT,
    "contact_force_range": _numbers(2),
    "ctrl_cost_weight": _WEIGHT,
    "exclude_current_positions_from_observation": _FLAG,
    "forward_reward_weight": _WEIGHT,
    "frame_skip": _FRAMES,
    "healthy_angle_range": _numbers(2),
    "healthy_reward": _WEIGHT,
    "healthy_state_range": _numbers(2),
    "healthy_z_range": _numbers(2),
    "impact_cost_range": _numbers(2),
    "impact_cost_weight": _WEIGHT,
    "include_cfrc_ext_in_observation": _FLAG,
    "include_cinert_in_observation": _FLAG,
    "include_cvel_in_observation": _FLAG,
    "include_qfrc_actuator_in_observation": _FLAG,
    "reset_noise_scale": _SHARE,
    "reward_control_weight": _WEIGHT,
    "reward_dist_weight": _WEIGHT,
    "reward_near_weight": _WEIGHT,
    "terminate_when_unhealthy": _FLAG,
    "uph_cost_weight": _WEIGHT,
    "use_contact_forces": _FLAG,
    # ALE, and arguments of its vector env that this package's single environments take
    "continuous_action_threshold": _SHARE,
    "difficulty": _or_none(_whole(0, 255)),
    "episodic_life": _FLAG,
    "frameskip": _Allowed(f"{_FRAMES.what}, or two of them, the lower first", _is_frameskip),
    "full_action_space": _FLAG,
    "grayscale": _FLAG,
    "img_height": _PIXELS,
    "img_width": _PIXELS,
    "maxpool": _FLAG,
    "mode": _or_none(_whole(0, 255)),
    "noop_max": _whole(0, 100),
    "obs_type": _one_of("rgb", "grayscale", "ram"),
    "repeat_action_probability": _SHARE,
    "reward_clipping": _FLAG,
    "stack_num": _whole(1, 16),
    "use_fire_reset": _FLAG,
}


def _allowed(spec: Any) -> dict[str, _Allowed]:
    """Return the list, with episode limits of at most those with which the environment is registered.

    Longer episodes would be different tasks, with higher returns.
    """
    limits = {"max_episode_steps": _or_none(_whole(1, spec.max_episode_steps or _MAX_STEPS))}
    if (frames := spec.kwargs.get("max_num_frames_per_episode")) is not None:
        limits["max_num_frames_per_episode"] = _whole(1, frames)
    return _HARMLESS | limits
