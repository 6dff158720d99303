"""What Ray Tune knows of an experiment, in one file that is whole at any moment.

Tune keeps its state in several files, which it rewrites in place, and uploads while it may write the next ones. A
process that is killed then leaves files that end in the middle, or that do not belong together; and Tune, asked to
resume from them, begins anew without a word (`TuneController.__init__`, ray 2.60).
"""

from __future__ import annotations

import io
import os
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pyarrow.fs
from ray import tune

from rllib_kd.checkpoints.uris import is_file, list_folder

SNAPSHOT = "snapshot.zip"


_MAX_BYTES = 2**30  # of a state: some 50 KB a trial


#: The state of Tune, of its searcher, and of its callbacks, each with the moment at which their process began. No path:
#: what a snapshot holds is written under these names.
_STATE_FILE = re.compile(r"[^/\\\x00-\x1f]+-(?P<session>\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d)\.(json|pkl)")


class Snapshots(tune.Callback):
    """Packs Tune's state files into one, whenever Tune has written them."""

    def __init__(self) -> None:
        self._packed_at = 0  # modification time of the state that was packed last, ns

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Tune's hook, several times a second, in the thread that writes the files."""
        if trials:
            self._pack(trials[0].storage)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Tune's hook after the last state is written."""
        if trials:
            self._pack(trials[0].storage)

    def _pack(self, storage: Any) -> None:
        staged = Path(storage.experiment_driver_staging_path)
        state = max(staged.glob("experiment_state-*.json"), default=None)
        if state is None or (written_at := state.stat().st_mtime_ns) == self._packed_at:
            return
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for path in staged.iterdir():
                if _session(path.name) == _session(state.name):
                    archive.write(path, path.name)
        target = f"{storage.experiment_fs_path}/{SNAPSHOT}"
        with storage.storage_filesystem.open_output_stream(f"{target}.new") as stream:
            stream.write(content.getvalue())
        storage.storage_filesystem.move(f"{target}.new", target)  # replaces it at once
        self._packed_at = written_at


def snapshot_often(num_trials: int, *, seconds: float) -> None:
    """Have Tune write its state more often than every ten seconds, unless the environment sets a period.

    What is not in it is lost if the process is killed, checkpoints too. Tune's period suits thousands of trials.

    Args:
        num_trials: of the experiment; the period is at least a hundredth of a second for each.
        seconds: shortest period.
    """
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", f"{max(seconds, num_trials / 100):g}")
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")


def has_snapshot(uri: str) -> bool:
    """Whether an experiment in this folder has come so far that it can be resumed."""
    filesystem, path = pyarrow.fs.FileSystem.from_uri(uri)
    return is_file(filesystem, f"{path}/{SNAPSHOT}")


def put_back(uri: str) -> None:
    """Give an experiment's folder the state files of its snapshot, and no others, for `Tuner.restore()`.

    Raises:
        ValueError: the snapshot is broken or too large, or holds what is no state file. Nothing has changed then.
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
    """The state files in a snapshot, by name, whose sizes are checked before they are unpacked."""
    try:
        if (filesystem.get_file_info(path).size or 0) > _MAX_BYTES:
            raise ValueError(f"The snapshot '{path}' has more than {_MAX_BYTES:,} bytes, and is not resumed from.")
        with filesystem.open_input_stream(path) as stream:
            content = io.BytesIO(stream.read())
    except OSError as error:
        raise ValueError(f"The snapshot '{path}' cannot be read: {error}") from error
    try:
        with zipfile.ZipFile(content) as archive:
            for name in archive.namelist():
                if _session(name) is None:
                    raise ValueError(
                        f"The snapshot '{path}' was refused: it holds '{name}', and only files of Tune's state, like "
                        "'experiment_state-2026-01-31_12-00-00.json', were expected."
                    )
            if sum(member.file_size for member in archive.infolist()) > _MAX_BYTES:
                raise ValueError(f"The snapshot '{path}' was refused: it unpacks to more than {_MAX_BYTES:,} bytes.")
            if not archive.namelist():
                raise zipfile.BadZipFile("it is empty")
            return {name: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(
            f"The snapshot '{path}' is broken ({error}), so that the experiment cannot be resumed. Start it anew under "
            "another name, from its last checkpoint."
        ) from error


def _session(name: str) -> str | None:
    """When the process began that wrote a state file; None for other files."""
    match = _STATE_FILE.fullmatch(name)
    return match["session"] if match else None
