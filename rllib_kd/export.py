"""The student as a file for a small device, which runs it without Ray and without this package.

Whatever the format, the artifact is one function: observations `[B, ...]` as the environment shows them, float32, to
Q-values `[B, A]`. Filters and one-hot encodings are in it; only frames are stacked outside. It is loaded again and
compared with PyTorch before it takes its place on disk.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.algorithms.dqn.default_dqn_rl_module import DefaultDQNRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.models.base import ENCODER_OUT
from ray.rllib.core.models.torch.encoder import TorchCNNEncoder, TorchMLPEncoder
from safetensors.torch import save
from torch import Tensor, nn

from rllib_kd.layers import Normalized, OneHot, Pixels, describe_layer
from rllib_kd.observations import (
    Flatten,
    Function,
    Images,
    Normalize,
    ObservationPipeline,
    RLlibConnectors,
    Shown,
    StackFrames,
    Stage,
    View,
)
from rllib_kd.students import FlattenEncoder
from rllib_kd.teachers.base import QF_PREDS, Teacher
from rllib_kd.teachers.files import SHAPE_FILE
from rllib_kd.teachers.networks import QNetwork

#: Formats, and the file in runners/ that plays each.
_RUNNERS = {"onnx": "onnx_runner", "safetensors": "numpy_runner", "torchscript": "torchscript_runner"}
FORMATS = tuple(_RUNNERS)
TOLERANCE = 1e-4  # largest difference to PyTorch in any Q-value, return units

#: What a file's name ends with, by format.
_ENDINGS = {"onnx": (".onnx",), "safetensors": (".safetensors",), "torchscript": (".pt", ".ts", ".torchscript")}
#: Beyond about 64 in a Q-value, rounding alone comes near the tolerance: runtimes add in different orders, as PyTorch
#: itself does for other batch sizes (3 to 8 steps between neighbouring 32-bit floats, artifacts 4 to 13, measured).
_ROUNDING_STEPS = 16
#: Observations that are one array of numbers.
_ARRAYS = gym.spaces.Box | gym.spaces.Discrete | gym.spaces.MultiDiscrete | gym.spaces.MultiBinary
_CHUNK = 256  # observations at once, in the parity check
_OPSET = 18  # the oldest that torch's exporter writes: the most devices can run it
_SINGLE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Exported:
    """An artifact, and how near it is to PyTorch on the observations of the parity check."""

    path: str
    format: str
    int8: bool
    num_observations: int
    max_difference: float  # of any Q-value, return units
    max_difference_allowed: float | None  # None for int8, which is not held to one
    agreement: float  # share of observations in which both choose one action, in [0, 1]

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class DeploymentCost:
    """What decides whether an artifact fits a device."""

    disk_bytes: int
    peak_memory_bytes: int  # resident, of a process that loads it with its smallest runtime and plays one observation
    latency_ms: float  # median of one observation, on one thread, in that process

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return asdict(self)


def export(
    student: Teacher,
    out: str | os.PathLike[str],
    *,
    format: str,
    obs: np.ndarray,
    int8: bool = False,
    tolerance: float = TOLERANCE,
) -> Exported:
    """Write the student to a file, once the file has proved equal to PyTorch.

    Args:
        student: the frozen Q-network: `load_teacher(path)` of its checkpoint, or `Teacher(module)`.
        out: path of the file; folders on the way are made, and an older file is replaced.
        format: one of `FORMATS`.
        obs: real observations `[N, ...]`, N >= 1, for the parity check, as `artifact_view(student)` sees them.
        int8: weights of 8 bits, activations quantised as they come; ONNX only. It is not checked against `tolerance`:
            judge it by `agreement`, and by the return that it plays.
        tolerance: largest difference to PyTorch in any Q-value, return units. Where Q-values are so large that 32 bits
            cannot keep it (from 64 on, for the default), 16 steps between 32-bit floats of that size are allowed.

    Raises:
        ValueError: the format is unknown; `int8` of another format than ONNX; the packages for ONNX are missing; `obs`
            has another shape than the observations of the student; the student is recurrent, or has connectors that no
            artifact can hold; it has layers that safetensors has no description for; or the artifact differs from
            PyTorch. Nothing is written then.
    """
    check_exportable(student, format=format, int8=int8)
    shape = _input_shape(student)
    obs = np.asarray(obs)
    if obs.ndim == 0 or len(obs) == 0 or obs.shape[1:] != shape:
        raise ValueError(
            f"`obs` has the shape {list(obs.shape)}, expected [{', '.join(map(str, ('N', *shape)))}] with N >= 1: the "
            "observations that the environment shows."
        )
    out = Path(out)
    if out.is_dir():
        raise ValueError(f"'{out}' is a folder. Expected the path of the file to write.")
    if out.exists() and not out.is_file():
        raise ValueError(f"'{out}' is a device or a pipe, which cannot be replaced. Expected the path of a file.")

    out.parent.mkdir(parents=True, exist_ok=True)
    # Beside its place, so that the last step is a rename: nobody finds half a file, or one that failed the check.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as folder:
        file = Path(folder) / out.name
        if format == "onnx":
            _write_onnx(_network(student), shape, file, int8=int8)
        elif format == "torchscript":
            _write_torchscript(_network(student), shape, file)
        else:
            _write_safetensors(student, file)
        max_difference, agreement, largest_q = _parity(student, q_function(file), obs)
        allowed = max(tolerance, _ROUNDING_STEPS * float(np.spacing(np.float32(largest_q))))
        if not int8 and not max_difference <= allowed:  # NaN too
            raise ValueError(
                f"The {format} artifact differs from PyTorch by {max_difference:.3g} in a Q-value, over {len(obs)} "
                f"observations; the largest difference allowed is {allowed:.3g} (Q-values reach {largest_q:.3g}). "
                "Nothing was written."
            )
        file.replace(out)
    return Exported(str(out), format, int8, len(obs), max_difference, None if int8 else allowed, agreement)


def check_exportable(student: Teacher, *, format: str, int8: bool = False) -> None:
    """Whether a file can hold the student, before it plays for one.

    Args:
        student: as in `export()`.
        format: one of `FORMATS`.
        int8: as in `export()`.

    Raises:
        ValueError: it cannot; the message says why.
    """
    if format not in FORMATS:
        raise ValueError(f"Unknown format '{format}'. Known are {', '.join(FORMATS)}.")
    if int8 and format != "onnx":
        raise ValueError(f"int8 is for format='onnx' only, got format='{format}'.")
    if format == "onnx":
        _require("onnx", "onnxscript", "onnxruntime")
    _stages(student)
    if isinstance(student.module, QNetwork) and not isinstance(student.module.function, nn.Module):
        raise ValueError(
            f"'{student.source}' is a function of another library, which cannot be exported. Export the network that "
            "it was made of, or a student of it."
        )
    if student.module.is_stateful():
        raise ValueError("The student is recurrent. An artifact is a function of one observation and keeps no state.")


def format_of_ending(path: str | os.PathLike[str]) -> str:
    """Which of `FORMATS` the name of a file asks for; "onnx" where it does not say."""
    ending = Path(path).suffix.lower()
    return next((format for format, endings in _ENDINGS.items() if ending in endings), "onnx")


def artifact_view(student: Teacher) -> Callable[[], View]:
    """Starts the view of what an artifact takes: observations as they are, or stacked frames."""
    stages = student.pipeline.stages if student.pipeline is not None else ()
    frames = tuple(stage for stage in stages if isinstance(stage, StackFrames))
    return ObservationPipeline(student.observation_space, frames).start


def q_function(path: str | os.PathLike[str]) -> Callable[[np.ndarray], np.ndarray]:
    """Load an artifact of any format, to play it. Its greedy policy takes the largest Q-value.

    Returns:
        The function from observations `[B, ...]` to Q-values `[B, A]` (return units), as numpy arrays.

    Raises:
        ValueError: there is no artifact at `path`, or onnxruntime is missing.
    """
    artifact_format = artifact_format_of(path)
    if artifact_format == "onnx":
        _require("onnxruntime")
    return importlib.import_module(f"rllib_kd.runners.{_RUNNERS[artifact_format]}").load(os.fspath(path))


def deployment_cost(path: str | os.PathLike[str]) -> DeploymentCost:
    """Measure an artifact in a fresh process with the smallest runtime that plays it.

    That is numpy and onnxruntime for ONNX, numpy for safetensors, torch for TorchScript; never Ray or this package.
    Memory includes the Python interpreter and that runtime.

    Raises:
        ValueError: there is no artifact at `path`, or onnxruntime is missing.
        RuntimeError: the fresh process failed; the message has its last words.
    """
    artifact_format = artifact_format_of(path)
    if artifact_format == "onnx":
        _require("onnxruntime")
    script = Path(__file__).parent / "runners" / "measure.py"
    done = subprocess.run(
        [sys.executable, str(script), _RUNNERS[artifact_format], os.fspath(path), json.dumps(_observation_shape(path))],
        capture_output=True,
        text=True,
        env=os.environ | _SINGLE_THREAD,
    )
    if done.returncode:
        raise RuntimeError(f"The process that measures '{path}' failed:\n{done.stderr[-2000:]}")
    return DeploymentCost(disk_bytes=os.path.getsize(path), **json.loads(done.stdout.splitlines()[-1]))


def artifact_format_of(path: str | os.PathLike[str]) -> str:
    """Which of `FORMATS` a file has, by its content.

    Raises:
        ValueError: there is no file, or it is none of them.
    """
    if not os.path.isfile(path):
        raise ValueError(f"There is no artifact at '{path}'. Expected a file that export() wrote.")
    with open(path, "rb") as file:
        head = file.read(9)
    if head.startswith(b"PK"):  # a zip archive
        return "torchscript"
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") < os.path.getsize(path):  # length of a JSON header
        return "safetensors"
    if head.startswith(b"\x08"):  # the protobuf tag of ir_version
        return "onnx"
    raise ValueError(f"'{path}' is no artifact. Expected a file that export() wrote: {', '.join(FORMATS)}.")


# --- PyTorch's side ---------------------------------------------------------------------------------------------------


class _QNetwork(nn.Module):
    """Observations `[B, ...]` to Q-values `[B, A]`, with nothing beside it."""

    def __init__(self, module: Any, preprocessing: nn.Module):
        super().__init__()
        self.preprocessing = preprocessing
        self.module = module
        self._plain_dueling = isinstance(module, DefaultDQNRLModule) and module.uses_dueling and module.num_atoms == 1

    def forward(self, obs: Tensor) -> Tensor:
        obs = self.preprocessing(obs)
        if not self._plain_dueling:
            return self.module.compute_q_values({Columns.OBS: obs})[QF_PREDS]
        # RLlib's mean passes over actions of -inf, which these students do not have: a dozen operators on the device.
        features = self.module.encoder({Columns.OBS: obs})[ENCODER_OUT]
        advantage = self.module.af(features)
        return advantage - advantage.mean(-1, keepdim=True) + self.module.vf(features)


def _network(student: Teacher) -> _QNetwork:
    return _QNetwork(copy.deepcopy(student.module).cpu(), nn.Sequential(*_preprocessing(student))).eval()


def _parity(
    student: Teacher, artifact: Callable[[np.ndarray], np.ndarray], obs: np.ndarray
) -> tuple[float, float, float]:
    """Largest difference of a Q-value, share of equal greedy actions, and PyTorch's largest |Q| (return units)."""
    device = next((parameter.device for parameter in student.module.parameters()), torch.device("cpu"))
    stages = tuple(stage for stage in _stages(student) if not isinstance(stage, StackFrames))
    space = _artifact_space(student)
    view = ObservationPipeline(space, stages).start()
    # Numbers of cases come as floats from where artifacts play; PyTorch's side needs integers for its one-hot vectors.
    obs = obs.astype(space.dtype) if isinstance(space, gym.spaces.Discrete | gym.spaces.MultiDiscrete) else obs
    differences, agreements, sizes = [], [], []
    for first in range(0, len(obs), _CHUNK):
        chunk = obs[first : first + _CHUNK].astype(np.float32)
        inputs = view(Shown(obs[first : first + _CHUNK], first=np.ones(len(chunk), dtype=bool)))
        expected = student.q_values(torch.as_tensor(inputs, device=device)).cpu().numpy()
        got = artifact(chunk)
        if got.shape != expected.shape:
            raise ValueError(f"The artifact's Q-values have the shape {got.shape}, PyTorch's {expected.shape}.")
        differences.append(np.abs(got - expected).max())  # NaN where there is one
        agreements.append(got.argmax(-1) == expected.argmax(-1))
        sizes.append(np.abs(expected).max())
    return float(np.max(differences)), float(np.mean(np.concatenate(agreements))), float(np.max(sizes))


# --- What happens to an observation first -----------------------------------------------------------------------------


def _stages(student: Teacher) -> tuple[Stage, ...]:
    """The stages of its pipeline.

    Raises:
        ValueError: they cannot be in an artifact.
    """
    stages = student.pipeline.stages if student.pipeline is not None else ()
    space = student.observation_space
    if any(isinstance(stage, RLlibConnectors | Function) for stage in stages):
        raise ValueError(
            "The student has connectors of its own, or functions, which no artifact can hold. Wrap the environment."
        )
    if len(stages) > 1 and any(isinstance(stage, StackFrames) for stage in stages):
        raise ValueError("Frames that are stacked after another connector cannot be exported. Wrap the environment.")
    if not isinstance(space, _ARRAYS):
        raise ValueError(f"An artifact takes one array, but the environment shows {space}. Wrap the environment.")
    if np.any(getattr(space, "start", 0)):
        raise ValueError(f"One-hot encodings count from 0, but the environment shows {space}. Wrap the environment.")
    return stages


def _input_shape(student: Teacher) -> tuple[int, ...]:
    """Shape of one observation, as the artifact takes it."""
    return tuple(_artifact_space(student).shape or ())


def _artifact_space(student: Teacher) -> gym.Space:
    """What the artifact takes: what the environment shows, or stacks of it."""
    has_frames = any(isinstance(stage, StackFrames) for stage in _stages(student))
    return student.input_space if has_frames else student.observation_space


def _preprocessing(student: Teacher) -> list[nn.Module]:
    layers: list[nn.Module] = []
    shape = _input_shape(student)
    for stage in _stages(student):
        if isinstance(stage, Normalize):
            mean = np.zeros(shape) if stage.mean is None else stage.mean
            std = np.ones(shape) if stage.std is None else stage.std
            layers.append(Normalized(torch.tensor(mean).float(), torch.tensor(std).float(), stage.clip))
        elif isinstance(stage, Flatten):
            lengths = _one_hot_lengths(stage.space)
            layers.append(nn.Flatten() if lengths is None else OneHot(lengths))
            shape = student.input_space.shape or ()
        elif isinstance(stage, Images):
            space = student.observation_space
            is_bytes = space.dtype == np.uint8
            layers.append(
                Pixels(channels_first=space.shape != stage.shape, divisor=255.0 if stage.scaled and is_bytes else 1.0)
            )
            shape = stage.shape
    return layers


def _one_hot_lengths(space: gym.Space) -> tuple[int, ...] | None:
    if isinstance(space, gym.spaces.Discrete):
        return (int(space.n),)
    if isinstance(space, gym.spaces.MultiDiscrete):
        return tuple(int(n) for n in np.ravel(space.nvec))
    return None


# --- The formats ------------------------------------------------------------------------------------------------------


def _write_onnx(network: _QNetwork, shape: tuple[int, ...], file: Path, *, int8: bool) -> None:
    import onnx

    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            network,
            (torch.zeros(2, *shape),),  # of a batch of one, the exporter would make a constant
            input_names=["obs"],
            output_names=["q_values"],
            dynamic_shapes={"obs": {0: torch.export.Dim("batch")}},
            opset_version=_OPSET,
            dynamo=True,
            verbose=False,
        )
        assert program is not None  # with the exporter that is chosen here
        model = program.model_proto
        if int8:
            from onnxruntime.quantization import QuantType, quantize_dynamic

            # One scale an output: 93 % agreement with the packaged CartPole teacher, instead of 89 % with one a
            # layer. Signed weights gave 94 % and 83 %.
            quantize_dynamic(model, file, per_channel=True, weight_type=QuantType.QUInt8)
            model = onnx.load(file)
    _forget_origin(model)
    file.write_bytes(model.SerializeToString())


def _forget_origin(model: Any) -> None:
    """Remove what the exporter notes about the machine: stack traces with paths, twice the size of a small student."""
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        for name in ("doc_string", "metadata_props"):
            if name in part.DESCRIPTOR.fields_by_name:
                part.ClearField(name)
    for value in (*model.graph.input, *model.graph.output):
        value.ClearField("metadata_props")
    del model.graph.value_info[:]  # shapes in between, which every runtime infers


def _write_torchscript(network: _QNetwork, shape: tuple[int, ...], file: Path) -> None:
    with _quiet(), torch.no_grad():
        script = torch.jit.freeze(torch.jit.trace(network, torch.zeros(2, *shape)))
        traced = file.with_name(f"{file.name}.traced")
        torch.jit.save(script, traced, _extra_files={SHAPE_FILE: json.dumps(shape)})
    # Again without the source lines that it notes, with their paths on this machine.
    with zipfile.ZipFile(traced) as source, zipfile.ZipFile(file, "w") as target:
        for name in source.namelist():
            if not name.endswith(".debug_pkl"):
                target.writestr(name, source.read(name))


def _write_safetensors(student: Teacher, file: Path) -> None:
    layers, tensors = describe(student)
    metadata = {
        "layers": json.dumps(layers),
        "observation_shape": json.dumps(_input_shape(student)),
        "num_actions": str(student.action_space.n),
    }
    file.write_bytes(save(tensors, metadata))


def describe(student: Teacher) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """The layers of a student in the order in which they run, and their weights by name.

    Each layer is `{"op": ..., ...}`; `docs/numpy_runner.md` lists them. Images are `[B, H, W, C]` throughout, weights
    have PyTorch's shapes.

    Raises:
        ValueError: it is not RLlib's own DQN module, or has a layer that is not in that list.
    """
    module = student.module
    encoder = getattr(module, "encoder", None)
    if not isinstance(module, DefaultDQNRLModule) or not isinstance(
        encoder, TorchMLPEncoder | TorchCNNEncoder | FlattenEncoder
    ):
        raise ValueError(
            f"safetensors describes students of RLlib's DQN module with an MLP or a CNN, not a "
            f"{type(module).__name__} with a {type(encoder).__name__}. Use format='onnx' or 'torchscript'."
        )
    tensors: dict[str, Tensor] = {}

    def described(name: str) -> list[dict[str, Any]]:
        leaves = ((n, layer) for n, layer in getattr(module, name).named_modules() if not list(layer.children()))
        return [describe_layer(f"{name}.{n}", layer, tensors) for n, layer in leaves]

    layers: list[dict[str, Any]] = []
    for i, layer in enumerate(_preprocessing(student)):
        layers.append(describe_layer(f"preprocessing.{i}", layer, tensors))
    if not isinstance(encoder, FlattenEncoder):
        layers += described("encoder")
    elif len(module.observation_space.shape) > 1:
        layers.append({"op": "flatten"})
    if module.num_atoms > 1:
        # A value that is added to all atoms of an action changes no probability: a dueling C51's does nothing.
        expectation = {"v_min": module.v_min, "v_max": module.v_max, "num_atoms": module.num_atoms}
        layers += [*described("af"), {"op": "expectation", **expectation}]
    elif module.uses_dueling:
        layers.append({"op": "dueling", "advantage": described("af"), "value": described("vf")})
    else:
        layers += described("af")
    return layers, tensors


# --- Small parts ------------------------------------------------------------------------------------------------------


def _observation_shape(path: str | os.PathLike[str]) -> list[int]:
    """Shape of one observation, as the artifact itself says."""
    artifact_format = artifact_format_of(path)
    if artifact_format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
        return list(session.get_inputs()[0].shape[1:])
    if artifact_format == "safetensors":
        with open(path, "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return json.loads(header["__metadata__"]["observation_shape"])
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith(SHAPE_FILE))
        return json.loads(archive.read(name))


def _require(*packages: str) -> None:
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ValueError(
                f"ONNX needs the package '{package}', which is not installed. pip install 'rllib-kd[onnx]'"
            ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters say about themselves: deprecations, other packages, advice for larger models."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
