"""Weights of a module as arrays that no longer change."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

#: Weights, running statistics included, by their names in the module.
Weights = Mapping[str, np.ndarray]


def weights_of(module: Any, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Return a module's weights: all, or those with these names."""
    own = module.state_dict()
    return {name: own[name].detach().cpu().numpy().copy() for name in (own if names is None else names)}


def have_same_weights(module: Any, other: Any) -> bool:
    """Return whether two modules of one shape have the same weights."""
    own, others = module.state_dict(), other.state_dict()
    return all(torch.equal(weight, others[name]) for name, weight in own.items())


def set_weights(module: Any, weights: Weights) -> None:
    """Give a module these weights; others stay as they are, such as those of target networks."""
    module.load_state_dict(module.state_dict() | {name: torch.as_tensor(value) for name, value in weights.items()})


def with_weights(module: Any, weights: Weights) -> Any:
    """Return a copy of a module with these weights."""
    copied = copy.deepcopy(module)
    set_weights(copied, weights)
    return copied
