"""Whether a network gives an observation the same outputs every time, and beside any others."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from rllib_kd.environments.failures import users_errors
from rllib_kd.text import one_line

if TYPE_CHECKING:
    from rllib_kd.teachers.base import Teacher

logger = logging.getLogger(__name__)

_NUM_PROBES = 4  # observations: few enough for large networks of images
_HIGHEST_BOUND = 1e6  # spaces without bounds may have the largest numbers of their type in place of infinity
_TOLERANCE = 1e-3


def warn_of_unsteady(teacher: Teacher, q_of_equal: Tensor, name: str) -> None:
    """Warn of outputs that are random, or that depend on what else is in a batch: labels are wrong then.

    Args:
        teacher: a loaded teacher.
        q_of_equal: its outputs `[2, A]` for two equal observations.
        name: name of its outputs, for the messages.
    """
    first, second = q_of_equal
    if not _are_close(first, second):
        logger.warning(
            "The %s of '%s' differ for two equal observations, %s and %s. Labels are random then. If a "
            "torch.nn.Module in it is in training mode, such as one with dropout, call its eval() first.",
            *(name, one_line(teacher.source), first.tolist()[:5], second.tolist()[:5]),
        )
    elif teacher.members[0] is teacher and (outputs := _outputs_in_a_batch(teacher)) is not None:
        together, alone = outputs
        logger.warning(
            "The %s of '%s' for an observation depend on the others in its batch: %s beside these, %s alone. Labels "
            "then change with the number of environments. If a torch.nn.Module in it is in training mode, such as one "
            "with batch normalization, call its eval() first; and normalize by fixed statistics, not by a batch's own.",
            *(name, one_line(teacher.source), together.tolist()[:5], alone.tolist()[:5]),
        )


def _outputs_in_a_batch(teacher: Teacher) -> tuple[Tensor, Tensor] | None:
    """Return the outputs `[A]` for an observation in a batch and alone if they differ; None if no observation's do."""
    obs = torch.from_numpy(probes(teacher.input_space))
    try:
        together = teacher.first_q_values(obs)
        alone = torch.cat([teacher.first_q_values(row.unsqueeze(0)) for row in obs])
        has_state = not _are_close(together, teacher.first_q_values(obs))  # a function of the user's, with its calls
    except users_errors():  # it takes zeros, but perhaps not all that its space contains
        return None
    pairs = [pair for pair in zip(together, alone, strict=True) if not _are_close(*pair)]
    return pairs[0] if pairs and not has_state else None


def _are_close(one: Tensor, other: Tensor) -> bool:
    finite = one[one.isfinite()].abs()
    scale = float(finite.max()) if len(finite) else 0.0
    return torch.allclose(one, other, rtol=_TOLERANCE, atol=_TOLERANCE * scale, equal_nan=True)


def probes(space: gym.Space) -> np.ndarray:
    """Return a few observations of a space, always the same ones: `[4, ...]`, floats of 32 bits.

    Numbers are uniform between their bounds, and normal where they have none.

    Args:
        space: space of arrays of numbers.
    """
    rng = np.random.default_rng(0)
    shape = (_NUM_PROBES, *(space.shape or ()))
    if not isinstance(space, gym.spaces.Box):
        low, count = _choices(space)
        return (low + rng.integers(0, count, shape)).astype(np.float32)
    is_whole = space.dtype is not None and space.dtype.kind in "bui"
    low, high = (bound.astype(np.float64) for bound in (space.low, space.high))
    low, high = np.where(low > -_HIGHEST_BOUND, low, -np.inf), np.where(high < _HIGHEST_BOUND, high, np.inf)
    is_bounded = np.isfinite(low) & np.isfinite(high)
    within = rng.uniform(np.where(is_bounded, low, 0.0), np.where(is_bounded, high + is_whole, 1.0), shape)
    center = np.where(np.isfinite(low), low, np.where(np.isfinite(high), high, 0.0))
    drawn = np.where(is_bounded, within, np.clip(center + rng.normal(size=shape), low, high))
    return (np.floor(drawn) if is_whole else drawn).astype(np.float32)


def _choices(space: Any) -> tuple[Any, Any]:
    """Return the least value of a discrete space, and the number of its values; of several numbers, those of each."""
    if isinstance(space, gym.spaces.Discrete):
        return int(space.start), int(space.n)
    if isinstance(space, gym.spaces.MultiDiscrete):
        return space.start, space.nvec
    return 0, 2
