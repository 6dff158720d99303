"""Recorded rows as the columns that Learners take: checked, and labelled where labels are missing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from ray.rllib.core.columns import Columns

from rllib_kd.observations.frames import VALID
from rllib_kd.observations.masks import MASK, features_space
from rllib_kd.observations.spaces import input_space
from rllib_kd.offline.columns import Place, finite, recorded
from rllib_kd.offline.labelling import Labeller
from rllib_kd.offline.reading import ROW, num_rows
from rllib_kd.offline.schema import RECORDED, LabelledSchema
from rllib_kd.offline.stream import Piece
from rllib_kd.wire import RANKING_COLUMN, TEACHER_FEATURES, TEACHER_LOG_PROBS, TEACHER_PROBS, TEACHER_Q

if TYPE_CHECKING:
    from rllib_kd.teachers.base import Teacher

#: Columns of files that determine a row's successor.
SUCCESSION = (Columns.EPS_ID, Columns.T, Columns.TERMINATEDS, Columns.TRUNCATEDS)
#: Columns of files that TD needs.
TD_IN_FILES = (Columns.ACTIONS, Columns.REWARDS, *SUCCESSION)


class LearnerColumns:
    """Makes columns for Learners from pieces of files.

    Args:
        names: columns that Learners take: `obs`, labels, and those of TD. The mask of legal actions comes with TD.
        teacher: a loaded teacher, which labels what the files do not.
        schema: schema of the files; None: they have no labels.

    Raises:
        ValueError: labels are missing, and the teacher also looks at earlier rows, so that it cannot give them here.
    """

    def __init__(self, names: Sequence[str], teacher: Teacher, schema: LabelledSchema | None):
        self._names = tuple(names)
        self._schema = schema
        self._ranking = RANKING_COLUMN[teacher.outputs]
        wanted = {self._ranking if name == TEACHER_Q else name for name in self._names if name.startswith("teacher_")}
        self._missing = wanted - set(schema.labels if schema is not None else ())
        further = tuple({TEACHER_PROBS, TEACHER_FEATURES} & self._missing)
        self._label = Labeller(teacher, also=further) if self._missing else None
        self._of_images = len(input_space(features_space(teacher.observation_space)).shape or ()) == 3

    @staticmethod
    def in_files(names: Sequence[str]) -> tuple[str, ...]:
        """Return the columns of files that are needed for these columns of Learners."""
        needed = TD_IN_FILES if VALID in names else ()
        return (*dict.fromkeys((*names, TEACHER_LOG_PROBS, MASK, *needed)),)

    def __call__(self, piece: Piece) -> dict[str, np.ndarray]:
        """Return columns `[R, ...]`, in which every number is finite; −inf in labels marks illegal actions.

        Raises:
            DataError: a number is not finite, an action is not one of the teacher's, a mask allows no action, or the
                teacher does not take the observations.
        """
        columns = dict(piece.columns)
        rows = columns.pop(ROW, None)
        if self._schema is None:
            assert self._label is not None
            columns = self._label(columns, file=piece.path, start=rows)
        else:
            _check(columns, self._schema.num_actions, Place(piece.path, rows))
            if self._label is not None:
                seen = {name: columns[name] for name in (Columns.OBS, MASK) if name in columns}
                labels = self._label(seen, file=piece.path, start=rows)
                columns |= {name: labels[name] for name in self._missing}
        columns[TEACHER_Q] = columns.pop(self._ranking)
        if VALID in self._names:
            columns[VALID] = has_successor(columns)
        columns[Columns.OBS] = as_column(columns[Columns.OBS], of_images=self._of_images)
        masks = {MASK} & columns.keys() if VALID in self._names else ()
        return {name: columns[name] for name in (*self._names, *masks)}


def _check(columns: Mapping[str, np.ndarray], num_actions: int, place: Place) -> None:
    """Check the numbers of labelled rows, which others may have written.

    Raises:
        DataError: one is not finite, an action is not one of the schema's, or a mask allows no action.
    """
    for name, values in columns.items():
        if name in RECORDED:
            recorded(name, values, num_rows(columns), num_actions, place)
        else:
            finite(values, name, place, may_be_illegal=name in (TEACHER_Q, TEACHER_LOG_PROBS))


def has_successor(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return `[R]`, whether TD can use a row: it ends its episode by itself, or the next row has the next state.

    A time limit's last row has no next state in a file, and so is the successor of the row before it alone.

    Args:
        columns: those of `SUCCESSION`, `[R]`.
    """
    episode, t = columns[Columns.EPS_ID], columns[Columns.T]
    goes_on = np.zeros(len(t), dtype=bool)
    goes_on[:-1] = (episode[1:] == episode[:-1]) & (t[1:] == t[:-1] + 1)
    return columns[Columns.TERMINATEDS] | (goes_on & ~columns[Columns.TRUNCATEDS])


def as_column(obs: np.ndarray, *, of_images: bool) -> np.ndarray:
    """Return observations as the replay has them: images of bytes as they are, others as 32-bit floats.

    Args:
        obs: observations `[N, ...]` of a file.
        of_images: whether students take images, `[N, H, W, C]` or with channels first; others take vectors `[N, size]`.
    """
    if not of_images:
        obs = obs.reshape(len(obs), math.prod(obs.shape[1:]))
    elif obs.dtype == np.uint8:
        return obs
    with np.errstate(over="ignore"):
        return obs.astype(np.float32, copy=False)
