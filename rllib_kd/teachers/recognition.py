"""Recognise the kind of a checkpoint by its content, never by its name."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass

import pyarrow.fs

from rllib_kd import limits
from rllib_kd.checkpoints.archives import Archive, is_pt2, is_torchscript
from rllib_kd.checkpoints.magic import file_kind, is_legacy_torch
from rllib_kd.checkpoints.pickles import CheckpointError
from rllib_kd.checkpoints.tune import Location
from rllib_kd.checkpoints.uris import is_file, is_folder, read_file
from rllib_kd.teachers import sb3
from rllib_kd.teachers.described import description_name
from rllib_kd.teachers.normalization import NormalizationFile, find_normalization

_FORMATS = (
    "the folder of an RLlib checkpoint or of a Tune experiment, a zip of Stable-Baselines3, weights of CleanRL "
    "(.cleanrl_model), a state dict of PyTorch (.pth), safetensors, ONNX, .pt2 or TorchScript"
)


@dataclass(frozen=True)
class FoundCheckpoint:
    """A recognised checkpoint.

    Args:
        origin: "rllib", "sb3", "weights" (of CleanRL, or any state dict), "safetensors", "onnx", "pt2" or
            "torchscript".
        uri: URI of the checkpoint itself.
        content: content of a file; empty for a folder.
        filesystem: its filesystem.
        path: its path in the filesystem.
    """

    origin: str
    uri: str
    content: bytes
    filesystem: pyarrow.fs.FileSystem
    path: str

    def description(self) -> bytes | None:
        """Return the content of the JSON file beside it that describes it; None if there is none."""
        path = posixpath.join(posixpath.dirname(self.path), description_name(self.path))
        return (
            read_file(self.filesystem, path, max_bytes=limits.MAX_DESCRIPTION)
            if is_file(self.filesystem, path)
            else None
        )

    def vec_normalize(self, was_normalized: bool | None = None) -> NormalizationFile | None:
        """Return the statistics of Stable-Baselines3's `VecNormalize` of a zip, as `find_normalization()` does."""
        return find_normalization(self.filesystem, self.path, self.uri, was_normalized)


def find(location: Location) -> FoundCheckpoint:
    """Recognise the checkpoint at a path.

    Args:
        location: as `resolve()` returns it.

    Raises:
        CheckpointError: it cannot be read, or its format is unknown.
    """
    uri, filesystem, path, _ = location
    if is_folder(filesystem, path):
        if all(is_file(filesystem, posixpath.join(path, name)) for name in sb3.FILES):
            raise CheckpointError(f"'{uri}' holds the files of a zip of Stable-Baselines3. {sb3.NAME_THE_ZIP}")
        return FoundCheckpoint("rllib", uri, b"", filesystem, path)
    content = read_file(filesystem, path, check_head=lambda head: _check_head(head, uri))
    return FoundCheckpoint(_origin(content, uri), uri, content, filesystem, path)


def _check_head(head: bytes, uri: str) -> None:
    """Check that the first bytes of a file may be those of a teacher."""
    if is_legacy_torch(head):
        raise CheckpointError(
            f"'{uri}' has PyTorch's format from before 1.6, which is not read. Save it in today's: "
            "torch.save(torch.load(path, weights_only=True), path)."
        )
    if file_kind(head) is None:
        raise _unknown(uri)


def _origin(content: bytes, uri: str) -> str:
    kind = file_kind(content, len(content))
    if kind == "zip":
        names = Archive(content, uri).names
        if names >= sb3.FILES:
            return "sb3"
        if is_pt2(names):
            return "pt2"
        if is_torchscript(names):
            return "torchscript"
        if any(name.endswith("/data.pkl") for name in names):
            return "weights"
    elif kind is not None:
        return kind
    raise _unknown(uri)


def _unknown(uri: str) -> CheckpointError:
    return CheckpointError(f"'{uri}' is not a policy of a known format, or is incomplete. Expected {_FORMATS}.")
