"""Trees as files: ONNX's TreeEnsemble, and Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from rllib_kd.networks.trees.features import Features
from rllib_kd.networks.trees.layer import TreeLayer, build_tree, describe_tree
from rllib_kd.networks.trees.module import TreeRLModule
from rllib_kd.students.trees.rules import python_source
from rllib_kd.teachers.base import Teacher
from rllib_kd.text import one_line

#: ONNX's operators for machine learning: the oldest that onnx.helper and the runtimes have in common.
_ML_OPSET = 3


def is_tree(student: Teacher) -> bool:
    """Return whether a student is a tree."""
    return isinstance(student.module, TreeRLModule)


def tree_layer(module: TreeRLModule) -> TreeLayer:
    """Return the tree as a layer of PyTorch."""
    tensors: dict[str, Any] = {}
    return build_tree(describe_tree(module.tree, module.features, "tree", tensors), tensors)


def onnx_model(module: TreeRLModule, opset: int) -> Any:
    """Return the tree as an ONNX model: differences, sums and products of entries, and a TreeEnsembleRegressor."""
    from onnx import TensorProto, checker, helper

    tree, features = module.tree, module.features
    used, places = np.unique(tree.feature, return_inverse=True)
    nodes: list[Any] = []
    initializers: list[Any] = []
    compared = "obs"
    if module.shape.oblique and len(used):
        nodes, initializers = _added(features, used)
        compared = "compared"
    else:
        places = tree.feature
    nodes.append(
        helper.make_node(
            "TreeEnsembleRegressor", [compared], ["q_values"], domain="ai.onnx.ml", **_attributes(module, places)
        )
    )
    graph = helper.make_graph(
        nodes,
        "tree",
        [helper.make_tensor_value_info("obs", TensorProto.FLOAT, ["batch", features.num_inputs])],
        [helper.make_tensor_value_info("q_values", TensorProto.FLOAT, ["batch", tree.values.shape[1]])],
        initializer=initializers,
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", _ML_OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    checker.check_model(model, full_check=True)
    return model


def _added(features: Features, used: np.ndarray) -> tuple[list[Any], list[Any]]:
    """Return the nodes and constants that compute the features that are compared, as "compared"."""
    from onnx import helper, numpy_helper

    nodes, initializers, parts, order = [], [], [], []
    for operation, op in (("", None), ("-", "Sub"), ("+", "Add"), ("*", "Mul")):
        own = [place for place, index in enumerate(used) if features[int(index)].operation == operation]
        if not own:
            continue
        name = op or "Entry"
        for side, indices in (("first", features.first), ("second", features.second)):
            constant = f"{name}_{side}_indices"
            initializers.append(numpy_helper.from_array(indices[used[own]], constant))
            nodes.append(helper.make_node("Gather", ["obs", constant], [f"{name}_{side}"], axis=1))
            if op is None:
                break
        if op is not None:
            nodes.append(helper.make_node(op, [f"{name}_first", f"{name}_second"], [name]))
        parts.append(name if op else "Entry_first")
        order += own
    nodes.append(helper.make_node("Concat", parts, ["in_parts"], axis=1))
    initializers.append(numpy_helper.from_array(np.argsort(order), "order"))
    nodes.append(helper.make_node("Gather", ["in_parts", "order"], ["compared"], axis=1))
    return nodes, initializers


def _attributes(module: TreeRLModule, places: np.ndarray) -> dict[str, Any]:
    tree = module.tree
    inner, leaves, num_actions = tree.num_inner, tree.num_leaves, tree.values.shape[1]
    nodes = range(inner + leaves)
    zeros = [0] * leaves
    return {
        "n_targets": num_actions,
        "aggregate_function": "SUM",
        "post_transform": "NONE",
        "nodes_treeids": [0 for _ in nodes],
        "nodes_nodeids": list(nodes),
        "nodes_featureids": [*places.tolist(), *zeros],
        "nodes_modes": ["BRANCH_LEQ"] * inner + ["LEAF"] * leaves,
        "nodes_values": [*tree.threshold.tolist(), *map(float, zeros)],
        "nodes_truenodeids": [*tree.left.tolist(), *zeros],
        "nodes_falsenodeids": [*tree.right.tolist(), *zeros],
        "target_treeids": [0] * (leaves * num_actions),
        "target_nodeids": [inner + leaf for leaf in range(leaves) for _ in range(num_actions)],
        "target_ids": list(range(num_actions)) * leaves,
        "target_weights": tree.values.ravel().tolist(),
    }


def check_python(student: Teacher, has_stages: bool) -> None:
    """Check that a student can be a Python file: a tree that takes observations as they are.

    Raises:
        ValueError: it cannot.
    """
    if not is_tree(student):
        raise ValueError(
            f"format='python' is for trees, but '{one_line(student.source)}' is a network. Use 'safetensors', which "
            "numpy plays."
        )
    if has_stages:
        raise ValueError(
            "A Python file takes observations as they are, but the student has filters or encodings before its tree. "
            "Use another format."
        )


def write_python(student: Teacher, file: Path) -> None:
    """Write a tree as a Python file, which imports nothing but struct."""
    module = student.module
    file.write_text(python_source(module.tree, module.features, module.shape.names), encoding="utf-8")


def recorded_shape(text: str) -> Any:
    """Return the shape of one observation that the first line of a Python file names."""
    return json.loads(text.splitlines()[0].partition("Observation shape: ")[2].rstrip("."))
