"""Parts: training divided over processes of a cluster, each with some sizes, some of their copies and its own states.

A part is the smallest piece that loses nothing: copies of one size weigh the Q-regret differently in turn, and a part
has all of these weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from rllib_kd.shrink.candidates import Size
from rllib_kd.students.restarts import REGRET_FACTORS, names_of

#: Seeds of two parts differ by this.
_BETWEEN_SEEDS = 10_007


class Part(NamedTuple):
    """The share of one process in training.

    Args:
        sizes: sizes to train.
        first_copy: number of the first copy of each size.
        num_copies: copies of each size.
        seed: seed of the run.
    """

    sizes: tuple[Size, ...]
    first_copy: int
    num_copies: int
    seed: int

    def renamed(self) -> dict[str, str]:
        """Return the IDs of all copies in the whole family, by their IDs in this part."""
        names: dict[str, str] = {}
        for size in self.sizes:
            own = names_of(size.name, self.num_copies)
            whole = names_of(size.name, self.first_copy + self.num_copies)[self.first_copy :]
            names.update(zip(own, whole, strict=True))
        return names


def divide(sizes: Sequence[Size], restarts: int, num_parts: int, *, seed: int) -> list[Part]:
    """Divide a family into parts: neighbouring sizes stay together, then copies of the same sizes are divided.

    Small sizes of one depth learn in one batch of matrices, so that fewer depths in a part cost less.

    Args:
        sizes: all sizes, smallest first.
        restarts: copies of each size.
        num_parts: ≥ 1; there are fewer parts if the family cannot be divided so often.
        seed: seed of the first part.
    """
    num_groups = min(num_parts, len(sizes))
    num_chunks = min(num_parts // num_groups, math.ceil(restarts / len(REGRET_FACTORS)))
    factors = math.ceil(restarts / len(REGRET_FACTORS) / num_chunks)  # rounds of all weights, in a chunk
    chunk = factors * len(REGRET_FACTORS)
    ends = [len(sizes) * (group + 1) // num_groups for group in range(num_groups)]
    groups = [tuple(sizes[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
    places = [(first, group) for first in range(0, restarts, chunk) for group in groups]
    return [
        Part(group, first, min(chunk, restarts - first), seed + _BETWEEN_SEEDS * place)
        for place, (first, group) in enumerate(places)
    ]
