"""Datasets of Minari in a folder: their files are read as data, and nothing is downloaded.

Of `metadata.json` only the spaces and the format are read. The specification of the environment, with which Minari
makes one, is not: it names code that would run.
"""

from __future__ import annotations

import io
import json
import posixpath
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
import pyarrow as pa
from pyarrow.fs import FileSystem
from ray.rllib.core.columns import Columns

from rllib_kd import limits
from rllib_kd.checkpoints.json_text import parse_json
from rllib_kd.checkpoints.uris import read_file
from rllib_kd.observations.spaces import check_size, flat_size
from rllib_kd.offline.arrays import check_type, to_array
from rllib_kd.offline.reading import Contents, num_rows, part_of, rows_at_once
from rllib_kd.offline.schema import DataError, open_parquet

METADATA_FILE = "metadata.json"
#: Ends of the names of the files of each format.
ENDINGS = {"hdf5": ".hdf5", "arrow": ".arrow", "parquet": ".parquet"}

#: Minari's names by RLlib's.
_NAMES = {
    Columns.OBS: "observations",
    Columns.ACTIONS: "actions",
    Columns.REWARDS: "rewards",
    Columns.TERMINATEDS: "terminations",
    Columns.TRUNCATEDS: "truncations",
}


class MinariReader:
    """Reads the files of one dataset.

    Args:
        metadata: content of its `metadata.json`.
        file: path of that file, for messages.

    Raises:
        DataError: the spaces are missing, or no spaces of observations and discrete actions.
    """

    def __init__(self, metadata: Mapping[str, Any], file: str):
        self.format = metadata.get("data_format", "hdf5")
        if self.format not in ENDINGS:
            raise DataError(f"has the data_format {self.format!r:.100}; expected one of {list(ENDINGS)}", file=file)
        for name in ("observation_space", "action_space"):
            if not isinstance(metadata.get(name), str):
                raise DataError(
                    f"does not record the '{name}'. Minari would make the environment for it, which runs its code; "
                    "rllib_kd does not. Add the space to the file, as Minari's serialize_space() writes it.",
                    file=file,
                )
        self.observation_space = _space(metadata["observation_space"], file, "observation_space")
        self.action_space = _space(metadata["action_space"], file, "action_space")
        if not isinstance(self.action_space, gym.spaces.Discrete) or self.action_space.start != 0:
            raise DataError(f"has the actions {self.action_space}; expected Discrete, from 0", file=file)

    def inspect(self, filesystem: FileSystem, path: str) -> Contents:
        """Return what a file contains."""
        types = dict.fromkeys((*_NAMES, Columns.EPS_ID, Columns.T), "") | {Columns.OBS: str(self.observation_space)}
        sizes = {Columns.OBS: flat_size(self.observation_space)}
        if self.format == "hdf5":
            return Contents(types, sizes, left_out=("infos",))
        with _named(path), _open_table(filesystem, path, self.format) as (schema, rows, _):
            for name in _NAMES.values():
                if name not in schema.names:
                    raise DataError("is missing", file=path, column=name)
                if name != "observations":  # their parts are checked by their own spaces, before each is read
                    check_type(schema.field(name).type, file=path, column=name)
            return Contents(types, sizes, num_rows=max(0, rows - 1), left_out=("infos",))

    def batches(self, filesystem: FileSystem, path: str, batch_size: int) -> Iterator[dict[str, Any]]:
        """Yield the steps of a file. The last observation of an episode, at which no action was taken, is no step."""
        check_size(self.observation_space)
        rows = rows_at_once(batch_size, 8 * flat_size(self.observation_space))
        with _named(path):
            if self.format == "hdf5":
                yield from self._of_hdf5(filesystem, path, rows)
            else:
                yield from self._of_table(filesystem, path, rows)

    def _of_table(self, filesystem: FileSystem, path: str, rows: int) -> Iterator[dict[str, Any]]:
        """Yield the steps of one episode in Arrow or Parquet, whose last row has an observation alone."""
        episode = posixpath.basename(posixpath.dirname(path))
        with _open_table(filesystem, path, self.format) as (_, total, batches):
            start = 0
            for batch in batches(rows):
                count = min(batch.num_rows, total - 1 - start)
                if count <= 0:
                    return
                steps = batch.slice(0, count)
                columns = {
                    name: to_array(steps.column(own), file=path, column=own)
                    for name, own in _NAMES.items()
                    if name != Columns.OBS
                }
                columns[Columns.OBS] = self._decoded(
                    self.observation_space, steps.column("observations"), path, "observations"
                )
                yield _with_steps(columns, episode, start, count)
                start += batch.num_rows

    def _decoded(self, space: gym.Space, array: Any, file: str, column: str) -> Any:
        """Return observations in Arrow as arrays, with the shapes of the space."""
        if isinstance(space, gym.spaces.Dict | gym.spaces.Tuple):
            parts = space.spaces.items() if isinstance(space, gym.spaces.Dict) else enumerate(space.spaces)
            return {
                key: self._decoded(part, _field(array, str(key), file, column), file, f"{column}.{key}")
                for key, part in parts
            }
        if pa.types.is_binary(array.type) and _is_image(space):
            return _images([item.as_py() for item in array], space, file, column)
        check_type(array.type, file=file, column=column)
        return _shaped(to_array(array, file=file, column=column), space, file, column)

    def _of_hdf5(self, filesystem: FileSystem, path: str, rows: int) -> Iterator[dict[str, Any]]:
        """Yield the steps of all episodes in HDF5."""
        try:
            import h5py
        except ImportError as error:
            raise DataError("needs h5py: pip install 'rllib-kd[minari]' (Python 3.11 or later)", file=path) from error
        with filesystem.open_input_file(path) as stream, h5py.File(stream, "r") as file:
            found = (re.fullmatch(r"episode_(\d+)", name) for name in file)
            for number in sorted(int(match.group(1)) for match in found if match):
                episode = _member(h5py, file, f"episode_{number}", h5py.Group, path)
                parts = {
                    name: _member(h5py, episode, own, h5py.Dataset, path)
                    for name, own in _NAMES.items()
                    if name != Columns.OBS
                }
                total = len(parts[Columns.REWARDS])
                for start in range(0, total, rows):
                    count = min(rows, total - start)
                    at = slice(start, start + count)
                    columns = {name: part[at] for name, part in parts.items()}
                    columns[Columns.OBS] = self._of_group(
                        h5py, self.observation_space, episode, "observations", at, path
                    )
                    yield _with_steps(columns, str(number), start, count)

    def _of_group(self, h5py: Any, space: gym.Space, group: Any, name: str, at: slice, file: str) -> Any:
        """Return observations in HDF5 as arrays, with the shapes of the space."""
        if isinstance(space, gym.spaces.Dict | gym.spaces.Tuple):
            inner = _member(h5py, group, name, h5py.Group, file)
            if isinstance(space, gym.spaces.Dict):
                return {key: self._of_group(h5py, part, inner, key, at, file) for key, part in space.spaces.items()}
            parts = enumerate(space.spaces)
            return {index: self._of_group(h5py, part, inner, f"_index_{index}", at, file) for index, part in parts}
        values = _member(h5py, group, name, h5py.Dataset, file)
        if isinstance(space, gym.spaces.Text):
            return np.array([text.decode() for text in values[at]], dtype=object)
        if _is_image(space) and values.ndim <= len(space.shape):  # a list of bytes each, or a row of as many bytes
            return _images([bytes(image) for image in values[at]], space, file, name)
        return _shaped(values[at], space, file, name)


def read_metadata(filesystem: FileSystem, folder: str) -> tuple[dict[str, Any], str] | None:
    """Return the metadata of a dataset in a folder, and the path of their file; None if the folder has no dataset.

    Raises:
        CheckpointError: the file cannot be read, or is too large.
        DataError: it is no JSON object.
    """
    for path in (posixpath.join(folder, METADATA_FILE), posixpath.join(folder, "data", METADATA_FILE)):
        if filesystem.get_file_info(path).is_file:
            content = read_file(filesystem, path, max_bytes=limits.MAX_DESCRIPTION)
            try:
                metadata = parse_json(content)
            except ValueError as error:
                raise DataError(f"is not the JSON of a dataset: {error}", file=path) from error
            if isinstance(metadata, dict) and ("data_format" in metadata or "observation_space" in metadata):
                return metadata, path
    return None


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Raise whatever is wrong with a file as an error that names it."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # h5py raises many kinds for broken files
        raise DataError(f"cannot be read as Minari's file: {error}", file=path) from error


@contextmanager
def _open_table(filesystem: FileSystem, path: str, kind: str) -> Iterator[tuple[pa.Schema, int, Any]]:
    """Open a file of Arrow or Parquet: its schema, its number of rows, and a function that yields its batches."""
    if kind == "parquet":
        with open_parquet(filesystem, path) as file:
            columns = list(_NAMES.values())
            yield (
                file.schema_arrow,
                file.metadata.num_rows,
                lambda rows: file.iter_batches(rows, columns=columns, use_threads=False),
            )
        return
    with filesystem.open_input_file(path) as stream, pa.ipc.open_file(stream) as reader:
        groups = [reader.get_batch(index) for index in range(reader.num_record_batches)]  # of one episode
        for group in groups:  # its lengths and offsets are those of the file, and may lead out of its memory
            group.validate(full=True)
        yield (
            reader.schema,
            sum(group.num_rows for group in groups),
            lambda rows: (group.slice(start, rows) for group in groups for start in range(0, group.num_rows, rows)),
        )


def _member(h5py: Any, group: Any, name: str, kind: type, file: str) -> Any:
    """Return a member of a group in HDF5, which is in this file: links may lead to any file of this machine.

    Raises:
        DataError: it is missing, something else, or elsewhere.
    """
    link = group.get(name, getlink=True)
    if link is None:
        raise DataError("is missing", file=file, column=f"{group.name}/{name}")
    if not isinstance(link, h5py.HardLink):
        raise DataError("is a link, which may lead to other files", file=file, column=f"{group.name}/{name}")
    member = group[name]
    if not isinstance(member, kind):
        raise DataError(f"is a {type(member).__name__}, expected a {kind.__name__}", file=file, column=member.name)
    if isinstance(member, h5py.Dataset):
        if member.external or member.is_virtual:
            raise DataError("has its numbers in other files", file=file, column=member.name)
        is_text = h5py.check_string_dtype(member.dtype) is not None
        is_list = h5py.check_vlen_dtype(member.dtype) is not None
        if not (is_text or is_list or member.dtype.kind in "biuf"):
            raise DataError(f"has the type {member.dtype}, expected numbers", file=file, column=member.name)
        if member.ndim < 1 or int(np.prod(member.shape[1:], dtype=object)) > limits.MAX_INPUTS:
            raise DataError(f"has the shape {list(member.shape)}", file=file, column=member.name)
    return member


def _with_steps(columns: dict[str, Any], episode: str, start: int, count: int) -> dict[str, Any]:
    columns[Columns.EPS_ID] = np.full(count, episode, dtype=object)
    columns[Columns.T] = np.arange(start, start + count)
    if num_rows(columns) != count or any(len(columns[name]) != count for name in _NAMES if name != Columns.OBS):
        raise ValueError("its columns have different lengths")
    return part_of(columns, 0, count)


def _shaped(values: Any, space: gym.Space, file: str, column: str) -> Any:
    """Return observations with the shape that the space gives them."""
    shape = (len(values), *(space.shape or ()))
    if isinstance(space, gym.spaces.Text):
        return values
    if values.size != np.prod(shape, dtype=object):
        raise DataError(f"has the shape {list(values.shape)}; expected {list(shape)}", file=file, column=column)
    return values.reshape(shape)


def _images(packed: list[bytes], space: gym.Space, file: str, column: str) -> np.ndarray:
    """Return images of JPEG as arrays. Their size is checked before any of them is unpacked."""
    from PIL import Image

    shape: Any = space.shape
    images = np.empty((len(packed), *shape), np.uint8)
    for i, content in enumerate(packed):
        try:
            with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
                if image.size != (shape[1], shape[0]):
                    raise ValueError(f"it has the size {image.size}, expected {(shape[1], shape[0])}")
                images[i] = np.asarray(image).reshape(shape)
        except (OSError, ValueError, TypeError, SyntaxError) as error:
            raise DataError(
                f"row {i} of a batch is not a JPEG of this shape: {error}", file=file, column=column
            ) from error
    return images


def _is_image(space: gym.Space) -> bool:
    """Return whether Minari may pack observations of this space as JPEG: in binaries, instead of numbers."""
    if not isinstance(space, gym.spaces.Box) or len(space.shape) not in (2, 3) or space.dtype != np.uint8:
        return False
    return min(space.shape[:2]) >= 32 and bool(np.all(space.low == 0) and np.all(space.high == 255))


def _field(array: Any, name: str, file: str, column: str) -> Any:
    if not pa.types.is_struct(array.type) or array.type.get_field_index(name) < 0:
        raise DataError("is missing", file=file, column=f"{column}.{name}")
    return array.field(name)


def _space(text: str, file: str, name: str) -> gym.Space:
    """Return the space that Minari's `serialize_space()` wrote.

    Raises:
        DataError: it is none of these, or too large.
    """
    try:
        space = _space_of(json.loads(text), 0)
        check_size(space)
    except (ValueError, KeyError, TypeError, AssertionError, RecursionError, OverflowError) as error:
        raise DataError(f"the '{name}' cannot be read: {type(error).__name__}: {error}", file=file) from error
    return space


def _space_of(content: Any, depth: int) -> gym.Space:
    if depth > limits.MAX_RANK:
        raise ValueError("it nests its parts too deeply")
    match content["type"]:
        case "Box":
            low, high = (np.array(content[key], dtype=content["dtype"]) for key in ("low", "high"))
            if not low.shape == high.shape == tuple(content["shape"]):
                raise ValueError("its bounds have another shape")
            if low.dtype.kind not in "biuf":
                raise ValueError(f"it has the dtype {low.dtype}")
            return gym.spaces.Box(low, high, dtype=low.dtype.type)
        case "Discrete":
            return gym.spaces.Discrete(int(content["n"]), start=int(content["start"]))
        case "MultiDiscrete":
            nvec = np.array(content["nvec"], np.int64)
            return gym.spaces.MultiDiscrete(nvec, start=np.array(content.get("start", np.zeros_like(nvec)), np.int64))
        case "MultiBinary":
            shape = np.atleast_1d(content["n"]).tolist()
            if not 0 < int(np.prod(shape, dtype=object)) <= limits.MAX_INPUTS:
                raise ValueError(f"it has the shape {shape}")
            return gym.spaces.MultiBinary(content["n"])
        case "Text":
            lengths = int(content["max_length"]), int(content["min_length"])
            return gym.spaces.Text(lengths[0], min_length=lengths[1], charset=str(content["charset"]))
        case "Dict":
            return gym.spaces.Dict({str(key): _space_of(part, depth + 1) for key, part in content["subspaces"].items()})
        case "Tuple":
            return gym.spaces.Tuple([_space_of(part, depth + 1) for part in content["subspaces"]])
    raise ValueError(f"the type {content['type']!r:.100} is unknown")
