"""Features that a tree compares with its thresholds: entries of observations, and sums, differences or products of two.

Each feature is an entry, or one operation in 32-bit floats on two entries, so that numpy, ONNX and C compute the same
number, bit by bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

#: What oblique trees add to the entries, with the sign of the operation.
OPERATIONS = {"differences": "-", "sums": "+", "products": "*"}


class Feature(NamedTuple):
    """One number that a tree compares.

    Args:
        first: index of an entry of the observation.
        operation: "" for the entry itself, "-" for a difference, "+" for a sum, "*" for a product.
        second: index of the other entry; equal to `first` for the entry itself.
    """

    first: int
    operation: str
    second: int

    def text(self, names: Sequence[str], pattern: str = "{}") -> str:
        """Return it in words, such as "x - velocity".

        Args:
            names: name of each entry of the observation.
            pattern: what stands for a name.
        """
        first, second = (pattern.format(names[index]) for index in (self.first, self.second))
        return f"{first} {self.operation} {second}" if self.operation else first


class Features:
    """The features of a tree, in the order of their indices: first the entries, then what is added to them.

    Args:
        num_inputs: entries of an observation, ≥ 1.
        added: names in `OPERATIONS`.
    """

    def __init__(self, num_inputs: int, added: Sequence[str] = ()):
        self.num_inputs, self.added = num_inputs, tuple(added)
        pairs = list(combinations(range(num_inputs), 2)) if added else []  # of 40,000 entries they fill the memory
        squares = [(index, index) for index in range(num_inputs)]
        self._all = [Feature(index, "", index) for index in range(num_inputs)]
        for name in OPERATIONS:
            if name in added:
                both = pairs + squares if name == "products" else pairs
                self._all += [Feature(first, OPERATIONS[name], second) for first, second in both]
        self.first = np.array([feature.first for feature in self._all], np.int64)
        self.second = np.array([feature.second for feature in self._all], np.int64)
        self._operation = np.array([feature.operation for feature in self._all])

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._all)

    def __getitem__(self, index: int) -> Feature:
        """Return the feature of an index."""
        return self._all[index]

    def values(self, obs: np.ndarray, indices: np.ndarray | None = None) -> np.ndarray:
        """Return features `[B, F]`, float32, of observations `[B, num_inputs]`; those of `indices`, or all."""
        obs = np.asarray(obs, np.float32)
        if len(self) == self.num_inputs:
            return obs if indices is None else obs[:, indices]
        chosen = np.arange(len(self)) if indices is None else indices
        one, other = obs[:, self.first[chosen]], obs[:, self.second[chosen]]
        operation = self._operation[chosen]
        with np.errstate(over="ignore", invalid="ignore"):  # infinities are compared as they are
            found = np.where(operation == "*", one * other, one)
            return np.where(operation == "-", one - other, np.where(operation == "+", one + other, found))
