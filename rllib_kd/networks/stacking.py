"""Several small MLPs as one: their weights side by side, so that a step of all costs little more than a step of one.

In small networks most of the time is spent on starting operations, not on arithmetic. Networks of equal depth share
them: layer by layer, their matrices are in one batch, the narrower ones padded with zeros. With an activation that is
0 at 0 the padding stays zero: its outputs are zeros, and it gets no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import torch
from ray.rllib.algorithms.dqn.torch.default_dqn_torch_rl_module import DefaultDQNTorchRLModule
from torch import Tensor, nn

from rllib_kd.networks.dqn_module import FlattenEncoder
from rllib_kd.networks.parts import heads_of, hooks_of, is_chain, is_plain_linear, leaves_of

#: Activations that are 0 at 0.
_ACTIVATIONS: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {
    nn.ReLU: torch.relu,
    nn.Tanh: torch.tanh,
    nn.SiLU: nn.functional.silu,
    nn.ELU: nn.functional.elu,
}


class Layers(NamedTuple):
    """Matrices and biases of an MLP in turn, and the functions between its layers."""

    params: list[Tensor]
    activations: list[Callable[[Tensor], Tensor]]


#: A hidden layer, and its activation.
_Hidden = tuple[nn.Linear, Callable[[Tensor], Tensor]]


def stacking_key(module: Any) -> Hashable | None:
    """Return a key that is equal for modules that can be stacked: depth, activations, observations and actions.

    None for a module that cannot be stacked: one that is not a plain MLP, or has hooks, which a stack passes by.
    """
    if not is_plain_mlp(module) or any(hooks_of(module)):
        return None
    kinds = tuple(type(layer) for layer in _layers(module.encoder, module.af))
    return module.observation_space.shape, int(module.action_space.n), kinds


def is_plain_mlp(module: Any) -> bool:
    """Return whether a module is an MLP with one output for each action, without a dueling head."""
    return _is_mlp(module) and not module.uses_dueling


def _is_mlp(module: Any) -> bool:
    """Return whether a module is an MLP with one output for each action, from its encoder to each of its heads."""
    if type(module) is not DefaultDQNTorchRLModule or module.num_atoms > 1:
        return False
    space = module.observation_space
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
        return False
    encoder, heads = module.encoder, heads_of(module)
    return all(map(is_chain, (encoder, *heads))) and all(_alternate(_layers(encoder, head)) for head in heads)


def _alternate(layers: Sequence[Any]) -> bool:
    """Return whether linear layers and known activations take turns, and the first and the last one are linear."""
    return len(layers) % 2 == 1 and all(
        is_plain_linear(layer) if i % 2 == 0 else _is_known(layer) for i, layer in enumerate(layers)
    )


def _is_known(activation: Any) -> bool:
    return type(activation) in _ACTIVATIONS and getattr(activation, "alpha", 1.0) == 1.0  # of an ELU


def learns_whole(module: Any) -> bool:
    """Return whether each layer of a stackable module learns for itself: none is frozen, or shares its weights."""
    params = _params_of(linears_of(module))
    return all(param.requires_grad for param in params) and len({*map(id, params)}) == len(params)


class PlainMLP:
    """A forward pass of a stackable module, without the overhead of RLlib's modules around their layers.

    The overhead is more than half of the time of a small network's pass. The parameters are the module's own.

    Args:
        module: an RLlib DQN module with a `stacking_key()`.
    """

    def __init__(self, module: Any):
        self._hidden, self._last = _hidden_and_last(module.encoder, module.af)
        self._hooks = hooks_of(module)

    @staticmethod
    def of(module: Any) -> PlainMLP | None:
        """Return None for a module that is not a plain MLP, or has hooks, which need a pass through it."""
        if not _is_mlp(module):
            return None
        mlp = DuelingMLP(module) if module.uses_dueling else PlainMLP(module)
        return None if mlp.has_hooks else mlp

    @property
    def has_hooks(self) -> bool:
        """Return whether the module has hooks now."""
        return any(self._hooks)

    @property
    def layers(self) -> Layers:
        """Return its parameters and activations."""
        params = _params_of([*(layer for layer, _ in self._hidden), self._last])
        return Layers(params, [activation for _, activation in self._hidden])

    def q_values(self, obs: Tensor) -> Tensor:
        """Return Q-values `[B, A]` of observations `[B, inputs]`."""
        return _outputs(obs, self._hidden, self._last)


class DuelingMLP(PlainMLP):
    """A `PlainMLP` of a dueling module: Wang et al. 2016, arXiv 1511.06581, eq. 9.

    Args:
        module: an RLlib DQN module with heads for advantages and for values.
    """

    def __init__(self, module: Any):
        super().__init__(module)
        values, self._last_of_values = _hidden_and_last(module.encoder, module.vf)
        num_shared = len(_parts(module.encoder)[0])
        self._shared, self._hidden = self._hidden[:num_shared], self._hidden[num_shared:]
        self._hidden_of_values = values[num_shared:]

    def q_values(self, obs: Tensor) -> Tensor:
        """Return Q-values `[B, A]` of observations `[B, inputs]`."""
        features = _hidden_outputs(obs, self._shared)
        advantages = _outputs(features, self._hidden, self._last)
        mean = torch.nan_to_num(advantages, neginf=torch.nan).nanmean(-1, keepdim=True)  # as RLlib's: −inf is illegal
        return advantages - mean + _outputs(features, self._hidden_of_values, self._last_of_values)


class StackedMLPs:
    """The common shape of several MLPs; it packs and unpacks their weights.

    Args:
        modules: N RLlib DQN modules with the same `stacking_key()`.
    """

    def __init__(self, modules: Sequence[Any]):
        parts = [_parts(module.encoder, module.af) for module in modules]
        self._linears = [linears for linears, _ in parts]
        self.activations = parts[0][1]

    @property
    def weights(self) -> list[list[Tensor]]:
        """Return for each module the matrix and bias of each layer."""
        return list(map(_params_of, self._linears))

    @torch.no_grad()
    def pack(self, weights: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Pack weights like `weights`: matrices `[N, inputs, units]` and biases `[N, 1, units]` in turn."""
        packed = []
        for tensors in zip(*weights, strict=True):
            views = [_matrix(tensor) for tensor in tensors]
            height, width = (max(view.shape[axis] for view in views) for axis in (0, 1))
            batch = views[0].new_zeros(len(views), height, width)
            for into, view in zip(batch, views, strict=True):
                into[: view.shape[0], : view.shape[1]] = view
            packed.append(batch)
        return packed

    @torch.no_grad()
    def unpack(self, packed: Sequence[Tensor], weights: Sequence[Sequence[Tensor]]) -> None:
        """Write the results of `pack()` into weights like `weights`."""
        for batch, tensors in zip(packed, zip(*weights, strict=True), strict=True):
            for stacked, tensor in zip(batch, tensors, strict=True):
                view = _matrix(tensor)
                view.copy_(stacked[: view.shape[0], : view.shape[1]])

    def q_values(self, packed: Sequence[Tensor], obs: Tensor) -> Tensor:
        """Return Q-values `[N, B, A]` of observations `[B, inputs]`, with weights from `pack()`."""
        x = obs.expand(len(packed[0]), *obs.shape)
        for i, (matrix, bias) in enumerate(zip(packed[::2], packed[1::2], strict=True)):
            x = torch.baddbmm(bias, x, matrix)
            if i < len(self.activations):
                x = self.activations[i](x)
        return x


def _matrix(tensor: Tensor) -> Tensor:
    """Return a matrix as `[inputs, units]`, a bias as `[1, units]`."""
    return tensor.t() if tensor.ndim == 2 else tensor.unsqueeze(0)


def linears_of(module: Any) -> list[nn.Linear]:
    """Return the linear layers of a module with a `stacking_key()`, in the order in which they run."""
    return _parts(module.encoder, module.af)[0]


def _params_of(linears: Sequence[nn.Linear]) -> list[Tensor]:
    """Return the matrix and bias of each layer, in turn."""
    return [param for linear in linears for param in (linear.weight, linear.bias)]


def _parts(*networks: nn.Module) -> tuple[list[nn.Linear], list[Callable[[Tensor], Tensor]]]:
    """Return the linear layers of the parts of an MLP, and the activations between them."""
    layers = _layers(*networks)
    linears = [layer for layer in layers if isinstance(layer, nn.Linear)]
    return linears, [_ACTIVATIONS[type(layer)] for layer in layers if not isinstance(layer, nn.Linear)]


def _layers(*networks: nn.Module) -> list[nn.Module]:
    """Return the layers that an observation passes, in order, including unknown ones."""
    leaves = [leaf for network in networks for leaf in leaves_of(network)]
    return [leaf for leaf in leaves if not isinstance(leaf, (nn.Sequential, FlattenEncoder))]  # without layers


def _hidden_and_last(*networks: nn.Module) -> tuple[list[_Hidden], nn.Linear]:
    """Return an MLP's hidden layers with their activations, and its last layer.

    The layers and not their weights, which others may replace, as `load_state_dict(..., assign=True)` does.
    """
    (*hidden, last), activations = _parts(*networks)
    return list(zip(hidden, activations, strict=True)), last


def _hidden_outputs(x: Tensor, hidden: Sequence[_Hidden]) -> Tensor:
    for layer, activation in hidden:
        x = activation(layer.forward(x))
    return x


def _outputs(x: Tensor, hidden: Sequence[_Hidden], last: nn.Linear) -> Tensor:
    return last.forward(_hidden_outputs(x, hidden))
