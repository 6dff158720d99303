"""Tune's state of an experiment, in one file that is complete at any moment.

Tune keeps its state in several files, which it rewrites in place, and uploads while it may write the next ones. A
process that is killed then leaves files that are truncated or do not belong together; and Tune, asked to resume from
them, starts over without a message (`TuneController.__init__`, ray 2.60).
"""

from __future__ import annotations

import io
import logging
import os
import re
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pyarrow.fs
from ray import tune

from rllib_kd.checkpoints.run_names import TUNER
from rllib_kd.checkpoints.uris import is_file, list_folder, replace_remote_file

logger = logging.getLogger(__name__)

SNAPSHOT = "snapshot.zip"
_PAUSE = 10.0  # after a failed write, s
_MAX_BYTES = 2**30  # of a state: some 50 KB a trial
#: Names of the state files of Tune, its searcher and its callbacks, each with the start time of their process. A name
#: cannot be a path, since the files of a snapshot are written under these names.
_STATE_FILE = re.compile(r"[^/\\\x00-\x1f]+-(?P<session>\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d)\.(json|pkl)")


class Snapshots(tune.Callback):
    """A callback that packs Tune's state files into one whenever Tune has written them."""

    def __init__(self) -> None:
        self._packed_at = 0  # modification time of the state that was packed last, ns
        self._next_try = 0.0  # by `time.monotonic()`, s
        self._has_warned = False  # of storage that did not take a snapshot

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Pack the state: Tune calls this several times a second, in the thread that writes the files.

        Remote storage may fail for a moment: later steps try again.

        Raises:
            OSError: a disk does not take the file.
        """
        if not trials:
            return
        storage = trials[0].storage
        if time.monotonic() >= self._next_try:
            self._try_to_pack(storage)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Pack the last state: Tune calls this after it is written.

        Raises:
            OSError: a disk does not take the file.
        """
        if trials and not self._try_to_pack(trials[0].storage):
            time.sleep(_PAUSE)
            self._try_to_pack(trials[0].storage)

    def _try_to_pack(self, storage: Any) -> bool:
        """Pack the state, and return whether it was possible: remote storage may fail for a moment."""
        try:
            self._pack(storage)
        except OSError as error:
            if storage.storage_filesystem.type_name == "local":
                raise
            self._next_try = time.monotonic() + _PAUSE
            if not self._has_warned:
                self._has_warned = True
                logger.warning(
                    "%s/%s could not be written; without it, the experiment cannot be resumed after an interruption. "
                    "Later steps try again: %s",
                    storage.experiment_fs_path,
                    SNAPSHOT,
                    error,
                )
            return False
        return True

    def _pack(self, storage: Any) -> None:
        staged = Path(storage.experiment_driver_staging_path)
        # By the time of writing: names have the local time, and a clock may be set back between two processes.
        states = staged.glob("experiment_state-*.json")
        state = max(states, key=lambda path: path.stat().st_mtime_ns, default=None)
        if state is None or (written_at := state.stat().st_mtime_ns) == self._packed_at:
            return
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for path in staged.iterdir():
                if _session(path.name) == _session(state.name):
                    archive.write(path, path.name)
        replace_remote_file(storage.storage_filesystem, f"{storage.experiment_fs_path}/{SNAPSHOT}", content.getvalue())
        self._packed_at = written_at


def snapshot_often(num_trials: int, *, seconds: float) -> None:
    """Have Tune write its state more often than every ten seconds, unless the environment sets a period.

    If the process is killed, later results and checkpoints are lost. Tune's period suits thousands of trials.

    Args:
        num_trials: trials of the experiment; the period is at least 0.01 s for each.
        seconds: shortest period, s.
    """
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", f"{max(seconds, num_trials / 100):g}")
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")


def has_snapshot(uri: str) -> bool:
    """Return whether the folder has a snapshot, from which its experiment can be resumed."""
    filesystem, path = pyarrow.fs.FileSystem.from_uri(uri)
    return is_file(filesystem, f"{path}/{SNAPSHOT}")


def forget(uri: str) -> None:
    """Delete the state of an earlier experiment in a folder, by which it could be resumed. Its trials stay."""
    filesystem, path = pyarrow.fs.FileSystem.from_uri(uri)
    states = [
        entry
        for entry in list_folder(filesystem, path, missing_ok=True)
        if entry.base_name in (TUNER, SNAPSHOT) or _session(entry.base_name) is not None
    ]
    for entry in sorted(states, key=lambda entry: entry.base_name != TUNER):  # without it, nothing can be resumed
        filesystem.delete_file(entry.path)


def put_back(uri: str) -> None:
    """Replace the state files of an experiment's folder by those of its snapshot, for `Tuner.restore()`.

    Raises:
        ValueError: the snapshot is broken or too large, or contains other files. The folder is unchanged then.
    """
    filesystem, path = pyarrow.fs.FileSystem.from_uri(uri)
    states = _read(filesystem, f"{path}/{SNAPSHOT}")
    for entry in list_folder(filesystem, path):
        if _session(entry.base_name) is not None:
            filesystem.delete_file(entry.path)
    for name, state in states.items():
        with filesystem.open_output_stream(f"{path}/{name}") as stream:
            stream.write(state)


def _read(filesystem: pyarrow.fs.FileSystem, path: str) -> dict[str, bytes]:
    """Return the state files in a snapshot, by name; their sizes are checked before they are unpacked."""
    try:
        if (filesystem.get_file_info(path).size or 0) > _MAX_BYTES:
            raise ValueError(
                f"The snapshot '{path}' was refused: it has more than {_MAX_BYTES:,} bytes. Start a new experiment "
                "from its last checkpoint, with --restore."
            )
        with filesystem.open_input_stream(path) as stream:
            content = io.BytesIO(stream.read())
    except OSError as error:
        raise ValueError(f"The snapshot '{path}' cannot be read: {error}") from error
    try:
        with zipfile.ZipFile(content) as archive:
            for name in archive.namelist():
                if _session(name) is None:
                    raise ValueError(
                        f"The snapshot '{path}' was refused: it contains '{name}', but only files of Tune's state, "
                        "like 'experiment_state-2026-01-31_12-00-00.json', were expected."
                    )
            if sum(member.file_size for member in archive.infolist()) > _MAX_BYTES:
                raise ValueError(f"The snapshot '{path}' was refused: it unpacks to more than {_MAX_BYTES:,} bytes.")
            if not archive.namelist():
                raise zipfile.BadZipFile("it is empty")
            return {name: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(
            f"The snapshot '{path}' is broken ({error}), so the experiment cannot be resumed. Start a new one from its "
            "last checkpoint: --restore CHECKPOINT --experiment-name NAME."
        ) from error


def _session(name: str) -> str | None:
    """Return the start time, in a state file's name, of the process that wrote it; None for other files."""
    match = _STATE_FILE.fullmatch(name)
    return match["session"] if match else None
