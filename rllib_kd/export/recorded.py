"""Export a student that has no environment: it is compared with PyTorch on recorded rows, and plays no episodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from ray.rllib.core.columns import Columns

from rllib_kd.export.artifact import deployment_cost
from rllib_kd.export.deployment import Deployment, check_file
from rllib_kd.export.export import check_exportable, export, fitted
from rllib_kd.export.formats import artifact_space, input_shape
from rllib_kd.observations.flattening import Flattener
from rllib_kd.observations.masks import MASK
from rllib_kd.observations.spaces import flat_size
from rllib_kd.offline.schema import DataError
from rllib_kd.offline.unlabelled_files import files_at
from rllib_kd.teachers.base import Teacher
from rllib_kd.text import one_line

_MOST_STATES = 10_000
_MOST_CHUNKS = 100  # that are read: a data lake has thousands


def recorded_states(uris: Sequence[str], student: Teacher) -> tuple[np.ndarray, np.ndarray | None]:
    """Return observations `[N, ...]`, N ≤ 10,000, spread over recorded files, and legal actions `[N, A]`.

    Observations are as the environment shows them, also where labelled files have vectors. Legal actions are None if
    the files have no column of masks.

    Args:
        uris: paths or URIs of labelled files, or of others that `rllib label` reads.
        student: the network that will see them.

    Raises:
        DataError: the files cannot be read, or have observations that the student does not take.
    """
    files = files_at(uris)
    chunks = files.chunks[:: -(-len(files.chunks) // _MOST_CHUNKS)]
    share = -(-_MOST_STATES // len(chunks))
    pieces: list[dict[str, np.ndarray]] = []
    for chunk in chunks:
        wanted, first = np.linspace(0, chunk.num_rows - 1, min(share, chunk.num_rows)).astype(int), 0
        for piece in files.read(chunk, (Columns.OBS, MASK)):
            obs = piece[Columns.OBS]
            student = fitted(student, obs)
            _check_shape(obs, student, files.path_of(chunk))
            rows = wanted[(wanted >= first) & (wanted < first + len(obs))] - first
            pieces.append({name: piece[name][rows] for name in (Columns.OBS, MASK) if name in piece})
            first += len(obs)
    joined = {name: np.concatenate([piece[name] for piece in pieces])[:_MOST_STATES] for name in pieces[0]}
    masks = joined[MASK].astype(bool) if MASK in joined else None
    return _as_shown(joined[Columns.OBS], artifact_space(student)), masks


def _check_shape(obs: Any, student: Teacher, path: str) -> None:
    """Raise a DataError if a file has neither observations `[N, ...]` that the student takes, nor vectors of them."""
    space = artifact_space(student)
    if not isinstance(obs, np.ndarray) or obs.shape[1:] not in (space.shape, (flat_size(space),)):
        found = getattr(obs, "shape", (0, "several parts"))[1:]
        raise DataError(
            f"an observation is {list(found)}, but the student takes {list(input_shape(student))}. Give the files "
            "that it was trained on, as `rllib label` wrote them.",
            file=path,
            column=Columns.OBS,
        )


def _as_shown(obs: np.ndarray, space: gym.Space) -> np.ndarray:
    """Return observations as the space shows them, of which files may have the vectors `[N, size]`.

    Raises:
        DataError: a vector stands for no value of the space.
    """
    if obs.shape[1:] == space.shape:
        return obs
    if not isinstance(space, gym.spaces.Discrete | gym.spaces.MultiDiscrete):
        return obs.reshape(len(obs), *(space.shape or ()))
    try:
        shown = np.array([gym.spaces.unflatten(space, vector) for vector in obs])
        is_exact = np.array_equal(Flattener(space)(shown, len(obs)), obs)
    except ValueError:
        is_exact = False
    if not is_exact:
        raise DataError(f"has vectors that are not one-hot vectors of {one_line(space, limit=300)}", column=Columns.OBS)
    return shown


def deploy_on_rows(
    student: Teacher, out: Path, uris: Sequence[str], *, format: str, int8: bool = False, prefix: str | None = None
) -> Deployment:
    """Export a Q-network, check it on recorded rows, and measure its cost; its returns are NaN.

    Args:
        student: the network.
        out: the file to write.
        uris: as in `recorded_states()`.
        format: as in `deploy()`.
        int8: as in `deploy()`; its ranges are those of the rows.
        prefix: as in `deploy()`.

    Raises:
        ValueError: the rows do not fit, or the file differs from PyTorch.
    """
    check_file(out, format)  # before the rows
    check_exportable(student, format=format, int8=int8, prefix=prefix)
    obs, masks = recorded_states(uris, student)
    student = fitted(student, obs)
    exported = export(student, out, format=format, obs=obs, action_masks=masks, int8=int8, prefix=prefix)
    cost = deployment_cost(out) if exported.is_checked else None
    where = f"no environment, but {len(obs):,} recorded states of {', '.join(uris)}"
    return Deployment(out.name, exported, cost, math.nan, math.nan, math.nan, played_in=where, network=student)
