"""Paths and URIs, as pyarrow's filesystems take them."""

from __future__ import annotations

import errno
import fnmatch
import itertools
import os
import posixpath
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from urllib.parse import quote

import pyarrow.fs

from rllib_kd import limits
from rllib_kd.checkpoints.manifest import MARKS
from rllib_kd.checkpoints.pickles import CheckpointError
from rllib_kd.checkpoints.run_names import RESULTS, TUNER
from rllib_kd.paths import expanded, tidied
from rllib_kd.text import first_line

_HEAD = 64  # bytes by which a file is recognised
_BLOCK = 2**20  # bytes
#: Files and folders in the checkpoints of RLlib.
_OF_RLLIB = {*MARKS, "default_policy", "learner_group", "policies"}
#: Files in the folder of an experiment of Tune, as patterns; and in that of each trial.
_OF_EXPERIMENT = (TUNER, "experiment_state-*.json")
_OF_TRIAL = (RESULTS, "params.json")
_MAX_NAMED = 10  # files, in a message
#: Options of a URI that are secrets: of Azure's applications, and the signature of a shared access.
_SECRETS = ("client_secret", "sig")
_PLAIN = "/!$&'()*+,;=:@"  # characters of a path that mean themselves in a URI, beside letters and digits


class NothingThereError(CheckpointError):
    """There is nothing at a path or URI."""


def filesystem_at(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """Return the filesystem of a URI or absolute path, and the path in it. Whether there is anything is not checked.

    Raises:
        ValueError: it is neither, or this machine cannot open the filesystem. The message is the reason alone.
    """
    if uri.endswith("://"):
        raise ValueError(f"it has no path. Expected one like '{uri}bucket/folder'")
    try:
        filesystem, path = pyarrow.fs.FileSystem.from_uri(uri)
    except (pyarrow.ArrowInvalid, OSError, ImportError, UnicodeEncodeError) as error:  # hf:// needs a library
        raise ValueError(first_line(error)) from error
    return filesystem, path.rstrip("/") or "/"


def open_uri(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """Return the filesystem of a path or URI, and the path in it.

    Raises:
        CheckpointError: it is neither a path nor a URI, or cannot be read.
        NothingThereError: there is nothing.
    """
    try:
        filesystem, path = filesystem_at(uri)
        found = filesystem.get_file_info(path).type != pyarrow.fs.FileType.NotFound
    except (ValueError, OSError) as error:
        raise CheckpointError(
            f"'{uri}' is neither an absolute path nor a URI that can be read: {first_line(error)}."
        ) from error
    if not found:
        raise NothingThereError(
            f"There is no checkpoint at '{uri}'. Expected the folder of a trained RLlib algorithm, another library's "
            "file (in the config of a Tune trial as an absolute path, since trials run in other folders), or "
            "'cartpole', which comes with rllib_kd."
        )
    return filesystem, path


def check_storage(uri: str) -> None:
    """Check that there is a filesystem for the path or URI of a folder that need not exist.

    Raises:
        ValueError: a URI has an unknown scheme or option, no path, or a filesystem that this machine cannot open.
    """
    if "://" not in uri:
        return
    try:
        _, path = filesystem_at(uri)
        reason = "" if path.strip("/") else "it has no path"
    except ValueError as error:
        reason = str(error)
    if reason:
        raise ValueError(
            f"Results cannot be written to '{uri}': {reason}. Set --storage-path to a folder, or to a URI of S3 "
            "(s3://BUCKET/FOLDER), Google Cloud Storage (gs://BUCKET/FOLDER) or Azure "
            "(abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/FOLDER)."
        )


def file_types(filesystem: pyarrow.fs.FileSystem, paths: Sequence[str]) -> list[pyarrow.fs.FileType]:
    """Return the type of the file at each of these paths. For a name longer than any file's, it is NotFound.

    Raises:
        CheckpointError: a path cannot be accessed.
    """
    try:
        return [info.type for info in filesystem.get_file_info(list(paths))]
    except OSError as error:
        if len(paths) > 1:
            return [kind for path in paths for kind in file_types(filesystem, [path])]
        if error.errno == errno.ENAMETOOLONG:
            return [pyarrow.fs.FileType.NotFound]
        raise CheckpointError(f"'{paths[0]}' cannot be accessed: {error}") from error


def is_file(filesystem: pyarrow.fs.FileSystem, path: str) -> bool:
    """Return whether there is a plain file."""
    return file_types(filesystem, [path]) == [pyarrow.fs.FileType.File]


def is_folder(filesystem: pyarrow.fs.FileSystem, path: str) -> bool:
    """Return whether there is a folder."""
    return file_types(filesystem, [path]) == [pyarrow.fs.FileType.Directory]


def first_file(filesystem: pyarrow.fs.FileSystem, folder: str, names: Sequence[str]) -> str | None:
    """Return the path of the first of these files that is in a folder; None if none is."""
    paths = [posixpath.join(folder, name) for name in names]
    kinds = file_types(filesystem, paths)
    return next((path for path, kind in zip(paths, kinds, strict=True) if kind == pyarrow.fs.FileType.File), None)


def only_zip(filesystem: pyarrow.fs.FileSystem, folder: str, uri: str) -> str | None:
    """Return the path of the only zip in a folder that is no checkpoint of RLlib; None if there is none.

    Args:
        filesystem: filesystem of the path.
        folder: path of the folder; for any other path the result is None.
        uri: the same, for the message.

    Raises:
        CheckpointError: there are several; the folder is one of Tune without a checkpoint, where a zip is no teacher
            but Tune's state; or it cannot be listed.
    """
    if not is_folder(filesystem, folder):
        return None
    entries = list_folder(filesystem, folder)
    if any(entry.base_name in _OF_RLLIB for entry in entries):
        return None
    files = [entry.path for entry in entries if entry.type == pyarrow.fs.FileType.File]
    _check_is_not_tunes(folder, map(posixpath.basename, files), uri)
    zips = sorted(path for path in files if path.lower().endswith(".zip"))
    if len(zips) > 1:
        names = ", ".join(f"'{posixpath.basename(path)}'" for path in zips[:_MAX_NAMED])
        names += ", ..." if len(zips) > _MAX_NAMED else ""
        raise CheckpointError(f"'{uri}' contains {len(zips)} zips: {names}. Name one of them.")
    return zips[0] if zips else None


def _check_is_not_tunes(folder: str, names: Iterable[str], uri: str) -> None:
    """Check that a folder without a checkpoint is not one of Tune: an experiment's, or a trial's."""
    found = {pattern for name in names for pattern in (*_OF_EXPERIMENT, *_OF_TRIAL) if fnmatch.fnmatch(name, pattern)}
    if found:
        experiment = folder if found.intersection(_OF_EXPERIMENT) else posixpath.dirname(folder)
        raise CheckpointError(
            f"The run '{uri}' has no checkpoint yet. If it still runs, wait for one; if it was interrupted, continue "
            f"it by the same command with --experiment-name {shlex.quote(posixpath.basename(experiment))} --resume, "
            "in Python by Tuner.restore()."
        )


def uri_of(uri: str, path: str, inner: str) -> str:
    """Return the URI of a path inside another one.

    Args:
        uri: URI of the outer path; options may follow it, as in `s3://bucket/folder?region=eu-west-1`.
        path: the outer path in its filesystem.
        inner: the inner path in the same filesystem.
    """
    below = inner[len(path.rstrip("/")) :]
    if "://" not in uri:
        return uri.rstrip("/") + below
    before, mark, options = uri.partition("?")
    return before.rstrip("/") + quote(below, safe=_PLAIN) + mark + options


def without_options(uri: str) -> str:
    """Return a URI without its options, such as `?region=eu-west-1`; a path unchanged."""
    return uri.partition("?")[0] if "://" in uri else uri


def without_secrets(uri: str) -> str:
    """Return a URI without keys and passwords, as in `s3://KEY:SECRET@bucket/folder`; other options stay."""
    before, mark, text = uri.partition("?")
    scheme, separator, rest = before.partition("://")
    authority, slash, path = rest.partition("/")
    user, _, host = authority.rpartition("@")
    if ":" in user:
        container = user.partition(":")[0] if scheme.startswith("abfs") else ""
        authority = f"{container}@{host}" if container else host
    options = [option for option in text.split("&") if option.partition("=")[0] not in _SECRETS]
    return f"{scheme}{separator}{authority}{slash}{path}{mark if options else ''}{'&'.join(options)}"


def child_of(uri: str, name: str) -> str:
    """Return the path or URI of a file or folder with this name in another one; options of a URI stay at its end."""
    return uri_of(uri, "", f"/{name}")


def read_file(
    filesystem: pyarrow.fs.FileSystem,
    path: str,
    *,
    max_bytes: int = limits.MAX_FILE,
    check_head: Callable[[bytes], None] | None = None,
) -> bytes:
    """Return the content of a file.

    Args:
        filesystem: filesystem of the path.
        path: path of the file.
        max_bytes: larger files are refused; a sparse file may claim any size.
        check_head: checks the first bytes, and raises if the others need not be read.

    Raises:
        CheckpointError: it cannot be read, is not a plain file (a device or a pipe never ends), or is too large.
    """
    try:
        info = filesystem.get_file_info(path)
        if info.type != pyarrow.fs.FileType.File:
            raise CheckpointError(f"'{path}' is missing, or not a plain file. Is the checkpoint complete?")
        if info.size is not None and info.size > max_bytes:
            raise CheckpointError(f"'{path}' was refused: it has {info.size} bytes, expected at most {max_bytes}.")
        with filesystem.open_input_file(path) as file:
            if check_head is not None:
                check_head(file.read(_HEAD))
                file.seek(0)
            return file.read()
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be opened: {error}") from error


def read_lines(filesystem: pyarrow.fs.FileSystem, path: str, *, max_bytes: int, max_line: int) -> Iterator[bytes]:
    """Yield the lines of a file.

    Raises:
        CheckpointError: it cannot be read, is not a plain file, or exceeds `max_bytes`, or `max_line` in one line.
    """
    try:
        info = filesystem.get_file_info(path)
        if info.type != pyarrow.fs.FileType.File:
            raise CheckpointError(f"'{path}' was refused: it is not a plain file.")
        if (info.size or 0) > max_bytes:
            raise CheckpointError(f"'{path}' was refused: it has {info.size} bytes, expected at most {max_bytes}.")
        with filesystem.open_input_file(path) as file:
            begun = b""  # of the line that continues in the next block
            while block := file.read(_BLOCK):
                *ended, begun = (begun + block).split(b"\n")
                if max(map(len, (*ended, begun))) > max_line:
                    raise CheckpointError(f"'{path}' was refused: it has a line of more than {max_line} bytes.")
                yield from ended
            yield begun
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be opened: {error}") from error


def replace_remote_file(filesystem: pyarrow.fs.FileSystem, path: str, content: bytes) -> None:
    """Write a file beside its path, and move it there, which replaces an older one at once."""
    with filesystem.open_output_stream(f"{path}.new") as stream:
        stream.write(content)
    filesystem.move(f"{path}.new", path)


def list_folder(filesystem: pyarrow.fs.FileSystem, path: str, *, missing_ok: bool = False) -> list[pyarrow.fs.FileInfo]:
    """Return the entries of a folder, without names in another encoding than UTF-8, which pyarrow cannot open.

    Args:
        filesystem: filesystem of the path.
        path: path of the folder.
        missing_ok: whether a missing folder counts as empty, instead of raising an error.

    Raises:
        CheckpointError: it cannot be listed, or contains more than any folder of checkpoints.
    """
    if missing_ok and not is_folder(filesystem, path):
        return []
    try:
        # On a disk, entries are counted before each is examined: a million of them take seconds.
        if filesystem.type_name == "local":
            with os.scandir(path) as entries:
                _check_entries(sum(1 for _ in itertools.islice(entries, limits.MAX_ENTRIES + 1)), path)
        found = filesystem.get_file_info(pyarrow.fs.FileSelector(path))
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be listed: {error}") from error
    _check_entries(len(found), path)
    return list(filter(_has_name, found))


def _has_name(entry: pyarrow.fs.FileInfo) -> bool:
    try:
        return bool(entry.path)
    except UnicodeDecodeError:
        return False


def _check_entries(count: int, path: str) -> None:
    if count > limits.MAX_ENTRIES:
        raise CheckpointError(
            f"'{path}' was refused: it contains more than {limits.MAX_ENTRIES} files and folders. Name one checkpoint."
        )


def absolute_uri(path: str) -> str:
    """Return a URI unchanged, and a path as an absolute one.

    Raises:
        ValueError: it is empty, or the home folder with which it begins is unknown; or as `check_path()`.
    """
    return path if "://" in path else tidied(str(expanded(path).absolute()))
