"""The user's record of their own environments: a checkpoint may name these, and no others, without trust.

An environment of the user's own is code. A checkpoint that names it would run any file of this disk, perhaps one that
came with it. So it may choose only among environments that the user has given before, on this machine: to `--env`, in
an experiment file or to `config.environment()`. The content of their files may have changed since.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from rllib_kd import _rllib

_MAX_BYTES, _MAX_LINE = 2**20, 10_000  # of the record, and characters of a line of it


def record_path() -> Path:
    """Return the file: a line for each environment, by its whole name, and for each config that it was trained with.

    The path is relative if the home folder is unknown. The file is then neither read nor written.
    """
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return Path(state) / "rllib_kd" / "environments"


def is_familiar(name: str) -> bool:
    """Return whether the user has given this before.

    Args:
        name: whole name of an environment, like "/home/me/my_env.py:Name"; perhaps with a config.
    """
    return name in _recorded()


def record(name: str) -> None:
    """Add what the user has given. A record that cannot be written stays as it is.

    Args:
        name: as for `is_familiar()`.
    """
    if _rllib.is_worker_process() or not name.isprintable() or len(name) > _MAX_LINE or is_familiar(name):
        return
    if not record_path().is_absolute():
        return
    with contextlib.suppress(OSError):  # a home that is read-only: checkpoints need --env then
        record_path().parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(record_path(), "a", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(f"{name}\n")


def _recorded() -> frozenset[str]:
    if not record_path().is_absolute():
        return frozenset()
    try:
        with record_path().open("rb") as file:
            if os.fstat(file.fileno()).st_uid != os.getuid():  # another user's file
                return frozenset()
            return frozenset(file.read(_MAX_BYTES).decode(errors="replace").splitlines())
    except OSError:
        return frozenset()
