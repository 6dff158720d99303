"""Masks of legal actions: recognised in what environments show, and taken apart from what networks see.

An environment shows its mask in one of three ways: as the part "action_mask" of a Dict (`{"observations": ...,
"action_mask": ...}` in RLlib, `{"observation": ..., "action_mask": ...}` in PettingZoo, or beside any other parts), as
`info["action_mask"]` (gymnasium's Taxi), or by a method `action_masks()`, as of Stable-Baselines3, which
`environments/masked.py` turns into the second way. Code behind this file sees only one form: an array `[N, A]` of truth
values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

#: Key of a mask in observations and infos, and name of its column.
MASK = "action_mask"
#: Name of the mask of a transition's next state.
NEXT_MASK = "new_action_mask"
_FEATURES = ("observations", "observation")  # keys of what is not the mask, if it is all in one part


class MaskError(ValueError):
    """An environment's mask cannot be used. The message has the mask, and does not name the environment."""


def has_mask(space: gym.Space | None) -> bool:
    """Return whether observations contain a mask: a Dict with the part "action_mask" beside others."""
    if not isinstance(space, gym.spaces.Dict) or MASK not in space.spaces or len(space.spaces) == 1:
        return False
    part = space[MASK]
    return isinstance(part, gym.spaces.Box | gym.spaces.MultiBinary | gym.spaces.MultiDiscrete) and len(part.shape) == 1


def check_mask_space(space: gym.Space) -> None:
    """Check that a part of observations with the name of a mask has the space of one.

    Raises:
        ValueError: it has another space. Networks would see it, and illegal actions would be taken.
    """
    if isinstance(space, gym.spaces.Dict) and space.keys() > {MASK} and not has_mask(space):
        raise ValueError(
            f"The observation's part '{MASK}' is {space[MASK]}, which is not the space of a mask of legal actions: a "
            "MultiBinary, or a Box or MultiDiscrete of one axis, with a number for each action. Change its space, or "
            "its name if it is not a mask."
        )


def features_space(space: gym.Space) -> gym.Space:
    """Return the space of an observation without its mask, which is what networks see."""
    if not has_mask(space):
        return space
    assert isinstance(space, gym.spaces.Dict)
    key = _features_key(space)
    return space[key] if key else gym.spaces.Dict({key: part for key, part in space.items() if key != MASK})


def features_of(space: gym.Space, obs: Any) -> Any:
    """Return observations without their masks.

    Args:
        space: space of one observation.
        obs: one observation, or those of a vector env.
    """
    if not has_mask(space):
        return obs
    key = _features_key(space)
    return obs[key] if key else {key: part for key, part in obs.items() if key != MASK}


def with_mask(space: gym.Space, features: Any, mask: np.ndarray | None, num_envs: int) -> Any:
    """Return observations with their masks, for policies that take both: the inverse of `features_of()`.

    Args:
        space: space of one observation.
        features: what `features_of()` returned, of a vector env.
        mask: `[N, A]`; None: all actions are legal.
        num_envs: N.
    """
    if not has_mask(space):
        return features
    key = _features_key(space)
    parts = {key: features} if key else dict(features)
    if mask is None:
        mask = np.ones((num_envs, *(space[MASK].shape or ())), dtype=bool)
    return {**parts, MASK: mask.astype(space[MASK].dtype)}


def _features_key(space: Any) -> str | None:
    """Return the key of all that is not the mask; None if these are several parts, or have another name."""
    return next((key for key in _FEATURES if space.spaces.keys() == {key, MASK}), None)


class LegalActions:
    """Takes the masks of one vector env apart from its observations, and checks them.

    Args:
        observation_space: space of one observation.
        action_space: space of one action. Only Discrete ones have masks.
    """

    def __init__(self, observation_space: gym.Space, action_space: gym.Space):
        self._space = observation_space
        self._num_actions = int(action_space.n) if isinstance(action_space, gym.spaces.Discrete) else None
        self._is_in_obs = has_mask(observation_space)
        self._is_in_infos: bool | None = None  # unknown before the first reset

    def __call__(self, obs: Any, infos: Any, ended: np.ndarray) -> tuple[Any, np.ndarray | None]:
        """Return observations without masks, and the legal actions.

        Args:
            obs: observations of the vector env.
            infos: its infos: a dict of arrays, or a list of dicts.
            ended: `[N]`, whether an episode has ended: no action follows, so that there need not be a mask.

        Returns:
            The observations; and `[N, A]`, whether an action is legal. It is None if the environment has no masks. If
            an episode has ended without one, all actions are.

        Raises:
            MaskError: a mask is missing, has another length than there are actions, or is not of zeros and ones with
                at least one of them.
        """
        if self._num_actions is None:
            return features_of(self._space, obs), None
        if self._is_in_obs:
            return features_of(self._space, obs), self._checked(obs[MASK], ended)
        masks = _masks_in(infos)
        if self._is_in_infos is None:
            self._is_in_infos = masks is not None
        if masks is None:
            if not self._is_in_infos:
                return obs, None
            masks = [None] * len(ended)
        if not self._is_in_infos:
            raise MaskError(f"info['{MASK}'] is there after step(), but not after reset()")
        missing = [index for index, mask in enumerate(masks) if mask is None and not ended[index]]
        if missing:
            raise MaskError(f"info['{MASK}'] is missing in sub-environment {missing[0]}, but was there before")
        legal = np.ones(self._num_actions, dtype=bool)
        return obs, self._checked([legal if mask is None else mask for mask in masks], ended)

    def _checked(self, masks: Any, ended: np.ndarray) -> np.ndarray:
        try:
            given = np.asarray(masks)
        except ValueError:  # rows of different lengths
            given = np.empty(0)
        if given.shape != (len(ended), self._num_actions) or given.dtype.kind not in "biuf":
            index, row = next(
                ((i, row) for i, row in enumerate(masks) if np.shape(row) != (self._num_actions,)), (0, masks[0])
            )
            raise MaskError(
                f"the action mask of sub-environment {index} has the shape {list(np.shape(row))}, expected "
                f"[{self._num_actions}]: a number for each action"
            )
        mask = given == 1
        usable = mask.any(-1) & (mask | (given == 0)).all(-1)
        if not usable.all():
            wrong = ~usable & ~ended
            if wrong.any():
                index = int(np.flatnonzero(wrong)[0])
                raise MaskError(
                    f"the action mask of sub-environment {index} is {given[index].tolist()}, expected zeros and ones, "
                    "with a one for at least one legal action"
                )
            mask[~usable] = True
        return mask


def _masks_in(infos: Any) -> Sequence[Any] | None:
    """Return the mask of each sub-environment, None where it is missing; None if there is not one."""
    if isinstance(infos, Mapping):
        given = infos.get(MASK, ())
        is_given = infos.get(f"_{MASK}", np.ones(len(given), dtype=bool))
        masks = [mask if is_there else None for mask, is_there in zip(given, is_given, strict=True)]
    else:  # as RLlib takes them apart; most often they are empty
        masks = [info.get(MASK) for info in infos] if any(infos) else []
    return None if all(mask is None for mask in masks) else masks


def legal_only(outputs: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Return outputs `[N, A]` with −inf for illegal actions, which no policy then takes.

    Args:
        outputs: `[N, A]`, which rank the actions.
        mask: `[N, A]`; None: all actions are legal.
    """
    return outputs if mask is None else np.where(mask, outputs, np.float32(-np.inf))


def random_actions(rng: np.random.Generator, num_actions: int, num_envs: int, mask: np.ndarray | None) -> np.ndarray:
    """Draw actions `[N]` uniformly, from the legal ones.

    Args:
        rng: generator of the draws.
        num_actions: number of actions, A.
        num_envs: N.
        mask: `[N, A]`; None: all actions are legal.
    """
    if mask is None:
        return rng.integers(num_actions, size=num_envs)
    return np.where(mask, rng.random(mask.shape), -1.0).argmax(-1)
