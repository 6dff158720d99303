"""Write a student as ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from rllib_kd.export.artifact import require
from rllib_kd.export.formats import (
    describe,
    example_inputs,
    exportable_network,
    input_shape,
    notes_of,
    quiet,
    refusing_branches,
    state_of,
)
from rllib_kd.export.onnx.graph import OPSET, OnnxGraph
from rllib_kd.export.onnx.integers import QUANTIZATION, closest_onnx_integers
from rllib_kd.export.onnx.layers import Value, add_cell, add_layers
from rllib_kd.networks.parts import is_known
from rllib_kd.observations.masks import MASK
from rllib_kd.teachers.base import Teacher


def write_onnx(student: Teacher, file: Path, *, int8_obs: np.ndarray | None = None, takes_mask: bool = False) -> None:
    """Write the network as ONNX, with a mask of legal actions on request.

    Args:
        student: the frozen network.
        file: path.
        int8_obs: None: floats. Recorded observations `[N, ...]`, N ≥ 1, by which weights of 8 bits are made.
        takes_mask: whether it has the input `action_mask`.

    Raises:
        ValueError: the network is of the user's own making, and onnxscript, which is needed for it, is missing.
    """
    import onnx

    notes = notes_of(student)
    model = _from_description(student, takes_mask=takes_mask) or _exported_by_torch(student, takes_mask=takes_mask)
    if int8_obs is not None:
        file.write_bytes(model.SerializeToString())
        num_actions = int(student.action_space.n) if takes_mask else None
        with quiet():
            model, notes[QUANTIZATION] = closest_onnx_integers(file, int8_obs, num_actions=num_actions)
    _forget_origin(model)
    if notes:
        onnx.helper.set_model_props(model, notes)
    file.write_bytes(model.SerializeToString())


def _from_description(student: Teacher, *, takes_mask: bool) -> Any | None:
    """Return the model made from the description of the layers, or None if the network has no description."""
    if not all(map(is_known, student.module.modules())):
        return None
    try:
        layers, tensors = describe(student)
    except ValueError:  # a layer that has no description
        return None
    graph, num_actions, sizes = OnnxGraph(), int(student.action_space.n), state_of(student)
    if layers[-1]["op"] == "expectation":
        layers[-1]["num_actions"] = num_actions  # the outputs of an empty batch do not show it
    x = Value(graph.input("obs", input_shape(student)))
    state = [graph.input(name, (units,)) for name, units in sizes.items()]
    after: tuple[str, ...] = ()
    if state:
        place = next(i for i, layer in enumerate(layers) if layer["op"] in ("lstm", "gru"))
        x = add_layers(graph, layers[:place], tensors, x)
        after = add_cell(graph, layers[place], tensors, x.name, state)
        layers, x = layers[place + 1 :], Value(after[0])
    q_values = add_layers(graph, layers, tensors, x).name
    if takes_mask:
        legal = graph.add("Greater", graph.input(MASK, (num_actions,)), graph.constant("half", np.float32(0.5)))
        q_values = graph.add("Where", legal, q_values, graph.constant("illegal", np.float32(-np.inf)))
    outputs = {"q_values": (q_values, (num_actions,))}
    for (name, units), value in zip(sizes.items(), after, strict=True):
        outputs[f"{name}_out"] = (value, (units,))
    return graph.model(outputs)


def _exported_by_torch(student: Teacher, *, takes_mask: bool) -> Any:
    require("onnxscript")
    network = exportable_network(student)
    state = list(state_of(student))
    names = ["obs", *state, *([MASK] if takes_mask else [])]
    batch = torch.export.Dim("batch")
    each = {0: batch}
    # A network of parts takes them as one argument.
    shapes: Any = {"obs": each, "more": (each,) * (len(names) - 1)} if state else dict.fromkeys(names, each)

    with quiet(), torch.no_grad(), refusing_branches():
        program = torch.onnx.export(
            network,
            example_inputs(student, takes_mask=takes_mask),
            input_names=names,
            output_names=["q_values", *(f"{name}_out" for name in state)],
            dynamic_shapes=shapes,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # with the exporter that is chosen here
    return program.model_proto


def _forget_origin(model: Any) -> None:
    """Remove notes of torch's exporter on this machine: stack traces with paths, twice the size of a student."""
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        for name in ("doc_string", "metadata_props"):
            if name in part.DESCRIPTOR.fields_by_name:
                part.ClearField(name)
    for value in (*model.graph.input, *model.graph.output):
        value.ClearField("metadata_props")
    del model.graph.value_info[:]  # shapes in between, which every runtime infers
