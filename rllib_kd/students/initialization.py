"""The student's first weights from its teacher's: the most useful units, corrected by least squares.

A singular value decomposition would compress a linear network best. It does not apply between layers of nonlinear
units, since rotated units are different functions. So the student keeps some of the teacher's units, and is fitted,
layer by layer, to the teacher's outputs on visited states:

1. From the last hidden layer to the first, choose the units from which least squares predicts best what the next
   layer needs of them (orthogonal least squares, Chen, Billings & Luo 1989; for pruning ThiNet, Luo et al. 2017, arXiv
   1707.06342). A channel of a convolution is a group of columns, one for each pixel that a window sees of it.
2. From the first layer to the last, fit each layer to the teacher's values before the activation, given what the
   student's own layers below put out (as He et al. 2017, arXiv 1707.06168). Ridge regression draws the weights towards
   the teacher's between the same units, so that a student as wide as its teacher equals it, whatever the states.

No gradients and no random numbers are used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rllib_kd import _rllib
from rllib_kd.networks.dqn_module import QF_PREDS, support_of
from rllib_kd.networks.parts import heads_of
from rllib_kd.students.chains import Chain, Layer, match, merged, network_of

#: Weight of the pull towards the teacher's own weights, as a share of the variance of each column: inputs have units of
#: their own, and an important one may be thousands of times smaller than another.
RIDGE = 1e-5
_CONSTANT = 1e-6  # of a column's mean square: a smaller variance may be rounding
_TINY = 1e-12
_STATES_AT_ONCE = 32  # of images: their windows would fill the memory


@dataclass(frozen=True)
class Target:
    """The target to which an output layer is fitted."""

    values: Tensor  # [N, outputs]
    matrix: Tensor | None  # [outputs, teacher's outputs], if `values` are that linear function of them
    scaled: Tensor  # [N, any]: by what of them the units are chosen, each part on the scale on which it matters


@dataclass
class Path:
    """One path through the student, from observations to the outputs of a head, and the teacher's."""

    layers: list[Layer]  # the student's
    chain: Chain  # the teacher's
    stems: list[int]  # index of the corresponding layer of the teacher, for each hidden layer
    kept: list[Tensor]  # of each hidden layer, the numbers of its units there

    def weights_between(self, i: int, target: Target) -> Tensor | None:
        """Return the teacher's weights between layer i's units and those below, biases last; None if it has none."""
        is_output = i == len(self.stems)
        stem, stem_below = len(self.chain) - 1 if is_output else self.stems[i], self.stems[i - 1] if i else -1
        if stem != stem_below + 1 or (is_output and target.matrix is None):
            return None
        weight, bias = self.chain[stem].weight, self.chain[stem].bias
        if i:
            if type(self.layers[i - 1].activation) is not type(self.chain[stem_below].activation):
                return None
            weight = weight[:, self.kept[i - 1]]
        both = torch.cat([weight.flatten(1), bias[:, None]], dim=1)
        return target.matrix @ both if is_output else both[self.kept[i]]  # type: ignore[operator]


def check(student: Any, teacher: Any) -> None:
    """Check that `initialize()` is possible for this pair.

    Raises:
        ValueError: one of them has another architecture than RLlib's DQN module; or as `initialize()`.
    """
    for who, module in (("student", student), ("teacher", teacher)):
        if not _rllib.has_default_q_values(module):
            raise ValueError(
                f"init='teacher' needs a {who} with RLlib's DQN architecture, but it is a {type(module).__name__}. "
                "Leave init at 'random'."
            )
    paths_of(student, teacher)


@torch.no_grad()
def initialize(student: Any, teacher: Any, obs: Tensor, *, unit: float | None = None) -> None:
    """Set the student's first weights, in place.

    Its hidden layers correspond to the first ones of the teacher, convolutions to convolutions. It may have fewer
    layers, also none, and other activations.

    Args:
        student: RLlib's DQN module.
        teacher: RLlib's DQN module with the same observations, usually larger.
        obs: visited states, `[N, ...]`.
        unit: None: the student's outputs are Q-values. A number > 0, return units: the outputs are differences between
            Q-values of actions in this unit, of any level. It has no effect on return distributions (C51).

    Raises:
        ValueError: the student has more or wider layers than its teacher, or layers of another kind.
    """
    paths, num_shared = paths_of(student, teacher)
    targets = _targets(student, teacher, [path.chain for path in paths], obs, unit)
    for own, target in zip(paths, targets, strict=True):
        for i in reversed(range(num_shared, len(own.stems))):
            own.kept[i] = choose_kept([own], i, obs, [target])
    for i in reversed(range(num_shared)):
        units = choose_kept(paths, i, obs, targets)
        for path in paths:
            path.kept[i] = units
    for path, target in zip(paths, targets, strict=True):
        first = 0 if path is paths[0] else num_shared  # what is shared is fitted with the first path
        path.layers[:first] = paths[0].layers[:first]
        for i in range(first, len(path.layers)):
            path.layers[i] = fitted(path, i, obs, target)
    _write(student, paths[0].layers[:num_shared], [path.layers[num_shared:] for path in paths])


# --- Targets of the outputs -------------------------------------------------------------------------------------------


def _targets(student: Any, teacher: Any, chains: Sequence[Chain], obs: Tensor, unit: float | None) -> list[Target]:
    """Return the targets of the head `af`, and of `vf` if the student is dueling.

    If the teacher is dueling, too, the outputs of the second chain are the level of its Q-values, and the first one
    has the rest.
    """
    outputs = [torch.cat([values[-1] for _, values in teacher_values(chain, obs)]) for chain in chains]
    separate = student.uses_dueling and teacher.uses_dueling
    if student.num_atoms > 1:
        sizes = [out.shape[1] for out in outputs]
        matrices = [torch.eye(sizes[0]), torch.eye(1) if separate else torch.zeros(1, sizes[-1])]
        return [_target(out, [matrix.double()]) for out, matrix in zip(outputs, matrices, strict=False)]
    is_linear = teacher.num_atoms == 1
    if not is_linear:
        parts = obs.split(_STATES_AT_ONCE)
        q = torch.cat([teacher.compute_q_values({"obs": part})[QF_PREDS] for part in parts]).double().cpu()
        outputs, separate = [q] * len(chains), False
    num_actions = outputs[0].shape[1]
    average = torch.full((num_actions, num_actions), 1.0 / num_actions).double()
    deviation = (torch.eye(num_actions) - average) / (unit or 1.0)
    level = average if unit is None else torch.zeros_like(average)
    if not student.uses_dueling:
        return [_target(outputs[0], [level, deviation], is_linear=is_linear)]
    level = torch.eye(1).double() * float(unit is None) if separate else level[:1]
    return [_target(out, [m], is_linear=is_linear) for out, m in zip(outputs, [deviation, level], strict=True)]


def _target(outputs: Tensor, matrices: Sequence[Tensor], *, is_linear: bool = True) -> Target:
    """Return the sum of linear functions of the teacher's outputs as a target, with equal weights of all."""
    parts = [outputs @ matrix.T for matrix in matrices]
    scaled = [part / part.std(0).norm().clamp(min=_TINY) for part in parts]
    matrix = torch.stack(list(matrices)).sum(0)
    return Target(outputs @ matrix.T, matrix if is_linear else None, torch.cat(scaled, dim=1))


# --- Choice of units --------------------------------------------------------------------------------------------------


def choose_units(gram: Tensor, cross: Tensor, num_units: int, count: int) -> Tensor:
    """Choose units one after the other, so that least squares on their columns predicts the targets best.

    Args:
        gram: XᵀX of the columns X, `[num_units · g + 1, ...]`, grouped by unit; the last column is constant.
        cross: XᵀY with the targets Y, `[num_units · g + 1, D]`.
        num_units: number of units.
        count: number of units to choose, ≤ `num_units`.

    Returns:
        Their indices, in ascending order.
    """
    width = (len(gram) - 1) // num_units
    everything = torch.arange(len(gram) - 1).unflatten(0, (num_units, width))
    ridge = _ridge(gram)
    gram, cross = _swept(gram, cross, torch.tensor([len(gram) - 1]), ridge)
    chosen: list[int] = []
    for _ in range(count):
        blocks = gram[everything[:, :, None], everything[:, None, :]] + torch.diag_embed(ridge[everything])
        wanted = cross[everything]  # [units, g, D]
        gains = (wanted * torch.linalg.solve(blocks, wanted)).sum((1, 2))  # of squared error
        gains[chosen] = -torch.inf
        chosen.append(int(gains.argmax()))
        gram, cross = _swept(gram, cross, everything[chosen[-1]], ridge)
    return torch.tensor(sorted(chosen))


def _ridge(gram: Tensor) -> Tensor:
    """Return the ridge of each column of moments with a constant column at the end, which has none: `[P + 1]`."""
    square = gram.diagonal()
    variance = (square - gram[-1].square() / gram[-1, -1]).clamp(min=0.0)
    ridge = RIDGE * (variance + _CONSTANT * square) + torch.finfo(gram.dtype).tiny  # of columns that are 0
    ridge[-1] = 0.0
    return ridge


def _swept(gram: Tensor, cross: Tensor, columns: Tensor, ridge: Tensor) -> tuple[Tensor, Tensor]:
    """Return the moments of the residuals of columns and targets after ridge regression on these columns."""
    block = gram[columns][:, columns] + torch.diag(ridge[columns])
    explained = torch.linalg.solve(block, torch.cat([gram[columns], cross[columns]], dim=1))
    return gram - gram[:, columns] @ explained[:, : len(gram)], cross - gram[:, columns] @ explained[:, len(gram) :]


def choose_kept(paths: Sequence[Path], i: int, obs: Tensor, targets: Sequence[Target]) -> Tensor:
    """Choose the teacher's units that layer i of these paths keeps, by the needs of the layers above."""
    first = paths[0]
    stem, num_kept = first.stems[i], len(first.layers[i].bias)
    num_units = len(first.chain[stem].bias)
    if num_kept == num_units:
        return torch.arange(num_units)

    def wanted(path: Path, target: Target, part: slice, values: Sequence[Tensor]) -> Tensor:
        if i + 1 == len(path.stems):
            return _by_row(target.scaled[part])
        return _by_row(values[path.stems[i + 1]])[:, path.kept[i + 1]]

    def rows() -> Iterator[tuple[Tensor, Tensor]]:
        for parts in zip(*(teacher_values(path.chain, obs) for path in paths), strict=True):
            columns = first.layers[i + 1].columns(first.layers[i].activated(parts[0][1][stem]))
            needs = [wanted(paths[n], targets[n], *part) for n, part in enumerate(parts)]
            yield columns, torch.cat(needs, dim=1)

    return choose_units(*_moments(rows()), num_units, num_kept)


# --- Fitted weights ---------------------------------------------------------------------------------------------------


def fit(gram: Tensor, cross: Tensor, prior: Tensor) -> Tensor:
    """Fit a ridge regression towards a prior: argmin_B ‖Y − X B‖² + Σ_j ridge_j · ‖B_j − prior_j‖².

    Args:
        gram: XᵀX, `[P + 1, P + 1]`; the last column of X is constant.
        cross: XᵀY, `[P + 1, D]`.
        prior: `[P + 1, D]`.

    Returns:
        B, `[P + 1, D]`; the prior itself if it leaves no error.
    """
    return prior + torch.linalg.solve(gram + torch.diag(_ridge(gram)), cross - gram @ prior)


def fitted(path: Path, i: int, obs: Tensor, target: Target) -> Layer:
    """Return layer i fitted to the teacher's values, given the current layers below."""
    layer = path.layers[i]

    def rows() -> Iterator[tuple[Tensor, Tensor]]:
        for part, values in teacher_values(path.chain, obs):
            is_output = i == len(path.stems)
            wanted = target.values[part] if is_output else _by_row(values[path.stems[i]])[:, path.kept[i]]
            below = _inputs(path.layers, obs[part])
            for lower in path.layers[:i]:
                below = lower.outputs(below)
            yield layer.columns(below), wanted

    gram, cross = _moments(rows())
    prior = path.weights_between(i, target)
    solution = fit(gram, cross, torch.zeros_like(cross) if prior is None else prior.T).T
    return replace(layer, weight=solution[:, :-1].reshape(layer.weight.shape), bias=solution[:, -1])


# --- States -----------------------------------------------------------------------------------------------------------


def _moments(rows: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return XᵀX and XᵀY, with a constant column at the end of X."""
    gram = cross = torch.zeros(1)
    for columns, wanted in rows:
        x = F.pad(columns.flatten(1), (0, 1), value=1.0)
        gram, cross = gram + x.T @ x, cross + x.T @ wanted
    return gram, cross


def teacher_values(chain: Chain, obs: Tensor) -> Iterator[tuple[slice, list[Tensor]]]:
    """Yield, for parts of the states, the values of every layer of the teacher before its activation."""
    size = len(obs) if chain[0].kernel is None else _STATES_AT_ONCE
    for start in range(0, len(obs), size):
        part = slice(start, start + size)
        below, values = _inputs(chain, obs[part]), []
        for layer in chain:
            values.append(layer.values(below))
            below = layer.activated(values[-1])
        yield part, values


def _inputs(chain: Chain, obs: Tensor) -> Tensor:
    obs = obs.double()
    return obs.flatten(1) if chain[0].kernel is None else obs.permute(0, 3, 1, 2)  # RLlib's images: channels last


def _by_row(values: Tensor) -> Tensor:
    """Return `[rows, units]` for `[N, units]` or `[N, units, height, width]`, with rows as in `Layer.columns()`."""
    return values if values.ndim == 2 else values.flatten(2).transpose(1, 2).flatten(0, 1)


# --- RLlib's networks -------------------------------------------------------------------------------------------------


def paths_of(student: Any, teacher: Any) -> tuple[list[Path], int]:
    """Return the paths through the student (two if it is dueling), and the number of hidden layers that they share.

    Raises:
        ValueError: as `initialize()`; or there are layers that are not supported here.
    """
    if student.num_atoms > 1 and support_of(student) != support_of(teacher):
        raise ValueError(
            f"init='teacher' gives a C51 student the return distributions of its teacher, but its support is "
            f"{support_of(student)} and the teacher's {support_of(teacher)}. Set training(num_atoms=..., v_min=..., "
            "v_max=...) as in the teacher, or leave init at 'random'."
        )
    trunk, streams = network_of(student)
    teacher_trunk, teacher_streams = network_of(teacher)
    if len(streams) == len(teacher_streams):
        chains: list[Chain] = [[*teacher_trunk, *stream] for stream in teacher_streams]
    else:
        chains = [merged(teacher_trunk, teacher_streams)] * len(streams)
    paths = []
    for stream, chain in zip(streams, chains, strict=True):
        layers = [*trunk, *stream]
        stems = match(layers, chain)
        paths.append(Path(layers, chain, stems, [torch.empty(0)] * len(stems)))
    return paths, len(trunk)


def _write(module: Any, trunk: Chain, streams: Sequence[Chain]) -> None:
    nets = [module.encoder, *heads_of(module)]
    for net, layers in zip(nets, [trunk, *streams], strict=True):
        parts: list[Any] = [part for part in net.modules() if isinstance(part, nn.Linear | nn.Conv2d)]
        for part, layer in zip(parts, layers, strict=True):
            weight = layer.weight if layer.kernel is not None else layer.weight.transpose(1, 2)
            part.weight.copy_(weight.reshape(part.weight.shape))
            part.bias.copy_(layer.bias)
