"""The physics of gymnasium's CartPole, for a page that simulates it."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

INPUTS = ("cart position", "cart velocity", "pole angle", "pole velocity")
ACTIONS = ("left", "right")
_NUMBERS = ("gravity", "masspole", "total_mass", "length", "polemass_length", "force_mag", "tau")
_THRESHOLDS = ("x_threshold", "theta_threshold_radians")
#: Wrappers that change neither observations nor actions.
_TRANSPARENT = (gym.wrappers.TimeLimit, gym.wrappers.OrderEnforcing, gym.wrappers.PassiveEnvChecker)


def physics_of(env: gym.Env) -> dict[str, Any] | None:
    """Return the constants of a CartPole, as cartpole.js takes them; None for other environments, or changed ones."""
    while type(env) in _TRANSPARENT:
        env = env.env
    if type(env) is not CartPoleEnv:
        return None
    numbers = {name: float(getattr(env, name)) for name in (*_NUMBERS, *_THRESHOLDS)}
    return numbers | {"kinematics_integrator": "euler" if env.kinematics_integrator == "euler" else "semi-implicit"}
