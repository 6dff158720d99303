"""Recording: the labelled states that an EnvRunner visits, as files like those of `rllib label`."""

from __future__ import annotations

import posixpath
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from ray.rllib.core.columns import Columns

from rllib_kd.environments.failures import name_of
from rllib_kd.observations.frames import VALID
from rllib_kd.observations.spaces import channels_last
from rllib_kd.offline.fingerprint import fingerprint
from rllib_kd.offline.listing import filesystem_of
from rllib_kd.offline.reading import part_of
from rllib_kd.offline.schema import LabelledSchema
from rllib_kd.offline.stacks import saved_share
from rllib_kd.offline.writing import rows_of_group, write_file
from rllib_kd.text import one_line
from rllib_kd.wire import RANKING_COLUMN, TEACHER_Q

if TYPE_CHECKING:
    from rllib_kd.teachers.base import Teacher


_LEAST_SAVED = 0.5  # of the frames that stacks could save; with less they are images of other kinds


class Recorder:
    """Collects the rows of one EnvRunner, and writes a file whenever there are enough.

    Pickled, it keeps the places in the running episodes, and nothing else: another process writes files of other names.

    Args:
        uri: path or URI of the folder of all EnvRunners' files, which is made if it is missing.
        teacher: the teacher whose outputs the labels are.
        num_envs: number of environments, N.
        env: id of the environment; None if it has none.
        max_rows: rows after which a file is written; None: no limit.
        max_bytes: bytes in memory after which a file is written.
    """

    def __init__(
        self,
        uri: str,
        teacher: Teacher,
        *,
        num_envs: int,
        env: str | None = None,
        max_rows: int | None = None,
        max_bytes: int = 2**26,
    ):
        self._uri, self._env = uri, env
        self._max_rows, self._max_bytes = max_rows, max_bytes
        self._teacher = one_line(teacher.source, limit=1_000)
        self._fingerprint, self._support = fingerprint(teacher), teacher.support
        self._ranking = RANKING_COLUMN[teacher.outputs]
        self._episodes = np.zeros(num_envs, dtype=np.int64)  # number of each environment's running episode
        self._t = np.zeros(num_envs, dtype=np.int64)  # steps in it so far
        self._num_frames: int | None = None  # of stacks that are stored frame by frame; None: not known yet
        self._begin_files()

    def _begin_files(self) -> None:
        self._name = uuid.uuid4().hex[:12]  # no other run or EnvRunner has it
        self._num_files = 0
        self._clear_waiting()

    def _clear_waiting(self) -> None:
        self._waiting: list[dict[str, np.ndarray]] = []
        self._num_rows = self._num_bytes = 0  # of those that wait

    def add(self, columns: Mapping[str, np.ndarray], ended_before: np.ndarray, *, begins: bool) -> None:
        """Add the columns of a fragment, and write a file if there are enough rows.

        Args:
            columns: `[N, T, ...]`, with `valid`: rows that are not are left out.
            ended_before: `[N]`, whether the environment's last step before the fragment ended an episode.
            begins: whether all environments begin new episodes with it.

        Raises:
            OSError: a file cannot be written.
        """
        if begins:
            self._episodes += self._t > 0
            self._t[:] = 0
        episodes, t = self._places(columns, ended_before)
        part = {**columns, "episodes": episodes, Columns.T: t}
        self._waiting.append(part)
        self._num_rows += int(part[VALID].sum())
        self._num_bytes += sum(column.nbytes for column in part.values())
        is_full = self._num_bytes >= self._max_bytes
        if is_full or (self._max_rows is not None and self._num_rows >= self._max_rows):
            self.write()

    def _places(self, columns: Mapping[str, np.ndarray], ended_before: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the number of each row's episode, and the step in it, `[N, T]`."""
        ends = columns[Columns.TERMINATEDS] | columns[Columns.TRUNCATEDS]
        episodes, t = np.empty(ends.shape, np.int64), np.empty(ends.shape, np.int64)
        resets = ended_before
        for step in range(ends.shape[1]):
            episodes[:, step], t[:, step] = self._episodes, self._t
            self._t = np.where(ends[:, step], 0, self._t + ~resets)
            self._episodes = self._episodes + ends[:, step]
            resets = ends[:, step]
        return episodes, t

    def write(self) -> None:
        """Write the rows that wait, if there are any.

        Raises:
            OSError: a file cannot be written. The rows wait on: the next call tries again.
        """
        if self._num_rows:
            self._write(self._waiting)
        self._clear_waiting()

    def _write(self, parts: list[dict[str, np.ndarray]]) -> None:
        filesystem, folder = filesystem_of(self._uri)
        path = posixpath.join(folder, f"{self._name}-{self._num_files:06}.parquet")
        rows = self._rows(parts)
        schema = LabelledSchema.of_rows(
            rows,
            teacher=self._teacher,
            fingerprint=self._fingerprint,
            support=self._support,
            env=self._env,
            num_frames=self._num_frames or 1,
        )
        group = rows_of_group(schema)  # at once, so that each begins a sequence of frames
        starts = range(0, len(rows[Columns.OBS]), group)
        write_file(filesystem, path, (part_of(rows, start, start + group) for start in starts), schema)
        self._num_files += 1

    def _rows(self, parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Return rows `[R, ...]`, those of each environment together, so that the next row is the next step."""
        joined = {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}
        valid = joined.pop(VALID)
        envs = np.broadcast_to(np.arange(len(valid))[:, None], valid.shape)[valid]
        rows = {name: column[valid] for name, column in joined.items()}
        episodes = zip(envs.tolist(), rows.pop("episodes").tolist(), strict=True)
        rows[Columns.EPS_ID] = np.array([f"{self._name}-{env}-{episode}" for env, episode in episodes], dtype=object)
        rows[self._ranking] = rows.pop(TEACHER_Q)
        self._find_stacks(rows)
        return rows

    def _find_stacks(self, rows: dict[str, np.ndarray]) -> None:
        """Find out once whether images are stacks of frames, and move the frames of stacks to the end."""
        obs = rows[Columns.OBS]
        if obs.ndim != 4 or obs.dtype != np.uint8 or self._num_frames == 1:
            return
        stacks = obs if channels_last(obs.shape[1:]) == obs.shape[1:] else np.moveaxis(obs, 1, -1)
        if self._num_frames is None:
            num_frames = stacks.shape[-1]
            is_stack = num_frames > 1 and saved_share(stacks) > _LEAST_SAVED * (1.0 - 1.0 / num_frames)
            self._num_frames = num_frames if is_stack else 1
        if self._num_frames > 1:
            rows[Columns.OBS] = stacks

    def __getstate__(self) -> dict[str, Any]:
        of_files = ("_name", "_num_files", "_waiting", "_num_rows", "_num_bytes")
        return {name: value for name, value in vars(self).items() if name not in of_files}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin_files()


def recorder_of(config: Any, teacher: Teacher, num_envs: int) -> Recorder:
    """Return a recorder as a config's `offline_data(output=...)` asks for it.

    Args:
        config: config of the run.
        teacher: the teacher of the labels.
        num_envs: environments of the EnvRunner.
    """
    limits = {"max_rows": config.output_max_rows_per_file, "max_bytes": config.output_max_file_size}
    env = name_of(config.env)
    return Recorder(config.output, teacher, num_envs=num_envs, env=env, **limits)
