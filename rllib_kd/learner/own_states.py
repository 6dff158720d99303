"""How much each state counts for a student of a family: all alike, or those that it visits itself.

The students of a family act in turn, and share one replay. Where a linear student cannot follow its teacher it meets
states that a capable one never sees. If it learned from the states of all alike, the share of its own ones would be the
smaller the more students there are. Others visit about the same states, and learn from each other's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Weight of a student's states if they are few. If they are fewer than one in eight of a batch, others count, too: its
#: steps would be too random with so few.
MOST = 8.0


class OwnStates:
    """The weights of a batch's states for one or more students of a family.

    Args:
        counts: whether a state counts, `[N, 1 + students]`, by who acted in it: the teacher, or one of the students.

    Attributes:
        are_all: whether all states count for each student, so that no weights are needed.
    """

    def __init__(self, counts: Tensor):
        self._counts = counts
        self.are_all = bool(counts.all())

    @classmethod
    def of(cls, place: int, num_students: int, *, device: torch.device | str = "cpu") -> OwnStates:
        """Return those of the student at a place in the family, from 0."""
        counts = torch.zeros(1, 1 + num_students, device=device)
        counts[0, [0, 1 + place]] = 1.0
        return cls(counts)

    @classmethod
    def of_all(cls, num_students: int, *, device: torch.device | str = "cpu") -> OwnStates:
        """Return those of a student for which the states of all count."""
        return cls(torch.ones(1, 1 + num_students, device=device))

    @classmethod
    def joined(cls, each: Sequence[OwnStates]) -> OwnStates:
        """Return those of several students together."""
        return cls(torch.cat([own._counts for own in each]))

    def weights(self, acting: Tensor) -> Tensor:
        """Return the weights `[N, B]`, 1 on average.

        With f the share of the states that are a student's own or its teacher's, these count 1 / f, and others 0. If f
        is less than 1 / 8, these count 1 − α + 8, and others 1 − α, with α = 8 f.

        Args:
            acting: who acted, `[B]`, as in the column of this name.
        """
        own = self._counts.index_select(1, acting)
        share = own.mean(-1, keepdim=True)
        weight = share.reciprocal().clamp_(max=MOST)
        return own.mul_(weight).add_(1.0 - weight * share)
