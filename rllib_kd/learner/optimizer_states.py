"""Saved states of optimizers, as the optimizers of the present students take them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ray.rllib.core.learner.learner import DEFAULT_OPTIMIZER

from rllib_kd.learner.group import StudentGroup
from rllib_kd.learner.stack import StackedStudents


def fitted(saved: Mapping[str, Any], groups: Iterable[StudentGroup]) -> dict[str, Any]:
    """Return saved states by the names of optimizers that there are now.

    Students that learned one by one may be stacked now, and features that were matched may not be matched any more.

    Args:
        saved: states of optimizers by name, as RLlib saves them.
        groups: the groups of the Learner.
    """
    optimizers = dict(saved)
    for group in groups:
        for name in group.students if not group.config.feature_coeff else ():
            if (own := f"{name}_{DEFAULT_OPTIMIZER}") in optimizers:
                optimizers[own] = _without_feature_map(optimizers[own])
        for stack in group.all_learners:
            if isinstance(stack, StackedStudents):
                joined = stack.optimizer_state(optimizers)
                for student in stack.members:  # RLlib would make new optimizers
                    optimizers.pop(f"{student.name}_{DEFAULT_OPTIMIZER}", None)
                if joined is not None:
                    optimizers[stack.optimizer_name] = joined
    return optimizers


def keep_epsilon(optimizer: Any) -> None:
    """Give an optimizer the ε with which it was made, as the config has it, instead of that of a restored state."""
    for group in optimizer.param_groups if "eps" in optimizer.defaults else ():
        group["eps"] = optimizer.defaults["eps"]


def _without_feature_map(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a student's state without the parameters of a feature map, which are a group of their own."""
    module, *others = saved["state"]["param_groups"]
    if not others:
        return saved
    own = {place: state for place, state in saved["state"]["state"].items() if place in module["params"]}
    return {**saved, "state": {**saved["state"], "state": own, "param_groups": [module]}}
