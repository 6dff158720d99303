"""The schema of labelled files: Parquet with recorded observations, and a teacher's outputs for them.

Columns have RLlib's names. Only `obs` and the labels must be there.

| column | type | content |
|---|---|---|
| `obs` | fixed-size list of the observation's dtype; of uint8: fixed-size binary | one observation, row-major |
| `frames_before` | binary | of stacks stored frame by frame: `[H, W, k − 1]`, where the row before lacks them |
| `actions` | int64 | the action that was taken, 0 to A − 1 |
| `rewards` | float32 | its reward |
| `terminateds`, `truncateds` | bool | whether the episode ended after it |
| `eps_id`, `t` | string, int64 | the episode, and the step in it |
| `action_mask` | fixed-size list `[A]` of bool | the legal actions |
| `teacher_q` | fixed-size list `[A]` of float32 | Q-values, return units; −inf for illegal actions |
| `teacher_log_probs` | fixed-size list `[A]` of float32 | instead of Q-values: log-probabilities, nats |
| `teacher_probs` | fixed-size list `[A · atoms]` of float32 | return distributions |
| `teacher_features` | fixed-size list `[units]` of float32 | inputs of the teacher's last layer |

The metadata of the schema have one entry, `rllib_kd`: JSON of the fields of `LabelledSchema`. Bytes of images are
binary because Parquet has no numbers of one byte: as lists they take six times as long to write, and four to read.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileSystem, FileType
from ray.rllib.core.columns import Columns

from rllib_kd import limits
from rllib_kd.networks.dqn_module import Support
from rllib_kd.numeric import is_finite, is_integer
from rllib_kd.observations.masks import MASK
from rllib_kd.offline.fingerprint import LENGTHS, agree, short
from rllib_kd.offline.stacks import join, split
from rllib_kd.text import did_you_mean, one_line
from rllib_kd.wire import TEACHER_FEATURES, TEACHER_LOG_PROBS, TEACHER_PROBS, TEACHER_Q

#: Key of the metadata of a labelled file, and the version of what they contain.
METADATA, FORMAT_VERSION = b"rllib_kd", 1

#: Columns that a row may have beside `obs` and labels, in the order of a file, with their types; None: of `[A]` bools.
RECORDED: dict[str, pa.DataType | None] = {
    Columns.ACTIONS: pa.int64(),
    Columns.REWARDS: pa.float32(),
    Columns.TERMINATEDS: pa.bool_(),
    Columns.TRUNCATEDS: pa.bool_(),
    Columns.EPS_ID: pa.string(),
    Columns.T: pa.int64(),
    MASK: None,
}

#: Types of the numbers of an observation.
OBS_DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64")
_MAX_FRAMES = 16  # of a stack: it takes this many times the memory of a file's rows
#: Column of the frames before a stack's newest one, if the row before lacks them.
FRAMES_BEFORE = "frames_before"
_LABELS = (TEACHER_Q, TEACHER_LOG_PROBS, TEACHER_PROBS, TEACHER_FEATURES)
_BUFFER = 2**22  # bytes of a column that are read at once: not all of a row group, which may be all of a file
_MAX_MESSAGE = 1_500  # characters of an error, which may quote a file


class DataError(ValueError):
    """Recorded data that cannot be used. The message is one line that names the file, and the column if it is in one.

    Args:
        message: what was found, what was expected, and what to do.
        file: path or URI of the file; empty if the message names it.
        column: name of the column; empty if it is in none.
    """

    def __init__(self, message: str, *, file: str = "", column: str = ""):
        place = ", ".join([f"'{file}'"] * bool(file) + [f"column '{column}'"] * bool(column))
        super().__init__(one_line(f"{place}: {message}" if place else message, limit=_MAX_MESSAGE))


@dataclass(frozen=True)
class LabelledSchema:
    """What a labelled file contains. It is checked when it is made.

    Args:
        obs_shape: shape of one observation; `(size,)` for what `rllib_kd.observations` makes a flat vector of: Dicts,
            Tuples, discrete numbers, texts.
        obs_dtype: one of `OBS_DTYPES`.
        num_actions: number of actions, A.
        labels: names of the label columns: `teacher_q` or `teacher_log_probs` first, then others.
        recorded: names of the other columns, in the order of `RECORDED`.
        teacher: description of the teacher: its source.
        fingerprint: of `offline/fingerprint.py`; empty if it has none.
        env: id of the environment, if it is known.
        support: support of `teacher_probs`, if there is this column.
        num_features: length of `teacher_features`, if there is this column.
        num_frames: frames of a stack that are stored one by one, newest last; 1: observations are stored whole.
        input_digest: `digest_of()` of the file that was labelled; empty if there was none, or if it is unknown.

    Raises:
        DataError: a field is out of its range.
    """

    obs_shape: tuple[int, ...]
    obs_dtype: str
    num_actions: int
    labels: tuple[str, ...] = (TEACHER_Q,)
    recorded: tuple[str, ...] = ()
    teacher: str = ""
    fingerprint: str = ""
    env: str | None = None
    support: Support | None = None
    num_features: int | None = None
    num_frames: int = 1
    input_digest: str = dataclasses.field(default="", compare=False)

    def __post_init__(self) -> None:
        for field, is_right, expected in (
            ("obs_shape", _is_shape(self.obs_shape), f"lengths whose product is at most {limits.MAX_INPUTS}"),
            ("obs_dtype", self.obs_dtype in OBS_DTYPES, f"one of {', '.join(OBS_DTYPES)}"),
            ("num_actions", is_integer(self.num_actions, 1, limits.MAX_OUTPUTS), f"1 to {limits.MAX_OUTPUTS}"),
            ("labels", _are_labels(self.labels), f"'{TEACHER_Q}' or '{TEACHER_LOG_PROBS}', then others of {_LABELS}"),
            ("recorded", _are_in(self.recorded, tuple(RECORDED)), f"names of {tuple(RECORDED)}, in this order"),
            ("teacher", isinstance(self.teacher, str), "a text"),
            ("fingerprint", _is_fingerprint(self.fingerprint), "64 or 80 hexadecimal digits, or an empty text"),
            ("env", self.env is None or isinstance(self.env, str), "a text or null"),
            ("support", self._has_right_support(), f"(v_min, v_max, num_atoms) with '{TEACHER_PROBS}' alone"),
            (
                "num_frames",
                self._has_right_frames(),
                f"1, or the last length, at most {_MAX_FRAMES}, of images of bytes",
            ),
            ("num_features", self._has_right_features(), f"a length with '{TEACHER_FEATURES}' alone"),
            ("input_digest", isinstance(self.input_digest, str), "a text"),
        ):
            if not is_right:
                raise DataError(f"the metadata '{field}' are {getattr(self, field)!r:.200}; expected {expected}")

    @property
    def ranking(self) -> str:
        """Return the name of the label that ranks actions: `teacher_q` or `teacher_log_probs`."""
        return self.labels[0]

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the names of all columns, in the order of a file."""
        return (Columns.OBS, *([FRAMES_BEFORE] if self.num_frames > 1 else []), *self.recorded, *self.labels)

    @property
    def row_bytes(self) -> int:
        """Return the bytes of one row in memory, about."""
        return sum(math.prod(self.shape_of(name)) * self.dtype_of(name).itemsize for name in self.columns)

    def shape_of(self, column: str) -> tuple[int, ...]:
        """Return the shape of one row of a column; () of a number.

        Raises:
            KeyError: there is no such column.
        """
        shapes = {
            Columns.OBS: self.obs_shape if self.num_frames == 1 else self.obs_shape[:-1],
            MASK: (self.num_actions,),
            TEACHER_Q: (self.num_actions,),
            TEACHER_LOG_PROBS: (self.num_actions,),
            TEACHER_PROBS: (self.num_actions, self.support.num_atoms if self.support else 0),
            TEACHER_FEATURES: (self.num_features or 0,),
        }
        if column not in self.columns:
            raise KeyError(column)
        return shapes.get(column, ())

    def dtype_of(self, column: str) -> np.dtype:
        """Return the type of a column's numbers as numpy has it; `object` of texts."""
        if column == Columns.OBS:
            return np.dtype(self.obs_dtype)
        if column == MASK:
            return np.dtype(bool)
        if column == FRAMES_BEFORE:
            return np.dtype(object)
        return np.dtype((RECORDED.get(column) or pa.float32()).to_pandas_dtype())

    def _has_right_support(self) -> bool:
        if TEACHER_PROBS not in self.labels:
            return self.support is None
        if not isinstance(self.support, Support) or not is_integer(self.support.num_atoms, 1, limits.MAX_OUTPUTS):
            return False
        v_min, v_max, num_atoms = self.support
        is_range = is_finite(v_min) and is_finite(v_max) and v_min < v_max
        return is_range and self.num_actions * num_atoms <= limits.MAX_OUTPUTS

    def _has_right_frames(self) -> bool:
        is_stack = self.obs_dtype == "uint8" and len(self.obs_shape) == 3 and self.obs_shape[-1] == self.num_frames
        return is_integer(self.num_frames, 1, _MAX_FRAMES) and (self.num_frames == 1 or is_stack)

    def _has_right_features(self) -> bool:
        if TEACHER_FEATURES not in self.labels:
            return self.num_features is None
        return is_integer(self.num_features, 1, limits.MAX_OUTPUTS)

    def type_of(self, column: str) -> pa.DataType:
        """Return the Arrow type of a column."""
        shape = self.shape_of(column)
        if column == FRAMES_BEFORE:
            return pa.binary()
        if column == Columns.OBS and self.obs_dtype == "uint8":
            return pa.binary(math.prod(shape))
        if shape:
            return pa.list_(pa.from_numpy_dtype(self.dtype_of(column)), math.prod(shape))
        return RECORDED.get(column) or pa.from_numpy_dtype(self.dtype_of(column))

    @classmethod
    def of_rows(cls, rows: Mapping[str, np.ndarray], *, support: Support | None, **fields: Any) -> LabelledSchema:
        """Return the schema of labelled rows.

        Args:
            rows: their columns, by name.
            support: support of `teacher_probs`, if they are among the columns.
            fields: the fields that rows do not tell: `teacher`, `fingerprint`, `env`, `num_frames`.
        """
        obs, labels = rows[Columns.OBS], tuple(name for name in _LABELS if name in rows)
        return cls(
            obs_shape=obs.shape[1:],
            obs_dtype=obs.dtype.name,
            num_actions=rows[labels[0]].shape[1],
            labels=labels,
            recorded=tuple(name for name in RECORDED if name in rows),
            support=support if TEACHER_PROBS in rows else None,
            num_features=rows[TEACHER_FEATURES].shape[1] if TEACHER_FEATURES in rows else None,
            **fields,
        )

    def to_arrow(self) -> pa.Schema:
        """Return the schema of a file, with metadata."""
        content = {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}
        fields = [pa.field(name, self.type_of(name)) for name in self.columns]
        return pa.schema(fields, metadata={METADATA: json.dumps(content).encode()})

    @classmethod
    def from_arrow(cls, schema: pa.Schema, file: str = "") -> LabelledSchema:
        """Return the schema that a file's Arrow schema records.

        Args:
            schema: with metadata. Columns of other names may be there, too.
            file: path or URI of the file, for messages.

        Raises:
            DataError: it is not of a labelled file, of a later version, or a column is missing or has another type.
        """
        content = _content(schema, file)
        try:
            found = cls(**content)
        except DataError as error:
            raise DataError(str(error), file=file) from error
        for name in found.columns:
            index = schema.get_field_index(name)
            if index < 0:
                hint = did_you_mean(name, schema.names)
                raise DataError(f"is missing, but the metadata name it.{hint}", file=file, column=name)
            if not _same_type(schema.field(index).type, expected := found.type_of(name)):
                raise DataError(f"has the type {schema.field(index).type}; expected {expected}", file=file, column=name)
        return found

    def check_same(self, other: LabelledSchema, file: str) -> None:
        """Check that another file has the same columns, and labels of the same teacher.

        Args:
            other: schema of the other file.
            file: its path or URI.

        Raises:
            DataError: it does not; the message has the column, this schema's value and the other's.
        """
        for name in dict.fromkeys((*self.columns, *other.columns)):
            if (name in self.columns) != (name in other.columns):
                is_or_not = (
                    ("is missing", "other files have it") if name in self.columns else ("is there", "not in others")
                )
                raise DataError(f"{is_or_not[0]}, but {is_or_not[1]}. {_SAME}", file=file, column=name)
        for field, column, what in (
            ("obs_shape", Columns.OBS, "observations of the shape"),
            ("obs_dtype", Columns.OBS, "observations of the type"),
            ("num_actions", self.ranking, "a number of actions of"),
            ("fingerprint", self.ranking, "labels of the teacher with the fingerprint"),
            ("support", TEACHER_PROBS, "distributions with the support"),
            ("num_features", TEACHER_FEATURES, "features of the length"),
            ("num_frames", Columns.OBS, "a number of frames of"),
        ):
            mine, others = getattr(self, field), getattr(other, field)
            is_same = agree(mine, others) if field == "fingerprint" and mine and others else mine == others
            if not is_same:
                message = f"has {what} {_shown(others, other)}; the files before it have {_shown(mine, self)}. {_SAME}"
                raise DataError(message, file=file, column=column)


_SAME = "All files of a folder need the same columns, and labels of the same teacher."


def to_table(columns: Mapping[str, np.ndarray], schema: LabelledSchema) -> pa.Table:
    """Return a table of a labelled file, without a copy where the types are the file's.

    Args:
        columns: by name, `[N, ...]`, at least those of the schema; others are left out.
        schema: the schema.

    Raises:
        DataError: a column is missing, or has another shape or another kind of numbers.
    """
    arrays: list[Any] = []
    num_rows = len(columns.get(Columns.OBS, ()))
    if schema.num_frames > 1 and Columns.OBS in columns:
        if columns[Columns.OBS].shape[1:] != schema.obs_shape:
            shape = list(columns[Columns.OBS].shape[1:])
            raise DataError(f"has the shape {shape}; expected {list(schema.obs_shape)}", column=Columns.OBS)
        frames, before = split(columns[Columns.OBS])
        columns = {**columns, Columns.OBS: frames, FRAMES_BEFORE: np.array(before, dtype=object)}
    for name in schema.columns:
        if name not in columns:
            raise DataError("is missing", column=name)
        values = np.asarray(columns[name])
        expected = (num_rows, *schema.shape_of(name))
        if values.shape != expected:
            raise DataError(f"has the shape {list(values.shape)}; expected {list(expected)}", column=name)
        dtype = schema.dtype_of(name)
        if dtype.hasobject:
            arrays.append(pa.array(values.tolist(), schema.type_of(name)))
            continue
        if not np.can_cast(values.dtype, dtype, "same_kind"):
            raise DataError(f"has numbers of the type {values.dtype}; expected {dtype}", column=name)
        numbers = np.ascontiguousarray(values, dtype).reshape(-1)
        if pa.types.is_fixed_size_binary(kind := schema.type_of(name)):
            arrays.append(pa.Array.from_buffers(kind, num_rows, [None, pa.py_buffer(numbers)]))
        elif len(expected) > 1:
            arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(numbers), math.prod(expected[1:])))
        else:
            arrays.append(pa.array(numbers))
    return pa.Table.from_arrays(arrays, schema=schema.to_arrow())


def to_columns(
    data: pa.Table | pa.RecordBatch, schema: LabelledSchema | None = None, *, file: str = ""
) -> dict[str, np.ndarray]:
    """Return the columns of a labelled file as arrays, by name: a view of Arrow's memory where it is contiguous.

    Views are read-only. Truth values and texts are copied; so is a table of several chunks.

    Args:
        data: all columns of a file, or some of them.
        schema: the file's schema; None: that in the metadata of `data`, which then has all columns.
        file: path or URI of the file, for messages.

    Returns:
        Arrays `[N, ...]` with the observation's shape; `action_mask` is of bools, and `eps_id` of texts.

    Raises:
        DataError: a column has another type, or rows without a value.
    """
    schema = schema or LabelledSchema.from_arrow(data.schema, file)
    columns = {}
    for name in schema.columns:
        if data.schema.get_field_index(name) < 0:
            continue
        array = in_one_piece(data.column(name))
        if not _same_type(array.type, schema.type_of(name)):
            raise DataError(f"has the type {array.type}; expected {schema.type_of(name)}", file=file, column=name)
        shape = schema.shape_of(name)
        is_list = pa.types.is_fixed_size_list(array.type)
        flat = array.flatten() if is_list and not array.null_count else array
        if flat.null_count:
            raise DataError(f"has {flat.null_count} rows or numbers without a value", file=file, column=name)
        is_binary = pa.types.is_fixed_size_binary(array.type)
        values = bytes_of(array) if is_binary else numbers_or_texts(flat, file=file, column=name)
        columns[name] = values.reshape(len(array), *shape)
    if (before := columns.pop(FRAMES_BEFORE, None)) is not None and Columns.OBS in columns:
        try:
            columns[Columns.OBS] = join(columns[Columns.OBS], before.tolist(), schema.num_frames)
        except ValueError as error:
            raise DataError(str(error), file=file, column=FRAMES_BEFORE) from error
    return columns


def in_one_piece(array: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return a column as one array: of a single chunk without a copy."""
    if not isinstance(array, pa.ChunkedArray):
        return array
    return array.chunk(0) if array.num_chunks == 1 else pa.concat_arrays(array.chunks or [pa.array([], array.type)])


def numbers_or_texts(array: pa.Array, *, file: str, column: str) -> np.ndarray:
    """Return a column `[N]` without missing rows: a view of numbers, or texts as objects.

    Raises:
        DataError: a text is not in UTF-8.
    """
    try:
        return array.to_numpy(zero_copy_only=False)
    except pa.ArrowException as error:
        raise DataError(f"has a text that cannot be read as UTF-8: {error}", file=file, column=column) from error


def bytes_of(array: pa.FixedSizeBinaryArray) -> np.ndarray:
    """Return the bytes `[N, size]` of a column of fixed-size binary without missing rows, as a view."""
    size, content = array.type.byte_width, array.buffers()[1]
    start = array.offset * size
    values = np.empty(0, np.uint8) if content is None else np.frombuffer(content, np.uint8)
    return values[start : start + len(array) * size].reshape(len(array), size)


def open_parquet(filesystem: FileSystem, path: str) -> pq.ParquetFile:
    """Open a Parquet file, of which the footer is read, in bounded memory.

    Raises:
        DataError: it is missing or no Parquet.
    """
    try:
        if filesystem.get_file_info(path).type != FileType.File:
            raise DataError("is missing, or not a plain file", file=path)
        return pq.ParquetFile(
            filesystem.open_input_file(path),
            thrift_string_size_limit=limits.MAX_DESCRIPTION,
            thrift_container_size_limit=limits.MAX_PARTS,
            buffer_size=_BUFFER,
            pre_buffer=False,  # or all of a file is in memory at once
        )
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"cannot be read as Parquet: {error}", file=path) from error


def _content(schema: pa.Schema, file: str) -> dict[str, Any]:
    """Return the fields in the metadata, of the right kinds as far as JSON has them."""
    text = (schema.metadata or {}).get(METADATA)
    if text is None:
        raise DataError("has no labels of rllib_kd. Label it first: rllib label --teacher T --input ...", file=file)
    try:
        content = json.loads(text) if len(text) <= limits.MAX_DESCRIPTION else None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise DataError("the metadata 'rllib_kd' are not a JSON object of at most 8 MiB", file=file)
    version = content.pop("format_version", None)
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise DataError(
            f"has the format version {version!r:.40}, this version of rllib_kd reads {FORMAT_VERSION}", file=file
        )
    names = {field.name for field in dataclasses.fields(LabelledSchema)}
    for name in ("obs_shape", "obs_dtype", "num_actions", "labels"):
        if name not in content:
            raise DataError(f"the metadata 'rllib_kd' lack '{name}'", file=file)
    content = {name: value for name, value in content.items() if name in names}
    for name, value in content.items():
        if isinstance(value, list):
            content[name] = tuple(value)
    if isinstance(support := content.get("support"), tuple) and len(support) == 3:
        content["support"] = Support(*support)
    return content


def _is_shape(shape: Any) -> bool:
    if not isinstance(shape, tuple) or len(shape) > limits.MAX_RANK:
        return False
    return (
        all(is_integer(length, 1, limits.MAX_INPUTS) for length in shape)
        and math.prod(shape) <= limits.MAX_INPUTS
        and shape != ()
    )


def _is_fingerprint(text: Any) -> bool:
    return isinstance(text, str) and (text == "" or (len(text) in LENGTHS and set(text) <= set("0123456789abcdef")))


def _are_in(names: Any, known: tuple[str, ...]) -> bool:
    """Return whether these are some of the known names, in their order."""
    return isinstance(names, tuple) and names == tuple(name for name in known if name in names)


def _are_labels(names: Any) -> bool:
    return _are_in(names, _LABELS) and sum(name in names for name in (TEACHER_Q, TEACHER_LOG_PROBS)) == 1


def _same_type(found: pa.DataType, expected: pa.DataType) -> bool:
    """Return whether types are equal, whatever the items of a list are called."""
    if pa.types.is_fixed_size_list(found) and pa.types.is_fixed_size_list(expected):
        return found.list_size == expected.list_size and found.value_type == expected.value_type
    return found == expected


def _shown(value: Any, schema: LabelledSchema) -> str:
    if value == schema.fingerprint and value:
        return f"{short(value)} ('{schema.teacher}')"
    return str(list(value) if isinstance(value, tuple) else value)
