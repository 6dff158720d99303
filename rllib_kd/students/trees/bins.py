"""Features in bins: the best test of a node is then found by adding up, and not by sorting."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from rllib_kd.networks.trees.arrays import rounded_down

#: As many as a byte can number.
MAX_BINS = 256


class Bins:
    """Features of states, with the number of the bin that each of them is in.

    The bins of a feature have about as many states each. If it has few different values, each has a bin of its own.
    LightGBM grows its trees on such bins (Ke et al. 2017).

    Args:
        features: `[N, F]`, float32, finite.
        max_bins: the most bins of a feature, 2 to 256.

    Attributes:
        features: as given.
        numbers: bin of each feature, `[N, F]`, bytes.
        thresholds: `[F, B]`, float32: a feature is at most `thresholds[f, b]` in the bins up to b, and above it in the
            others; ∞ from the last bin on.
    """

    def __init__(self, features: np.ndarray, max_bins: int = MAX_BINS):
        self.features = features
        self.numbers = np.empty(features.shape, np.uint8)
        found = [_sort_into(self.numbers[:, i], column, max_bins) for i, column in enumerate(features.T)]
        self.thresholds = np.full((len(found), 1 + max(map(len, found))), np.inf, np.float32)
        for feature, own in enumerate(found):
            self.thresholds[feature, : len(own)] = own

    @cached_property
    def places(self) -> np.ndarray:
        """Return the number of each feature's bin among those of all features, `[N, F]`."""
        num_features, num_bins = self.thresholds.shape
        return self.numbers + num_bins * np.arange(num_features)

    def best_test(self, rows: np.ndarray, gains: np.ndarray) -> tuple[int, np.float32] | None:
        """Return the test that gains most by what it sends to the left: feature and threshold.

        It is found among all features by bins, and then exactly, between the two bins where it is.

        Args:
            rows: the states that come to it, `[n]`.
            gains: what each of them gains if it goes left, `[n]`; negative if it loses.

        Returns:
            None if there is no state, or all features have one value.
        """
        if not len(rows):
            return None
        weights = np.repeat(gains, len(self.thresholds))
        in_bins = np.bincount(self.places[rows].ravel(), weights, self.thresholds.size)
        sums = in_bins.reshape(self.thresholds.shape).cumsum(axis=1)
        sums[np.isinf(self.thresholds)] = -np.inf
        feature, number = divmod(int(sums.argmax()), sums.shape[1])
        if np.isinf(sums[feature, number]):
            return None
        bins = self.numbers[rows, feature]
        near = (bins == number) | (bins == number + 1)
        exact = _best_threshold(self.features[rows[near], feature], gains[near])
        return feature, self.thresholds[feature, number] if exact is None else exact


def _sort_into(numbers: np.ndarray, column: np.ndarray, max_bins: int) -> np.ndarray:
    """Write the bin of each state into `numbers`, by one feature `[N]`.

    Returns:
        The thresholds between the bins, rising: each lies between two values that the feature has.
    """
    order = column.argsort()
    values = column[order]
    last = np.flatnonzero(values[1:] > values[:-1])  # of the states with one value
    if len(last) >= max_bins:
        shares = np.arange(1, max_bins) * (len(column) / max_bins)
        found = np.unique(np.searchsorted(last + 1, shares))
        last = last[found[found < len(last)]]
    sizes = np.diff(last + 1, prepend=0, append=len(column))
    numbers[order] = np.repeat(np.arange(len(sizes), dtype=np.uint8), sizes)
    return _between(values[last], values[last + 1])


def _best_threshold(values: np.ndarray, gains: np.ndarray) -> np.float32 | None:
    """Return the threshold that gains most by what is below it; None if there is only one value."""
    order = values.argsort()
    ordered, sums = values[order], gains[order].cumsum()[:-1]
    is_between = ordered[1:] > ordered[:-1]
    if not is_between.any():
        return None
    row = int(np.where(is_between, sums, -np.inf).argmax())
    return _between(ordered[row : row + 1], ordered[row + 1])[0]


def _between(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return thresholds in the middle of lower and higher values, float32."""
    return rounded_down((low.astype(np.float64) + high) / 2)
