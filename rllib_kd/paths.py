"""Paths on this machine: in their shortest form, and which ones no file could have."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import threading
from pathlib import Path

from rllib_kd.text import printable

_MAX_NAME, _MAX_PATH = 255, 4_095  # bytes, on most filesystems
_MAX_SHOWN = 200  # characters of a path, in a message


def tidied(path: str) -> str:
    """Return a path without `.`, `..` and doubled slashes, unless a link makes that another place; a URI unchanged."""
    if "://" in path:
        return path
    short = re.sub("^//+", "/", os.path.normpath(path))
    return short if os.path.realpath(short) == os.path.realpath(path) else path


def check_path(path: str | os.PathLike[str]) -> None:
    """Check that a path on this machine could exist.

    Raises:
        ValueError: it has a null character, or is too long, or one of its names is.
    """
    text = os.fspath(path)
    shown = printable(text, limit=_MAX_SHOWN)
    if "\0" in text:
        raise ValueError(f"A path cannot contain a null character, got '{shown}'. Name another path.")
    encoded = text.encode(errors="replace")  # a byte of another encoding stays one
    num_bytes, longest = len(encoded), max(map(len, encoded.split(b"/")))
    if num_bytes > _MAX_PATH or longest > _MAX_NAME:
        raise ValueError(
            f"The path '{shown}' is too long: it has {num_bytes} bytes, and its longest name {longest}. Expected at "
            f"most {_MAX_PATH}, and {_MAX_NAME} for a name."
        )


def expanded(path: str) -> Path:
    """Return a path on this machine, with `~` replaced by a home folder.

    Raises:
        ValueError: it is empty, or the home folder is unknown; or as `check_path()`.
    """
    if not path:
        raise ValueError("A path is empty. Expected the path or URI of a file or folder; '.' means this folder.")
    check_path(path)
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"'{path}' begins with a home folder that is not known here. Write the full path.") from error


def replace_file(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file whole or not at all: a kill at any moment leaves the older one, or the new one.

    Links are followed, and the mode of an older file stays. Devices and pipes, such as `/dev/stdout`, are written to.

    Args:
        path: path of the file; its folder exists.
        content: what it contains afterwards.

    Raises:
        OSError: it cannot be written, and the message names it; the older one stays.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            with open(path, "wb") as there:  # as given: links of /dev/fd to pipes name no path
                there.write(content)
        else:
            _replace(os.path.realpath(path), content)
    except OSError as error:  # it names the new file, or none where the disk is full
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def _replace(path: str, content: bytes) -> None:
    folder, name = os.path.split(path)
    new = os.path.join(folder, f".{name}.{os.getpid()}-{threading.get_ident()}")  # others may write it, too
    try:
        with open(new, "wb") as file:
            with contextlib.suppress(FileNotFoundError):
                shutil.copymode(path, new)
            file.write(content)
        os.replace(new, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise
