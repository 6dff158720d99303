"""Q-networks as lists of layers: described as JSON and tensors, and built from them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rllib_kd import limits
from rllib_kd.networks.trees.layer import build_tree
from rllib_kd.numeric import is_integer
from rllib_kd.text import first_line

ELEMENTWISE: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "elu": nn.ELU,
}

_NAMES = {kind: name for name, kind in ELEMENTWISE.items()}
#: Description of one layer, without its weights.
Layer = Mapping[str, Any]


class OneHot(nn.Module):
    """Converts numbers `[B, ...]` to one-hot vectors, side by side: `[B, sum of lengths]`."""

    def __init__(self, lengths: Sequence[int]):
        super().__init__()
        self.lengths = list(lengths)

    def forward(self, obs: Tensor) -> Tensor:  # noqa: D102
        numbers = obs.reshape(obs.shape[0], len(self.lengths))
        columns = [numbers[:, i : i + 1] == torch.arange(n, device=obs.device) for i, n in enumerate(self.lengths)]
        return torch.cat(columns, dim=-1).float()


class Normalized(nn.Module):
    """Computes (x − mean) / std, clipped to [−clip, clip].

    Args:
        mean: shape of one observation.
        std: shape of one observation, > 0.
        clip: above 0; None: not clipped.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, clip: float | None):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.clip = clip

    def forward(self, obs: Tensor) -> Tensor:  # noqa: D102
        x = (obs - self.mean) / self.std
        return x if self.clip is None else x.clamp(-self.clip, self.clip)


class Pixels(nn.Module):
    """Converts images `[B, C, H, W]` or `[B, H, W, C]` of an environment to `[B, H, W, C]` in [0, 1]."""

    def __init__(self, *, channels_first: bool, divisor: float):
        super().__init__()
        self.channels_first, self.divisor = channels_first, divisor

    def forward(self, obs: Tensor) -> Tensor:  # noqa: D102
        return (obs.permute(0, 2, 3, 1) if self.channels_first else obs) / self.divisor


class Flat(nn.Flatten):
    """Makes vectors of observations `[B, ...]`; also of single numbers `[B]`, which PyTorch's own does not take."""

    def forward(self, obs: Tensor) -> Tensor:  # noqa: D102
        return obs.unsqueeze(1) if obs.ndim == 1 else super().forward(obs)


class _Conv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class _ZeroPad(nn.ZeroPad2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, *self.padding))


class _Dueling(nn.Module):
    def __init__(self, value: nn.Module, advantage: nn.Module):
        super().__init__()
        self.value, self.advantage = value, advantage

    def forward(self, x: Tensor) -> Tensor:
        advantage = self.advantage(x)
        return self.value(x) + advantage - advantage.mean(-1, keepdim=True)


class _Branches(nn.Module):
    """Parts of a vector, each with layers of its own, and what they become side by side.

    Args:
        places: where the parts stand in the vector.
        shapes: their shapes.
        nets: their layers, from `[B, *shape]` to `[B, ...]`.
    """

    def __init__(self, places: Sequence[slice], shapes: Sequence[tuple[int, ...]], nets: Sequence[nn.Module]):
        super().__init__()
        self.places, self.shapes, self.nets = list(places), list(shapes), nn.ModuleList(nets)

    def forward(self, x: Tensor) -> Tensor:
        end = max(place.stop for place in self.places)
        if x.ndim != 2 or x.shape[1] < end:
            raise ValueError(f"branches take {end} numbers of a vector, but get the shape {list(x.shape[1:])}")
        parts = zip(self.places, self.shapes, self.nets, strict=True)
        return torch.cat([net(x[:, place].unflatten(1, shape)).flatten(1) for place, shape, net in parts], dim=1)


class _Expectation(nn.Module):
    atoms: Tensor

    def __init__(self, num_atoms: int, v_min: float, v_max: float):
        super().__init__()
        self.register_buffer("atoms", torch.linspace(v_min, v_max, num_atoms))

    def forward(self, x: Tensor) -> Tensor:
        return F.softmax(x.unflatten(-1, (-1, len(self.atoms))), -1) @ self.atoms


class CostMeter:
    """The cost of a network for one observation, layer by layer, within limits for each layer and for all together.

    Attributes:
        multiply_adds: multiply-adds so far.
        numbers: outputs of all layers so far.
    """

    def __init__(self) -> None:
        self.multiply_adds = 0
        self.numbers = 0

    def add(self, what: str, numbers: int, multiply_adds: int = 0) -> None:
        """Add a layer with this number of outputs, each of which counts as one multiply-add at least.

        Raises:
            ValueError: a limit is exceeded.
        """
        if numbers > limits.MAX_OUTPUTS:
            raise ValueError(f"{what}: {numbers} numbers for one observation, expected at most {limits.MAX_OUTPUTS}")
        self.numbers += numbers
        self.multiply_adds += max(numbers, multiply_adds)
        if self.numbers > limits.MAX_NUMBERS:
            raise ValueError(
                f"{what}: up to it, layers have {self.numbers} numbers for one observation, expected at most "
                f"{limits.MAX_NUMBERS}"
            )
        if self.multiply_adds > limits.MAX_MULTIPLY_ADDS:
            raise ValueError(
                f"{what}: up to it, one observation takes {self.multiply_adds} multiply-adds, expected at most "
                f"{limits.MAX_MULTIPLY_ADDS}"
            )

    def add_convolution(self, what: str, *, pixels: int, filters: int, patch: int) -> None:
        """Add a convolution: for each output pixel, each filter is a sum over a patch.

        Raises:
            ValueError: a limit is exceeded.
        """
        if pixels * patch > limits.MAX_PATCHES:
            raise ValueError(
                f"{what}: {pixels * patch} numbers to copy for one observation, expected at most {limits.MAX_PATCHES}"
            )
        self.add(what, pixels * filters, pixels * filters * patch)


def cost_of(network: nn.Module, shape: Sequence[int]) -> tuple[CostMeter, Tensor]:
    """Return the cost of a network of layers, and its outputs for one observation, without allocating their memory.

    Args:
        network: network on the meta device.
        shape: shape of one observation.

    Raises:
        ValueError: its layers do not fit each other, or exceed a limit.
    """
    cost = CostMeter()

    def add(module: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> None:
        name, numbers = type(module).__name__.strip("_").lower(), outputs.numel()
        if isinstance(module, nn.Conv2d):
            filters, patch = len(module.weight), module.weight[0].numel()
            cost.add_convolution(name, pixels=numbers // filters, filters=filters, patch=patch)
        else:
            cost.add(name, numbers, numbers * _steps(module))

    for module in network.modules():
        if not isinstance(module, nn.Sequential):
            module.register_forward_hook(add)
    try:
        with torch.device("meta"):
            return cost, network(torch.zeros(1, *shape))
    except (RuntimeError, IndexError) as error:
        raise ValueError(f"its layers do not fit each other: {first_line(error)}") from error


def _steps(module: nn.Module) -> int:
    """Return the multiply-adds of each output."""
    if isinstance(module, nn.Linear):
        return module.in_features
    if isinstance(module, nn.LayerNorm):
        return 10 + 100 // math.prod(module.normalized_shape)  # some for each row
    return 10 if type(module) in _NAMES else 1


# --- Descriptions -----------------------------------------------------------------------------------------------------


def describe_layer(name: str, layer: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Describe one layer; its weights are added to `tensors`, by `name`.

    Raises:
        ValueError: the layer has no description.
    """
    if type(layer) in _NAMES and not (isinstance(layer, nn.ELU) and layer.alpha != 1):
        return {"op": _NAMES[type(layer)]}
    if isinstance(layer, nn.Flatten):
        return {"op": "flatten"}
    if isinstance(layer, nn.ZeroPad2d):
        return {"op": "zero_pad", "padding": list(layer.padding)}  # left, right, top, bottom
    if isinstance(layer, OneHot):
        return {"op": "one_hot", "lengths": layer.lengths}
    if isinstance(layer, Pixels):
        return {"op": "pixels", "channels_first": layer.channels_first, "divisor": layer.divisor}
    if isinstance(layer, Normalized):
        tensors |= {f"{name}.mean": layer.mean.contiguous(), f"{name}.std": layer.std.contiguous()}
        return {"op": "normalize", "mean": f"{name}.mean", "std": f"{name}.std", "clip": layer.clip}
    tensor_names = {"weight": f"{name}.weight", "bias": f"{name}.bias"}
    if isinstance(layer, nn.Linear):
        description: dict[str, Any] = {"op": "linear"}
    elif isinstance(layer, nn.LayerNorm) and layer.elementwise_affine and len(layer.normalized_shape) == 1:
        description = {"op": "layer_norm", "eps": layer.eps}
    elif isinstance(layer, nn.Conv2d) and (layer.padding, layer.dilation, layer.groups) == ((0, 0), (1, 1), 1):
        description = {"op": "conv2d", "stride": list(layer.stride)}
    else:
        raise ValueError(
            f"safetensors and C cannot hold the layer {layer}. Known are linear, conv2d, layer_norm, zero_pad, "
            f"flatten, {', '.join(ELEMENTWISE)}. Use format='onnx' or 'torchscript'."
        )
    weight = layer.weight.detach().cpu().float().contiguous()
    bias = torch.zeros(len(weight)) if layer.bias is None else layer.bias.detach().cpu().float().contiguous()
    tensors |= {f"{name}.weight": weight, f"{name}.bias": bias}
    return description | tensor_names


# --- Networks from descriptions ---------------------------------------------------------------------------------------


def build_layers(layers: Sequence[Layer], tensors: Mapping[str, Tensor]) -> nn.Sequential:
    """Build the network from observations `[B, ...]` to Q-values `[B, A]`.

    Raises:
        ValueError: a layer is unknown, or its description or tensors do not fit it.
    """
    return nn.Sequential(*(_build_layer(layer, tensors) for layer in layers))


def op_in_words(op: str) -> str:
    """Return the kind of a layer, for messages."""
    return "images beside other numbers" if op == "branches" else f"the layer '{op}'"


def layers_within(layer: Layer) -> Iterator[Sequence[Layer]]:
    """Yield the layers of dueling streams, the advantage's first, and those of branches."""
    parts = [layer.get("advantage"), layer.get("value")]
    branches = layer.get("branches")
    parts += (
        [part.get("layers") for part in branches if isinstance(part, Mapping)] if isinstance(branches, list) else []
    )
    yield from (part for part in parts if isinstance(part, list))


def count_layers(layers: Sequence[Layer]) -> int:
    """Return the number of layers, including those of dueling streams and of branches, which count as one each."""
    within = (part for layer in layers if isinstance(layer, Mapping) for part in layers_within(layer))
    return len(layers) + sum(1 + count_layers(part) for part in within)


def weights_in_order(layers: Sequence[Layer], tensors: Mapping[str, Tensor]) -> Iterator[Tensor]:
    """Yield weights and biases in the order of the layers; for dueling streams, the advantage's first."""
    for layer in layers:
        for part in layers_within(layer):
            yield from weights_in_order(part, tensors)
        if "weight" in layer:
            yield tensors[layer["weight"]]
            yield tensors[layer["bias"]]


def _build_layer(layer: Layer, tensors: Mapping[str, Tensor]) -> nn.Module:
    try:
        op = layer["op"]
        if op in ELEMENTWISE:
            return ELEMENTWISE[op]()
        return _BUILDERS[op](layer, tensors)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"it has a layer that is unknown or incomplete ({error!r}): {str(layer)[:200]}") from error


def whole(number: Any) -> int:
    """Return a number of a description, if it is an integer; otherwise raise a ValueError."""
    if not is_integer(number):
        raise ValueError(f"it has {str(number)[:50]!r} where an integer was expected")
    return int(number)


def _weights_in(layer: Layer, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    weight, bias = tensors[layer["weight"]], tensors[layer["bias"]]
    if not weight.numel():
        raise ValueError(f"a weight has the shape {list(weight.shape)}, which holds no numbers")
    return weight, bias


def _linear(layer: Layer, tensors: Mapping[str, Tensor]) -> nn.Module:
    weight, bias = _weights_in(layer, tensors)
    return _with_weights(nn.Linear(weight.shape[1], weight.shape[0], device="meta"), weight, bias)


def _conv(layer: Layer, tensors: Mapping[str, Tensor]) -> nn.Module:
    weight, bias = _weights_in(layer, tensors)
    down, along = layer["stride"]
    kernel, stride = (weight.shape[2], weight.shape[3]), (whole(down), whole(along))
    return _with_weights(_Conv(weight.shape[1], weight.shape[0], kernel, stride, device="meta"), weight, bias)


def _layer_norm(layer: Layer, tensors: Mapping[str, Tensor]) -> nn.Module:
    weight, bias = _weights_in(layer, tensors)
    eps = float(layer["eps"])
    if not 0 <= eps < math.inf:
        raise ValueError(f"a layer_norm has an eps of {eps}; expected a finite number of at least 0")
    return _with_weights(nn.LayerNorm(len(weight), eps=eps, device="meta"), weight, bias)


def _with_weights(module: Any, weight: Tensor, bias: Tensor) -> nn.Module:
    """Return a module from the meta device with these weights."""
    for name, tensor in (("weight", weight), ("bias", bias)):
        expected = getattr(module, name).shape
        if tensor.shape != expected:
            raise ValueError(f"a {name} has the shape {list(tensor.shape)}, expected {list(expected)}")
        setattr(module, name, nn.Parameter(tensor, requires_grad=False))
    return module


def _zero_pad(layer: Layer, tensors: Mapping[str, Tensor]) -> nn.Module:
    left, right, top, bottom = map(whole, layer["padding"])
    if not all(0 <= pixels <= _MAX_PADDING for pixels in (left, right, top, bottom)):
        raise ValueError(f"a zero_pad of {layer['padding']} pixels")
    return _ZeroPad((left, right, top, bottom))


def _normalize(layer: Layer, tensors: Mapping[str, Tensor]) -> nn.Module:
    mean, std = (tensors[layer[name]] for name in ("mean", "std"))
    clip = None if layer["clip"] is None else float(layer["clip"])
    if mean.device.type != "meta" and not (mean.isfinite().all() and std.isfinite().all() and (std > 0).all()):
        raise ValueError("a normalize has a mean or a std that is not finite, or a std that is not above 0")
    if clip is not None and not clip > 0:
        raise ValueError(f"a normalize has a clip of {clip}; expected a number above 0, or null")
    return Normalized(mean, std, clip)


def _one_hot(layer: Layer, tensors: Mapping[str, Tensor]) -> nn.Module:
    if len(layer["lengths"]) > limits.MAX_ONE_HOT:
        raise ValueError(f"one-hot vectors of {len(layer['lengths'])} numbers")
    lengths = list(map(whole, layer["lengths"]))
    if not all(0 < length <= _MAX_LENGTH for length in lengths):
        raise ValueError(f"one-hot vectors of the lengths {lengths[:20]}")
    return OneHot(lengths)


def _pixels(layer: Layer, tensors: Mapping[str, Tensor]) -> nn.Module:
    divisor = float(layer["divisor"])
    if not 0 < divisor < math.inf:
        raise ValueError(f"pixels have a divisor of {divisor}; expected a finite number above 0")
    return Pixels(channels_first=bool(layer["channels_first"]), divisor=divisor)


def _dueling(layer: Layer, tensors: Mapping[str, Tensor]) -> nn.Module:
    return _Dueling(build_layers(layer["value"], tensors), build_layers(layer["advantage"], tensors))


def _branches(layer: Layer, tensors: Mapping[str, Tensor]) -> nn.Module:
    places, shapes, nets = [], [], []
    for part in layer["branches"]:
        start, shape, layers = whole(part["start"]), tuple(map(whole, part["shape"])), part["layers"]
        if start < 0 or not 0 < len(shape) <= limits.MAX_RANK or min(shape) < 1:
            raise ValueError(f"a branch takes the shape {str(list(shape))[:100]} from place {start} on")
        if start + math.prod(shape) > limits.MAX_INPUTS:
            raise ValueError(f"a branch takes more than {limits.MAX_INPUTS} numbers")
        if any(inner["op"] in ("branches", "dueling") for inner in layers):
            raise ValueError("there are branches or dueling streams within a branch")
        places.append(slice(start, start + math.prod(shape)))
        shapes.append(shape)
        nets.append(build_layers(layers, tensors))
    if not nets:
        raise ValueError("there are no branches in a layer of branches")
    return _Branches(places, shapes, nets)


def _expectation(layer: Layer, tensors: Mapping[str, Tensor]) -> nn.Module:
    num_atoms, low, high = whole(layer["num_atoms"]), float(layer["v_min"]), float(layer["v_max"])
    if not 1 < num_atoms <= _MAX_LENGTH:
        raise ValueError(f"a distribution over {num_atoms} atoms")
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"a distribution from v_min = {low} to v_max = {high}; expected finite numbers, v_min < v_max")
    return _Expectation(num_atoms, low, high)


_MAX_PADDING = 1_000  # pixels
_MAX_LENGTH = 1_000_000  # of a one-hot vector, or a distribution

_BUILDERS = {
    "linear": _linear,
    "conv2d": _conv,
    "layer_norm": _layer_norm,
    "zero_pad": _zero_pad,
    "flatten": lambda layer, tensors: Flat(),
    "normalize": _normalize,
    "one_hot": _one_hot,
    "pixels": _pixels,
    "dueling": _dueling,
    "branches": _branches,
    "expectation": _expectation,
    "tree": build_tree,
}
