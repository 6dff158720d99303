"""Gradients of MLPs, written out: in small networks, autograd takes longer to begin than the arithmetic takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

#: For activations of which it is known from their outputs: the gradient by their inputs, of those by their outputs.
_THROUGH: Mapping[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]] = {
    torch.relu: lambda gradient, outputs: torch.ops.aten.threshold_backward.default(gradient, outputs, 0),
    torch.tanh: torch.ops.aten.tanh_backward.default,
}


class MLPGradient:
    """A forward pass that keeps what its backward pass needs, through one MLP or several side by side.

    Args:
        params: matrices `[units, inputs]` and biases `[units]` of the layers in turn; for N MLPs side by side
            `[N, inputs, units]` and `[N, 1, units]`. Autograd records nothing of what is done to them.
        activations: the functions between the layers.
    """

    def __init__(self, params: Sequence[Tensor], activations: Sequence[Callable[[Tensor], Tensor]]):
        self._params = params
        self._activations = activations
        self._are_stacked = params[0].ndim == 3
        self._inputs: list[Tensor] = []  # of each layer, in the last forward pass

    @staticmethod
    def can_be_of(params: Sequence[Tensor], activations: Sequence[Callable[[Tensor], Tensor]]) -> bool:
        """Return whether the gradients of all activations are known, and nothing needs autograd.

        That is a frozen parameter, a hook, or autocast. A fused Adam reads parameters and gradients as if both were
        row-major; autograd makes gradients in the parameters' own order.
        """
        has_hooks = any(param._backward_hooks or param._post_accumulate_grad_hooks for param in params)
        are_plain = all(param.requires_grad and param.is_contiguous() for param in params)
        casts = torch.is_autocast_enabled(params[0].device.type)
        return all(activation in _THROUGH for activation in activations) and are_plain and not has_hooks and not casts

    @torch.no_grad()
    def outputs(self, inputs: Tensor) -> Tensor:
        """Return outputs `[A, B]`, or `[N, A, B]`, of inputs `[B, inputs]`.

        The rows of the batch are last: products with few outputs, and sums over these, are several times as fast so.
        """
        x = inputs.t().contiguous()
        if self._are_stacked:
            x = x.expand(len(self._params[0]), *x.shape)
        self._inputs = []
        for i, (matrix, bias) in enumerate(zip(self._params[::2], self._params[1::2], strict=True)):
            self._inputs.append(x)
            x = (
                torch.baddbmm(bias.mT, matrix.mT, x)
                if self._are_stacked
                else torch.addmm(bias.unsqueeze(-1), matrix, x)
            )
            if i < len(self._activations):
                x = self._activations[i](x)
        return x

    @torch.no_grad()
    def backward(self, gradient: Tensor) -> None:
        """Set the gradients of `params`, for the inputs of the last forward pass.

        Args:
            gradient: derivatives of a scalar by its outputs, in their shape.
        """
        for i in range(len(self._inputs) - 1, -1, -1):
            matrix, bias = self._params[2 * i : 2 * i + 2]
            inputs = self._inputs[i]
            matrix.grad = inputs @ gradient.mT if self._are_stacked else gradient @ inputs.t()
            bias.grad = gradient.sum(-1).view_as(bias)
            if i:
                gradient = (matrix if self._are_stacked else matrix.t()) @ gradient
                gradient = _THROUGH[self._activations[i - 1]](gradient, inputs)
        self._inputs = []
