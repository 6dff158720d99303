"""Recorded rows as the columns that Learners take: checked, and labelled where labels are missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ray.rllib.core.columns import Columns

from rllib_kd.observations.frames import VALID
from rllib_kd.observations.masks import MASK
from rllib_kd.observations.pipeline import Flatten, ObservationPipeline, RLlibConnectors, Shown, SideBySide, StackFrames
from rllib_kd.offline.schema import DataError, LabelledSchema
from rllib_kd.offline.stream import Piece
from rllib_kd.wire import LOG_PROBS, TEACHER_LOG_PROBS, TEACHER_Q

if TYPE_CHECKING:
    from rllib_kd.teachers.base import Teacher

#: Columns of files that tell a row's successor.
SUCCESSION = (Columns.EPS_ID, Columns.T, Columns.TERMINATEDS, Columns.TRUNCATEDS)


#: Columns of files that TD needs.
TD_IN_FILES = (Columns.ACTIONS, Columns.REWARDS, *SUCCESSION)


class Labeller:
    """Makes columns for Learners from pieces of files.

    Args:
        schema: schema of the files.
        names: columns that Learners take: `obs`, labels, and those of TD. The mask of legal actions comes with TD.
        teacher: a loaded teacher, which labels what the files do not.
    """

    def __init__(self, schema: LabelledSchema, names: Sequence[str], teacher: Teacher):
        self._schema = schema
        self._names = tuple(names)
        self._teacher = teacher
        self._ranking = TEACHER_LOG_PROBS if teacher.outputs == LOG_PROBS else TEACHER_Q
        own = {self._ranking if name == TEACHER_Q else name for name in self._names if name.startswith("teacher_")}
        self.labels_here = not own <= set(schema.labels)  # labels that the files lack

    @staticmethod
    def in_files(names: Sequence[str]) -> tuple[str, ...]:
        """Return the columns of files that are needed for these columns of Learners."""
        needed = TD_IN_FILES if VALID in names else ()
        return (*dict.fromkeys((*names, TEACHER_LOG_PROBS, MASK, *needed)),)

    def __call__(self, piece: Piece) -> dict[str, np.ndarray]:
        """Return columns `[R, ...]`, in which every number is finite; −inf in labels marks illegal actions.

        Raises:
            DataError: a number is not finite, or an action is none of the teacher's.
        """
        columns = dict(piece.columns)
        if self._ranking in columns:
            columns[TEACHER_Q] = columns.pop(self._ranking)
        self._check(columns, piece.path)
        if VALID in self._names:
            columns[VALID] = has_successor(columns)
        columns[Columns.OBS] = as_column(columns[Columns.OBS])
        if self.labels_here:
            columns |= label(self._teacher, columns[Columns.OBS], self._labels, columns.get(MASK), piece.path)
        masks = {MASK} & columns.keys() if VALID in self._names else ()
        return {name: columns[name] for name in (*self._names, *masks)}

    @property
    def _labels(self) -> tuple[str, ...]:
        return tuple(name for name in self._names if name.startswith("teacher_"))

    def _check(self, columns: Mapping[str, np.ndarray], path: str) -> None:
        for name, values in columns.items():
            if values.dtype.kind != "f":
                continue
            is_right = np.isfinite(values)
            if name == TEACHER_Q:
                is_right = np.isneginf(values) & np.isfinite(values).any(-1, keepdims=True) | is_right
            if not is_right.all():
                at = np.argwhere(~is_right)[0]
                stored = self._ranking if name == TEACHER_Q else name
                raise DataError(
                    f"has the number {values[tuple(at)]} in a row; expected finite ones. Leave out such rows, or "
                    "correct them",
                    file=path,
                    column=stored,
                )
        if Columns.ACTIONS in columns:
            actions = columns[Columns.ACTIONS]
            wrong = (actions < 0) | (actions >= self._schema.num_actions)
            if wrong.any():
                raise DataError(
                    f"has the action {actions[wrong][0]}; expected 0 to {self._schema.num_actions - 1}",
                    file=path,
                    column=Columns.ACTIONS,
                )


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


def as_column(obs: np.ndarray) -> np.ndarray:
    """Return observations as the replay has them: images of bytes as they are, others as 32-bit floats."""
    if obs.dtype == np.uint8 and obs.ndim == 4:
        return obs
    with np.errstate(over="ignore"):
        return obs.astype(np.float32, copy=False)


def label(
    teacher: Teacher, obs: np.ndarray, names: Sequence[str], mask: np.ndarray | None, path: str
) -> dict[str, np.ndarray]:
    """Return a teacher's labels of recorded observations `[R, ...]`.

    Args:
        teacher: a loaded teacher without memory.
        obs: observations, as files have them: one vector of all parts, if the environment shows several.
        names: names of the label columns.
        mask: `[R, A]`, the legal actions; None: all are.
        path: path of their file, for messages.

    Raises:
        DataError: the teacher cannot label them: it looks back, or takes observations of another shape.
    """
    pipeline = teacher.pipeline or ObservationPipeline(teacher.input_space)
    if looks_back(pipeline):
        raise DataError(
            f"the teacher '{teacher.source}' also looks at earlier steps, so single rows cannot be labelled here. "
            "Label the files first: rllib label",
            file=path,
        )
    if pipeline.stages and isinstance(pipeline.stages[0], Flatten) and obs.ndim == 2:
        pipeline = ObservationPipeline(teacher.input_space, pipeline.stages[1:])  # the vector is there already
    shown = Shown(obs, np.ones(len(obs), dtype=bool), mask=mask)
    try:
        inputs = torch.tensor(pipeline.start()(shown))  # a copy: rows of files are read-only
        masks = () if mask is None else (torch.tensor(mask),)
        labels = teacher.labels(inputs, names, *masks)
    except (RuntimeError, ValueError) as error:
        raise DataError(
            f"the teacher '{teacher.source}' does not take its observations of the shape {list(obs.shape[1:])}: "
            f"{error}",
            file=path,
            column=Columns.OBS,
        ) from error
    return {name: column.cpu().numpy() for name, column in labels.items()}


def looks_back(pipeline: ObservationPipeline) -> bool:
    """Return whether a pipeline remembers earlier steps of an episode."""
    return any(_remembers(stage) for stage in pipeline.stages)


def _remembers(stage: Any) -> bool:
    if isinstance(stage, SideBySide):
        return any(map(looks_back, stage.pipelines))
    return isinstance(stage, StackFrames | RLlibConnectors)
