"""Q-values of several students in different states, in one pass if they can be stacked."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from torch import Tensor

from rllib_kd.networks.dqn_module import QF_PREDS
from rllib_kd.networks.stacking import StackedMLPs, stacking_key
from rllib_kd.networks.trees.arrays import Forest
from rllib_kd.networks.trees.module import TreeRLModule


class FamilyQValues:
    """The Q-values of the acting students, with those that can be stacked in one pass, and trees in another.

    Args:
        students: RLModules by name, in the order of the indices of `FamilyTurns`.
    """

    def __init__(self, students: Mapping[str, Any]):
        self._students = list(students.values())
        by_key: dict[Hashable, list[int]] = {}
        trees: dict[Hashable, list[int]] = {}
        for i, module in enumerate(self._students):
            if isinstance(module, TreeRLModule):
                trees.setdefault(module.shape.oblique, []).append(i)
            else:
                by_key.setdefault(stacking_key(module) or i, []).append(i)
        self._trees = list(map(np.array, trees.values()))
        self._alone = [members[0] for members in by_key.values() if len(members) == 1]
        self._stacks = [
            (np.array(members), StackedMLPs([self._students[i] for i in members]))
            for members in by_key.values()
            if len(members) > 1
        ]
        self.refresh()

    def refresh(self) -> None:
        """Update from the modules' weights, which have changed."""
        self._packed = [mlps.pack(mlps.weights) for _, mlps in self._stacks]
        self._forests = [Forest([self._students[i].tree for i in members]) for members in self._trees]

    @torch.inference_mode()
    def __call__(self, obs: Tensor, acting: np.ndarray) -> Tensor:
        """Return Q-values `[N, A]` of observations `[N, ...]`, each by the student in `acting` (`[N]`)."""
        if len(self._stacks) == 1 and not self._alone and not self._trees:  # the usual case, at a third of the cost
            (_, mlps), (packed,) = self._stacks[0], self._packed
            return mlps.q_values(packed, obs)[torch.from_numpy(acting), torch.arange(len(obs))]
        num_actions = int(self._students[0].action_space.n)
        q = torch.empty(len(obs), num_actions, device=obs.device)
        for i in self._alone:
            if len(rows := np.flatnonzero(acting == i)):
                q[rows] = self._students[i].compute_q_values({Columns.OBS: obs[rows]})[QF_PREDS]
        for members, forest in zip(self._trees, self._forests, strict=True):
            place = np.searchsorted(members, acting)
            rows = np.flatnonzero(np.isin(acting, members))
            if len(rows):
                seen = self._students[members[0]].features.values(obs[rows].cpu().numpy(), forest.used)
                q[rows] = torch.from_numpy(forest.q_values(seen, place[rows])).to(obs.device)
        for (members, mlps), packed in zip(self._stacks, self._packed, strict=True):
            place = np.searchsorted(members, acting)
            rows = np.flatnonzero(np.isin(acting, members))
            if len(rows):
                q[rows] = mlps.q_values(packed, obs[rows])[place[rows], np.arange(len(rows))]
        return q
