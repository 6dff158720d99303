"""Names of experiments, checked, and default ones: `DistillDQN_CartPole-v1_2026-11-26_16-19-05`."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from rllib_kd.checkpoints.pickles import CheckpointError
from rllib_kd.checkpoints.replay_files import local_folder
from rllib_kd.checkpoints.results import folders_among
from rllib_kd.checkpoints.uris import list_folder, open_uri
from rllib_kd.environments.failures import name_of
from rllib_kd.paths import check_path

_TIME = "%Y-%m-%d_%H-%M-%S"  # as in the names of Tune's trials
_BEGAN = r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(_\d+)?"
_MAX_ENV = 60  # characters of an environment's name


def subject(algorithm: type, envs: Iterable[Any]) -> str:
    """Return the algorithm and its environment as the beginning of a folder's name.

    Args:
        algorithm: class of the algorithm.
        envs: environments of all trials; of several, none is named.
    """
    names = {re.sub(r"^(.*/)?([^/]+)\.py:", r"\2:", name_of(env)) for env in envs}
    words = [algorithm.__name__, *(names if len(names) == 1 else ())]
    return "_".join(map(folder_word, words))


def folder_word(name: str) -> str:
    """Return a name as part of a folder's name: other characters than letters, digits, `_`, `.` and `-` become `-`."""
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-")[:_MAX_ENV]


def new_name(subject: str) -> str:
    """Return a name for an experiment that begins now."""
    return f"{subject}_{datetime.now().strftime(_TIME)}"


@contextlib.contextmanager
def own_folder(storage: str, name: str) -> Iterator[str]:
    """Make a folder of this name, or with a number after it if another run began in the same second.

    At a URI (S3, ...) no folder is made, and the name is not changed.

    Args:
        storage: path or URI of the folder in which it lies.
        name: as from `new_name()`.

    Yields:
        The name. If nothing was written to the folder, it is deleted at the end.

    Raises:
        ValueError: it cannot be made.
    """
    place = local_folder(storage, None)
    if place is None:
        yield name
        return
    for number in itertools.count(1):
        folder = place / (name if number == 1 else f"{name}_{number}")
        check_path(folder)
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            continue
        except OSError as error:
            raise ValueError(
                f"Results cannot be written to '{folder}': {error.strerror}. Set --storage-path."
            ) from error
    try:
        yield folder.name
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()


def newest(storage: str, subject: str) -> str | None:
    """Return the name of the newest experiment with a default name; None if there is none, or it cannot be found.

    Args:
        storage: path or URI of the folder in which experiments lie.
        subject: as from `subject()`.
    """
    try:
        folders = folders_among(list_folder(*open_uri(storage)))
    except CheckpointError:
        return None
    names = [folder.rpartition("/")[2] for folder in folders]
    own = [name for name in names if re.fullmatch(rf"{re.escape(subject)}_{_BEGAN}", name)]
    return max(own, key=lambda name: [int(part) for part in re.findall(r"\d+", name[len(subject) :])], default=None)


def check_not_empty(**texts: str | None) -> None:
    """Raise a ValueError for an empty text, which is usually a shell variable that is not set."""
    for name, text in texts.items():
        if text is not None and not text.strip():
            raise ValueError(f"`{name}` is empty. Give it a value, or leave it out.")


def check_below_storage(**names: str) -> None:
    """Check that results stay below --storage-path: a name may come from somebody else's file."""
    for what, name in names.items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"`{what}` must name a folder below --storage-path, got '{name}'.")
        try:
            local_folder(name, None)
        except ValueError as error:
            raise ValueError(f"`{what}`: {error}") from error
