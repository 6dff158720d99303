"""Running statistics of the labels, which set the temperature and the scale of value losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_GAP_BINS = 256
_LOG2_GAP_RANGE = (-32.0, 32.0)  # action gaps from 2e-10 to 4e9 return units, a factor of 1.19 a bin
#: Relative tolerance of ties, eight units of float32 rounding: actions that are worse than the best one by less than
#: this times its own Q-value count as equally good. Many actions have equals (two ways around a wall). Then half of
#: the states may have a gap of 0 or of rounding, on whose scale the cost of a real mistake is a million or more. Other
#: Q-values of the state do not count: a catastrophic one of -1e5 would make all others equally good.
_TIE_TOLERANCE = 8 * 2.0**-23
#: Smallest scale, as a share of the labels' root mean square: below it, what varies is float32 rounding.
_SMALLEST_SCALE = 2.0**-23


@dataclass(frozen=True)
class QScale:
    """The map between Q-values and the normalised coordinates of a value loss.

    Q = mean_a(Q) + deviation, two orthogonal parts. Each has its own mean and scale: in a good teacher the first is
    large but hardly affects the choice of action, while the second is small and determines it.
    """

    value_mean: float  # of mean_a(Q), return units
    value_scale: float  # standard deviation of mean_a(Q), return units
    deviation_mean: np.ndarray  # [A], of Q − mean_a(Q), return units; sums to zero
    deviation_scale: float  # root mean square of the centred deviations, return units

    def denormalize(self, normalized: Tensor) -> Tensor:
        """Return the Q-values `[..., A]` of normalised ones."""
        value = normalized.mean(-1, keepdim=True)
        offset = torch.as_tensor(
            self.value_mean + self.deviation_mean, dtype=normalized.dtype, device=normalized.device
        )
        return offset + self.value_scale * value + self.deviation_scale * (normalized - value)

    def normalize(self, q: Tensor) -> Tensor:
        """Invert `denormalize`. Illegal actions (−inf) stay −inf, and count as average ones in the mean."""
        offset = torch.as_tensor(self.value_mean + self.deviation_mean, dtype=q.dtype, device=q.device)
        legal = torch.isfinite(q)
        centred = torch.where(legal, q - offset, 0.0)
        value = centred.sum(-1, keepdim=True) / legal.sum(-1, keepdim=True)
        normalized = value / self.value_scale + (centred - value) / self.deviation_scale
        return torch.where(legal, normalized, q)


class QStatistics:
    """Cumulative statistics over every labelled state seen so far.

    Args:
        num_actions: A.
        device: where the sums live.
    """

    def __init__(self, num_actions: int, *, device: torch.device | str = "cpu"):
        # count, Σ mean_a, Σ mean_a², Σ deviation [A], Σ deviation² [A]; then two histograms of log2(gap): of real gaps,
        # and of rounding in states whose actions are all equally good.
        self._num_actions = num_actions
        self._sums = self._extended(torch.zeros(0, dtype=torch.float64, device=device))

    @property
    def count(self) -> int:
        """Return the number of states so far."""
        return int(self._sums[0])

    def update(self, teacher_q: Tensor, *, reduce: Callable[[Tensor], Any] | None = None) -> None:
        """Add the labels of new states.

        Args:
            teacher_q: `[N, A]`, return units; N may be 0.
            reduce: adds up a tensor over all Learners, in place.
        """
        q = teacher_q.to(self._sums).reshape(-1, self._num_actions)
        legal = torch.isfinite(q)
        known = torch.where(legal, q, 0.0)
        value = known.sum(-1, keepdim=True) / legal.sum(-1, keepdim=True)
        deviation = torch.where(legal, q - value, 0.0)
        new = torch.cat(
            [
                torch.tensor([len(q)]).to(q),
                value.sum().reshape(1),
                value.square().sum().reshape(1),
                deviation.sum(0),
                deviation.square().sum(0),
                *map(_histogram, _gaps(q)),
            ]
        )
        if reduce is not None:
            reduce(new)
        self._sums += new

    def median_gap(self) -> float:
        """Return the median over states of the action gap, return units, to about 20 %.

        The gap is the best Q-value minus the next lower one. States in which all actions are equally good, up to
        rounding, have none. If there are no other states, as with nearly equal values of 1e5, the rounding is taken.
        It is 1 if no two actions differ anywhere.
        """
        real, rounding = self._sums[-2 * _GAP_BINS :].reshape(2, _GAP_BINS).cpu().numpy()
        histogram = real if real.any() else rounding
        if not histogram.any():
            return 1.0
        low, high = _LOG2_GAP_RANGE
        share = np.cumsum(histogram) / histogram.sum()
        bin_index = int(np.searchsorted(share, 0.5))
        return float(2.0 ** (low + (bin_index + 0.5) * (high - low) / _GAP_BINS))

    def scale(self) -> QScale:
        """Return means and scales of the two parts of the Q-values."""
        sums, actions = self._sums.cpu().numpy(), self._num_actions
        count = max(sums[0], 1.0)
        value_mean = sums[1] / count
        value_variance = sums[2] / count - value_mean**2
        deviation_mean = sums[3 : 3 + actions] / count
        deviation_square = sums[3 + actions : 3 + 2 * actions] / count
        deviation_variance = (deviation_square - deviation_mean**2).mean()
        smallest = _SMALLEST_SCALE**2 * (sums[2] / count + deviation_square.mean()) or 1.0  # 1 if all labels are 0
        return QScale(
            value_mean=float(value_mean),
            value_scale=float(np.sqrt(max(value_variance, smallest))),
            deviation_mean=deviation_mean,
            deviation_scale=float(np.sqrt(max(deviation_variance, smallest))),
        )

    def get_state(self) -> dict[str, Any]:
        """Return the sums, as a numpy array."""
        return {"sums": self._sums.cpu().numpy().copy()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore the state of `get_state()`."""
        self._sums = self._extended(torch.as_tensor(np.asarray(state["sums"])).to(self._sums))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickle, also of an earlier version."""
        self.__dict__.update(state)
        self._sums = self._extended(self._sums)

    def _extended(self, sums: Tensor) -> Tensor:
        """Return the sums, with zeros for those that are missing: earlier versions had no second histogram."""
        missing = 3 + 2 * self._num_actions + 2 * _GAP_BINS - len(sums)
        return torch.cat([sums, sums.new_zeros(missing)]) if missing else sums


def equally_good(q: Tensor) -> Tensor:
    """Return which actions are as good as the best one, up to rounding.

    In states in which all actions are alike up to rounding, as nearly equal values of 1e5 are, only exact equals count.

    Args:
        q: Q-values or log-probabilities `[..., A]`; −inf marks illegal actions.

    Returns:
        Truth values `[..., A]`.
    """
    return _ties(q)[0]


def agrees(q: Tensor, actions: Tensor) -> Tensor:
    """Return whether actions are as good as the teacher's, by its outputs `[M, A]`; both `[..., M]`."""
    return equally_good(q).expand(*actions.shape, -1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)


def regret(q: Tensor, actions: Tensor) -> Tensor:
    """Return max_a q − q(action) ≥ 0, in units of the teacher's outputs `[M, A]`; actions and result `[..., M]`."""
    chosen = q.expand(*actions.shape, -1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)
    return q.max(-1).values - chosen


def _ties(q: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `equally_good()` does, and whether all legal actions of a state are alike, `[...]`."""
    best = q.amax(-1, keepdim=True)
    is_close = q >= best - _TIE_TOLERANCE * best.abs()
    are_alike = (is_close | ~torch.isfinite(q)).all(-1, keepdim=True)
    return torch.where(are_alike, q == best, is_close), are_alike.squeeze(-1)


def _gaps(q: Tensor) -> tuple[Tensor, Tensor]:
    """Return action gaps of states, all > 0.

    Args:
        q: Q-values `[N, A]`, return units; −inf marks illegal actions.

    Returns:
        The gaps of states that have one, and those of states whose actions are equally good, up to rounding.
    """
    equal, alike = _ties(q)
    gaps = q.amax(-1) - q.masked_fill(equal, -torch.inf).amax(-1)
    return gaps[~alike], gaps[alike & torch.isfinite(gaps)]


def _histogram(gaps: Tensor) -> Tensor:
    if not len(gaps):
        return gaps.new_zeros(_GAP_BINS)
    low, high = _LOG2_GAP_RANGE
    return torch.histc(gaps.clamp(2.0**low, 2.0**high).log2(), bins=_GAP_BINS, min=low, max=high)
