"""The RLModule of a tree: it reads Q-values in arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms.dqn.default_dqn_rl_module import QF_PREDS
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import QNetAPI
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from ray.rllib.utils.annotations import override
from torch import Tensor

from rllib_kd.networks.trees.arrays import Forest, Tree
from rllib_kd.networks.trees.features import Features
from rllib_kd.networks.trees.shape import TREE, TreeShape
from rllib_kd.numeric import is_integer


class TreeRLModule(TorchRLModule, QNetAPI):
    """A decision tree with Q-values of all actions at its leaves: a student like any other, without parameters.

    Its state is arrays of a fixed size, of which the tree uses the front: a tree grows without a new module.
    `load_state_dict()` refuses arrays that are no tree, before one acts.
    """

    @override(TorchRLModule)
    def setup(self) -> None:
        space, actions = self.observation_space, self.action_space
        self.shape = TreeShape.of(self.model_config[TREE])
        self.shape.check_fits(space)
        self.features = Features(space.shape[0], self.shape.oblique)
        most, num_actions = self.shape.max_leaf_nodes, int(actions.n)
        for name in ("feature", "left", "right"):
            self.register_buffer(name, torch.zeros(most - 1, dtype=torch.int64))
        self.register_buffer("threshold", torch.zeros(most - 1))
        self.register_buffer("values", torch.zeros(most, num_actions))
        self.register_buffer("num_leaves", torch.ones(1, dtype=torch.int64))
        self._take(Tree.of_leaf(np.zeros(num_actions), num_features=len(self.features)))

    @property
    def tree(self) -> Tree:
        """Return the tree."""
        return self._tree

    @tree.setter
    def tree(self, tree: Tree) -> None:
        self.load_state_dict(self._as_state(tree))

    @property
    def num_parameters(self) -> int:
        """Return how many numbers must be stored."""
        return self._tree.num_parameters

    @property
    def max_parameters(self) -> int:
        """Return how many numbers must be stored for a tree with all leaves that it may have."""
        return 4 * (self.shape.max_leaf_nodes - 1) + self.values.numel()

    @override(QNetAPI)
    def compute_q_values(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return "qf_preds" `[B, A]`, the values at the leaves that the observations `[B, inputs]` reach."""
        obs = batch[Columns.OBS]
        used = self.features.values(obs.detach().cpu().numpy(), self._forest.used)
        return {QF_PREDS: torch.from_numpy(self._forest.q_values(used)).to(obs.device)}

    def leaves(self, obs: np.ndarray) -> np.ndarray:
        """Return the leaf, from 0, that each of these observations `[B, inputs]` reaches: `[B]`."""
        return self._forest.leaves(self.features.values(obs, self._forest.used))

    @override(TorchRLModule)
    def _forward(self, batch: Mapping[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTIONS: self.compute_q_values(batch)[QF_PREDS].argmax(-1)}

    @override(TorchRLModule)
    def _forward_train(self, batch: Mapping[str, Any], **kwargs: Any) -> dict[str, Any]:
        return self.compute_q_values(batch)

    @override(torch.nn.Module)
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        own = {name: state_dict.get(name, buffer) for name, buffer in self.state_dict().items()}
        tree = self._from_state(own)
        loaded = super().load_state_dict(state_dict, strict=strict, assign=assign)
        self._take(tree)
        return loaded

    def _take(self, tree: Tree) -> None:
        self._tree, self._forest = tree, Forest([tree])

    def _as_state(self, tree: Tree) -> dict[str, Tensor]:
        if tree.num_leaves > self.shape.max_leaf_nodes:
            raise ValueError(f"A tree of {tree.num_leaves} leaves does not fit in {self.shape.max_leaf_nodes}.")
        state = {name: torch.zeros_like(buffer) for name, buffer in self.state_dict().items()}
        for name in ("feature", "threshold", "left", "right", "values"):
            array = getattr(tree, name)
            state[name][: len(array)] = torch.from_numpy(array)
        state["num_leaves"].fill_(tree.num_leaves)
        return state

    def _from_state(self, state: Mapping[str, Any]) -> Tree:
        arrays = {name: np.asarray(torch.as_tensor(value).detach().cpu()) for name, value in state.items()}
        num_leaves = arrays.pop("num_leaves")[0].item()
        if not is_integer(num_leaves, 1, self.shape.max_leaf_nodes):
            raise ValueError(
                f"A tree has {num_leaves} leaves, expected 1 to {self.shape.max_leaf_nodes} (max_leaf_nodes)."
            )
        own = {name: array[: num_leaves - (name != "values")] for name, array in arrays.items()}
        try:
            return Tree(**own, num_features=len(self.features))
        except ValueError as error:
            raise ValueError(f"The arrays are not a tree: {error}.") from error
