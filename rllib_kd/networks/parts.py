"""The parts of RLlib's DQN modules."""

from __future__ import annotations

from typing import Any

from torch import nn


def heads_of(module: Any) -> list[nn.Module]:
    """Return the heads of a DQN module: that of the advantages first, if it is dueling."""
    return [module.af, module.vf] if module.uses_dueling else [module.af]


def leaves_of(part: nn.Module) -> list[nn.Module]:
    """Return the parts of a part that have none themselves, in order: the layers, where they follow one another."""
    return [leaf for leaf in part.modules() if not list(leaf.children())]


def last_linear(head: nn.Module) -> nn.Linear:
    """Return the output layer of a head; its inputs are the features of the last hidden layer."""
    return [layer for layer in head.modules() if isinstance(layer, nn.Linear)][-1]
