"""Trees as layers of PyTorch, and as Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rllib_kd.networks.trees.layer import TreeLayer, build_tree, describe_tree
from rllib_kd.networks.trees.module import TreeRLModule
from rllib_kd.students.trees.rules import python_source
from rllib_kd.teachers.base import Teacher
from rllib_kd.text import one_line


def is_tree(student: Teacher) -> bool:
    """Return whether a student is a tree."""
    return isinstance(student.module, TreeRLModule)


def tree_layer(module: TreeRLModule) -> TreeLayer:
    """Return the tree as a layer of PyTorch."""
    tensors: dict[str, Any] = {}
    return build_tree(describe_tree(module.tree, module.features, tensors), tensors)


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
