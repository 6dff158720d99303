"""Trees for tests."""

import gymnasium as gym
import numpy as np

from rllib_kd.networks.dqn_module import student_module_spec
from rllib_kd.networks.trees.arrays import Tree
from rllib_kd.networks.trees.module import TreeRLModule

INPUTS = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
ACTIONS = gym.spaces.Discrete(3)


def tree_module(num_leaves: int = 1, *, seed: int = 0, **settings) -> TreeRLModule:
    """A tree of random tests, of so many leaves, that any observation around 0 may reach."""
    settings = {"max_leaf_nodes": max(2, num_leaves), **settings}
    spec = student_module_spec({"tree": settings})
    spec.observation_space, spec.action_space, spec.inference_only = INPUTS, ACTIONS, True
    module = spec.build()
    module.tree = random_tree(num_leaves, len(module.features), seed=seed)
    return module


def random_tree(num_leaves: int, num_features: int, *, seed: int = 0) -> Tree:
    rng = np.random.default_rng(seed)
    inner = num_leaves - 1
    children = [*range(1, inner), *range(inner, inner + num_leaves)] if inner else []
    # Each node, in its order, takes two of the nodes after it that no other one has yet: the first to come are inner.
    left, right = np.array(children[0::2], int), np.array(children[1::2], int)
    return Tree(
        rng.integers(num_features, size=inner),
        rng.normal(size=inner) * 0.5,
        left,
        right,
        rng.normal(size=(num_leaves, 3)),
        num_features=num_features,
    )


def near_ties(module: TreeRLModule, count: int, *, seed: int = 0) -> np.ndarray:
    """Observations of which many have an entry at a threshold, or the 32-bit float before or after it."""
    rng = np.random.default_rng(seed)
    obs = rng.normal(size=(count, 3)).astype(np.float32)
    tree = module.tree
    for node in range(tree.num_inner):
        feature = module.features[int(tree.feature[node])]
        rows = np.flatnonzero(rng.random(count) < 0.05)
        at = np.float32(tree.threshold[node])
        near = np.array([np.nextafter(at, np.float32(-9)), at, np.nextafter(at, np.float32(9))])
        sign = {"-": 1, "+": -1}.get(feature.operation, 0)
        obs[rows, feature.first] = rng.choice(near, len(rows)) + sign * obs[rows, feature.second]
    return obs
