"""Normalised coordinates of the Q-values, folded into the last layer.

A value loss is learned in normalised coordinates (label_statistics.QScale), but modules that act, are synchronized or
saved must have Q-values as outputs. So the last layer has normalised outputs inside an update only: `to_normalized` is
called before the first step, `to_q_values` after the last one. Both preserve the function exactly, also if the scale
has changed in between, as in PopArt (van Hasselt et al. 2016, arXiv 1602.07714).
"""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.core.rl_module.rl_module import RLModule
from torch import nn

from rllib_kd import _rllib
from rllib_kd.learner.label_statistics import QScale
from rllib_kd.networks.parts import heads_of, is_chain, is_plain_linear, last_linear, leaves_of


def has_scalable_head(module: RLModule) -> bool:
    """Return whether the last layer can be rescaled: it learns, in RLlib's module of one output for each action.

    Not in modules whose Q-values are computed in another way: what is behind the last layer is unknown.
    """
    if not _rllib.has_default_q_values(module) or module.num_atoms != 1:
        return False
    layers = [leaves_of(head)[-1] for head in heads_of(module)]
    if not all(map(is_chain, heads_of(module))) or not all(map(is_plain_linear, layers)):
        return False
    return all(param.requires_grad for layer in layers for param in layer.parameters())


@torch.no_grad()
def to_q_values(module: Any, scale: QScale) -> None:
    """Rewrite the last layer, whose outputs are normalised, so that they are Q-values."""
    for layer, matrix, offset in _head_maps(module, scale):
        weight, bias = layer.weight.double(), layer.bias.double()
        layer.weight.copy_(matrix @ weight)
        layer.bias.copy_(matrix @ bias + offset)


@torch.no_grad()
def to_normalized(module: Any, scale: QScale) -> None:
    """Rewrite the last layer, whose outputs are Q-values, so that they are normalised."""
    for layer, matrix, offset in _head_maps(module, scale):
        weight, bias = layer.weight.double(), layer.bias.double()
        layer.weight.copy_(torch.linalg.solve(matrix, weight))
        layer.bias.copy_(torch.linalg.solve(matrix, bias - offset))


def _heads(module: Any) -> list[nn.Linear]:
    """Return the output layers: of the Q-values, or of advantages and values."""
    return [last_linear(head) for head in heads_of(module)]


def _head_maps(module: Any, scale: QScale) -> list[tuple[nn.Linear, torch.Tensor, torch.Tensor]]:
    """Return (layer, M, m) for each output layer: M · output + m turns normalised outputs into Q-values."""
    head, *value_head = _heads(module)
    kwargs: dict[str, Any] = {"dtype": torch.float64, "device": head.weight.device}
    deviation_mean = torch.as_tensor(scale.deviation_mean, **kwargs)
    identity = torch.eye(len(deviation_mean), **kwargs)
    if value_head:
        # RLlib adds the value to the centred advantages: the two parts have layers of their own.
        value_matrix = torch.full((1, 1), scale.value_scale, **kwargs)
        value_offset = torch.full((1,), scale.value_mean, **kwargs)
        return [
            (head, scale.deviation_scale * identity, deviation_mean),
            (value_head[0], value_matrix, value_offset),
        ]
    average = torch.full_like(identity, 1.0 / len(identity))
    matrix = scale.value_scale * average + scale.deviation_scale * (identity - average)
    return [(head, matrix, scale.value_mean + deviation_mean)]
