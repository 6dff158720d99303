"""Labelling: from recorded rows to rows with a teacher's outputs, all checked."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.core.columns import Columns

from rllib_kd.allocator import keep_freed_memory
from rllib_kd.observations.flattening import Flattener
from rllib_kd.observations.masks import MASK, features_space
from rllib_kd.observations.pipeline import (
    Flatten,
    ObservationPipeline,
    RLlibConnectors,
    Shown,
    SideBySide,
    StackFrames,
)
from rllib_kd.observations.spaces import MOST_OF_FLOATS, brief, has_undivided_pixels, image_shape, is_byte_image
from rllib_kd.offline.columns import Place, finite, not_finite, recorded, rows_where
from rllib_kd.offline.fingerprint import fingerprint
from rllib_kd.offline.reading import num_rows
from rllib_kd.offline.schema import OBS_DTYPES, RECORDED, DataError, LabelledSchema
from rllib_kd.text import one_line
from rllib_kd.wire import RANKING_COLUMN, TEACHER_FEATURES, TEACHER_PROBS, TEACHER_Q

if TYPE_CHECKING:
    from rllib_kd.teachers.base import Teacher


class Labeller:
    """Labels recorded rows with a teacher, which sees each row by itself.

    Args:
        teacher: the teacher.
        also: names of further label columns: `teacher_probs` of a C51, `teacher_features` of RLlib's networks.
        device: "cpu" or "cuda", to which the teacher is moved; None: it stays where it is.

    Raises:
        ValueError: the teacher's pipeline remembers earlier steps, or it has no such labels.
    """

    def __init__(self, teacher: Teacher, *, also: Sequence[str] = (), device: str | None = None):
        keep_freed_memory()
        _check_sees_rows(teacher)
        _check_has(teacher, also)
        self._teacher = teacher if device is None else teacher.to(device)
        self._device = device or _device_of(teacher)
        self._labels = (TEACHER_Q, *(name for name in (TEACHER_PROBS, TEACHER_FEATURES) if name in also))
        self._space = features_space(teacher.observation_space)
        self._flatten = None if isinstance(self._space, gym.spaces.Box) else Flattener(self._space)
        self._view = teacher.start()
        self.num_actions = int(teacher.action_space.n)
        self.fingerprint = fingerprint(teacher)

    def __call__(self, columns: Mapping[str, Any], *, file: str = "", start: Any = 0) -> dict[str, np.ndarray]:
        """Return rows with labels: the columns of a labelled file, as `offline/schema.py` describes them.

        Args:
            columns: recorded columns `[N, ...]` by RLlib's names, as readers yield them.
            file: path of their file, for messages.
            start: index of the first row in the file, or the indices of all rows `[N]`, for messages; None: as 0.

        Raises:
            DataError: a column has another shape or type than the teacher takes, or a number that is not finite.
        """
        place = Place(file, start)
        count = num_rows(columns)
        rows = {
            name: recorded(name, columns[name], count, self.num_actions, place) for name in RECORDED if name in columns
        }
        shown, rows[Columns.OBS] = self._observations(columns[Columns.OBS], count, place)
        return rows | self._labels_of(shown, rows[Columns.OBS], rows.get(MASK), place)

    def schema_of(self, columns: Mapping[str, np.ndarray], env: str | None = None) -> LabelledSchema:
        """Return the schema of labelled rows, as `__call__()` returns them.

        Args:
            columns: the rows.
            env: id of the environment; None if it is unknown.
        """
        return LabelledSchema.of_rows(
            columns,
            teacher=one_line(self._teacher.source, limit=1_000),
            fingerprint=self.fingerprint,
            support=self._teacher.support,
            env=env,
        )

    def check_columns(self, actions: tuple[Any, Any] | None, mask_size: int | None, file: str) -> None:
        """Check, before its rows are read, that a file is of as many actions as the teacher's.

        Args:
            actions: smallest and largest action in the file, if they are known.
            mask_size: number of actions that its masks are for, if it has masks.
            file: path of the file.

        Raises:
            DataError: it is not.
        """
        if actions is not None and not (actions[0] >= 0 and actions[1] < self.num_actions):
            raise DataError(self._wrong_actions(actions), file=file, column=Columns.ACTIONS)
        if mask_size is not None and mask_size != self.num_actions:
            message = f"is of {mask_size} actions, but the teacher has {self.num_actions}"
            raise DataError(message, file=file, column=MASK)

    def _wrong_actions(self, actions: tuple[Any, Any]) -> str:
        return (
            f"has actions from {actions[0]} to {actions[1]}, but the teacher's are 0 to {self.num_actions - 1}. Does "
            "it belong to this environment?"
        )

    def _observations(self, obs: Any, count: int, place: Place) -> tuple[Any, np.ndarray]:
        """Return observations as the teacher's environment shows them, and as they are written."""
        if self._flatten is None:
            return self._of_box(obs, place)
        if isinstance(obs, np.ndarray) and obs.dtype.kind == "f" and obs.shape[1:] == (self._flatten.size,):
            vectors = np.asarray(obs, np.float32)
            return None, finite(vectors, Columns.OBS, place)
        obs = _as_space(self._space, obs, Columns.OBS, place)
        try:
            vectors = self._flatten(obs, count)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise place.error(
                f"has no observations of {one_line(self._space, limit=300)}, which the teacher takes: {error}",
                Columns.OBS,
            ) from error
        return obs, finite(vectors, Columns.OBS, place)

    def _of_box(self, obs: Any, place: Place) -> tuple[np.ndarray, np.ndarray]:
        space, expected = self._space, f"the teacher takes {brief(self._space)} of {self._space.dtype}"
        if not isinstance(obs, np.ndarray) or obs.dtype.kind not in "biuf":
            if isinstance(obs, np.ndarray):
                raise place.error(f"has {obs.dtype}; {expected}", Columns.OBS)
            raise place.error(
                f"has parts {list(obs)[:10]}; {expected}. Load it with the space of the parts: load_teacher(..., "
                "pipeline=ObservationPipeline(space))",
                Columns.OBS,
            )
        if obs.dtype.name not in (*OBS_DTYPES, "bool"):
            raise place.error(
                f"has numbers of the type {obs.dtype}; expected one of {', '.join(OBS_DTYPES)}", Columns.OBS
            )
        if is_byte_image(space) and obs.dtype.kind in "iu" and obs.dtype != np.uint8:
            raise place.error(f"has images of {obs.dtype}; {expected}", Columns.OBS)
        if not self._fits(obs):
            is_flat = obs.ndim <= 2 or len(space.shape or ()) <= 1  # in the file, or for the teacher
            is_flat |= _without_ones(obs.shape[1:]) == _without_ones(space.shape or ())
            if not is_flat or math.prod(obs.shape[1:]) != math.prod(space.shape or ()):
                raise place.error(f"has observations of the shape {list(obs.shape[1:])}; {expected}", Columns.OBS)
            obs = obs.reshape(len(obs), *(space.shape or ()))
        obs = self._as_shown(finite(obs, Columns.OBS, place), place)
        written = obs[:, None] if obs.ndim == 1 else obs  # single numbers
        if obs.dtype != bool:
            return obs, written
        # Students take bytes of images divided by 255.
        return obs, written.view(np.uint8) * np.uint8(255 if obs.ndim == 4 else 1)

    def _as_shown(self, obs: np.ndarray, place: Place) -> np.ndarray:
        """Return observations `[N, ...]`, of which images are as the environment shows them.

        Students take bytes divided by 255, and floats as they are.

        Raises:
            DataError: they are floats above 1 where bytes are divided by 255.
        """
        space = self._space
        if obs.ndim != 4:
            return obs
        images = self._teacher.known_pipeline.images
        is_divided = images is not None and images.scaled
        if obs.dtype.kind == "f":
            if (is_divided or is_byte_image(space)) and (wrong := rows_where(obs > MOST_OF_FLOATS)).size:
                raise place.error(
                    f"has images of floats up to {obs[wrong[0]].max():.6g}, but the teacher takes bytes, or floats in "
                    "[0, 1]. Store them as bytes (uint8), or divide them by 255.",
                    Columns.OBS,
                    row=wrong[0],
                )
            if space.dtype != np.uint8 or is_divided:
                return obs
            return (np.rint(obs * 255) if space.high.max() > 1 else obs).astype(np.uint8)
        if space.dtype == np.bool_ and obs.dtype == np.uint8:  # 0 and 1, or 0 and 255, as labelled files have them
            return obs > 0 if np.isin(obs, (0, 1, 255)).all() else obs
        return obs.astype(np.float32) if obs.dtype == np.uint8 and has_undivided_pixels(space) else obs

    def _fits(self, obs: np.ndarray) -> bool:
        if obs.shape[1:] == self._space.shape:
            return True
        if obs.ndim != 4:  # images may have their channels first
            return False
        dtype: Any = np.uint8 if obs.dtype == np.uint8 else np.float32
        return self._teacher.takes(gym.spaces.Box(0, 255 if dtype == np.uint8 else 1, obs.shape[1:], dtype))

    def _labels_of(
        self, shown: Any, vectors: np.ndarray, mask: np.ndarray | None, place: Place
    ) -> dict[str, np.ndarray]:
        """Return the label columns of rows.

        Args:
            shown: observations as the environment shows them; None if the file has vectors made of them.
            vectors: observations as they are written.
            mask: `[N, A]`; None: all actions are legal.
            place: where the rows are.
        """
        count = len(vectors)
        if count == 0:
            inputs = np.zeros((0, *(self._teacher.input_space.shape or ())), np.float32)
        elif shown is None:
            inputs = self._view_of_vectors()(Shown(vectors, np.ones(count, bool), mask=mask))
        else:
            inputs = self._view(Shown(shown, np.ones(count, bool), mask=mask))
        on_device = None if mask is None else self._tensor(mask)
        labels = self._teacher.labels(self._tensor(inputs), self._labels, on_device)
        arrays = {name: values.float().cpu().numpy() for name, values in labels.items() if name in self._labels}
        for name, values in arrays.items():
            if (wrong := rows_where(not_finite(values, may_be_illegal=name == TEACHER_Q))).size:
                shown = values[wrong[0]].ravel()[:8].tolist()
                source = one_line(self._teacher.source, limit=300)
                raise place.error(f"the teacher '{source}' returns {shown}", name, row=wrong[0])
        ranking = RANKING_COLUMN[self._teacher.outputs]
        return {ranking if name == TEACHER_Q else name: values for name, values in arrays.items()}

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it is read-only, as Arrow's memory is
            return torch.from_numpy(array).to(self._device)

    def _view_of_vectors(self) -> Any:
        """Return the teacher's pipeline behind the stage that makes vectors of observations."""
        stages = self._teacher.pipeline.stages if self._teacher.pipeline is not None else ()
        size = self._flatten.size if self._flatten is not None else 0
        if not stages or not isinstance(stages[0], Flatten) or stages[0].size != size:
            raise DataError(
                f"has vectors, but the teacher takes {one_line(self._space, limit=300)} apart by itself. Record its "
                "parts: a struct, or a column of numbers.",
                column=Columns.OBS,
            )
        return ObservationPipeline(gym.spaces.Box(-np.inf, np.inf, (size,), np.float32), stages[1:]).start()


def _device_of(teacher: Teacher) -> torch.device | str:
    weights = teacher.module.parameters() if isinstance(teacher.module, torch.nn.Module) else iter(())
    return next((parameter.device for parameter in weights), "cpu")


def _check_sees_rows(teacher: Teacher) -> None:
    """Check that labels of a row need no rows before it.

    Raises:
        ValueError: they do.
    """
    if teacher.is_recurrent:
        raise ValueError(
            f"The teacher '{one_line(teacher.source)}' is recurrent and remembers earlier steps; rows of files are "
            "labelled one by one. Record its own episodes with labels: rllib train --output URI."
        )
    pipelines = [teacher.pipeline]
    while pipelines:
        pipeline = pipelines.pop()
        for stage in pipeline.stages if pipeline is not None else ():
            if isinstance(stage, SideBySide):
                pipelines += stage.pipelines
            elif isinstance(stage, StackFrames | RLlibConnectors):
                what = "stacks frames" if isinstance(stage, StackFrames) else "has custom connectors"
                raise ValueError(
                    f"The teacher '{one_line(teacher.source)}' {what}, which remember earlier steps; rows of files are "
                    "labelled one by one. Use a teacher whose environment stacks the frames, and record its stacks."
                )


def _check_has(teacher: Teacher, also: Sequence[str]) -> None:
    """Check that a teacher has further labels.

    Raises:
        ValueError: it does not, or there are no such labels.
    """
    there = {TEACHER_PROBS: teacher.support is not None, TEACHER_FEATURES: hasattr(teacher.module, "af")}
    for name in also:
        if name not in there:
            raise ValueError(f"There is no label '{one_line(name)}'; expected {' or '.join(there)}.")
        if not there[name]:
            needed = "a C51, with return distributions" if name == TEACHER_PROBS else "a DQN of RLlib"
            raise ValueError(f"The label '{name}' needs {needed}, which '{one_line(teacher.source)}' is not.")


def _as_space(space: gym.Space, obs: Any, column: str, place: Place) -> Any:
    """Return a composed observation with the keys of its space: files have texts as keys of a Tuple.

    Raises:
        DataError: a part is missing, or has another shape.
    """
    keys: Any = ()
    if isinstance(space, gym.spaces.Dict):
        keys = space.spaces.keys()
    elif isinstance(space, gym.spaces.Tuple):
        keys = range(len(space.spaces))
    else:
        return _as_part(space, obs, column, place) if isinstance(obs, np.ndarray) else obs
    parts = {}
    for key in keys:
        own = key if isinstance(obs, Mapping) and key in obs else str(key)
        if not isinstance(obs, Mapping) or own not in obs:
            raise place.error(f"has no part {key!r:.100} of {one_line(space, limit=300)}", column)
        parts[key] = _as_space(space[key], obs[own], f"{column}.{key}", place)
    return parts


def _as_part(space: gym.Space, obs: np.ndarray, column: str, place: Place) -> np.ndarray:
    """Return a part `[N, ...]` as its space has it, of images also with channels first; the file may have flat lists.

    Raises:
        DataError: it has another shape, but for axes of length 1.
    """
    image, shape = image_shape(space), space.shape
    if len(shape or ()) <= 1 or (obs.ndim <= 2 and image is None):  # vectors, whose lengths are checked when joined
        return obs
    layouts = [shape] if image is None else [shape, image, (image[2], *image[:2])]
    if obs.ndim == 2 and obs.shape[1] == math.prod(shape):
        return obs.reshape(len(obs), *shape)
    for layout in layouts:
        if _without_ones(obs.shape[1:]) == _without_ones(layout):
            return obs.reshape(len(obs), *layout)
    raise place.error(f"has observations of the shape {list(obs.shape[1:])}; the teacher takes {brief(space)}", column)


def _without_ones(shape: Sequence[int]) -> list[int]:
    return [length for length in shape if length > 1]
