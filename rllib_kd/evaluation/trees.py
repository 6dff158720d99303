"""Figures of a student that is a tree: its rules, and the states and regret at its leaves."""

from __future__ import annotations

from typing import Any

import numpy as np

from rllib_kd.evaluation.measures import all_q_values
from rllib_kd.learner.label_statistics import regret
from rllib_kd.networks.trees.module import TreeRLModule
from rllib_kd.observations.pipeline import Normalize
from rllib_kd.students.trees.rules import names_of_entries, rules, short
from rllib_kd.teachers.base import Teacher


# Longer than other functions by its docstring.
def tree_figures(
    teacher: Teacher,
    student: Teacher,
    teacher_inputs: np.ndarray,
    student_inputs: np.ndarray,
    mask: np.ndarray | None = None,
) -> dict[str, Any] | None:
    """Return a tree as data, for JSON and drawings; None of a student that is none.

    Args:
        teacher: the teacher.
        student: its student.
        teacher_inputs: states that the student visits, as inputs of the teacher's network, `[M, ...]`.
        student_inputs: the same as inputs of the student's network, `[M, inputs]`.
        mask: the legal actions there, `[M, A]`; None: all are.

    Returns:
        `num_leaves`, `depth` and `num_parameters`; `names` of the observation's entries; `nodes`, each with `compared`,
        `threshold` (in the environment's units), `left` and `right`; `leaves`, each with its `action`, its `share` of
        the states and the mean `regret` of its action there (None if no state reaches it); and `rules`, as text. Nodes
        are numbered from the root, 0, and leaves behind them.
    """
    if not isinstance(student.module, TreeRLModule):
        return None
    module: TreeRLModule = student.module
    tree, features = module.tree, module.features
    names, thresholds = _in_units_of_the_environment(student)
    taken = all_q_values(student, student_inputs, mask).argmax(-1)
    reached = module.leaves(np.asarray(student_inputs, np.float32))
    regrets = regret(all_q_values(teacher, teacher_inputs, mask), taken).numpy()
    counts = np.bincount(reached, minlength=tree.num_leaves)
    totals = np.bincount(reached, weights=regrets, minlength=tree.num_leaves)
    leaves = [
        {
            "action": int(tree.actions[leaf]),
            "share": float(counts[leaf] / len(reached)),
            "regret": float(totals[leaf] / counts[leaf]) if counts[leaf] else None,
        }
        for leaf in range(tree.num_leaves)
    ]

    def note(leaf: int) -> str:
        own = leaves[leaf]
        told = f"  # {100 * counts[leaf] / len(reached):.1f} % of states"
        return told if own["regret"] is None else f"{told}, regret {own['regret']:.3g}"

    return {
        "num_leaves": tree.num_leaves,
        "depth": tree.depth,
        "num_parameters": tree.num_parameters,
        "names": names,
        "nodes": [
            {
                "compared": features[int(tree.feature[node])].text(names),
                "threshold": short(thresholds[node]),
                "left": int(tree.left[node]),
                "right": int(tree.right[node]),
            }
            for node in range(tree.num_inner)
        ],
        "leaves": leaves,
        "rules": rules(tree, features, names, thresholds=thresholds, note=note),
    }


def _in_units_of_the_environment(student: Teacher) -> tuple[list[str], np.ndarray]:
    """Return the names of what is compared, and the thresholds; behind a filter as they are before it, if possible."""
    module: TreeRLModule = student.module
    tree, features = module.tree, module.features
    names = names_of_entries(module.shape.names, features.num_inputs)
    stages = () if student.pipeline is None else student.pipeline.stages
    filters = [stage for stage in stages if isinstance(stage, Normalize)]
    if not filters:
        return names, tree.threshold
    if len(filters) > 1 or not isinstance(stages[-1], Normalize) or module.shape.oblique:
        return [f"filtered {name}" for name in names], tree.threshold
    mean = np.zeros(features.num_inputs) if filters[0].mean is None else np.ravel(filters[0].mean)
    std = np.ones(features.num_inputs) if filters[0].std is None else np.ravel(filters[0].std)
    entries = features.first[tree.feature]
    return names, (tree.threshold * std[entries] + mean[entries]).astype(np.float32)
