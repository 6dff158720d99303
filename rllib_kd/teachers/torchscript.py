"""Teachers from programs of PyTorch, TorchScript and `torch.export`, which must be trusted."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rllib_kd.checkpoints.archives import Archive
from rllib_kd.checkpoints.json_text import parse_json
from rllib_kd.checkpoints.pickles import CheckpointError, as_checkpoint_error
from rllib_kd.observations.masks import MASK
from rllib_kd.teachers.base import Teacher
from rllib_kd.teachers.described import NOTES, checked_shape, description_name, read_description, teacher_of
from rllib_kd.text import first_line

SHAPE_FILE = "observation_shape.json"  # in an archive that export() wrote


def load_torchscript(
    content: bytes, uri: str, description: bytes | None = None, *, trust_checkpoint: bool = False
) -> Teacher:
    """Load a TorchScript program from observations `[B, ...]` to Q-values `[B, A]`.

    TorchScript is code: its programs run when they are loaded (`__setstate__`) and called, and can write files
    (`aten::save`, `aten::from_file`).

    Args:
        content: content of the file.
        uri: its path, for messages.
        description: JSON with `observation_shape`; None if there is none beside the file. Files of `export()` do not
            need one.
        trust_checkpoint: whether it may be run.

    Raises:
        ValueError: it is not trusted, is broken, or does not record the shape of its observations.
    """
    if not trust_checkpoint:
        raise CheckpointError(
            f"'{uri}' is a TorchScript program; loading it runs its code, which can write files. Pass "
            "trust_checkpoint=True (--trust-checkpoint) if you trust it, or use ONNX or safetensors."
        )
    return _load(TorchScriptFunction, Archive(content, uri), content, uri, description, "TorchScript")


def load_pt2(content: bytes, uri: str, description: bytes | None = None, *, trust_checkpoint: bool = False) -> Teacher:
    """Load a program of `torch.export` (`.pt2`) from observations `[B, ...]` to Q-values `[B, A]`.

    `torch.export.load()` reads parts of it as pickles, which can run any code.

    Args:
        content: as in `load_torchscript()`.
        uri: as there.
        description: as there.
        trust_checkpoint: whether it may be run.

    Raises:
        ValueError: as there.
    """
    if not trust_checkpoint:
        raise CheckpointError(
            f"'{uri}' is a program of torch.export; loading it can run code, since parts of it are pickles. Pass "
            "trust_checkpoint=True (--trust-checkpoint) if you trust it, or use ONNX or safetensors."
        )
    return _load(ExportedFunction, Archive(content, uri), content, uri, description, "a program of torch.export")


def _load(
    kind: type[TorchScriptFunction | ExportedFunction],
    archive: Archive,
    content: bytes,
    uri: str,
    description: bytes | None,
    what: str,
) -> Teacher:
    """Load a trusted program."""
    own = next((name for name in sorted(archive.names) if name.endswith(f"/{SHAPE_FILE}")), None)
    with as_checkpoint_error(lambda error: f"'{uri}' cannot be read as {what}: {first_line(error)}."):
        if own is not None:
            shape = parse_json(archive.read(own))
        elif description is not None:
            shape = read_description(description).get("observation_shape")
        else:
            raise CheckpointError(
                f"'{uri}' does not record the shape of its observations. Put a file '{description_name(uri)}' beside "
                'it: {"observation_shape": [4]}.'
            )
        shape = checked_shape(shape)
        function = kind(content)
        places = [(note, name) for name in sorted(archive.names) for note in NOTES if name.endswith(f"/{note}")]
        notes = {note: archive.read(name).decode() for note, name in places}
    return teacher_of(function, shape, uri, function.num_parameters, notes=notes)


class ExportedFunction:
    """A program of `torch.export`, on the CPU, for which it was made.

    Args:
        content: content of the archive, whose pickles are loaded.
    """

    def __init__(self, content: bytes):
        self.content = content
        program = torch.export.load(io.BytesIO(content))
        takes_mask = _takes_mask(program.graph_signature.user_inputs)
        masks = [node.meta["val"] for node in program.graph.nodes if takes_mask and node.name == MASK]
        self._num_actions = [int(mask.shape[1]) for mask in masks]
        self._module = program.module()
        for parameter in self._module.parameters():
            parameter.requires_grad_(False)

    @property
    def num_parameters(self) -> int:
        """Return the number of its parameters."""
        return sum(parameter.numel() for parameter in self._module.parameters())

    def __call__(self, obs: Tensor) -> Tensor:
        """Return Q-values `[B, A]` of observations `[B, ...]`."""
        masks = [torch.ones(len(obs), *self._num_actions)] if self._num_actions else []
        return self._module(obs.cpu(), *masks)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.content,)


class TorchScriptFunction:
    """A TorchScript program, on the CPU: the weights of a frozen one are constants, which do not move.

    Args:
        content: content of the archive, whose code is run.
    """

    def __init__(self, content: bytes):
        self.content = content
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # newer torch announces the end of TorchScript each time
            self._script = torch.jit.load(io.BytesIO(content), map_location="cpu").eval()
        for parameter in self._script.parameters():
            parameter.requires_grad_(False)
        _, *arguments = self._script.forward.schema.arguments  # after `self`
        self._takes_mask = _takes_mask([each.name for each in arguments if not each.has_default_value()])

    @property
    def num_parameters(self) -> int:
        """Return the number of its parameters. Those of a frozen program are floats among its constants."""
        constants = self._script.code_with_constants[1].const_mapping.values()
        fixed = [each for each in (*self._script.buffers(), *constants) if isinstance(each, Tensor)]
        num_fixed = sum(tensor.numel() for tensor in fixed if tensor.is_floating_point())
        return sum(parameter.numel() for parameter in self._script.parameters()) or num_fixed

    def __call__(self, obs: Tensor) -> Tensor:
        """Return Q-values `[B, A]` of observations `[B, ...]`."""
        if self._takes_mask:
            return self._script(obs.cpu(), torch.ones(len(obs), 1))
        return self._script(obs.cpu())

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.content,)


def _takes_mask(inputs: Sequence[Any]) -> bool:
    """Return whether a program takes a mask of legal actions beside observations, as those that `export()` writes.

    Args:
        inputs: names of the inputs that it needs.

    Raises:
        ValueError: it needs other inputs.
    """
    if len(inputs) == 1 or list(inputs[1:]) == [MASK]:
        return len(inputs) == 2
    raise ValueError(f"it has the inputs {', '.join(map(str, inputs)) or 'none'}; one was expected: observations")
