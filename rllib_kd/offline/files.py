"""Folders of recorded files: which files there are, what reads them, and where their labelled ones belong."""

from __future__ import annotations

import itertools
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pyarrow.fs import FileSystem, FileType, LocalFileSystem
from ray.rllib.core.columns import Columns

from rllib_kd.checkpoints.uris import absolute_uri
from rllib_kd.offline.listing import PARQUET, files_below, filesystem_of
from rllib_kd.offline.minari import ENDINGS, MinariReader, read_metadata
from rllib_kd.offline.numpy_files import NumpyReader
from rllib_kd.offline.parquet import ParquetReader
from rllib_kd.offline.reading import Reader, num_rows
from rllib_kd.offline.schema import DataError
from rllib_kd.text import one_line

#: Ends of the names of files that are read, and the readers of them.
_READERS: dict[str, type[ParquetReader] | type[NumpyReader]] = {
    PARQUET: ParquetReader,
    ".npz": NumpyReader,
    ".npy": NumpyReader,
}

#: Folders in which one of RLlib's EnvRunners has recorded: its index, and how often it had sampled.
_RUN = re.compile(r"run-(\d{6})-(\d+)$")


@dataclass(frozen=True)
class InputFile:
    """A file to label.

    Args:
        path: its path in its filesystem.
        name: name of its labelled file, below the output.
    """

    path: str
    name: str


@dataclass(frozen=True)
class Inputs:
    """Recorded files of one kind.

    Args:
        uri: URI or absolute path of the file or folder.
        files: in the order of their paths, at least one.
        reader: reads them.
        ignored: number of files in the folder that are of no kind that is read.
    """

    uri: str
    files: tuple[InputFile, ...]
    reader: Reader
    ignored: int = 0


def find_inputs(uri: str, *, obs_column: str = Columns.OBS) -> Inputs:
    """Find recorded files: one file, all files in a folder and below it, or a dataset of Minari.

    Names that begin with a dot or an underscore are left out, as Ray Data and Spark leave them out.

    Args:
        uri: path or URI.
        obs_column: name of the column of observations.

    Raises:
        DataError: there is nothing, or no file of a kind that is read; or there are several kinds.
    """
    uri = absolute_uri(uri)
    filesystem, path = filesystem_of(uri)
    try:
        kind = filesystem.get_file_info(path).type
        if kind == FileType.NotFound:
            raise DataError(f"There is nothing at '{uri}'. Expected a file or a folder of recorded observations.")
        dataset = read_metadata(filesystem, path) if kind == FileType.Directory else None
        base = posixpath.dirname(path) if kind == FileType.File else path
        found = [path] if kind == FileType.File else files_below(filesystem, path)
    except OSError as error:
        raise DataError(f"'{uri}' cannot be read: {error}") from error
    reader: Reader
    if dataset is not None:
        reader = minari = MinariReader(*dataset)
        base = posixpath.dirname(dataset[1])
        files = [file for file in found if file.startswith(f"{base}/") and file.endswith(ENDINGS[minari.format])]
    else:
        endings = Counter(posixpath.splitext(file)[1] for file in found if posixpath.splitext(file)[1] in _READERS)
        if len(endings) > 1:
            shown = ", ".join(f"{count} of {ending}" for ending, count in endings.items())
            raise DataError(f"'{uri}' has files of several kinds: {shown}. Label one kind after the other.")
        files = [file for file in found if posixpath.splitext(file)[1] in _READERS]
        reader = _READERS[next(iter(endings), PARQUET)](obs_column)
    if not files:
        what = f"other files, like '{posixpath.basename(found[0])}'" if found else "no files"
        raise DataError(
            f"'{uri}' has {what}. Expected {', '.join(_READERS)}, or a dataset of Minari (the folder of its "
            "metadata.json)."
        )
    if dataset is None and isinstance(reader, ParquetReader):
        _check_no_repeats(filesystem, files, reader)
    names = [InputFile(file, _name_of(file[len(base) :].lstrip("/"))) for file in sorted(files)]
    if twice := [name for name, count in Counter(file.name for file in names).items() if count > 1]:
        raise DataError(f"Two files of '{uri}' would both be labelled as '{twice[0]}'. Rename one of them.")
    return Inputs(uri, tuple(names), reader, ignored=len(found) - len(files))


def check_apart(input_uri: str, output_uri: str) -> None:
    """Check that neither of two folders is in the other: labelled files would be taken for recorded ones.

    Symbolic links are followed.

    Raises:
        DataError: one is.
    """
    (one, path), (other, folder) = (filesystem_of(absolute_uri(uri)) for uri in (input_uri, output_uri))
    if isinstance(one, LocalFileSystem):
        path, folder = os.path.realpath(path), os.path.realpath(folder)
    if one == other and (f"{path}/".startswith(f"{folder}/") or f"{folder}/".startswith(f"{path}/")):
        raise DataError(
            f"Of the input '{one_line(input_uri)}' and the output '{one_line(output_uri)}', one is in the other. Name "
            "another folder for the labelled files."
        )


def labelled_files(filesystem: FileSystem, folder: str) -> set[str]:
    """Return the paths of the whole Parquet files in a folder, and below it; none if there is no folder.

    Raises:
        DataError: it cannot be listed.
    """
    try:
        kind = filesystem.get_file_info(folder).type
        if kind == FileType.File:
            raise DataError(f"'{folder}' is a file. Name a folder for the labelled files.")
        found = files_below(filesystem, folder) if kind == FileType.Directory else []
    except OSError as error:
        raise DataError(f"'{folder}' cannot be listed: {error}") from error
    return {file for file in found if file.endswith(PARQUET)}


def _name_of(path: str) -> str:
    return path if path.endswith(PARQUET) else f"{path}{PARQUET}"


def _check_no_repeats(filesystem: FileSystem, files: Sequence[str], reader: ParquetReader) -> None:
    """Check that RLlib has not written the same rows into file after file, as it does without a limit of rows.

    Raises:
        DataError: it has; the message has the remedy.
    """
    runs: dict[tuple[str, str], dict[int, str]] = {}
    for file in files:
        folder = posixpath.dirname(file)
        if match := _RUN.search(folder):
            first = runs.setdefault((folder[: match.start()], match.group(1)), {})
            number = int(match.group(2))
            first[number] = min(file, first.get(number, file), key=_block_of)
    for run in runs.values():
        for one, other in itertools.pairwise(sorted(run)):
            first_rows = [next(_first_row(filesystem, run[number], reader), None) for number in (one, other)]
            if None not in first_rows and first_rows[0] == first_rows[1]:
                raise DataError(
                    f"begins with the same row as '{run[one]}': without a limit of rows, RLlib writes all rows again "
                    "into each file of an EnvRunner. Keep the last folder of each run-NNNNNN, which has all of its "
                    "rows, and move the others away.",
                    file=run[other],
                )


def _block_of(file: str) -> str:
    """Return the part of a name that counts the blocks of a Ray Dataset: the rest is random."""
    return posixpath.basename(file).partition("_")[2]


def _first_row(filesystem: FileSystem, file: str, reader: ParquetReader) -> Iterator[tuple[str, bytes]]:
    for batch in reader.batches(filesystem, file, 1):
        if num_rows(batch) and Columns.EPS_ID in batch and isinstance(batch[Columns.OBS], np.ndarray):
            yield str(batch[Columns.EPS_ID][0]), batch[Columns.OBS][0].tobytes()
        return
