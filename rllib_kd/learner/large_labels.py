"""Warn of labels that mark illegal actions by large negative numbers: nothing but −inf marks them here.

Such a number is not replaced by −inf. It may stand for an action that is legal and bad, and students learn nothing
about illegal actions: without a mask of the environment, nothing would keep them from such an action.
"""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

#: Usual numbers are −1e8, −1e9 and the lowest float of 32 bits. From this many times the best Q-values on, the rounding
#: of such a number to 32 bits is 1 % of them or more, which is larger than many action gaps.
_LEAST_RATIO = 1e5
#: Where the best Q-values are all 0.
_LEAST = 1e6  # return units
#: This share of the states have best Q-values that are no larger than what is usual: they may often be 0.
_USUAL = 0.9


class LargeLabels:
    """Looks for such numbers among the labels of one teacher, and warns of the first ones."""

    def __init__(self) -> None:
        self._has_warned = False

    def check(self, labels: Tensor) -> None:
        """Warn if these labels have a Q-value that is far below all that is usual, unless that was done before.

        Args:
            labels: Q-values `[M, A]`, return units; −inf marks illegal actions, of which no row consists.
        """
        if self._has_warned or not len(labels):
            return
        lowest = labels.masked_fill(labels == -torch.inf, torch.inf).min()
        usual = labels.amax(-1).abs().kthvalue(math.ceil(_USUAL * len(labels))).values
        low, size = torch.stack([lowest, usual]).tolist()
        if low > -(_LEAST_RATIO * size or _LEAST):
            return
        self._has_warned = True
        logger.warning(
            "The teacher's Q-values go down to %.3g, while the best ones are usually at most %.3g in size. If such a "
            "value marks an illegal action: it counts as a Q-value here, and spoils value losses, regrets and, if most "
            "states have one legal action, the automatic temperature. Let the environment return its mask of legal "
            "actions (docs/pages/masks.md). If it has none, return a value a few action gaps below the others, so that "
            "students learn to avoid the action.",
            low,
            size,
        )
