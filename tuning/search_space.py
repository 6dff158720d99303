"""A search space of your own, for `rllib sweep --space tuning/search_space.py`.

The space that a sweep has without `--space` is `rllib_kd.search_space()`, in the package. Here it is with the changes
that one makes first.
"""

from __future__ import annotations

from typing import Any

from ray import tune

from rllib_kd import Teacher
from rllib_kd import search_space as package_space


def search_space(teacher: Teacher, *, median_gap: float, env_steps: int) -> dict[str, Any]:
    """See `rllib_kd.search_space()` for the arguments, and for the unit and the reason of every other entry."""
    space = package_space(teacher, median_gap=median_gap, env_steps=env_steps)
    # Units of each hidden layer: finer between the sizes that a first sweep has shown to matter.
    space["fcnet_hiddens"] = tune.choice([[8], [10], [12], [14], [16], [20], [24]])
    # Rows a minibatch: the more, the less each gradient step depends on single states; fewer steps in the same time.
    space["train_batch_size_per_learner"] = tune.choice([128, 256, 512])
    # A setting that is settled: without an entry, it has its default, or its value in --config.
    del space["loss"]
    return space
