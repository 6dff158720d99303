"""Check values that environments return: finite numbers, and observations of their space."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.wrappers.vector import dict_info_to_list

from rllib_kd.environments.failures import (
    EnvFailedError,
    Frame,
    described,
    failure,
    frames_of,
    is_users,
    layers,
    name_of,
    users_errors,
)

_MAX_SHOWN = 5  # components, and places in files, that a message names

_REMEDY = (
    "Nothing can be learned from such numbers. Return finite ones, or raise an error there: with "
    "fault_tolerance(restart_failed_sub_environments=True) a failed environment is replaced by a new one."
)

#: What a method returns, by gymnasium's API.
_RETURNED = {
    "reset": ("observation", "info"),
    "step": ("observation", "reward", "terminated", "truncated", "info"),
}

_AS_NUMBERS = "return observation, float(reward), bool(terminated), bool(truncated), info"


class NotFiniteError(EnvFailedError):
    """An environment, or a connector behind it, returned NaN or infinity. The message names it and the numbers."""


class NotFinite(NamedTuple):
    """The first numbers in a batch that are not finite."""

    env_index: int
    what: str  # "reward", "observation", "observation['lidar']"
    got: np.ndarray  # of that sub-environment, `[...]`

    def __str__(self) -> str:
        """Return the numbers, and which components they are: "nan at index 2 (1 of 4 components)"."""
        where = np.argwhere(~np.isfinite(self.got))
        kinds = " and ".join(sorted({str(self.got[tuple(position)]) for position in where[:1000]}))
        if self.got.ndim == 0:
            return kinds
        shown = [str(tuple(position) if len(position) > 1 else position[0]) for position in where[:_MAX_SHOWN].tolist()]
        more = ["..."] if len(where) > _MAX_SHOWN else []
        return f"{kinds} at index {', '.join(shown + more)} ({len(where)} of {self.got.size} components)"


def find_not_finite(batch: Any, what: str) -> NotFinite | None:
    """Return the first sub-environment of a batch with numbers that are not finite, or None.

    Args:
        batch: `[N, ...]`, one row for each sub-environment; or a dict or tuple of such batches.
        what: kind of the batch, for messages.
    """
    if isinstance(batch, Mapping | tuple):
        parts = batch.items() if isinstance(batch, Mapping) else enumerate(batch)
        return next(filter(None, (find_not_finite(part, f"{what}[{key!r}]") for key, part in parts)), None)
    array = np.asarray(batch)
    if array.dtype.kind != "f" or (is_finite := np.isfinite(array)).all():
        return None
    index = int(np.argwhere(~is_finite)[0][0])
    return NotFinite(index, what, array[index])


def check_returned(env: Any, envs: Any, obs: Any, rewards: Any = None, *, doing: str) -> None:
    """Check that a vector env has returned finite numbers.

    Args:
        env: environment as in the config: an id, a class or a function.
        envs: the vector env, or a wrapper of it.
        obs: `[N, ...]`, or a dict or tuple of such arrays.
        rewards: `[N]`; None after a reset.
        doing: the methods that may have returned them: "step", "reset" or "step() or reset".

    Raises:
        NotFiniteError: a number is not finite.
    """
    if rewards is not None and (found := find_not_finite(rewards, "reward")) is not None:
        raise not_finite(env, envs, found, doing="step")  # no reset returns a reward
    if (found := find_not_finite(obs, "observation")) is not None:
        raise not_finite(env, envs, found, doing=doing)


def not_finite(env: Any, envs: Any, found: NotFinite, *, doing: str) -> NotFiniteError:
    """Return the error that names an environment, its numbers that are not finite, and where they came from.

    Args:
        env: as in `check_returned()`.
        envs: as in `check_returned()`.
        found: the numbers.
        doing: as in `check_returned()`.
    """
    changes = "reward" if found.what == "reward" else "observation"  # by gymnasium's wrappers
    where = _places(_sub_environment(envs, found.env_index), doing, changes)
    return NotFiniteError(
        f"The environment '{name_of(env)}' returned numbers that are not finite from {doing}(), as {found.what} of "
        f"sub-environment {found.env_index}: {found}{where}. {_REMEDY}"
    )


def unusable_mask(env: Any, error: Exception, *, doing: str) -> EnvFailedError:
    """Return the error that names an environment whose mask of legal actions cannot be used.

    Args:
        env: as in `check_returned()`.
        error: what is wrong with the mask.
        doing: the methods that may have returned it.
    """
    return EnvFailedError(
        f"The environment '{name_of(env)}' has a mask of legal actions that cannot be used, after {doing}(): {error}. "
        "Return a mask with every state except the last one of an episode: as part 'action_mask' of a Dict, as "
        "info['action_mask'], or by a method action_masks()."
    )


def not_finite_by_connectors(found: NotFinite) -> NotFiniteError:
    """Return the error of connectors that computed such numbers from finite observations."""
    return NotFiniteError(
        f"The env_to_module connectors computed numbers that are not finite from finite observations: {found}. Nothing "
        "can be learned from such numbers. Fix the connectors, or leave them out."
    )


def explained(env: Any, envs: Any, error: BaseException, *, doing: str) -> EnvFailedError:
    """Return the failure to raise from `error`, which a vector env may have raised because of an observation.

    Args:
        env: environment as in the config: an id, a class or a function.
        envs: the vector env, or a wrapper of it.
        error: the exception.
        doing: the method that was called, "step" or "reset".
    """
    base = getattr(envs, "unwrapped", None)
    space, shown = getattr(base, "single_observation_space", None), getattr(base, "_env_obs", ())
    frames = frames_of(error)
    are_all_set = any("concatenate" in frame.function for frame in frames)  # before, None is where none was returned
    for index, obs in enumerate(() if space is None else shown):
        if (obs is not None or are_all_set) and (difference := misfit(space, obs)) is not None:
            methods = doing if doing == "reset" else "step() or reset"  # a vector env may reset in its step()
            where = _places(_sub_environment(envs, index), methods, "observation")
            return _misfitting(env, difference, where, doing=doing)
    if (departure := _departure(error, doing)) is not None:
        where = _places(_sub_environment(envs, 0), doing)
        return EnvFailedError(f"The environment '{name_of(env)}' {departure[0]}{where}. Expected: {departure[1]}.")
    return failure(env, error, doing=doing)


def check_fits(env: Any, envs: Any, env_index: int, space: gym.Space, obs: Any, what: str, *, doing: str) -> None:
    """Check that an observation of one agent has the shape, dtype and keys of its space.

    Args:
        env: as in `check_returned()`.
        envs: as in `check_returned()`.
        env_index: index of the agent's environment.
        space: space of the agent's observations.
        obs: the observation.
        what: its name, for the message.
        doing: as in `check_returned()`.

    Raises:
        EnvFailedError: it does not.
    """
    if (difference := misfit(space, obs, what)) is not None:
        where = _places(_sub_environment(envs, env_index), doing, "observation")
        raise _misfitting(env, difference, where, doing=doing)


def _misfitting(env: Any, difference: str, where: str, *, doing: str) -> EnvFailedError:
    return EnvFailedError(
        f"The environment '{name_of(env)}' returned, in {doing}(), an {difference}{where}. Make the returned "
        "observation and the declared space equal."
    )


def check_reset(env: Any, name: str) -> None:
    """Check that `reset()` returns an observation and infos: a vector env takes two numbers apart as if they were both.

    Raises:
        EnvFailedError: it returns something else, or raises.
    """
    try:
        returned = env.reset(seed=0)
    except users_errors() as error:
        raise explained(name, env, error, doing="reset") from error
    if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], Mapping)):
        raise EnvFailedError(
            f"The environment '{name}' did not return 2 values from reset(){_places(env, 'reset')}. Expected: return "
            "observation, info."
        )


def _departure(error: BaseException, doing: str) -> tuple[str, str] | None:
    """Return how a method departs from gymnasium's API, and what is expected, if a vector env's error shows it."""
    frames = frames_of(error)
    if any(map(is_users, frames)):  # the user's own code called or unpacked something
        return None
    for name in ("seed", "options"):
        if f"reset() got an unexpected keyword argument '{name}'" in str(error):
            return f"takes no {name} in reset()", "def reset(self, *, seed=None, options=None)"
    if doing not in _RETURNED:
        return None
    if frames and frames[-1].file == dict_info_to_list.__file__:  # which reads keys as texts, also of dicts in infos
        return f"returned infos with keys that are not texts from {doing}()", "infos like {'name': value}"
    if "unpack" not in str(error):
        is_written = isinstance(error, TypeError | ValueError) and doing == "step" and _is_in_vector_step(frames)
        what = "a reward, terminated or truncated that is not one number"
        return (f"returned {what} from step() ({described(error)})", _AS_NUMBERS) if is_written else None
    got = re.search(r"got (\d+)\)", str(error))  # Python does not count those that are too many
    what = f"returned {got[1]} values" if got else f"did not return {len(_RETURNED[doing])} values"
    return f"{what} from {doing}()", f"return {', '.join(_RETURNED[doing])}"


def _is_in_vector_step(frames: Sequence[Frame]) -> bool:
    """Return whether gymnasium's vector env failed in `step()` itself, where it writes a step's numbers into arrays."""
    return bool(frames) and frames[-1].function == "step" and frames[-1].file == gym.vector.sync_vector_env.__file__


def misfit(space: gym.Space, obs: Any, what: str = "observation") -> str | None:
    """Return how an observation differs from its space in shape, dtype or keys; None if it does not.

    Args:
        space: space of the environment, or a part of it.
        obs: the observation, or the same part of it.
        what: name of the part, for the message.
    """
    if isinstance(space, gym.spaces.Dict):
        if not isinstance(obs, Mapping) or not obs.keys() >= space.keys():
            got = f"keys {sorted(map(str, obs))}" if isinstance(obs, Mapping) else f"type {type(obs).__name__}"
            return f"{what} of {got}, but its observation_space has the keys {sorted(map(str, space))}"
        parts = (misfit(part, obs[key], f"{what}[{key!r}]") for key, part in space.items())
        return next(filter(None, parts), None)
    if space.shape is None or space.dtype is None:  # texts, graphs, tuples
        return None
    if obs is None:
        return f"{what} that is None, but its observation_space has shape {space.shape}"
    try:
        array = np.asarray(obs)
    except ValueError:  # rows of different lengths
        return f"{what} that is not an array, but its observation_space has shape {space.shape}"
    if array.shape == space.shape and np.can_cast(array.dtype, space.dtype, "same_kind"):
        return None
    return (
        f"{what} of shape {array.shape} and dtype {array.dtype}, but its observation_space has shape {space.shape} and "
        f"dtype {space.dtype}"
    )


def _sub_environment(envs: Any, index: int) -> Any:
    """Return a vector env's sub-environment; the vector env if it steps all by its own code or in other processes."""
    base = getattr(envs, "unwrapped", envs)
    own = getattr(base, "envs", None)
    return own[index] if isinstance(own, Sequence) and index < len(own) else base


def _places(env: Any, doing: str, *changes: str) -> str:
    """Return where the user's environment and wrappers define these methods, innermost first, in brackets; or ''."""
    methods = [*(name for name in ("step", "reset") if name in doing), *changes]
    functions = [(name, getattr(type(layer), name, None)) for layer in reversed(list(layers(env))) for name in methods]
    codes = [(name, code) for name, function in functions if (code := getattr(function, "__code__", None)) is not None]
    frames = [Frame(code.co_filename, code.co_firstlineno, name) for name, code in codes]
    places = [str(frame) for frame in frames if is_users(frame)][:_MAX_SHOWN]
    return f" ({'; '.join(places)})" if places else ""
