"""Describe students as layers, and write `.pt2`, TorchScript and safetensors."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.models.base import ENCODER_OUT
from ray.rllib.core.models.torch.encoder import TorchCNNEncoder, TorchMLPEncoder
from safetensors.torch import save
from torch import Tensor, nn

from rllib_kd import _rllib
from rllib_kd.export.recurrent import StepNetwork, describe_recurrent, state_sizes
from rllib_kd.export.trees import tree_layer
from rllib_kd.networks.dqn_module import QF_PREDS, FlattenEncoder
from rllib_kd.networks.layers import Flat, Normalized, OneHot, Pixels, describe_layer
from rllib_kd.networks.mixed import MixedEncoder
from rllib_kd.networks.parts import heads_of, is_known
from rllib_kd.networks.recurrent import recurrent_layer
from rllib_kd.networks.trees.layer import TreeLayer, describe_tree
from rllib_kd.networks.trees.module import TreeRLModule
from rllib_kd.observations.masks import MASK
from rllib_kd.observations.pipeline import Flatten, Function, Images, Normalize, RLlibConnectors, StackFrames, Stage
from rllib_kd.observations.spaces import one_hot_lengths
from rllib_kd.teachers.base import Teacher
from rllib_kd.teachers.described import DISCRETE, PARTS, TAKES_BYTES
from rllib_kd.teachers.torchscript import SHAPE_FILE
from rllib_kd.text import one_line

#: Spaces of observations that are one array of numbers.
_ARRAYS = gym.spaces.Box | gym.spaces.Discrete | gym.spaces.MultiDiscrete | gym.spaces.MultiBinary
STATE = "state"  # in the metadata of safetensors: the units of each part of a recurrent student's state, by name
#: Encoders that have a description.
_ENCODERS = (TorchMLPEncoder, TorchCNNEncoder, FlattenEncoder, MixedEncoder)
#: Words of the errors of torch.export about a network whose Python depends on the numbers that it gets.
_BRANCHES = ("data-dependent", "dynamic control flow")
_LARGEST_EXACT = 2**24  # up to which 32-bit floats hold each integer
_COARSE = 1e-6  # of its std: larger errors of a filter's mean could be seen in Q-values


class _ExportedNetwork(nn.Module):
    """A module from observations `[B, ...]` to Q-values `[B, A]`, without other outputs.

    With a mask `[B, A]` (1: legal, 0: not), illegal actions have −inf.
    """

    def __init__(self, module: Any, preprocessing: nn.Module):
        super().__init__()
        self.preprocessing = preprocessing
        self.module = tree_layer(module) if isinstance(module, TreeRLModule) else module
        self._plain_dueling = _rllib.has_default_q_values(module) and module.uses_dueling and module.num_atoms == 1

    def forward(self, obs: Tensor, action_mask: Tensor | None = None) -> Tensor:
        q_values = self._q_values(self.preprocessing(obs))
        return q_values if action_mask is None else torch.where(action_mask > 0.5, q_values, -torch.inf)

    def _q_values(self, obs: Tensor) -> Tensor:
        if isinstance(self.module, TreeLayer):
            return self.module(obs)
        if not self._plain_dueling:
            return self.module.compute_q_values({Columns.OBS: obs})[QF_PREDS]
        # RLlib's mean passes over actions of -inf, which these students do not have: a dozen operators on the device.
        features = self.module.encoder({Columns.OBS: obs})[ENCODER_OUT]
        advantage = self.module.af(features)
        return advantage - advantage.mean(-1, keepdim=True) + self.module.vf(features)


def exportable_network(student: Teacher) -> nn.Module:
    """Return a copy of the student from an artifact's inputs to Q-values, and to the next state if it is recurrent."""
    if student.module.is_stateful():
        return StepNetwork(copy.deepcopy(student.module).cpu(), nn.Sequential(*_preprocessing(student))).eval()
    return _ExportedNetwork(copy.deepcopy(student.module).cpu(), nn.Sequential(*_preprocessing(student))).eval()


def exportable_stages(student: Teacher) -> tuple[Stage, ...]:
    """Return the stages of the student's pipeline.

    Raises:
        ValueError: an artifact cannot contain them.
    """
    stages = student.pipeline.stages if student.pipeline is not None else ()
    space = student.observation_space
    if any(isinstance(stage, RLlibConnectors | Function) for stage in stages):
        raise ValueError(
            "The student has custom connectors or functions, which an artifact cannot contain. Wrap the environment."
        )
    if len(stages) > 1 and any(isinstance(stage, StackFrames) for stage in stages):
        raise ValueError(
            "A student that combines frame stacking with other connectors cannot be exported. Wrap the environment."
        )
    if not isinstance(space, _ARRAYS) and not any(map(_is_outside, stages[:1])):
        raise ValueError(f"An artifact takes one array, but observations are {space}. Wrap the environment.")
    if isinstance(space, gym.spaces.Discrete | gym.spaces.MultiDiscrete):
        _check_are_exact(space)
    return stages


def _check_are_exact(space: gym.spaces.Discrete | gym.spaces.MultiDiscrete) -> None:
    """Refuse discrete numbers some of which 32-bit floats cannot hold: an artifact would take them for others."""
    first = np.ravel(space.start).astype(np.int64)
    last = first + np.array(one_hot_lengths(space)) - 1
    if (largest := int(np.abs([first, last]).max())) > _LARGEST_EXACT:
        raise ValueError(
            f"An artifact takes 32-bit floats, which hold integers up to {_LARGEST_EXACT:,} exactly, but observations "
            f"are {one_line(space, limit=200)}, with numbers up to ±{largest:,}. Wrap the environment: let its numbers "
            "begin at 0."
        )


def outside_stages(student: Teacher) -> tuple[Stage, ...]:
    """Return the stages that an artifact does not contain: stacks of frames, and vectors of what is not one array."""
    return tuple(filter(_is_outside, exportable_stages(student)))


def inside_stages(student: Teacher) -> tuple[Stage, ...]:
    """Return the stages that an artifact contains."""
    return tuple(stage for stage in exportable_stages(student) if not _is_outside(stage))


def _is_outside(stage: Stage) -> bool:
    return isinstance(stage, StackFrames) or (isinstance(stage, Flatten) and not isinstance(stage.space, _ARRAYS))


def observation_parts(student: Teacher) -> list[dict[str, Any]] | None:
    """Describe how an artifact's vectors are made of observations that are not one array; None if there is no need.

    The description is that of `described_parts()`, as `runners/flatten.py` takes it.
    """
    flattening = [stage for stage in outside_stages(student) if isinstance(stage, Flatten)]
    if not flattening:
        return None if student.pipeline is None else student.pipeline.parts
    (stage,) = flattening
    return stage.parts


def input_shape(student: Teacher) -> tuple[int, ...]:
    """Return the shape of one observation, as the artifact takes it."""
    return tuple(artifact_space(student).shape or ())


def artifact_space(student: Teacher) -> gym.Space:
    """Return the space of the artifact's inputs: the environment's observations, or what `outside_stages()` make."""
    return student.input_space if outside_stages(student) else student.observation_space


def _preprocessing(student: Teacher) -> list[nn.Module]:
    layers: list[nn.Module] = []
    shape = input_shape(student)
    for stage in inside_stages(student):
        if isinstance(stage, Normalize):
            layers += _filtering(stage, shape)
        elif isinstance(stage, Flatten):
            lengths = one_hot_lengths(stage.space)
            if np.any(start := np.asarray(getattr(stage.space, "start", 0), np.float32)):
                layers.append(Normalized(torch.from_numpy(start), torch.ones(start.shape), None))  # from 0 on
            layers.append(Flat() if lengths is None else OneHot(lengths))
            shape = student.input_space.shape or ()
        elif isinstance(stage, Images):
            space = student.observation_space
            is_bytes = space.dtype == np.uint8
            layers.append(
                Pixels(channels_first=space.shape != stage.shape, divisor=255.0 if stage.scaled and is_bytes else 1.0)
            )
            shape = stage.shape
    return layers


def _filtering(stage: Normalize, shape: tuple[int, ...]) -> list[nn.Module]:
    """Return a filter as layers: two, if one 32-bit float for the mean is too coarse for a small std."""
    mean = np.zeros(shape) if stage.mean is None else stage.mean
    std = np.ones(shape) if stage.std is None else stage.std
    clip = stage.clip if stage.clip is not None and np.isfinite(stage.clip) else None  # JSON has no infinity
    rest = mean - np.asarray(mean, np.float32)
    if (np.abs(rest) <= _COARSE * std).all():
        return [Normalized(torch.tensor(mean).float(), torch.tensor(std).float(), clip)]
    # Observations near the mean minus its nearest 32-bit float are exact.
    nearest = Normalized(torch.tensor(mean).float(), torch.ones(shape), None)
    return [nearest, Normalized(torch.tensor(rest).float(), torch.tensor(std).float(), clip)]


def example_inputs(student: Teacher, *, takes_mask: bool) -> tuple[Tensor, ...]:
    """Return inputs of an artifact, two rows: of a batch of one, exporters would make a constant."""
    obs = torch.zeros(2, *input_shape(student))
    state = [torch.zeros(2, units) for units in state_of(student).values()]
    return (obs, *state, torch.ones(2, int(student.action_space.n))) if takes_mask else (obs, *state)


def state_of(student: Teacher) -> dict[str, int]:
    """Return the units of each part of a recurrent student's state, by name; empty of another student."""
    return state_sizes(student.module) if student.module.is_stateful() else {}


def write_pt2(student: Teacher, file: Path, *, takes_mask: bool = False) -> None:
    """Write the network as a program of `torch.export`, for batches of any size, with a mask on request."""
    network, inputs = exportable_network(student), example_inputs(student, takes_mask=takes_mask)
    with quiet(), torch.no_grad():
        batch = torch.export.Dim("batch")
        with refusing_branches():
            program = torch.export.export(network, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs))
        program.example_inputs = None  # a pickle, and larger than a small student
        for node in program.graph.nodes:
            for name in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn"):
                node.meta.pop(name, None)  # paths of this machine
        with file.open("wb") as opened:  # by name, torch would ask for the ending .pt2
            torch.export.save(program, opened, extra_files=_notes(student))


_DECIDES = (
    "The network decides in Python by the numbers that it gets (`if`, `while`, `float()`, `.item()`), which a file "
    "cannot hold. Use operations of tensors instead, such as torch.where()."
)


@contextlib.contextmanager
def refusing_branches() -> Iterator[None]:
    """Turn an error of torch.export about a network that decides in Python into a ValueError that has what to do."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # torch.export prints the graph as far as it came
            yield
    except Exception as error:
        chain: list[BaseException] = [error]
        while (cause := chain[-1].__cause__) is not None:
            chain.append(cause)
        if any(words in str(each).lower() for each in chain for words in _BRANCHES):
            raise ValueError(_DECIDES) from error
        raise


class _Unseen(Tensor):
    """A tensor at whose numbers, and those made of them, Python must not look."""

    class LookedAtError(Exception):
        """It did."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ in ("__bool__", "__float__", "__int__", "__index__", "item", "tolist"):
            raise cls.LookedAtError
        return super().__torch_function__(func, types, args, kwargs or {})


def _check_is_one_branch(network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Refuse a network that decides by the numbers of its inputs. By shapes and constants it decides once for all."""
    try:
        network(*(each.as_subclass(_Unseen) for each in inputs))
    except _Unseen.LookedAtError:
        raise ValueError(_DECIDES) from None
    except Exception:  # an operation that takes no subclass of tensors, about which nothing is known
        return


def write_torchscript(student: Teacher, file: Path, *, takes_mask: bool = False) -> None:
    """Write the network as a TorchScript program, with a mask of legal actions on request."""
    network, inputs = exportable_network(student), example_inputs(student, takes_mask=takes_mask)
    with quiet(), torch.no_grad():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", torch.jit.TracerWarning)
            script = torch.jit.freeze(torch.jit.trace(network, inputs))
        if any("tensor to a Python" in str(warning.message) for warning in caught):
            _check_is_one_branch(network, inputs)  # of which the trace keeps one
        traced = file.with_name(f"{file.name}.traced")
        torch.jit.save(script, traced, _extra_files=_notes(student))
    # Saved again without its source lines, which contain paths of this machine.
    with zipfile.ZipFile(traced) as source, zipfile.ZipFile(file, "w") as target:
        for name in source.namelist():
            if not name.endswith(".debug_pkl"):
                target.writestr(name, source.read(name))


def _notes(student: Teacher) -> dict[str, str]:
    """Return files beside a program of PyTorch: the shape of its observations, and the notes about them."""
    return {SHAPE_FILE: json.dumps(input_shape(student)), **notes_of(student)}


def notes_of(student: Teacher) -> dict[str, str]:
    """Return the notes about a network's observations that a function does not record, as its teacher reads them.

    They are that observations are images of bytes, that they are discrete numbers, or how vectors of them are made;
    empty for other observations.
    """
    if (parts := observation_parts(student)) is not None:
        return {PARTS: json.dumps(parts)}
    first = next(iter(inside_stages(student)), None)
    if isinstance(first, Flatten) and (lengths := one_hot_lengths(first.space)) is not None:
        return {DISCRETE: json.dumps({"lengths": lengths, "starts": np.ravel(first.space.start).tolist()})}
    has_images = any(isinstance(stage, Images) for stage in inside_stages(student))
    return {TAKES_BYTES: "true"} if has_images and student.observation_space.dtype == np.uint8 else {}


def write_safetensors(student: Teacher, file: Path, *, takes_mask: bool = False) -> None:
    """Write the weights of the student, with a description of its layers, and whether it needs a mask."""
    layers, tensors = describe(student)
    metadata = {
        "layers": json.dumps(layers),
        "observation_shape": json.dumps(input_shape(student)),
        "num_actions": str(student.action_space.n),
    }
    if sizes := state_of(student):
        metadata[STATE] = json.dumps(sizes)
    if takes_mask:
        metadata[MASK] = json.dumps([int(student.action_space.n)])
    if (parts := observation_parts(student)) is not None:
        metadata[PARTS] = json.dumps(parts)
    file.write_bytes(save(tensors, metadata))


def describe(student: Teacher) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Return the layers of a student in the order in which they run, and their weights by name.

    Each layer is `{"op": ..., ...}`; `docs/pages/numpy_runner.md` lists them. Images are `[B, H, W, C]` throughout,
    weights have PyTorch's shapes.

    Raises:
        ValueError: the student is not RLlib's own DQN module, or has a layer that is not in that list.
    """
    module = student.module
    if isinstance(module, TreeRLModule):
        own: dict[str, Tensor] = {}
        before = [describe_layer(f"preprocessing.{i}", layer, own) for i, layer in enumerate(_preprocessing(student))]
        return [*before, describe_tree(module.tree, module.features, own)], own
    name_of_encoder, encoder = "encoder", getattr(module, "encoder", None)
    is_recurrent = recurrent_layer(module) is not None
    if is_recurrent:
        name_of_encoder, encoder = "encoder.tokenizer", module.encoder.tokenizer
    has_encoder = type(encoder) in _ENCODERS or (is_recurrent and encoder is None)
    if not _rllib.has_default_q_values(module) or not has_encoder:
        raise ValueError(
            f"safetensors, C and web pages can hold students of RLlib's DQN module with an MLP or a CNN, and without a "
            f"compute_q_values() of their own, got a {type(module).__name__} with a {type(encoder).__name__}. Use "
            "format='onnx' or 'torchscript'."
        )
    _check_parts(module)
    tensors: dict[str, Tensor] = {}

    def described(name: str) -> list[dict[str, Any]]:
        return _describe_leaves(name, module.get_submodule(name), tensors)

    layers: list[dict[str, Any]] = []
    for i, layer in enumerate(_preprocessing(student)):
        layers.append(describe_layer(f"preprocessing.{i}", layer, tensors))
    if isinstance(encoder, TorchMLPEncoder | TorchCNNEncoder):
        layers += described(name_of_encoder)
    elif isinstance(encoder, MixedEncoder):
        layers += _describe_mixed(encoder, tensors)
    elif len(module.observation_space.shape) > 1:
        layers.append({"op": "flatten"})
    if is_recurrent:
        layers.append(describe_recurrent(module, tensors))
    if module.num_atoms > 1:
        # A value added to all atoms of an action changes no probability: the value stream of a dueling C51 is no-op.
        expectation = {"v_min": module.v_min, "v_max": module.v_max, "num_atoms": module.num_atoms}
        layers += [*described("af"), {"op": "expectation", **expectation}]
    elif module.uses_dueling:
        layers.append({"op": "dueling", "advantage": described("af"), "value": described("vf")})
    else:
        layers += described("af")
    return layers, tensors


def _check_parts(module: Any) -> None:
    """Raise a ValueError that names a part of the network which computes something that its description would lack."""
    for name in ("encoder", "af", "vf")[: 1 + len(heads_of(module))]:
        for part in module.get_submodule(name).modules():
            if not is_known(part):
                raise ValueError(
                    f"safetensors, C and web pages cannot hold {name}'s {type(part).__name__}, which has hooks, a "
                    "forward() of its own, or a class of your own. Use format='onnx' or 'torchscript'."
                )


def _describe_leaves(name: str, net: nn.Module, tensors: dict[str, Tensor]) -> list[dict[str, Any]]:
    leaves = ((n, layer) for n, layer in net.named_modules() if not list(layer.children()))
    return [describe_layer(f"{name}.{n}", layer, tensors) for n, layer in leaves]


def _describe_mixed(encoder: MixedEncoder, tensors: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Describe the branches of an encoder of images beside other numbers, and the MLP behind them."""
    branches = []
    for i, (place, shape, net) in enumerate(encoder.parts()):
        layers = [] if net is None else _describe_leaves(f"encoder.branches.{i}", net, tensors)
        branches.append({"start": place.start, "shape": list(shape), "layers": layers})
    mlp = [] if encoder.mlp is None else _describe_leaves("encoder.mlp", encoder.mlp, tensors)
    return [{"op": "branches", "branches": branches}, *mlp]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters' messages: deprecations, other packages, advice for larger models."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
