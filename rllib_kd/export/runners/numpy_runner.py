"""Runs a student from safetensors with numpy alone."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ELEMENTWISE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "sigmoid": lambda x: 0.5 + 0.5 * np.tanh(0.5 * x),  # as tanh, which cannot overflow
    "silu": lambda x: x * (0.5 + 0.5 * np.tanh(0.5 * x)),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
}


def load(path: str) -> Callable[..., np.ndarray]:
    """Return the function from observations `[B, ...]` to Q-values `[B, A]` of a safetensors file.

    It also takes the legal actions, `action_mask` `[B, A]` (1: legal, 0: not): the others get −inf. Of a recurrent
    student it is a `Remembering`, for which remembering.py must lie beside this file.
    """
    data = Path(path).read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    metadata = header.pop("__metadata__")
    layers = json.loads(metadata["layers"])
    tensors = {
        name: np.frombuffer(data[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]], "<f4").reshape(
            entry["shape"]
        )
        for name, entry in header.items()
    }

    for tree in (layer for layer in layers if layer["op"] == "tree"):
        _check_tree(tree, tensors)
    if "state" in metadata:
        return _remembering(layers, tensors, json.loads(metadata["state"]))

    def q_values(obs: np.ndarray, action_mask: np.ndarray | None = None) -> np.ndarray:
        q = run(layers, tensors, np.asarray(obs, np.float32))
        return q if action_mask is None else np.where(np.asarray(action_mask) == 1, q, np.float32(-np.inf))

    return q_values


def run(layers: list[dict[str, Any]], tensors: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """Return the outputs of the layers for inputs `x`; images are `[B, H, W, C]` throughout."""
    for layer in layers:
        op = layer["op"]
        if op in ELEMENTWISE:
            x = ELEMENTWISE[op](x)
        elif op == "linear":
            x = x @ tensors[layer["weight"]].T + tensors[layer["bias"]]
        elif op == "layer_norm":
            x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + np.float32(layer["eps"]))
            x = x * tensors[layer["weight"]] + tensors[layer["bias"]]
        elif op == "normalize":
            x = (x - tensors[layer["mean"]]) / tensors[layer["std"]]
            x = x if layer["clip"] is None else np.clip(x, -layer["clip"], layer["clip"])
        elif op == "one_hot":
            numbers = x.reshape(len(x), -1)
            x = np.concatenate([numbers[:, [i]] == np.arange(n) for i, n in enumerate(layer["lengths"])], -1)
            x = x.astype(np.float32)
        elif op == "pixels":
            x = (np.moveaxis(x, 1, -1) if layer["channels_first"] else x) / np.float32(layer["divisor"])
        elif op == "flatten":
            x = x.reshape(len(x), -1)
        elif op == "zero_pad":
            left, right, top, bottom = layer["padding"]
            x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
        elif op == "conv2d":
            weight, (down, along) = tensors[layer["weight"]], layer["stride"]  # weight [O, C, h, w]
            patches = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], (1, 2))[:, ::down, ::along]
            x = np.tensordot(patches, weight, ((3, 4, 5), (1, 2, 3))) + tensors[layer["bias"]]
        elif op == "dueling":
            advantage = run(layer["advantage"], tensors, x)
            x = run(layer["value"], tensors, x) + advantage - advantage.mean(-1, keepdims=True)
        elif op == "branches":
            parts = [x[:, p["start"] :][:, : int(np.prod(p["shape"]))] for p in layer["branches"]]
            shaped = [(p, x.reshape(len(x), *p["shape"])) for p, x in zip(layer["branches"], parts, strict=True)]
            x = np.concatenate([run(p["layers"], tensors, part).reshape(len(x), -1) for p, part in shaped], -1)
        elif op == "expectation":  # of a C51's distribution over atoms
            logits = x.reshape(len(x), -1, layer["num_atoms"])  # [B, A, atoms]
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            atoms = np.linspace(layer["v_min"], layer["v_max"], layer["num_atoms"], dtype=np.float32)
            x = weights @ atoms / weights.sum(-1)
        elif op == "tree":
            x = _tree(layer, tensors, x)
        else:
            raise ValueError(f"This runner does not support the layer '{op}'.")
    return x


def _check_tree(layer: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    """Check that each node leads to two later ones, to which no other leads: a cycle would never end."""
    threshold, values = tensors[layer["threshold"]], tensors[layer["values"]]
    left, right, num_inner = layer["left"], layer["right"], len(threshold)
    if not (
        len(left) == len(right) == num_inner == len(values) - 1
        and all(type(child) is int for child in (*left, *right))
        and sorted((*left, *right)) == list(range(1, 2 * num_inner + 1))
        and all(min(pair) > node for node, pair in enumerate(zip(left, right, strict=True)))
    ):
        raise ValueError("The file has a tree whose nodes are no tree: one leads to itself, to an earlier or no node.")
    if not (np.isfinite(threshold).all() and np.isfinite(values).all()):
        raise ValueError("The file has a tree with a threshold or a value that is NaN or infinite.")


def _tree(layer: dict[str, Any], tensors: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """Return the values at the leaves that rows `x` reach: they go left if a node's number is at most its threshold."""
    first, second, left, right = (np.array(layer[name], np.int64) for name in ("first", "second", "left", "right"))
    operation, one, other = np.array(layer["operation"]), x[:, first], x[:, second]
    with np.errstate(over="ignore", invalid="ignore"):  # infinities are compared as they are
        compared = np.where(operation == "*", one * other, one)
        compared = np.where(operation == "-", one - other, np.where(operation == "+", one + other, compared))
    is_left, num_inner = compared <= tensors[layer["threshold"]], len(first)
    rows, nodes = np.arange(len(x)), np.zeros(len(x), np.int64)
    while (inner := nodes < num_inner).any():
        here = np.minimum(nodes, num_inner - 1)
        nodes = np.where(inner, np.where(is_left[rows, here], left[here], right[here]), nodes)
    return tensors[layer["values"]][nodes - num_inner]


def _remembering(
    layers: list[dict[str, Any]], tensors: dict[str, np.ndarray], sizes: dict[str, int]
) -> Callable[..., np.ndarray]:
    """Return a recurrent student as a function that keeps its state."""
    beside = f"{__package__}.remembering" if __package__ else "remembering"  # taken along without the package
    remembering = importlib.import_module(beside)
    (place,) = (i for i, layer in enumerate(layers) if layer["op"] in ("lstm", "gru"))

    def step(
        obs: np.ndarray, state: dict[str, np.ndarray], action_mask: np.ndarray | None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        after = _cell(layers[place], tensors, run(layers[:place], tensors, obs), state)
        q = run(layers[place + 1 :], tensors, after["state_h"])
        return q if action_mask is None else np.where(np.asarray(action_mask) == 1, q, np.float32(-np.inf)), after

    return remembering.Remembering(step, sizes)


def _cell(
    layer: dict[str, Any], tensors: dict[str, np.ndarray], x: np.ndarray, state: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the state after one step of an LSTM or a GRU, with PyTorch's order of gates."""
    sigmoid, h = ELEMENTWISE["sigmoid"], state["state_h"]
    inputs = x @ tensors[layer["weight_ih"]].T + tensors[layer["bias_ih"]]
    hidden = h @ tensors[layer["weight_hh"]].T + tensors[layer["bias_hh"]]
    if layer["op"] == "lstm":
        i, f, g, o = np.split(inputs + hidden, 4, -1)
        c = sigmoid(f) * state["state_c"] + sigmoid(i) * np.tanh(g)
        return {"state_h": sigmoid(o) * np.tanh(c), "state_c": c}
    (r, z, n), (hidden_r, hidden_z, hidden_n) = np.split(inputs, 3, -1), np.split(hidden, 3, -1)
    z, n = sigmoid(z + hidden_z), np.tanh(n + sigmoid(r + hidden_r) * hidden_n)
    return {"state_h": n + z * (h - n)}
