"""Weights of 8 bits in plain MLPs, as the C export with int8 rounds them (`export/c/integers.py`).

Each unit has a step of its own, its largest weight / 127, and its weights are integers times that step. A network of
such weights exports to C without any further change of its weights, since the same steps are found again. Biases have
32 bits there, and activations of small networks 16, which a network does not have to learn for.

While it learns, the forward pass takes the rounded weights, and the gradient passes to those before rounding as if
there were none (straight-through; Jacob et al. 2018, arXiv 1712.05877).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rllib_kd.networks.stacking import PlainMLP, is_plain_mlp

#: Values of `quantize`.
QUANTIZATIONS = ("int8",)
_LARGEST = 127


def rounded(weight: Tensor, *, dim: int = -1, scale: Tensor | None = None) -> Tensor:
    """Return rounded weights. Their gradient is that of the weights before rounding.

    Args:
        weight: weights of several units.
        dim: dimension of their inputs.
        scale: factor by which each input is divided before it reaches these weights, in the shape of `weight` or
            broadcast to it: rounded are those of inputs as they are. None: 1.
    """
    with torch.no_grad():
        raw = weight if scale is None else weight / scale
        steps = raw.abs().amax(dim, keepdim=True).div_(_LARGEST).clamp_(min=torch.finfo(raw.dtype).tiny)
        whole = raw / steps
        whole = torch.trunc(whole + torch.copysign(torch.tensor(0.5, dtype=raw.dtype, device=raw.device), whole))
        result = whole * steps if scale is None else whole * steps * scale
        change = result - weight
    return weight + change


def check_can_round(module: Any, name: str) -> None:
    """Check that a student is a plain MLP.

    Args:
        module: its RLModule.
        name: its module ID, for the message.

    Raises:
        ValueError: it is not.
    """
    if not is_plain_mlp(module):
        raise ValueError(
            f"quantize='int8' needs a plain MLP of vectors, with relu, tanh, silu or elu and one output for each "
            f"action, but the student '{name}' is another {type(module).__name__}. Leave quantize out, and export with "
            "--int8, which rounds after training."
        )


@torch.no_grad()
def round_linears(layers: Sequence[nn.Linear], *, input_mean: Tensor | None = None) -> None:
    """Round the weights of an MLP's layers in place.

    Args:
        layers: its layers.
        input_mean: mean of the first layer's inputs `[inputs]`, for which its outputs stay what they are. None: 0.
    """
    for place, layer in enumerate(layers):
        weight = rounded(layer.weight)
        if place == 0 and input_mean is not None:
            layer.bias.sub_((weight - layer.weight) @ input_mean)
        layer.weight.copy_(weight)


class RoundedMLP(PlainMLP):
    """A forward pass of a stackable module with rounded weights.

    Args:
        module: an RLlib DQN module that `is_plain_mlp()`.
        input_scale: what the first layer's inputs are divided by `[inputs]`; None: they are as they are.
    """

    def __init__(self, module: Any, input_scale: Tensor | None = None):
        super().__init__(module)
        self._input_scale = input_scale

    def q_values(self, obs: Tensor) -> Tensor:
        """Return Q-values `[B, A]` of observations `[B, inputs]`, which are divided by the scale already."""
        x, scale = obs, self._input_scale
        for layer, activation in self._hidden:
            x, scale = activation(nn.functional.linear(x, rounded(layer.weight, scale=scale), layer.bias)), None
        return nn.functional.linear(x, rounded(self._last.weight, scale=scale), self._last.bias)


def rounded_stack(packed: Sequence[Tensor], input_scale: Tensor | None = None) -> list[Tensor]:
    """Return weights of `StackedMLPs.pack()` with rounded matrices; `input_scale` as in `RoundedMLP`."""
    scales = [None if input_scale is None else input_scale.view(1, -1, 1), *[None] * (len(packed) // 2 - 1)]
    matrices = [rounded(matrix, dim=1, scale=scale) for matrix, scale in zip(packed[::2], scales, strict=True)]
    return [tensor for pair in zip(matrices, packed[1::2], strict=True) for tensor in pair]
