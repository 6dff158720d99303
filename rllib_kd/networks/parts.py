"""The parts of RLlib's DQN modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.rllib.core.models.torch.encoder import TorchMLPEncoder
from ray.rllib.core.models.torch.heads import TorchMLPHead
from ray.rllib.core.models.torch.primitives import TorchMLP
from torch import nn

#: Packages whose parts compute exactly what their class does, and no more.
_PACKAGES = ("rllib_kd", "ray", "torch")
#: Parts that pass their input from one of their own parts to the next.
_CHAINS = (nn.Sequential, TorchMLP, TorchMLPEncoder, TorchMLPHead)
#: Attributes of a part in which PyTorch keeps its hooks.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def heads_of(module: Any) -> list[nn.Module]:
    """Return the heads of a DQN module: that of the advantages first, if it is dueling."""
    return [module.af, module.vf] if module.uses_dueling else [module.af]


def leaves_of(part: nn.Module) -> list[nn.Module]:
    """Return the parts of a part that have none themselves, in order: the layers, where they follow one another."""
    return [leaf for leaf in part.modules() if not list(leaf.children())]


def is_chain(network: nn.Module) -> bool:
    """Return whether its `leaves_of()` follow one another, and nothing else is done."""
    return all(map(_passes_on, network.modules()))


def _passes_on(part: nn.Module) -> bool:
    """Return whether a part does what its class does, and if it has parts, calls them one after the other."""
    return "forward" not in vars(part) and (type(part) in _CHAINS or not list(part.children()))


def hooks_of(module: nn.Module) -> list[Mapping[int, Any]]:
    """Return PyTorch's own dicts of the hooks of a module and of its parts, which are empty where there are none."""
    return [getattr(part, kind) for part in module.modules() for kind in _HOOKS]


def is_known(part: nn.Module) -> bool:
    """Return whether a part computes what its class does, without hooks, and whether the class is known."""
    is_plain = not part._forward_hooks and not part._forward_pre_hooks and "forward" not in vars(part)
    return is_plain and type(part).__module__.partition(".")[0] in _PACKAGES


def is_plain_linear(layer: nn.Module) -> bool:
    """Return whether a layer is linear, with a bias, and has weights of its own, which nothing computes."""
    return type(layer) is nn.Linear and {"weight", "bias"} <= dict(layer.named_parameters(recurse=False)).keys()


def last_linear(head: nn.Module) -> nn.Linear:
    """Return the output layer of a head; its inputs are the features of the last hidden layer."""
    return [layer for layer in head.modules() if isinstance(layer, nn.Linear)][-1]
