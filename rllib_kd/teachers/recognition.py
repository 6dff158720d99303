"""What a path holds: recognised by its content, never by its name."""

from __future__ import annotations

import logging
import math
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow.fs

from rllib_kd import limits
from rllib_kd.checkpoints.archives import Archive, is_torchscript
from rllib_kd.checkpoints.pickles import CheckpointError
from rllib_kd.checkpoints.tune import best_checkpoint, trained_return
from rllib_kd.checkpoints.uris import is_file, is_folder, list_folder, open_uri, read_file, uri_of
from rllib_kd.teachers import sb3
from rllib_kd.teachers.described import description_name
from rllib_kd.text import one_line

logger = logging.getLogger(__name__)


_FORMATS = (
    "the directory of an RLlib checkpoint or of a Tune experiment, a zip of Stable-Baselines3, weights of CleanRL "
    "(.cleanrl_model), safetensors, ONNX or TorchScript"
)


_ZIP = b"PK"


_ONNX = b"\x08"  # the protobuf tag of ir_version


#: Names of files that somebody may take for statistics of observations.
_LOOKS_LIKE_NORMALIZATION = re.compile(
    r"(normali[sz]|vec_?norm|norm_?(obs|stat)|(obs|ret)_?(rms|stat|norm)|running_?mean|mean_?std)"
    r".*\.(pkl|pickle|npz|npy|json|ya?ml|pth?)$",
    re.IGNORECASE,
)


#: Of `VecNormalize.save()`: in the zoo of Stable-Baselines3, and in the documentation and on its hub.
_NORMALIZATION = ("vecnormalize.pkl", "vec_normalize.pkl")


#: A zip of Stable-Baselines3's CheckpointCallback.
_STEPS = re.compile(r"(?P<name>.*)_(?P<steps>\d+)_steps")


#: A folder of the zoo: environment, number of the run, and perhaps a UUID.
_ZOO_RUN = re.compile(r"(?P<env>.+)_\d+(_[0-9a-f-]{36})?")


class NormalizationFile(NamedTuple):
    """A file with the statistics of a `VecNormalize`."""

    name: str  # as it lies beside the zip, for messages
    content: bytes


def normalization_names(path: str) -> list[str]:
    """Where the statistics of a zip may lie, below its folder: what names the zip itself first."""
    folder, _, name = path.rpartition("/")
    stem = name.rpartition(".")[0] or name
    zoo_run = _ZOO_RUN.fullmatch(folder.rpartition("/")[2])
    folders = dict.fromkeys((stem, zoo_run["env"] if zoo_run else stem))
    return [*_own_names(name), *_NORMALIZATION, *(f"{inner}/{name}" for inner in folders for name in _NORMALIZATION)]


def _own_names(zip_name: str) -> list[str]:
    """Names that belong to one zip alone."""
    stem = zip_name.rpartition(".")[0] or zip_name
    steps = _STEPS.fullmatch(stem)
    names = [f"{stem}_{name}" for name in _NORMALIZATION]
    return names + ([f"{steps['name']}_vecnormalize_{steps['steps']}_steps.pkl"] if steps else [])


def _quoted(names: Sequence[str]) -> str:
    """At most five of the names."""
    shown = ", ".join(f"'{one_line(name)}'" for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


@dataclass(frozen=True)
class Found:
    """What lies at a path.

    Args:
        origin: "rllib", "sb3", "cleanrl", "safetensors", "onnx" or "torchscript".
        uri: of the checkpoint itself, where a folder of Tune was named; else as it was given.
        content: of a file; nothing of a directory.
        trained_return: mean return that Tune's results tell of it.
        filesystem: that holds it.
        path: in the filesystem.
    """

    origin: str
    uri: str
    content: bytes
    trained_return: float | None
    filesystem: pyarrow.fs.FileSystem
    path: str

    def beside(self, *names: str, max_bytes: int = limits.MAX_SMALL_FILE) -> bytes | None:
        """Content of the first of these files that lies beside it; None where there is none."""
        folder = self.path.rpartition("/")[0]
        for name in names:
            path = posixpath.join(folder, name)
            if is_file(self.filesystem, path):
                return read_file(self.filesystem, path, max_bytes=max_bytes)
        return None

    def description(self) -> bytes | None:
        """Content of the JSON file that describes it."""
        return self.beside(description_name(self.path), max_bytes=limits.MAX_DESCRIPTION)

    def vec_normalize(self) -> NormalizationFile | None:
        """The statistics of Stable-Baselines3's `VecNormalize` that belong to a zip, under one of their usual names.

        What looks like statistics and is not used is named in a warning.
        """
        names = normalization_names(self.path)
        found = ((name, self.beside(name)) for name in names)
        used = next((NormalizationFile(name, content) for name, content in found if content is not None), None)
        if unused := self._unused_normalization(names, None if used is None else used.name):
            taken = "no file of normalisation" if used is None else f"its normalisation from '{used.name}'"
            advice = f"rename it to '{names[0]}' beside the zip"
            if used is not None and used.name == names[0]:
                advice = f"replace '{names[0]}'"
            logger.warning(
                "'%s' takes %s. Not used: %s. To use another file for this zip, %s.",
                one_line(self.uri),
                one_line(taken),
                _quoted(unused),
                one_line(advice),
            )
        return used

    def _unused_normalization(self, names: Sequence[str], used: str | None) -> list[str]:
        """Files around it that look like normalisation, but for the one that is used and those of other zips."""
        folder = self.path.rpartition("/")[0]
        inner = sorted({name.rpartition("/")[0] for name in names})  # "" for the folder of the zip itself
        found = {f"{part}/{name}" if part else name for part in inner for name in self._files(folder, part)}
        of_other_zips = {
            name
            for zip_name in found
            if zip_name.endswith(".zip") and zip_name != self.path.rpartition("/")[2]
            for name in _own_names(zip_name)
        }
        candidates = found - of_other_zips - {used}
        return sorted(name for name in candidates if _LOOKS_LIKE_NORMALIZATION.search(posixpath.basename(name)))

    def _files(self, folder: str, inner: str) -> list[str]:
        """Names of the files in a folder; none where it cannot be listed, or holds too much."""
        try:
            entries = list_folder(self.filesystem, posixpath.join(folder, inner))
        except CheckpointError:
            return []
        return [entry.base_name for entry in entries if entry.type == pyarrow.fs.FileType.File]


def find(uri: str) -> Found:
    """Recognise what lies at a path.

    Args:
        uri: an absolute path, or a URI that pyarrow knows (`file://`, `s3://`, `gs://`).

    Raises:
        CheckpointError: nothing is there, or nothing that is known.
    """
    filesystem, path = open_uri(uri)
    if is_folder(filesystem, path):
        best = best_checkpoint(filesystem, path, uri)
        if best is None:
            return Found("rllib", uri, b"", trained_return(filesystem, path), filesystem, path)
        value = best.trained_return if math.isfinite(best.trained_return) else None
        return Found("rllib", uri_of(uri, path, best.path), b"", value, filesystem, best.path)
    content = read_file(filesystem, path, check_head=lambda head: _check_head(head, uri))
    return Found(_origin(content, uri), uri, content, None, filesystem, path)


def _check_head(head: bytes, uri: str) -> None:
    """Whether the first bytes of a file may be those of a teacher."""
    if not head.startswith((_ZIP, _ONNX)) and head[8:9] != b"{":
        raise _unknown(uri)


def _origin(content: bytes, uri: str) -> str:
    if content.startswith(_ZIP):
        names = Archive(content, uri).names
        if names >= sb3.FILES:
            return "sb3"
        if is_torchscript(names):
            return "torchscript"
        if any(name.endswith("/data.pkl") for name in names):
            return "cleanrl"
    if content[8:9] == b"{" and int.from_bytes(content[:8], "little") < len(content):  # length of a JSON header
        return "safetensors"
    if content.startswith(_ONNX):
        return "onnx"
    raise _unknown(uri)


def _unknown(uri: str) -> CheckpointError:
    return CheckpointError(f"'{uri}' is no teacher that is known, or is not complete. Expected {_FORMATS}.")
