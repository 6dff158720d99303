"""A tree in words: names of what it compares, rules as text, and a Python function."""

from __future__ import annotations

import keyword
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from rllib_kd.networks.trees.arrays import Tree
from rllib_kd.networks.trees.features import Feature, Features


def names_of_entries(names: Sequence[str], num_inputs: int) -> list[str]:
    """Return the names of the observation's entries, with their numbers where two have one name; or x[0], x[1], ..."""
    counts = Counter(names)
    numbered = [name if counts[name] == 1 else f"{name}[{index}]" for index, name in enumerate(names)]
    return numbered or [f"x[{index}]" for index in range(num_inputs)]


def short(number: float) -> str:
    """Return a 32-bit float as the shortest decimal that is read back as the same one."""
    return str(np.float32(number))


def rules(
    tree: Tree,
    features: Features,
    names: Sequence[str] = (),
    *,
    thresholds: np.ndarray | None = None,
    note: Callable[[int], str] = lambda leaf: "",
) -> str:
    """Return the tree as nested rules, one line for each branch and leaf.

    Args:
        tree: the tree.
        features: what it compares.
        names: names of the observation's entries; none: "x[0]" and so on.
        thresholds: other thresholds than the tree's, in other units, `[I]`; None: its own.
        note: text at the end of a leaf's line.
    """
    named, chosen = names_of_entries(names, features.num_inputs), tree.actions
    shown = tree.threshold if thresholds is None else thresholds
    lines: list[str] = []

    todo: list[tuple[int | str, int]] = [(0, 0)]  # nodes and words, with their depths: a tree may be 4,000 deep
    while todo:
        node, depth = todo.pop()
        indent = "    " * depth
        if isinstance(node, str):
            lines.append(f"{indent}{node}")
        elif node >= tree.num_inner:
            leaf = node - tree.num_inner
            lines.append(f"{indent}action {int(chosen[leaf])}{note(leaf)}")
        else:
            feature, threshold = features[int(tree.feature[node])], short(shown[node])
            lines.append(f"{indent}if {feature.text(named)} <= {threshold}:")
            left, right = int(tree.left[node]), int(tree.right[node])
            todo += [(right, depth + 1), ("else:", depth), (left, depth + 1)]
    return "\n".join(lines)


def python_source(tree: Tree, features: Features, names: Sequence[str] = ()) -> str:
    """Return a Python module with `act(observation)` and `q_values(observation)`, which import nothing but struct.

    Numbers are compared as 32-bit floats, as in all other formats.
    """
    entries = _identifiers(names, features.num_inputs)
    used = [features[int(index)] for index in tree.feature]
    lines = [f"    {', '.join(entries)}{',' if len(entries) == 1 else ''} = map(_float32, observation)"]

    def visit(node: int, depth: int) -> None:
        indent = "    " * depth
        if node >= tree.num_inner:
            lines.append(f"{indent}return {node - tree.num_inner}")
            return
        lines.append(f"{indent}if {_expression(used[node], entries)} <= {float(tree.threshold[node])!r}:")
        visit(int(tree.left[node]), depth + 1)
        lines.append(f"{indent}else:")
        visit(int(tree.right[node]), depth + 1)

    if tree.depth > _MAX_NESTED:
        raise ValueError(
            f"Python nests no more than {_MAX_NESTED} conditions, but the tree is {tree.depth} deep. Use another one."
        )
    visit(0, 1)
    values = ",\n".join(f"    {tuple(map(float, row))!r}" for row in tree.values)
    return _PYTHON.format(
        num_inputs=features.num_inputs,
        leaf="\n".join(lines),
        values=values,
        actions=", ".join(map(str, tree.actions.tolist())),
        comma="," if tree.num_leaves == 1 else "",
    )


_MAX_NESTED = 90  # CPython's parser allows 100 levels of indentation

_PYTHON = '''\
# rllib_kd Python export. Observation shape: [{num_inputs}].
"""A decision tree: act(observation) returns the action, and q_values(observation) the values of all actions."""

import struct

ACTIONS = ({actions}{comma})

Q_VALUES = (
{values},
)


def _float32(number):
    return struct.unpack("f", struct.pack("f", number))[0]


def leaf(observation):
{leaf}


def act(observation):
    return ACTIONS[leaf(observation)]


def q_values(observation):
    return Q_VALUES[leaf(observation)]
'''


def _expression(feature: Feature, entries: Sequence[str]) -> str:
    text = feature.text(entries)
    return f"_float32({text})" if feature.operation else text


def _identifiers(names: Sequence[str], num_inputs: int) -> list[str]:
    """Return the names of the entries if Python can have them all as names of variables; else x0, x1, ..."""
    taken = {"struct", "map", "leaf", "act", "q_values", "observation", "_float32", "ACTIONS", "Q_VALUES", "__debug__"}
    usable = all(name.isascii() and name.isidentifier() and not keyword.iskeyword(name) for name in names)
    if names and usable and len(set(names)) == len(names) and not taken & set(names):
        return list(names)
    return [f"x{index}" for index in range(num_inputs)]
