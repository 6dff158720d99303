"""The student's first convolutions from its teacher's: channels that are kept, and fitted by least squares.

A small student of images soon reproduces the states that it has learned from, and plays badly in others. Its teacher's
filters have seen millions of states. The dense layers stay as they were drawn: from fitted ones, gradient steps led to
worse students on SpaceInvaders, the one game on which that was tried (docs/results/images.md).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rllib_kd.students.chains import match, merged, network_of
from rllib_kd.students.initialization import Path, Target, choose_kept, fitted, teacher_values

#: Numbers that a unit of the teacher sees, at most: the moments of each with each other lie in memory several times.
MAX_COLUMNS = 4_096


def check_convolutions(student: Any, teacher: Any) -> None:
    """Check that `initialize_convolutions()` is possible for this pair.

    Raises:
        ValueError: one of them has another architecture than RLlib's DQN module, or no convolutions; the student's are
            more, wider, or have other windows than the teacher's; or these are too large.
    """
    _path(student, teacher)


@torch.no_grad()
def initialize_convolutions(student: Any, teacher: Any, obs: Tensor) -> list[str]:
    """Set the student's first convolutions, in place.

    From the last one to the first, those channels are kept from which least squares predicts best what the teacher's
    next layer computes before its activation. From the first one to the last, each is then fitted to the teacher's
    values, given what the student's own layers below put out (initialization.py).

    Args:
        student: RLlib's DQN module, with images as observations.
        teacher: RLlib's DQN module with the same observations, whose convolutions have the same windows.
        obs: visited states, `[N, height, width, channels]`.

    Returns:
        The names of the weights that were set, in the student.

    Raises:
        ValueError: as `check_convolutions()`.
    """
    path = _path(student, teacher)
    values = torch.cat([values[-1] for _, values in teacher_values(path.chain, obs)])
    target = Target(values, None, values)
    for i in reversed(range(len(path.stems))):
        path.kept[i] = choose_kept([path], i, obs, [target])
    for i in range(len(path.stems)):
        path.layers[i] = fitted(path, i, obs, target)
    names = {param: name for name, param in student.named_parameters()}
    changed = []
    for part, layer in zip(_convolutions(student), path.layers, strict=False):
        for own, value in ((part.weight, layer.weight), (part.bias, layer.bias)):
            own.copy_(value.reshape(own.shape))
            changed.append(names[own])
    return changed


def _path(student: Any, teacher: Any) -> Path:
    """Return the convolutions of both, each with the teacher's next layer."""
    for who, module in (("student", student), ("teacher", teacher)):
        if not all(hasattr(module, name) for name in ("encoder", "af", "uses_dueling")) or not _convolutions(module):
            raise ValueError(
                f"init='convolutions' needs a {who} with convolutions and RLlib's DQN architecture, but it is a "
                f"{type(module).__name__}{' without convolutions' if hasattr(module, 'encoder') else ''}. Set "
                "init='random'."
            )
    own = network_of(student)[0][: len(_convolutions(student))]
    whole = merged(*network_of(teacher))
    stems = match([*own, whole[-1]], [*whole[: len(_convolutions(teacher))], whole[-1]])
    chain = whole[: len(own) + 1]
    for layer in chain:
        if (count := layer.weight[0].numel()) > MAX_COLUMNS:
            raise ValueError(
                f"init='convolutions' needs layers of the teacher whose units see at most {MAX_COLUMNS:,} numbers, but "
                f"there is one with {count:,}. Set init='random'."
            )
    return Path([*own, chain[-1]], chain, stems, [torch.empty(0)] * len(stems))


def _convolutions(module: Any) -> list[Any]:
    return [part for part in module.encoder.modules() if isinstance(part, nn.Conv2d)]
