"""Load an exported artifact: its format, its function, its cost."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rllib_kd.checkpoints.archives import is_pt2
from rllib_kd.checkpoints.magic import file_kind
from rllib_kd.export.failures import ProgramFailedError
from rllib_kd.export.runners import c_runner
from rllib_kd.export.trees import recorded_shape
from rllib_kd.teachers.described import checked_shape
from rllib_kd.teachers.torchscript import SHAPE_FILE
from rllib_kd.text import first_line

#: Formats, with the file in runners/ that runs each.
_RUNNERS = {
    "c": "c_runner",
    "onnx": "onnx_runner",
    "pt2": "pt2_runner",
    "python": "python_runner",
    "safetensors": "numpy_runner",
    "torchscript": "torchscript_runner",
}

FORMATS = tuple(_RUNNERS)
_SINGLE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(frozen=True)
class DeploymentCost:
    """Size, memory and latency of an artifact: whether it fits a device."""

    disk_bytes: int
    peak_memory_bytes: int  # resident, of a process that loads it with its smallest runtime and plays one observation
    latency_ms: float  # median of one observation, on one thread, in that process


@dataclass(frozen=True)
class DeviceCost:
    """Size, memory, work and latency of C, compiled for this machine."""

    flash_bytes: int | None  # code and constants, compiled with -Os; None: the program `size` cannot tell
    ram_bytes: int | None  # static buffers; None, too
    multiply_adds: int  # of one observation
    latency_ms: float  # median of one observation, compiled with -O2


def q_function(path: str | os.PathLike[str]) -> Callable[..., np.ndarray]:
    """Load an artifact of any format as a function. Its greedy policy takes the action with the largest Q-value.

    The code of a Python file and of C is run: pass files that you trust.

    Returns:
        The function from observations `[B, ...]` to Q-values `[B, A]` (return units), as numpy arrays. Its second
        argument, if there is one, are the legal actions, `[B, A]`: 1 for legal, 0 for not. The others get −inf.

    Raises:
        ValueError: there is no artifact at `path`, or onnxruntime or the C compiler is missing.
    """
    artifact_format = artifact_format_of(path)
    if artifact_format == "onnx":
        require("onnxruntime")
    return importlib.import_module(f"rllib_kd.export.runners.{_RUNNERS[artifact_format]}").load(os.fspath(path))


def deployment_cost(path: str | os.PathLike[str]) -> DeploymentCost | DeviceCost:
    """Measure an artifact in a new process with the smallest runtime that runs it; C is compiled.

    That is numpy and onnxruntime for ONNX, numpy for safetensors, torch for `.pt2` and TorchScript; never Ray or this
    package. Memory includes the Python interpreter and that runtime.

    Raises:
        ValueError: there is no artifact at `path`, it does not record the shape of its observations, onnxruntime or the
            C compiler is missing, or the compiler failed.
        RuntimeError: the new process failed; the message has the end of its output.
    """
    artifact_format = artifact_format_of(path)
    if artifact_format == "c":
        network = c_runner.CNetwork(os.fspath(path))
        flash, ram = c_runner.section_bytes(os.fspath(path)) or (None, None)
        return DeviceCost(flash, ram, network.multiply_adds, network.latency_ms())
    if artifact_format == "onnx":
        require("onnxruntime")
    shape = _observation_shape(path)
    measured = _measured("measure.py", _RUNNERS[artifact_format], os.fspath(path), json.dumps(shape))
    return DeploymentCost(disk_bytes=os.path.getsize(path), **measured)


def latencies_ms(paths: Sequence[str | os.PathLike[str]]) -> list[list[float]]:
    """Measure several artifacts of one format and one shape of observations, which take turns in a new process.

    Returns:
        For each artifact, its latency in each repeat: the median time of one observation, on one thread, ms.

    Raises:
        ValueError: there is no artifact at a path, it does not record the shape of its observations, or onnxruntime is
            missing.
        RuntimeError: the new process failed; the message has the end of its output.
    """
    artifact_format = artifact_format_of(paths[0])
    if artifact_format == "onnx":
        require("onnxruntime")
    shape = _observation_shape(paths[0])
    return _measured("turns.py", _RUNNERS[artifact_format], json.dumps(shape), *[os.fspath(path) for path in paths])


def _measured(script: str, *arguments: str) -> Any:
    """Run a script of the runners in a new process, on one thread; return what it prints as JSON."""
    path = Path(__file__).parent / "runners" / script
    command = [sys.executable, str(path), *arguments]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=os.environ | _SINGLE_THREAD)
    if done.returncode:
        raise ProgramFailedError(f"The process that measures {arguments}", done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def artifact_format_of(path: str | os.PathLike[str]) -> str:
    """Return which of `FORMATS` a file has, by its content.

    Raises:
        ValueError: the file does not exist, or has another format.
    """
    if not os.path.isfile(path):
        raise ValueError(f"There is no artifact at '{path}'. Expected a file that export() wrote.")
    with open(path, "rb") as file:
        head = file.read(20)
    if head.startswith(b"/* rllib_kd C export"):
        return "c"
    if head.startswith(b"# rllib_kd Python ex"):
        return "python"
    kind = file_kind(head, os.path.getsize(path))
    if kind == "zip":
        return "pt2" if _is_pt2(path) else "torchscript"
    if kind is not None:
        return kind
    raise ValueError(f"'{path}' is not an artifact. Expected a file that export() wrote: {', '.join(FORMATS)}.")


def _is_pt2(path: str | os.PathLike[str]) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return is_pt2(archive.namelist())
    except zipfile.BadZipFile:
        return False


def _observation_shape(path: str | os.PathLike[str]) -> list[int]:
    """Return the shape of one observation, as the artifact records it; files of other programs often do not."""
    try:
        return list(checked_shape(_recorded_shape(path)))
    except Exception as error:  # a file of others may hold anything
        raise ValueError(
            f"'{path}' does not record the shape of its observations as a list of positive integers "
            f"({type(error).__name__}: {first_line(error)}). Expected a file that export() wrote."
        ) from error


def _recorded_shape(path: str | os.PathLike[str]) -> Any:
    artifact_format = artifact_format_of(path)
    if artifact_format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
        return session.get_inputs()[0].shape[1:]
    if artifact_format == "python":
        return recorded_shape(Path(path).read_text(encoding="utf-8"))
    if artifact_format == "safetensors":
        with open(path, "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return json.loads(header["__metadata__"]["observation_shape"])
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(SHAPE_FILE)]
        if not names:
            raise ValueError(f"it has no {SHAPE_FILE}")
        return json.loads(archive.read(names[0]))


def require(*packages: str) -> None:
    """Raise a ValueError that names the first of these packages that is not installed."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ValueError(
                f"ONNX needs the package '{package}', which is not installed: pip install 'rllib-kd[onnx]'"
            ) from error
