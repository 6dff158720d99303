"""Networks as chains of layers: what first weights from a teacher read of student and teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rllib_kd.networks.dqn_module import FlattenEncoder
from rllib_kd.networks.mixed import MixedEncoder
from rllib_kd.networks.parts import heads_of, leaves_of

_ELEMENTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Softsign),
    *(nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Tanhshrink, nn.Softshrink),
    *(nn.Hardshrink, nn.Identity),
)


@dataclass(frozen=True)
class Layer:
    """One layer: its inputs from the units below, its weights, and its activation.

    A unit is a number, or a channel of an image. Of each unit below, a linear layer sees one number, or all pixels of
    the image, and a convolution those in its window: a group of columns.
    """

    weight: Tensor  # [units, units below, columns of each], float64
    bias: Tensor  # [units], float64
    activation: nn.Module | None = None  # None: the outputs
    kernel: tuple[int, int] | None = None  # None: linear
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)  # left, right, top, bottom

    def columns(self, below: Tensor) -> Tensor:
        """Return its inputs `[rows, units below, columns of each]` for `[N, units]` or `[N, units, height, width]`.

        A row is a state, or a position in the image of a state.
        """
        if self.kernel is None:
            return below.reshape(*below.shape[:2], -1)
        windows = F.unfold(F.pad(below, self.padding), self.kernel, stride=self.stride)  # [N, units · columns, places]
        return windows.transpose(1, 2).reshape(-1, below.shape[1], self.kernel[0] * self.kernel[1])

    def values(self, below: Tensor) -> Tensor:
        """Return the values before the activation, `[N, units]` or `[N, units, height, width]`."""
        if self.kernel is None:
            return self.columns(below).flatten(1) @ self.weight.flatten(1).T + self.bias
        kernel = self.weight.unflatten(-1, self.kernel)
        return F.conv2d(F.pad(below, self.padding), kernel, self.bias, self.stride)

    def outputs(self, below: Tensor) -> Tensor:
        """Return the values after the activation."""
        return self.activated(self.values(below))

    def activated(self, values: Tensor) -> Tensor:
        """Return what its activation makes of values before it."""
        return values if self.activation is None else self.activation(values)


Chain = Sequence[Layer]


def network_of(module: Any) -> tuple[list[Layer], list[list[Layer]]]:
    """Return the layers of the encoder, and those of each head up to its outputs.

    Raises:
        ValueError: there are layers that are not supported here.
    """
    if isinstance(module.encoder, MixedEncoder):
        raise ValueError(
            "First weights from a teacher need one chain of layers, but images beside other numbers have convolutions "
            "of their own. Set init='random'."
        )
    trunk = _layers_of(module.encoder, None)
    return trunk, [_layers_of(head, trunk[-1] if trunk else None) for head in heads_of(module)]


def merged(trunk: Chain, streams: Sequence[Chain]) -> Chain:
    """Merge a network into one chain from observations to Q-values (for C51: logits), also if it is dueling.

    The logits are RLlib's up to a constant in each state.
    """
    if len(streams) == 1:
        return [*trunk, *streams[0]]
    advantage, value = streams
    hidden = []
    for depth, (a, v) in enumerate(zip(advantage[:-1], value[:-1], strict=True)):
        weight = torch.cat([a.weight, v.weight]) if depth == 0 else _block_diagonal(a.weight, v.weight)
        hidden.append(replace(a, weight=weight, bias=torch.cat([a.bias, v.bias])))
    a, v = advantage[-1], value[-1]
    weight, level = a.weight - a.weight.mean(0), v.weight.expand(len(a.bias), -1, -1)
    weight = torch.cat([weight, level], dim=1) if hidden else weight + level
    return [*trunk, *hidden, replace(a, weight=weight, bias=a.bias - a.bias.mean() + v.bias)]


def _block_diagonal(a: Tensor, b: Tensor) -> Tensor:
    return torch.block_diag(a.squeeze(-1), b.squeeze(-1)).unsqueeze(-1)


def _layers_of(net: nn.Module, below: Layer | None) -> list[Layer]:
    """Return the layers of a network, of which `below` is the one before its first.

    Raises:
        ValueError: there are layers that are not supported here.
    """
    layers: list[Layer] = []
    padding = (0, 0, 0, 0)
    for part in leaves_of(net):
        below = layers[-1] if layers else below
        match part:
            case nn.ZeroPad2d():
                padding = part.padding
            case nn.Conv2d(padding=(0, 0), dilation=(1, 1), groups=1, bias=Tensor()):
                window: dict[str, Any] = {"kernel": part.kernel_size, "stride": part.stride, "padding": padding}
                layers.append(Layer(_double(part.weight).flatten(2), _double(part.bias), **window))
                padding = (0, 0, 0, 0)
            case nn.Linear(bias=Tensor()):
                channels = len(below.bias) if below is not None and below.kernel is not None else part.in_features
                # RLlib flattens images with the channels last.
                weight = _double(part.weight).unflatten(1, (-1, channels)).transpose(1, 2)
                layers.append(Layer(weight, _double(part.bias)))
            case _ if isinstance(part, _ELEMENTWISE) and layers:
                layers[-1] = replace(layers[-1], activation=part)
            case nn.Flatten() | FlattenEncoder():
                pass
            case _:
                raise ValueError(
                    "First weights from a teacher need linear layers and convolutions, but there is a "
                    f"{type(part).__name__}. Set init='random'."
                )
    return layers


def _double(tensor: Any) -> Tensor:
    return tensor.detach().double().cpu()


def match(layers: Chain, chain: Chain) -> list[int]:
    """Return for each hidden layer of a student the index of the corresponding layer of the teacher.

    Raises:
        ValueError: there is none, or it is narrower, or has other windows.
    """
    matches: list[int] = []
    for is_convolution, what in ((True, "convolutions"), (False, "hidden layers")):
        own = [layer for layer in layers[:-1] if (layer.kernel is not None) == is_convolution]
        stems = [i for i, layer in enumerate(chain[:-1]) if (layer.kernel is not None) == is_convolution]
        if len(own) > len(stems) or (is_convolution and stems and not own):
            raise ValueError(
                f"First weights from a teacher need a student with at most as many {what} as it has"
                f"{', and at least one' if is_convolution and stems else ''}: the student has {len(own)}, the teacher "
                f"{len(stems)}. Change its model config, or set init='random'."
            )
        for number, (layer, i) in enumerate(zip(own, stems, strict=False), 1):
            stem = chain[i]
            if len(layer.bias) > len(stem.bias):
                raise ValueError(
                    "First weights from a teacher need a student with layers at most as wide as its teacher's, but "
                    f"number {number} of its {what} has {len(layer.bias)} units, and the teacher's {len(stem.bias)}. "
                    "Change its model config, or set init='random'."
                )
            windows = [(x.kernel, x.stride, x.padding) for x in (layer, stem)]
            if windows[0] != windows[1]:
                raise ValueError(
                    "First weights from a teacher need convolutions with the teacher's kernels, strides and padding, "
                    f"but number {number} has {windows[0]}, and the teacher's {windows[1]}. Change conv_filters, or "
                    "set init='random'."
                )
            matches.append(i)
    return matches
