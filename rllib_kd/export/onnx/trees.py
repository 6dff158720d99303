"""A described tree as nodes of ONNX: differences, sums and products of entries, and a TreeEnsembleRegressor."""

from __future__ import annotations

from typing import Any

import numpy as np

from rllib_kd.export.onnx.graph import OnnxGraph
from rllib_kd.networks.layers import Layer


def add_tree(graph: OnnxGraph, layer: Layer, threshold: np.ndarray, values: np.ndarray, x: str) -> str:
    """Add a tree to a graph, and return its outputs `[B, A]`.

    Args:
        graph: the graph.
        layer: the description of the tree.
        threshold: of each inner node, `[nodes]`.
        values: of each leaf, `[leaves, A]`.
        x: the entries that are compared, `[B, inputs]`.
    """
    compared = list(zip(layer["operation"], layer["first"], layer["second"], strict=True))
    places = list(layer["first"])
    if any(layer["operation"]):
        each = sorted(set(compared))
        places = [each.index(one) for one in compared]
        x = _add_features(graph, each, x)
    return graph.add("TreeEnsembleRegressor", x, domain="ai.onnx.ml", **_attributes(layer, places, threshold, values))


def _add_features(graph: OnnxGraph, each: list[tuple[str, int, int]], x: str) -> str:
    """Add the features that are compared, side by side; `each` is sorted by their operations."""

    def entries(side: int, operation: str) -> str:
        indices = np.array([feature[side] for feature in each if feature[0] == operation])
        return graph.add("Gather", x, graph.constant("entries", indices), axis=1)

    parts = []
    for operation in sorted({feature[0] for feature in each}):
        first = entries(1, operation)
        op = {"": None, "-": "Sub", "+": "Add", "*": "Mul"}[operation]
        parts.append(first if op is None else graph.add(op, first, entries(2, operation)))
    return graph.add("Concat", *parts, axis=1)


def _attributes(layer: Layer, places: list[int], threshold: np.ndarray, values: np.ndarray) -> dict[str, Any]:
    inner, (leaves, num_actions) = len(threshold), values.shape
    nodes = range(inner + leaves)
    zeros = [0] * leaves
    return {
        "n_targets": num_actions,
        "aggregate_function": "SUM",
        "post_transform": "NONE",
        "nodes_treeids": [0 for _ in nodes],
        "nodes_nodeids": list(nodes),
        "nodes_featureids": [*places, *zeros],
        "nodes_modes": ["BRANCH_LEQ"] * inner + ["LEAF"] * leaves,
        "nodes_values": [*threshold.tolist(), *map(float, zeros)],
        "nodes_truenodeids": [*layer["left"], *zeros],
        "nodes_falsenodeids": [*layer["right"], *zeros],
        "target_treeids": [0] * (leaves * num_actions),
        "target_nodeids": [inner + leaf for leaf in range(leaves) for _ in range(num_actions)],
        "target_ids": list(range(num_actions)) * leaves,
        "target_weights": values.ravel().tolist(),
    }
