"""Export a student to a file whose outputs equal PyTorch's.

In every format, the artifact is one function from observations `[B, ...]`, float32, as the environment returns them, to
Q-values `[B, A]`; of a recurrent student it is one step (recurrent.py). It contains filters and one-hot encodings.
Frames are stacked outside; so are the vectors made of observations that are not one array of numbers (by
`runners/flatten.py`). It is loaded again and compared with PyTorch before it is moved to its path. C is two files: a
header, and a program that plays it.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import nn

from rllib_kd.export.artifact import FORMATS, q_function, require
from rllib_kd.export.c.header import DEFAULT_PREFIX
from rllib_kd.export.c.text import checked_header_name, checked_prefix
from rllib_kd.export.c.write import check_c, check_programs, main_path, write_c
from rllib_kd.export.formats import (
    artifact_space,
    exportable_stages,
    input_shape,
    inside_stages,
    outside_stages,
    write_pt2,
    write_safetensors,
    write_torchscript,
)
from rllib_kd.export.onnx.write import write_onnx
from rllib_kd.export.recurrent import check_recurrent_exportable, recurrent_parity
from rllib_kd.export.runners import c_runner
from rllib_kd.export.trees import check_python, is_tree, write_python
from rllib_kd.observations.pipeline import ObservationPipeline, Shown, View
from rllib_kd.observations.spaces import is_byte_image, is_discrete
from rllib_kd.teachers.base import Teacher
from rllib_kd.teachers.function import QNetwork
from rllib_kd.text import one_line
from rllib_kd.wire import LOG_PROBS, Q_VALUES

TOLERANCE = 1e-4  # largest difference to PyTorch in any Q-value, return units

#: Endings of file names, by format.
_ENDINGS = {
    "c": (".h",),
    "onnx": (".onnx",),
    "pt2": (".pt2",),
    "python": (".py",),
    "safetensors": (".safetensors",),
    "torchscript": (".pt", ".ts", ".torchscript"),
    "web": (".html",),
}

#: For Q-values above about 64, rounding alone reaches the tolerance: runtimes add in different orders, as PyTorch does
#: for other batch sizes (measured: PyTorch 3 to 8 steps between neighbouring 32-bit floats, artifacts 4 to 13).
_ROUNDING_STEPS = 16
_CHUNK = 256  # observations at once, in the parity check

_UNCHECKED = (
    "There is no C compiler, so the C was written unchecked: neither compared with PyTorch, nor played or measured. "
    "Install cc, gcc or clang, or set $CC, and export again."
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exported:
    """An artifact, and its difference from PyTorch on the observations of the parity check."""

    path: str
    format: str
    int8: bool
    num_observations: int  # 0: C that could not be checked, since there is no compiler
    max_difference: float | None  # of any Q-value, return units; None if unchecked
    max_difference_allowed: float | None  # None for int8, which is not held to one, and if unchecked
    agreement: float | None  # share of observations in which both choose the same action, in [0, 1]; None if unchecked
    takes_mask: bool = False  # whether the environment has masks, and the file is given the legal actions

    @property
    def is_checked(self) -> bool:
        """Return whether the artifact was compared with PyTorch: always, but for C without a compiler."""
        return self.num_observations > 0


def export(
    student: Teacher,
    out: str | os.PathLike[str],
    *,
    format: str,
    obs: np.ndarray | Sequence[Any],
    action_masks: np.ndarray | None = None,
    int8: bool = False,
    prefix: str | None = None,
    tolerance: float = TOLERANCE,
) -> Exported:
    """Write the student to a file, if the file's outputs equal PyTorch's.

    C (`docs/pages/c.md`) is compiled for the check; without a compiler it is written unchecked, with a warning. A
    program, `NAME_main.c`, is written beside the header `NAME.h`.

    Args:
        student: the frozen Q-network: `load_teacher(path)` of its checkpoint, or `Teacher(module)`.
        out: path of the file; missing folders are created, and older files are replaced.
        format: one of `FORMATS`.
        obs: real observations, N ≥ 1, for the parity check: an array `[N, ...]`; or a list of what the environment
            returns, such as dicts, which become the vectors that the file takes. The file takes images in their form:
            bytes, if they are uint8, and channels where they have them.
        action_masks: legal actions in the same states, `[N, A]` (1: legal, 0: not, at least one is). The file then
            takes a mask as its second input, `action_mask`, and illegal actions have Q-values of −inf. None: it does
            not.
        int8: weights of 8 bits, for C and ONNX. Activations are quantised by the ranges that they have on `obs`; in
            ONNX at run time instead, if that is closer to PyTorch (`export/onnx/integers.py`). The difference is not
            checked against `tolerance`: judge it by `agreement`, and by the return of the artifact.
        prefix: what the names in C begin with, a C identifier (default: "student"); for C only.
        tolerance: largest allowed difference from PyTorch in any Q-value, ≥ 0, return units. If Q-values are so large
            that 32 bits cannot resolve it (from 64 on, for the default), 16 steps between neighbouring 32-bit floats
            of that size are allowed.

    Raises:
        ValueError: the format is unknown; `int8` or `prefix` with a format that has none; the packages for ONNX are
            missing; the C compiler fails; `obs` has another shape than the student's observations, or `action_masks`
            another one than their Q-values, or a state without a legal action; the student is recurrent and the format
            keeps no state; it has connectors that an artifact cannot contain, or layers that the format cannot hold; or
            the artifact differs from PyTorch. Nothing is written then.
    """
    student = fitted(student, obs)
    check_exportable(student, format=format, int8=int8, prefix=prefix)
    obs = checked_obs(_as_inputs(student, obs), input_shape(student))
    masks = None if action_masks is None else _checked_masks(action_masks, len(obs), int(student.action_space.n))
    out = checked_out(out, format)
    out.parent.mkdir(parents=True, exist_ok=True)
    # Written beside its path and renamed at the end: no reader finds half a file, or one that failed the check.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as folder:
        file = Path(folder) / out.name
        takes_mask = masks is not None
        integers = _write(student, file, obs, format=format, int8=int8, prefix=prefix, takes_mask=takes_mask)
        exported = _checked(student, file, out, obs, masks, integers, format=format, int8=int8, tolerance=tolerance)
        if format == "c":
            main_path(file).replace(main_path(out))
        file.replace(out)
    return replace(exported, takes_mask=takes_mask)


_Function = Callable[[np.ndarray], np.ndarray]


def _write(
    student: Teacher, file: Path, obs: np.ndarray, *, format: str, int8: bool, prefix: str | None, takes_mask: bool
) -> _Function | None:
    """Write the file; return the function that it has to be exactly, for C in integers."""
    if format == "onnx":
        write_onnx(student, file, int8_obs=obs if int8 else None, takes_mask=takes_mask)
    elif format == "pt2":
        write_pt2(student, file, takes_mask=takes_mask)
    elif format == "torchscript":
        write_torchscript(student, file, takes_mask=takes_mask)
    elif format == "python":
        write_python(student, file)
    elif format == "c":
        prefix = DEFAULT_PREFIX if prefix is None else prefix
        return write_c(student, file, prefix=prefix, int8_obs=obs if int8 else None)
    else:
        write_safetensors(student, file, takes_mask=takes_mask)
    return None


def _checked(
    student: Teacher,
    file: Path,
    out: Path,
    obs: np.ndarray,
    masks: np.ndarray | None,
    integers: _Function | None,
    *,
    format: str,
    int8: bool,
    tolerance: float,
) -> Exported:
    """Compare a file that will be moved to `out` with PyTorch; raise a ValueError if it differs."""
    if format == "c" and c_runner.compiler() is None:
        logger.warning(_UNCHECKED)
        return Exported(str(out), format, int8, 0, None, None, None)
    exported = compared(student, q_function(file), obs, out, format=format, masks=masks, int8=int8, tolerance=tolerance)
    if format == "c":
        check_programs(file, obs, integers, masks)
    return exported


def compared(
    student: Teacher,
    artifact: _Function,
    obs: np.ndarray,
    out: str | os.PathLike[str],
    *,
    format: str,
    masks: np.ndarray | None = None,
    int8: bool = False,
    tolerance: float = TOLERANCE,
) -> Exported:
    """Compare an artifact with PyTorch.

    Args:
        student: as in `export()`.
        artifact: its function from observations `[B, ...]`, and masks `[B, A]` if there are any, to Q-values `[B, A]`.
        obs: as in `export()`.
        out: path that its file will have.
        format: its format.
        masks: legal actions in the same states, `[N, A]`, bool; None: all are.
        int8: as in `export()`.
        tolerance: as in `export()`.

    Raises:
        ValueError: they differ.
    """
    max_difference, agreement, largest_q, num_compared = _parity(student, artifact, obs, masks)
    allowed = max(tolerance, _ROUNDING_STEPS * float(np.spacing(np.float32(largest_q))))
    if not int8 and not max_difference <= allowed:  # NaN too
        raise ValueError(
            f"The {format} artifact differs from PyTorch by {max_difference:.3g} in a Q-value, on {num_compared} "
            f"observations; the largest difference allowed is {allowed:.3g} (Q-values reach {largest_q:.3g}). "
            "Nothing was written."
        )
    return Exported(str(out), format, int8, num_compared, max_difference, None if int8 else allowed, agreement)


def fitted(student: Teacher, obs: Any) -> Teacher:
    """Return the student for the form of `obs`, `[N, ...]`: bytes and channels of images, vectors with more axes.

    Return the student itself if its pipeline has this conversion, and if there is none.
    """
    if not isinstance(obs, np.ndarray) or obs.dtype.kind not in "biuf":
        return student
    if obs.ndim != 4 and obs.shape[1:] == student.observation_space.shape:  # no images
        return student
    space = gym.spaces.Box(0, 255 if obs.dtype == np.uint8 else 1, obs.shape[1:], obs.dtype)
    return student.for_space(space).with_image_stage(space)


def _as_inputs(student: Teacher, obs: Any) -> Any:
    """Return a list of observations of several parts as the vectors that an artifact takes; others as they are."""
    is_composed = isinstance(obs, list | tuple | np.ndarray) and len(obs) and isinstance(obs[0], dict | tuple | str)
    if not is_composed:
        return obs
    view, first = artifact_view(student)(), np.ones(1, dtype=bool)
    return np.concatenate([view(Shown(one, first)) for one in obs])


def checked_obs(obs: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return observations for the parity check as an array `[N, *shape]`.

    Raises:
        ValueError: they have another shape, or numbers that 32-bit floats cannot hold.
    """
    obs = np.asarray(obs)
    if obs.ndim == 0 or len(obs) == 0 or obs.shape[1:] != shape:
        raise ValueError(
            f"`obs` has the shape {list(obs.shape)}, expected [{', '.join(map(str, ('N', *shape)))}] with N >= 1, or a "
            "list of N observations that the environment returns."
        )
    if obs.dtype.kind not in "biuf":
        raise ValueError(f"`obs` has values of the type {obs.dtype}, expected numbers. Give what the network takes.")
    with np.errstate(over="ignore"):
        if obs.dtype.kind == "f" and not np.isfinite(obs.astype(np.float32, copy=False)).all():
            raise ValueError(
                "`obs` has numbers that are NaN, infinite, or too large for 32-bit floats. Leave out these rows, or "
                "scale the numbers where the environment returns them."
            )
    return obs


def _checked_masks(action_masks: Any, num_rows: int, num_actions: int) -> np.ndarray:
    masks = np.asarray(action_masks)
    if masks.shape != (num_rows, num_actions):
        raise ValueError(
            f"`action_masks` has the shape {list(masks.shape)}, expected [{num_rows}, {num_actions}]: a number for "
            "each action, in the states of `obs`."
        )
    if not (masks == 1).any(-1).all():
        raise ValueError("`action_masks` has a state without a legal action. Expected a 1 for at least one in each.")
    return masks == 1


def checked_out(out: str | os.PathLike[str], format: str) -> Path:
    """Return the path of a file to write, in one of `FORMATS` or "web".

    Raises:
        ValueError: something stands there that cannot be replaced, or C cannot include a file of that name.
    """
    path = Path(out)
    if format == "c":
        checked_header_name(path)
    for each in (path, main_path(path)) if format == "c" else (path,):
        if each.is_dir():
            raise ValueError(f"'{each}' is a folder. Expected the path of the file to write.")
        if each.exists() and not each.is_file():
            raise ValueError(f"'{each}' is a device or a pipe, which cannot be replaced. Expected the path of a file.")
    return path


def check_exportable(student: Teacher, *, format: str, int8: bool = False, prefix: str | None = None) -> None:
    """Check that the student can be exported, before it plays episodes.

    Args:
        student: as in `export()`.
        format: one of `FORMATS`.
        int8: as in `export()`.
        prefix: as in `export()`.

    Raises:
        ValueError: the student cannot be exported; the message has the reason.
    """
    if format not in FORMATS:
        raise ValueError(f"Unknown format '{format}'. Known are {', '.join(FORMATS)}, and web on the command line.")
    if getattr(student, "outputs", Q_VALUES) == LOG_PROBS:  # a network of the user's own has no such attribute
        raise ValueError(
            f"'{one_line(student.source)}' is an actor-critic. An artifact returns Q-values, so only students and "
            "Q-networks can be exported. Distil it, and export the student."
        )
    if not all(parameter.isfinite().all() for parameter in student.module.parameters()):
        raise ValueError(
            "The network has weights that are NaN or infinite: its training diverged. Export an earlier checkpoint, or "
            "train it again with a lower learning rate."
        )
    check_flags(format, int8=int8, prefix=prefix)
    if int8 and is_tree(student):
        raise ValueError("int8 is for networks: a tree compares 32-bit floats, and has no weights. Leave out int8.")
    if prefix is not None:
        checked_prefix(prefix)
    if format == "onnx":
        require("onnx", "onnxruntime")
    exportable_stages(student)
    if format == "python":
        check_python(student, has_stages=bool(inside_stages(student)))
    if isinstance(student.module, QNetwork) and not isinstance(student.module.function, nn.Module):
        raise ValueError(
            f"'{student.source}' is a function of another library, which cannot be exported. Export the network behind "
            "it, or a student of it."
        )
    if student.module.is_stateful():
        check_recurrent_exportable(student.module, format=format, int8=int8)
    if format == "c":
        check_c(student, int8=int8)


def check_flags(format: str, *, int8: bool, prefix: str | None) -> None:
    """Check that a setting is given for a format that has it.

    Args:
        format: one of `FORMATS`, or "web".
        int8: as in `export()`.
        prefix: as in `export()`.

    Raises:
        ValueError: the format does not have it.
    """
    if int8 and format not in ("c", "onnx"):
        raise ValueError(f"int8 is for format='c' or 'onnx' only, got format='{format}'.")
    if prefix is not None and format != "c":
        raise ValueError(f"A prefix is for format='c' only, got format='{format}'.")


def ending_of(format: str) -> str:
    """Return the usual ending of a file in one of `FORMATS`."""
    return _ENDINGS[format][0]


def format_of_ending(path: str | os.PathLike[str]) -> str:
    """Return which of `FORMATS` the ending of a file's name means.

    Raises:
        ValueError: the ending is unknown.
    """
    ending = Path(path).suffix.lower()
    format = next((format for format, endings in _ENDINGS.items() if ending in endings), None)
    if format is None:
        known = "; ".join(f"{' or '.join(endings)} for {format}" for format, endings in _ENDINGS.items())
        raise ValueError(
            f"The ending of '{path}' names no format. Known endings: {known}. Rename the file, or set --format "
            f"({', '.join(_ENDINGS)})."
        )
    return format


def artifact_view(student: Teacher) -> Callable[[], View]:
    """Return a function that starts the view of an artifact's inputs.

    They are observations as they are, stacked frames, or vectors of observations that are not one array of numbers.
    """
    return ObservationPipeline(student.observation_space, outside_stages(student)).start


def _parity(
    student: Teacher, artifact: Callable[..., np.ndarray], obs: np.ndarray, masks: np.ndarray | None
) -> tuple[float, float, float, int]:
    """Return the largest difference of a Q-value, the share of equal greedy actions, and PyTorch's largest |Q|.

    The first and last are in return units, the share is in [0, 1]. And the number of observations that were compared:
    of recurrent students all sequences are of one length, and some may be left over.
    """
    differences, agreements, sizes = [], [], []
    for expected, got, mask in _both(student, artifact, obs, masks):
        if got.shape != expected.shape:
            raise ValueError(f"The artifact's Q-values have the shape {got.shape}, PyTorch's {expected.shape}.")
        if mask is not None and not np.array_equal(np.isneginf(got), ~mask):
            raise ValueError("The artifact does not give −inf to the illegal actions alone.")
        legal = np.ones(expected.shape, bool) if mask is None else mask
        if not np.isfinite(expected[legal]).all():
            raise ValueError(
                "The network's own Q-values are infinite or NaN in PyTorch on some of the observations, so that no "
                "file can be compared with it. Train it on smaller rewards or observations."
            )
        differences.append(np.abs(got[legal] - expected[legal]).max())  # NaN where there is one
        agreements.append(got.argmax(-1) == np.where(legal, expected, -np.inf).argmax(-1))
        sizes.append(np.abs(expected[legal]).max())
    agrees = np.concatenate(agreements)
    return float(np.max(differences)), float(np.mean(agrees)), float(np.max(sizes)), len(agrees)


def _both(
    student: Teacher, artifact: Callable[..., np.ndarray], obs: np.ndarray, masks: np.ndarray | None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """Yield the Q-values of PyTorch without masks, and of the artifact, and the masks, part by part."""
    device = next((parameter.device for parameter in student.module.parameters()), torch.device("cpu"))
    space = artifact_space(student)
    view = ObservationPipeline(space, inside_stages(student)).start()
    # Numbers of cases and bytes of images come as floats from where artifacts play. PyTorch's side needs integers for
    # its one-hot vectors, and divides images by 255 only if they are bytes.
    obs = obs.astype(space.dtype) if is_discrete(space) or is_byte_image(space) else obs

    def inputs_of(rows: np.ndarray) -> np.ndarray:
        return view(Shown(rows, first=np.ones(len(rows), dtype=bool)))

    if student.module.is_stateful():
        expected, got = recurrent_parity(student, artifact, obs, inputs_of, masks)
        yield expected, got, None if masks is None else masks[: len(got)]
        return
    for first in range(0, len(obs), _CHUNK):
        rows = slice(first, first + _CHUNK)
        chunk = obs[rows].astype(np.float32)
        expected = student.q_values(torch.as_tensor(inputs_of(obs[rows]), device=device)).cpu().numpy()
        yield (
            expected,
            artifact(chunk) if masks is None else artifact(chunk, masks[rows]),
            (None if masks is None else masks[rows]),
        )
