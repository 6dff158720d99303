"""Described layers as nodes of ONNX: a graph is written in milliseconds, where torch's exporter takes seconds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from rllib_kd.export.onnx.graph import OnnxGraph
from rllib_kd.export.onnx.trees import add_tree
from rllib_kd.networks.layers import Layer

_ELEMENTWISE = {"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid", "elu": "Elu"}


class Value(NamedTuple):
    """What a layer takes or puts out.

    Args:
        name: its name in the graph.
        channels_first: whether it is an image `[B, C, H, W]`, as ONNX has them, where descriptions have
            `[B, H, W, C]`. Between two convolutions nothing is transposed.
    """

    name: str
    channels_first: bool = False


def add_layers(graph: OnnxGraph, layers: Sequence[Layer], tensors: Mapping[str, Tensor], x: Value) -> Value:
    """Add described layers to a graph, and return what they put out.

    Args:
        graph: the graph.
        layers: feed-forward layers, as `describe()` returns them.
        tensors: their tensors by name.
        x: what the first of them takes.

    Raises:
        KeyError: a layer is not known here.
    """
    padding = [0, 0, 0, 0]
    for layer in layers:
        op = layer["op"]
        if op == "zero_pad":  # part of the convolution behind it
            padding = layer["padding"]
        elif op == "conv2d":
            x, padding = _conv2d(graph, layer, tensors, _channels_first(graph, x), padding), [0, 0, 0, 0]
        elif op == "silu":
            x = x._replace(name=graph.add("Mul", x.name, graph.add("Sigmoid", x.name)))
        elif op in _ELEMENTWISE:
            x = x._replace(name=graph.add(_ELEMENTWISE[op], x.name))
        elif op == "pixels":
            x = _pixels(graph, layer, x)
        else:
            x = Value(_ADDERS[op](graph, layer, tensors, _channels_last(graph, x)))
    return x


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def _constants(graph: OnnxGraph, layer: Layer, tensors: Mapping[str, Tensor], *parts: str) -> list[str]:
    """Add tensors of a layer as constants, and return their names."""
    return [graph.constant(layer[part], _array(tensors[layer[part]])) for part in parts]


def _channels_first(graph: OnnxGraph, x: Value) -> Value:
    return x if x.channels_first else Value(graph.add("Transpose", x.name, perm=[0, 3, 1, 2]), channels_first=True)


def _channels_last(graph: OnnxGraph, x: Value) -> str:
    return graph.add("Transpose", x.name, perm=[0, 2, 3, 1]) if x.channels_first else x.name


def _conv2d(graph: OnnxGraph, layer: Layer, tensors: Mapping[str, Tensor], x: Value, padding: Sequence[int]) -> Value:
    left, right, top, bottom = padding
    weights = _constants(graph, layer, tensors, "weight", "bias")
    pads = [top, left, bottom, right]
    return Value(graph.add("Conv", x.name, *weights, strides=layer["stride"], pads=pads), channels_first=True)


def _pixels(graph: OnnxGraph, layer: Layer, x: Value) -> Value:
    name = x.name
    if layer["divisor"] != 1:
        name = graph.add("Div", name, graph.constant("divisor", np.float32(layer["divisor"])))
    return Value(name, channels_first=layer["channels_first"])


def _linear(graph: OnnxGraph, layer: Layer, tensors: Mapping[str, Tensor], x: str) -> str:
    return graph.add("Gemm", x, *_constants(graph, layer, tensors, "weight", "bias"), transB=1)


def _layer_norm(graph: OnnxGraph, layer: Layer, tensors: Mapping[str, Tensor], x: str) -> str:
    weights = _constants(graph, layer, tensors, "weight", "bias")
    return graph.add("LayerNormalization", x, *weights, axis=-1, epsilon=float(layer["eps"]))


def _flatten(graph: OnnxGraph, layer: Layer, tensors: Mapping[str, Tensor], x: str) -> str:
    return graph.add("Flatten", x, axis=1)


def _normalize(graph: OnnxGraph, layer: Layer, tensors: Mapping[str, Tensor], x: str) -> str:
    mean, std = _constants(graph, layer, tensors, "mean", "std")
    x = graph.add("Div", graph.add("Sub", x, mean), std)
    if layer["clip"] is None:
        return x
    limits = (graph.constant(name, np.float32(sign * layer["clip"])) for name, sign in (("low", -1), ("high", 1)))
    return graph.add("Clip", x, *limits)


def _one_hot(graph: OnnxGraph, layer: Layer, tensors: Mapping[str, Tensor], x: str) -> str:
    lengths = layer["lengths"]
    whose = graph.constant("whose", np.repeat(np.arange(len(lengths)), lengths))
    number = graph.constant("number", np.concatenate([np.arange(n, dtype=np.float32) for n in lengths]))
    rows = graph.add("Reshape", x, graph.constant("rows", np.array([-1, len(lengths)])))
    return graph.add("Cast", graph.add("Equal", graph.add("Gather", rows, whose, axis=1), number), to=1)  # to floats


def _dueling(graph: OnnxGraph, layer: Layer, tensors: Mapping[str, Tensor], x: str) -> str:
    advantage = add_layers(graph, layer["advantage"], tensors, Value(x)).name
    value = add_layers(graph, layer["value"], tensors, Value(x)).name
    mean = graph.add("ReduceMean", advantage, graph.constant("axes", np.array([-1])), keepdims=1)
    return graph.add("Add", graph.add("Sub", advantage, mean), value)


def _branches(graph: OnnxGraph, layer: Layer, tensors: Mapping[str, Tensor], x: str) -> str:
    parts = []
    for branch in layer["branches"]:
        start, end = branch["start"], branch["start"] + math.prod(branch["shape"])
        places = [graph.constant(name, np.array([n])) for name, n in (("start", start), ("end", end), ("axis", 1))]
        part = graph.add("Slice", x, *places)
        if len(branch["shape"]) > 1:
            part = graph.add("Reshape", part, graph.constant("shape", np.array([-1, *branch["shape"]])))
        done = add_layers(graph, branch["layers"], tensors, Value(part))
        parts.append(graph.add("Flatten", _channels_last(graph, done), axis=1))
    return graph.add("Concat", *parts, axis=1)


def _expectation(graph: OnnxGraph, layer: Layer, tensors: Mapping[str, Tensor], x: str) -> str:
    num_atoms = layer["num_atoms"]
    shape = graph.constant("shape", np.array([-1, layer["num_actions"], num_atoms]))
    probabilities = graph.add("Softmax", graph.add("Reshape", x, shape), axis=-1)
    atoms = np.linspace(layer["v_min"], layer["v_max"], num_atoms, dtype=np.float32)
    # No MatMul: onnxruntime cannot quantise one by a vector.
    products = graph.add("Mul", probabilities, graph.constant("atoms", atoms))
    return graph.add("ReduceSum", products, graph.constant("axes", np.array([-1])), keepdims=0)


def _tree(graph: OnnxGraph, layer: Layer, tensors: Mapping[str, Tensor], x: str) -> str:
    return add_tree(graph, layer, _array(tensors[layer["threshold"]]), _array(tensors[layer["values"]]), x)


_ADDERS: dict[str, Callable[[OnnxGraph, Layer, Mapping[str, Tensor], str], str]] = {
    "linear": _linear,
    "layer_norm": _layer_norm,
    "flatten": _flatten,
    "normalize": _normalize,
    "one_hot": _one_hot,
    "dueling": _dueling,
    "branches": _branches,
    "expectation": _expectation,
    "tree": _tree,
}


# --- Recurrent layers -------------------------------------------------------------------------------------------------


def add_cell(
    graph: OnnxGraph, layer: Layer, tensors: Mapping[str, Tensor], x: str, state: Sequence[str]
) -> tuple[str, ...]:
    """Add one step of an LSTM or a GRU, with PyTorch's order of gates, in operators that every runtime has.

    Args:
        graph: the graph.
        layer: its description.
        tensors: its tensors by name.
        x: the input `[B, units]`.
        state: the parts of the state, `[B, units]`.

    Returns:
        The parts of the next state; the first is the output.
    """
    add = graph.add
    inputs = add("Gemm", x, *_constants(graph, layer, tensors, "weight_ih", "bias_ih"), transB=1)
    hidden = add("Gemm", state[0], *_constants(graph, layer, tensors, "weight_hh", "bias_hh"), transB=1)

    def split(value: str, count: int) -> tuple[str, ...]:
        return graph.add_with_outputs(count, "Split", value, axis=1, num_outputs=count)

    if layer["op"] == "lstm":
        i, f, g, o = split(add("Add", inputs, hidden), 4)
        kept, new = add("Mul", add("Sigmoid", f), state[1]), add("Mul", add("Sigmoid", i), add("Tanh", g))
        c = add("Add", kept, new)
        return add("Mul", add("Sigmoid", o), add("Tanh", c)), c
    (r, z, n), (hidden_r, hidden_z, hidden_n) = split(inputs, 3), split(hidden, 3)
    z = add("Sigmoid", add("Add", z, hidden_z))
    reset = add("Mul", add("Sigmoid", add("Add", r, hidden_r)), hidden_n)
    n = add("Tanh", add("Add", n, reset))
    return (add("Add", n, add("Mul", z, add("Sub", state[0], n))),)
