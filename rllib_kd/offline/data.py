"""RLlib's OfflineData for labelled rows: they pass into the Learners' replays, once if they fit, else in epochs.

Whether they fit is counted when the replays are filled: of packed stacks (frames.py), frames that are only context take
rows of a replay, too, and their number depends on the lengths of episodes and pieces.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium as gym
import numpy as np
import pyarrow.fs
import ray
from ray.rllib.core.columns import Columns
from ray.rllib.offline.offline_data import OfflineData
from ray.rllib.utils.annotations import override

from rllib_kd.observations.frames import CONTEXT, VALID, pack
from rllib_kd.observations.masks import MASK
from rllib_kd.observations.spaces import channels_last, is_byte_image
from rllib_kd.offline.file_set import FileSet
from rllib_kd.offline.fingerprint import agree, fingerprint, short
from rllib_kd.offline.labelled_files import LabelledFiles
from rllib_kd.offline.labelling import Labeller
from rllib_kd.offline.reading import part_of
from rllib_kd.offline.rows import LearnerColumns
from rllib_kd.offline.schema import DataError
from rllib_kd.offline.stream import HeldOutRows, Piece, RecordedFiles, Stream
from rllib_kd.offline.subset import Subset
from rllib_kd.offline.unlabelled_files import files_at
from rllib_kd.public import public
from rllib_kd.text import one_line
from rllib_kd.wire import RANKING_COLUMN, TEACHER_FEATURES, TEACHER_PROBS, TEACHER_Q

if TYPE_CHECKING:
    from rllib_kd.teachers.base import Teacher

logger = logging.getLogger(__name__)

_MOST_HELD_OUT, _MOST_NUMBERS = 8_192, 2**25  # rows, and numbers in their observations
_MOST_BYTES = 4 * 2**30  # of a replay whose capacity is not set
_UNITS, _TD_BYTES = 256, 24  # of a teacher's last layer, if its number is unknown; of the columns of TD
_AGAIN = "Name the teacher that has labelled them, or label them again: rllib label"
_CHECKED = 256  # whose labels are compared with the teacher's own
_TOLERANCE = 1e-2  # of the largest label: other devices and 16-bit floats round differently


def open_files(config: Any) -> RecordedFiles | None:
    """Return the files of `offline_data(input_=...)`, whose footers are read; None of a config without.

    What `set_aside` names is not among their rows.

    Raises:
        DataError: there is none, one cannot be read, or they differ.
    """
    if not config.is_offline:
        return None
    files = all_files(config)
    return Subset(files, config.set_aside, 1.0) if config.set_aside else files


def all_files(config: Any) -> FileSet:
    """Return the files of a config with `offline_data(input_=...)`, and what it sets aside, too.

    Raises:
        DataError: as of `open_files()`.
    """
    uris = [config.input_] if isinstance(config.input_, str) else list(config.input_)
    filesystem = config.input_filesystem
    if filesystem is None:
        return files_at(uris)
    if filesystem == "s3":
        filesystem = pyarrow.fs.S3FileSystem(**config.input_filesystem_kwargs)
    return LabelledFiles(uris, filesystem)


def check_teacher_of(files: RecordedFiles, teacher: Teacher) -> None:
    """Check that the labels of files can be a teacher's: their kind, their number of actions, the teacher's weights.

    Args:
        files: the files. If they have no labels, it is checked that the teacher can give them to single rows.
        teacher: a loaded teacher.

    Raises:
        DataError: they cannot.
        ValueError: there are no labels, and the teacher also looks at earlier rows.
    """
    schema, num_actions = files.schema, int(teacher.action_space.n)
    if schema is None:
        Labeller(teacher)
        return
    ranking = RANKING_COLUMN[teacher.outputs]
    name, own = f"the teacher '{one_line(teacher.source)}'", fingerprint(teacher)
    for is_wrong, message in (
        (
            schema.num_actions != num_actions,
            f"has labels of {schema.num_actions} actions, but {name} has {num_actions}",
        ),
        (schema.ranking != ranking, f"is there, but the labels of {name} are '{ranking}'"),
        (
            bool(own and schema.fingerprint) and not agree(own, schema.fingerprint),
            f"has labels of another teacher, '{one_line(schema.teacher)}' with the fingerprint "
            f"{short(schema.fingerprint)}, but {name} has {short(own)}",
        ),
    ):
        if is_wrong:
            raise DataError(f"{message}. {_AGAIN}", file=files.first_path, column=schema.ranking)


@public
class LabelledData(OfflineData):
    """Labelled rows, for the replays of Learners.

    RLlib constructs it, and sets the attributes that its own has. Nothing is read before `open()`. Batches are made by
    the Learner's replay, and not by RLlib's OfflinePreLearner, which builds an episode of each row.

    Args:
        config: config of the run.
    """

    #: Attributes that a checkpoint lacks: they follow from the config, the files and the teacher.
    NOT_SAVED: ClassVar = frozenset(
        {"config", "path", "is_multi_agent", "spaces", "locality_hints", "learner_handles", "module_spec"}  # RLlib's
        | {"files", "held_out", "fills_again", "_held_out", "_columns", "_names", "_num_shards", "_packs"}
    )

    # RLlib's would open the files by Ray Data.
    def __init__(self, config: Any):
        self.config = config
        self.path = config.input_
        self.is_multi_agent = config.is_multi_agent
        self.spaces = self.locality_hints = self.learner_handles = self.module_spec = None
        self.files: RecordedFiles | None = None
        #: Held-out rows, which are not learned from: columns `obs` and `teacher_q`, once the teacher is known.
        self.held_out: dict[str, np.ndarray] = {}
        self._stream: Stream | None = None
        self._columns: LearnerColumns | None = None
        self._names: tuple[str, ...] = ()
        self._num_shards = max(1, config.num_learners)
        self._packs: bool | None = None  # whether stacks are packed; None: not known yet
        self._is_in_replay = False  # what the replays hold at first
        self._rows_needed = 0  # capacity that the replays need together for all rows; with context, once it is counted
        self._first: dict[str, Any] = {}  # position before the rows that they hold at first
        #: Whether `fill()` yields rows that were counted before a restore.
        self.fills_again = False
        self._rows_due = 0.0  # of a stream: rows that have been asked for, and not passed yet

    def open(self, files: RecordedFiles, names: Sequence[str]) -> None:
        """Begin a stream of files.

        Args:
            files: the files.
            names: columns that Learners take: `obs`, labels, and those of TD.
        """
        self.files, self._names = files, tuple(names)
        most = max(1, min(_MOST_HELD_OUT, _MOST_NUMBERS // max(1, files.obs_numbers)))
        self._held_out = HeldOutRows(files, self.config.held_out, most)
        self._stream = Stream(files, LearnerColumns.in_files(names), self._held_out, self.config.seed)
        self._first = self._stream.get_state()
        self._rows_needed = self.num_rows

    def meet(self, teacher: Teacher) -> None:
        """Take the teacher that labels what the files do not, check its labels in them, and read the held-out rows.

        Raises:
            DataError: the labels are of another teacher, or a held-out row cannot be used.
        """
        assert self.files is not None
        check_teacher_of(self.files, teacher)
        self._columns = LearnerColumns(self._names, teacher, self.files.schema)
        plain = LearnerColumns((Columns.OBS, TEACHER_Q), teacher, self.files.schema)
        parts: list[dict[str, np.ndarray]] = []
        for piece in self._held_out.read(plain.in_files((Columns.OBS, TEACHER_Q))):
            parts.append(plain(piece))
        if self.files.schema is not None:
            chunk = self.files.chunks[0]
            columns = next(self.files.read(chunk, plain.in_files((Columns.OBS, TEACHER_Q))))
            self._check_labels(Piece(part_of(columns, 0, _CHECKED), self.files.path_of(chunk)), plain, teacher)
        self.held_out = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}

    def _check_labels(self, piece: Piece, plain: LearnerColumns, teacher: Teacher) -> None:
        """Check that some rows have the labels that a teacher gives them, unless it also looks at earlier rows."""
        assert self.files is not None
        assert self.files.schema is not None
        column = self.files.schema.ranking
        try:
            own = Labeller(teacher)
        except ValueError:
            return
        found = plain(piece)[TEACHER_Q]
        seen = {name: piece.columns[name] for name in (Columns.OBS, MASK) if name in piece.columns}
        expected = own(seen, file=piece.path)[column]
        legal = np.isfinite(found) & np.isfinite(expected)  # files without masks do not show illegal actions
        gap = np.abs(np.where(legal, found, 0.0) - np.where(legal, expected, 0.0)).max(initial=0.0)
        if gap > _TOLERANCE * np.abs(expected[legal]).max(initial=0.0):
            raise DataError(
                f"has labels that differ by {gap:.3g} from those of the teacher '{one_line(teacher.source)}' for the "
                f"same observations. {_AGAIN}",
                file=piece.path,
                column=column,
            )

    # --- Rows ---------------------------------------------------------------------------------------------------------

    @property
    def num_rows(self) -> int:
        """Return the rows that are learned from."""
        assert self._stream is not None
        return self._stream.num_rows

    @property
    def fits(self) -> bool:
        """Return whether the replays hold all rows, which then pass once. It is certain when they have been filled."""
        return self._rows_needed <= self._capacity * self._num_shards

    @property
    def stores_rows(self) -> bool:
        """Return whether checkpoints need the rows of the replays: those that have passed by, or their priorities."""
        return not self.fits or bool(self.config.replay_buffer_config.get("alpha"))

    @property
    def _capacity(self) -> int:
        return self.config.replay_buffer_config.get("capacity") or 0

    def fill(self) -> Iterator[list[Any]]:
        """Yield shards for each Learner, until the replays hold all rows or are full; nothing if that is done.

        Raises:
            DataError: a Learner gets no row that it can learn from.
        """
        if self._is_in_replay:
            return
        assert self._stream is not None
        begins, last = self.fits, self._stream.passed + self.num_rows
        self._packs = None
        written, drawable = np.zeros((2, self._num_shards), dtype=np.int64)  # rows of each replay
        while self._stream.passed < last and written.min() < self._capacity:
            shards = self._next()
            written += [len(shard[Columns.OBS]) for shard in shards]
            drawable += [np.sum(shard.get(VALID, np.ones(len(shard[Columns.OBS]), dtype=bool))) for shard in shards]
            yield self._sent(shards)
        if not drawable.all():
            raise DataError(
                f"The Learners get {drawable.tolist()} rows of {self.path!r} to learn from. Each needs at least one, "
                "and with `td_coeff` also the row after it: record more rows, or lower `num_learners`."
            )
        if begins:  # rows that do not fit may be filled in again from within an epoch on
            most = int(written.max()) if self._stream.passed >= last else self._capacity + 1
            self._rows_needed = most * self._num_shards
        self._is_in_replay, self.fills_again = True, False

    @override(OfflineData)
    def sample(
        self,
        num_samples: int,
        return_iterator: bool = False,
        num_shards: int = 1,
        module_state: Mapping[str, Any] | None = None,
    ) -> list[list[Any]]:
        """Let rows pass, and return those that are new to the replays: none if these hold all.

        Args:
            num_samples: rows that pass. Those of one piece of a file come together, and later calls then bring fewer.
            return_iterator: as of RLlib's; not used.
            num_shards: as of RLlib's; not used: each Learner has one.
            module_state: as of RLlib's; not used.

        Returns:
            For each piece a list of columns, or of references to them: one for each Learner.
        """
        if self.fits:
            return []
        assert self._stream is not None
        self._rows_due += num_samples
        pieces = []
        while self._rows_due > 0:
            before = self._stream.passed
            pieces.append(self._sent(self._next()))
            self._rows_due -= self._stream.passed - before
        return pieces

    def _next(self) -> list[dict[str, np.ndarray]]:
        """Return the next piece in shards, one for each Learner, whose rows in all pieces differ by one at most."""
        assert self._stream is not None
        if self._columns is None:
            raise ValueError("Rows are labelled and checked by a teacher, but none is loaded yet. Restore one first.")
        turn = self._stream.passed  # the Learner after those that got the last piece's surplus gets the next one's
        columns = self._columns(next(self._stream))
        parts = np.array_split(np.arange(len(columns[Columns.OBS])), self._num_shards)
        shards = []
        for index in range(self._num_shards):
            part = parts[(index - turn) % self._num_shards]
            shard = {name: column[part] for name, column in columns.items()}
            if VALID in shard and len(part):  # the next row is another Learner's
                shard[VALID][-1] &= shard[Columns.TERMINATEDS][-1]
            shards.append(self._packed(shard))
        return shards

    def _packed(self, shard: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return rows as the replays have them: packed if the first ones were, so that their number is known here."""
        shape = shard[Columns.OBS].shape[1:]
        if len(shape) != 3 or self._packs is False or not len(shard[Columns.OBS]):
            return shard
        packed = pack(shard, channels_last(shape), always=bool(self._packs))
        self._packs = CONTEXT in packed
        return packed

    def _sent(self, shards: list[dict[str, np.ndarray]]) -> list[Any]:
        """Return shards as Learners take them: references to them, unless the Learner is in this process."""
        return shards if self.config.num_learners == 0 else [ray.put(shard) for shard in shards]

    # --- State --------------------------------------------------------------------------------------------------------

    def replays_are(self, *, restored: bool) -> None:
        """Note whether a restored checkpoint contained the rows of the replays; otherwise they are filled again.

        Rows that all fit are not in checkpoints: they are read again, into their former places.
        """
        assert self._stream is not None
        if self._is_in_replay and not (restored and self.stores_rows):
            self._is_in_replay, self.fills_again = False, True
            if self.fits:
                self._stream.set_state(self._first)

    def get_state(self) -> dict[str, Any]:
        """Return the position in the rows, and what must be equal when a run continues from it."""
        assert self._stream is not None
        assert self.files is not None
        return {
            "stream": self._stream.get_state(),
            "first": self._first,
            "is_in_replay": self._is_in_replay,
            "rows_needed": self._rows_needed,
            "rows_due": self._rows_due,
            "files": self.files.fingerprint(),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue at a position of `get_state()`; if the files have changed, at their beginning."""
        assert self._stream is not None
        assert self.files is not None
        if state["files"] != self.files.fingerprint():
            logger.warning(
                "The files in %s are not those of the checkpoint, so their rows pass from the beginning.", self.path
            )
            self._is_in_replay, self._rows_needed, self._rows_due = False, self.num_rows, 0.0
            return
        self._stream.set_state(state["stream"])
        self._first = state["first"]
        self._is_in_replay, self._rows_due = state["is_in_replay"], state["rows_due"]
        self._rows_needed = state.get("rows_needed", self.num_rows)  # not of a version without


def capacity_for(
    files: RecordedFiles,
    names: Sequence[str],
    *,
    num_actions: int,
    num_learners: int = 0,
    num_atoms: int = 1,
    space: gym.Space | None = None,
) -> int:
    """Return the rows that each Learner's replay needs for all rows of files, but no more than 4 GiB of them.

    Of stacks with much context, as in short episodes, it may need some more: then the rows pass in epochs.

    Args:
        files: the files.
        names: columns that Learners take.
        num_actions: number of actions.
        num_learners: Learners that share the rows; 0 is one, too.
        num_atoms: atoms of return distributions, if these are among the columns.
        space: space of the observations, of which files without labels have no record; None: unknown.
    """
    schema = files.schema
    if schema is None:  # such files may have images of bytes as floats, too
        is_image, number_bytes, num_frames = is_byte_image(space), 4, 1
    else:
        is_image = schema.obs_dtype == "uint8" and len(schema.obs_shape) == 3
        number_bytes, num_frames = 1 if is_image else 4, schema.num_frames
    per_label = {TEACHER_PROBS: num_actions * num_atoms, TEACHER_FEATURES: _UNITS}
    numbers = sum(per_label.get(name, num_actions) for name in names if name.startswith("teacher_"))
    row_bytes = files.obs_numbers * number_bytes // num_frames + 4 * numbers
    row_bytes += _TD_BYTES + num_actions if VALID in names else 1
    rows = math.ceil(files.num_rows / max(1, num_learners))
    if is_image:  # of stacks, the replay has single frames, and some more where an episode or a piece begins
        rows = int(1.1 * rows) + num_frames
    return max(1, min(rows, _MOST_BYTES // row_bytes))
