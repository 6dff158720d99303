"""Teachers from safetensors files with a description of their layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import safetensors.torch

from rllib_kd import limits
from rllib_kd.checkpoints.json_text import parse_json
from rllib_kd.checkpoints.pickles import CheckpointError, as_checkpoint_error
from rllib_kd.networks.layers import whole
from rllib_kd.teachers.base import Teacher, outputs_of
from rllib_kd.teachers.described import PARTS, checked_parts, description_name, read_description, reason
from rllib_kd.teachers.layered import layered_teacher
from rllib_kd.teachers.plain import plain_teacher


def load_safetensors(
    content: bytes,
    uri: str,
    description: bytes | None = None,
    network: Mapping[str, Any] | None = None,
    *,
    has_pipeline: bool = False,
) -> Teacher:
    """Load weights with a description of their layers: in the file itself, as `export()` writes it, or beside it.

    Linear layers that form a chain are described by the activation between them: see plain.py.

    Args:
        content: content of the file.
        uri: its path, for messages.
        description: JSON with `layers` and `observation_shape`, as in docs/pages/numpy_runner.md; None if there is none
            beside the file.
        network: description of a chain, if the layers are not described; empty or None if there is none.
        has_pipeline: as of `plain_teacher()`.

    Raises:
        ValueError: there is no description, or it does not fit the weights.
    """
    try:
        header = parse_json(content[8 : 8 + int.from_bytes(content[:8], "little")])
        if len(header) > limits.MAX_WEIGHTS:
            raise ValueError(f"it has {len(header)} weights")
        loaded = safetensors.torch.load(content)
        if small := [name for name, tensor in loaded.items() if tensor.element_size() < 2]:
            raise ValueError(f"its weight {small[0][:100]!r} has numbers of one byte")
        if pairs := [name for name, tensor in loaded.items() if tensor.is_complex()]:
            raise ValueError(f"its weight {pairs[0][:100]!r} has complex numbers")
        tensors = {name: tensor.float() for name, tensor in loaded.items()}
        metadata = {name: _parsed(text) for name, text in header.get("__metadata__", {}).items()}
        if "layers" not in metadata and description is not None:
            metadata |= read_description(description)
    except Exception as error:  # of safetensors and of JSON
        raise CheckpointError(f"'{uri}' cannot be read as safetensors: {error}. Is the file complete?") from error
    if "layers" not in metadata and network:
        return plain_teacher(tensors, network, uri, has_pipeline=has_pipeline)
    if "layers" not in metadata or "observation_shape" not in metadata:
        raise CheckpointError(
            f"'{uri}' does not describe its layers. Put a file '{description_name(uri)}' beside it, with `layers` and "
            '`observation_shape` as in docs/pages/numpy_runner.md; or with {"activation": "relu"}, if they are a chain '
            "of linear layers with this activation."
        )
    with as_checkpoint_error(lambda error: f"'{uri}' has a network that does not fit: {reason(error)}"):
        layers, num_actions = metadata["layers"], metadata.get("num_actions")
        if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
            raise ValueError(f"its layers are {str(layers)[:100]!r}; expected a list of objects")
        return layered_teacher(
            layers,
            tensors,
            observation_shape=metadata["observation_shape"],
            num_actions=None if num_actions is None else whole(num_actions),
            parts=checked_parts(metadata[PARTS]) if PARTS in metadata else None,
            outputs=outputs_of({**metadata, **(network or {})}.get("outputs", "q_values")),
            source=uri,
        )


def _parsed(text: str) -> Any:
    """Parse a text of the metadata as JSON; a text that is none as it is."""
    try:
        return parse_json(text.encode())
    except ValueError:
        return text
