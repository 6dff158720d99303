"""Layers that networks of several libraries consist of: MLPs, and the convolutions of Mnih et al. 2015."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from rllib_kd.networks.layers import Layer, layers_within

_NATURE_STRIDES = (4, 2, 1)


def numbered(prefix: str, names: Iterable[str]) -> list[str]:
    """Return the layers of a `torch.nn.Sequential` that have weights, in its order.

    Args:
        prefix: name of the Sequential, with a dot at its end.
        names: names of all weights.
    """
    own = (name.removesuffix(".weight") for name in names if name.startswith(prefix) and name.endswith(".weight"))
    return sorted(own, key=lambda name: int(name.removeprefix(prefix)))


def mlp(linears: Sequence[str], activation: str) -> list[Layer]:
    """Return linear layers, with the activation between them."""
    layers: list[Layer] = []
    for name in linears:
        layers += [{"op": "linear", "weight": f"{name}.weight", "bias": f"{name}.bias"}, {"op": activation}]
    return layers[:-1]


def nature_cnn(convolutions: list[str], linear: str, tensors: dict[str, Tensor]) -> list[Layer]:
    """Return the network of Mnih et al. 2015 up to its last hidden layer, with rows after `flatten` in our order.

    Args:
        convolutions: names of the three convolutions.
        linear: name of the layer after them.
        tensors: all weights; the linear layer's is replaced.
    """
    layers: list[Layer] = []
    for name, stride in zip(convolutions, _NATURE_STRIDES, strict=True):
        conv = {"op": "conv2d", "weight": f"{name}.weight", "bias": f"{name}.bias", "stride": [stride, stride]}
        layers += [conv, {"op": "relu"}]
    weight = tensors[f"{linear}.weight"]
    channels = len(tensors[f"{convolutions[-1]}.weight"])
    # Theirs flattens channel by channel, ours pixel by pixel.
    weight = weight.unflatten(1, (channels, -1)).transpose(1, 2).flatten(1).contiguous()
    tensors[f"{linear}.weight"] = weight
    layers.append({"op": "flatten"})
    return [*layers, {"op": "linear", "weight": f"{linear}.weight", "bias": f"{linear}.bias"}, {"op": "relu"}]


def weights_in(layers: Iterable[Layer]) -> set[str]:
    """Return the names of the layers' weights, those of layers within them, too."""
    names: set[str] = set()
    for layer in layers:
        names |= {layer[key] for key in ("weight", "bias") if key in layer}
        names = names.union(*map(weights_in, layers_within(layer)))
    return names


def unused(layers: Iterable[Layer], tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the weights that belong to none of the layers."""
    return sorted(set(tensors) - weights_in(layers))
