"""How much each state counts for a student of a family: the objective is over the states that it visits itself.

The students of a family act in turn, and share one replay. Where a small student cannot follow its teacher it meets
states that a capable one never sees. If it learned from the states of all alike, the share of its own ones would be the
smaller the more students there are.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Weight of a student's states if they are few. If they are fewer than one in eight of a batch, others count, too: its
#: steps would be too random with so few.
MOST = 8.0


def own_state_weights(acting: Tensor, place: int | Tensor) -> Tensor:
    """Return the weights of a batch's states, 1 on average.

    Args:
        acting: which student acted, `[B]`; −1: the teacher, whose states are those of all students.
        place: which student learns, or `[N, 1]` for several.

    Returns:
        `[B]` or `[N, B]`. With f the share of its own states, these count 1 / f, and others 0. If f is less
        than 1 / 8, these count 1 − α + α / f, and others 1 − α, with α = 8 f.
    """
    own = ((acting == place) | (acting < 0)).float()
    share = own.mean(-1, keepdim=True)
    alpha = (MOST * share).clamp_(max=1.0)
    return torch.addcmul(1.0 - alpha, own, alpha / share.clamp_(min=1e-6))
