"""Statistics of observations of Stable-Baselines3: which file of a `VecNormalize` belongs to a zip.

Stable-Baselines3 saves them apart from the network, and nothing in the zip names their file. Files under the names that
it documents are used. Others are recognised by their content, and named in a warning.
"""

from __future__ import annotations

import io
import logging
import os
import pickle
import posixpath
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import pyarrow.fs

from rllib_kd import limits
from rllib_kd.checkpoints.pickles import CheckpointError, ReadBudget, Tag, read_pickle
from rllib_kd.checkpoints.uris import file_types, is_file, list_folder, read_file
from rllib_kd.text import one_line

logger = logging.getLogger(__name__)

#: Names of statistics of other quantities than observations, and of layers that normalise.
_OTHERS = (
    r"(?<![a-z])(?:(?:critic|reward|return|value|action)s?(?![a-z])"
    r"|(?:reward|rew|return|ret|value|action|layer|batch|group|instance|weight|spectral)s?_?(?:norm|rms|stat|mean))"
)
#: Names that suggest statistics of observations. A `running_mean` of a part is that of a layer.
STATISTICS = re.compile(
    rf"^(?!.*{_OTHERS}).*?(?:normali[sz]|vec_?norm|(?<![a-z])(?:norm_?(?:obs|stat)"
    r"|(?:ob|obs|observations?|states?|inputs?)_?(?:rms|stats?|statistics|norm|mean|std|var)(?![a-z])"
    r"|(?:running_?)?mean_?std(?:_?filter)?(?![a-z])|(?<!\.)running_?(?:mean|var)(?![a-z])))",
    re.IGNORECASE | re.DOTALL,  # a name may contain a line break
)
#: Names of files that suggest them.
_LOOKS_LIKE_NORMALIZATION = re.compile(
    rf"(?:{STATISTICS.pattern}|(?<![a-z])ret_?(?:rms|stat|norm)).*\.(?:pkl|pickle|npz|npy|json|ya?ml|pth?)$",
    re.IGNORECASE | re.DOTALL,  # a name may contain a line break
)

#: Names of `VecNormalize.save()`: in the zoo of Stable-Baselines3, in its documentation and on its hub.
_NORMALIZATION = ("vecnormalize.pkl", "vec_normalize.pkl")
#: A zip of Stable-Baselines3's CheckpointCallback.
_STEPS = re.compile(r"(?P<name>.*)_(?P<steps>\d+)_steps")
#: A folder of the zoo: environment, number of the run, and perhaps a UUID.
_ZOO_RUN = re.compile(r"(?P<env>.*[^.].*)_\d+(_[0-9a-f-]{36})?")
#: Endings of files that are never pickles, and are not opened.
_NO_PICKLES = (".csv", ".json", ".log", ".md", ".mp4", ".npy", ".npz", ".png", ".py", ".txt", ".yaml", ".yml", ".zip")
_ABOVE = ".."  # the folder above the zip's, in the names of files around it


class NormalizationFile(NamedTuple):
    """A file with the statistics of a `VecNormalize`."""

    name: str  # as it lies beside the zip, for messages
    content: bytes


def find_normalization(
    filesystem: pyarrow.fs.FileSystem, path: str, uri: str, was_normalized: bool | None = None
) -> NormalizationFile | None:
    """Return the statistics that belong to a zip, under one of their documented names.

    A warning names other files that are a `VecNormalize`, or have the name of statistics, and are not used; and a file
    that may be another zip's.

    Args:
        filesystem: filesystem of the zip.
        path: path of the zip.
        uri: the same, for messages.
        was_normalized: whether the policy was trained with a `VecNormalize`; None: the zip does not record it. If not,
            only a file that has the zip's own name is used.

    Raises:
        CheckpointError: a file with a documented name cannot be read.
    """
    names = _documented_names(path)
    used = _first_file(filesystem, path, names)
    is_own = used is not None and used.name in {*_own_names(posixpath.basename(path)), *_names_in(_stem(path))}
    if was_normalized is False and not is_own:
        if used is not None:
            logger.warning(
                "'%s' was trained without VecNormalize, so '%s' is not used. If it belongs to this zip, rename it to "
                "'%s'.",
                *map(one_line, (uri, used.name, names[0])),
            )
        return None
    surroundings = _Surroundings(filesystem, path)
    unused = surroundings.unused(names, None if used is None else used.name)
    if unused:
        _warn_of_unused(unused, None if used is None else used.name, names[0], uri)
    elif used is None and was_normalized:
        logger.warning(
            "'%s' was trained with VecNormalize, but no file of its statistics was found, without which the policy "
            "gets other inputs than in training. Save them beside the zip: VecNormalize.save('%s'). If only rewards "
            "were normalised (norm_obs=False), nothing is missing.",
            *map(one_line, (uri, names[0])),
        )
    if used is not None:
        logger.info("'%s' takes its normalisation from '%s'.", *map(one_line, (uri, used.name)))
        if used.name in _NORMALIZATION and (others := surroundings.other_zips()):
            logger.warning(
                "'%s' takes its normalisation from '%s', which may belong to another zip beside it: %s. Rename it to "
                "'%s' if it belongs to this one.",
                *map(one_line, (uri, used.name)),
                _quoted(others),
                one_line(names[0]),
            )
    return used


def _warn_of_unused(unused: Sequence[str], used: str | None, own: str, uri: str) -> None:
    """Warn of files that are not used.

    Args:
        unused: their names.
        used: the name of the one that is used.
        own: the name that belongs to the zip alone.
        uri: path of the zip.
    """
    taken = "no file of normalisation" if used is None else f"its normalisation from '{used}'"
    is_above = any(name.startswith(f"{_ABOVE}/") for name in unused)  # where others may need it, too
    advice = f"replace '{own}'" if used == own else f"{'copy' if is_above else 'rename'} it to '{own}' beside the zip"
    logger.warning(
        "'%s' takes %s. Not used: %s. To use another file for this zip, %s.",
        one_line(uri),
        one_line(taken),
        _quoted(unused),
        one_line(advice),
    )


def is_vec_normalize(tag: Any) -> bool:
    """Return whether what was read of a pickle is a `VecNormalize`, by the name of its class."""
    return isinstance(tag, Tag) and tag.of.name == "VecNormalize" and isinstance(tag.state, dict)


# --- Documented names -------------------------------------------------------------------------------------------------


def _documented_names(path: str) -> list[str]:
    """Return where the statistics of a zip may lie, below its folder: names with the zip's own name first."""
    folder, _, name = path.rpartition("/")
    stem = _stem(name)
    zoo_run = _ZOO_RUN.fullmatch(folder.rpartition("/")[2])
    folders = dict.fromkeys((stem, zoo_run["env"] if zoo_run else stem))
    return [*_own_names(name), *_NORMALIZATION, *(name for inner in folders for name in _names_in(inner))]


def _names_in(folder: str) -> list[str]:
    """Return the names in a folder, which may be named after a zip beside it."""
    return [f"{folder}/{name}" for name in _NORMALIZATION]


def _stem(path: str) -> str:
    """Return the name of a zip without its ending."""
    name = posixpath.basename(path)
    return name.rpartition(".")[0] or name


def _own_names(zip_name: str) -> list[str]:
    """Return the names that belong to one zip alone."""
    stem = _stem(zip_name)
    steps = _STEPS.fullmatch(stem)
    names = [f"{stem}_{name}" for name in _NORMALIZATION]
    return names + ([f"{steps['name']}_vecnormalize_{steps['steps']}_steps.pkl"] if steps else [])


def _first_file(filesystem: pyarrow.fs.FileSystem, path: str, names: Sequence[str]) -> NormalizationFile | None:
    for name in names:
        file = posixpath.join(posixpath.dirname(path), name)
        if is_file(filesystem, file):
            return NormalizationFile(name, read_file(filesystem, file, max_bytes=limits.MAX_SMALL_FILE))
        is_broken_link = isinstance(filesystem, pyarrow.fs.LocalFileSystem) and os.path.islink(file)
        if is_broken_link or file_types(filesystem, [file]) != [pyarrow.fs.FileType.NotFound]:
            raise CheckpointError(
                f"'{file}' has the name of the zip's statistics, but is not a plain file. Put the file there, or move "
                "this away."
            )
    return None


# --- Other names ------------------------------------------------------------------------------------------------------


class _Surroundings:
    """The files around a zip: in its folder, in the folders in that one, and in the folder above.

    Args:
        filesystem: their filesystem.
        path: path of the zip.
    """

    def __init__(self, filesystem: pyarrow.fs.FileSystem, path: str):
        self._filesystem = filesystem
        self._folder, self._zip_name = posixpath.split(path)
        self._num_entries = limits.MAX_ENTRIES  # that may still be listed
        self._num_files, self._num_bytes = limits.MAX_STATISTICS, limits.MAX_SMALL_FILE  # that may still be read
        self._budget = ReadBudget()

    def unused(self, documented: Sequence[str], used: str | None) -> list[str]:
        """Return files that look like normalisation, except for the one that is used and those of other zips.

        Args:
            documented: where the statistics of this zip may lie.
            used: the one of them that is there.
        """
        own = {name.rpartition("/")[0] for name in documented}  # "" for the folder of the zip itself
        beside = self._beside
        inner = [entry.base_name for entry in beside if entry.type == pyarrow.fs.FileType.Directory]
        files = _by_name("", beside)
        for folder in [*sorted(own - {""}), *sorted(set(inner) - own)[: limits.MAX_FOLDERS_OF_STATISTICS], _ABOVE]:
            found = _by_name(folder, self._list(folder))
            # Statistics elsewhere, beside other zips, are theirs; unless this zip has none.
            if folder in own or used is None or not any(map(_is_zip, found)):
                files |= found
        of_other_zips = {
            name
            for zip_name in files
            if _is_zip(zip_name) and zip_name != self._zip_name
            for name in (*_own_names(zip_name), *_names_in(posixpath.splitext(zip_name)[0]))
        }
        candidates = [name for name in files if name not in of_other_zips and name != used]
        by_name = {
            name
            for name in candidates
            if name.rpartition("/")[0] in own and _LOOKS_LIKE_NORMALIZATION.search(posixpath.basename(name))
        }
        others = sorted(set(candidates) - by_name, key=_unlikely)  # what is likely first: their number is limited
        return sorted(by_name | {name for name in others if self._normalizes(name, files[name])})

    def other_zips(self) -> list[str]:
        """Return the names of other zips in the folder."""
        return sorted(name for name in _by_name("", self._beside) if _is_zip(name) and name != self._zip_name)

    @cached_property
    def _beside(self) -> list[pyarrow.fs.FileInfo]:
        return self._list("")

    def _list(self, folder: str) -> list[pyarrow.fs.FileInfo]:
        """Return the entries of a folder around the zip; none if it cannot be listed, or holds too much."""
        path = posixpath.dirname(self._folder) if folder == _ABOVE else posixpath.join(self._folder, folder)
        is_root = folder == _ABOVE and path in ("", self._folder)  # above which there is nothing
        if self._num_entries <= 0 or is_root:
            return []
        try:
            entries = list_folder(self._filesystem, path)
        except CheckpointError:
            return []
        self._num_entries -= len(entries)
        return entries

    def _normalizes(self, name: str, file: pyarrow.fs.FileInfo) -> bool:
        """Return whether a file is a `VecNormalize` of observations. It is read as data, within limits for all."""
        if name.lower().endswith(_NO_PICKLES) or not file.size:
            return False
        if self._num_files <= 0 or file.size > min(limits.MAX_DESCRIPTION, self._num_bytes):
            return False
        self._num_files -= 1
        try:
            content = read_file(
                self._filesystem, file.path, max_bytes=limits.MAX_DESCRIPTION, check_head=_check_is_pickle
            )
            self._num_bytes -= len(content)
            tag = read_pickle(io.BytesIO(content), file.path, self._budget)
        except CheckpointError:
            return False
        return is_vec_normalize(tag) and tag.state.get("norm_obs") is not False


def _by_name(folder: str, entries: Iterable[pyarrow.fs.FileInfo]) -> dict[str, pyarrow.fs.FileInfo]:
    """Return the files in a folder, by their names as seen from the zip."""
    files = (entry for entry in entries if entry.type == pyarrow.fs.FileType.File)
    return {posixpath.join(folder, file.base_name): file for file in files}


def _is_zip(name: str) -> bool:
    return name.endswith(".zip")


def _unlikely(name: str) -> tuple[int, str]:
    """Return the key that sorts files: pickles by their ending, then those without an ending, then the others."""
    ending = posixpath.splitext(name)[1].lower()
    return (0 if ending in (".pkl", ".pickle") else 1 if not ending else 2), name


def _check_is_pickle(head: bytes) -> None:
    if not head.startswith(pickle.PROTO):
        raise CheckpointError("no pickle")


def _quoted(names: Sequence[str]) -> str:
    """Return at most five of the names, in a text."""
    shown = ", ".join(f"'{one_line(name)}'" for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
