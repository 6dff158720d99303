"""Save and restore the replays of a run's Learners, which RLlib's checkpoint does not contain."""

from __future__ import annotations

import logging

import pyarrow.fs
import ray
from ray.rllib.core.learner.learner_group import LearnerGroup

from rllib_kd.algorithm.dead_learners import ask_learner
from rllib_kd.checkpoints.replay_files import read_replays, write_replay

logger = logging.getLogger(__name__)


def save_replays(
    learner_group: LearnerGroup, path: str, filesystem: pyarrow.fs.FileSystem, *, with_rows: bool = True
) -> None:
    """Write the replay of each Learner into the checkpoint at `path`, one at a time: they may be large.

    Args:
        learner_group: the Learners.
        path: path of the checkpoint.
        filesystem: filesystem of the path.
        with_rows: whether to write the rows, and not only the position in their drawing order.
    """
    for index in range(_num_learners(learner_group)):
        write_replay(
            path,
            index,
            ask_learner(learner_group, index, lambda own: own.replay_arrays(with_rows=with_rows)),
            filesystem,
        )


def refill_replays(learner_group: LearnerGroup, path: str, filesystem: pyarrow.fs.FileSystem) -> bool:
    """Fill the replays of the Learners from the checkpoint at `path`.

    Returns:
        False if the checkpoint has none, or none with the columns that are learned from now.
    """
    shards = read_replays(path, filesystem)
    if not shards:
        return False
    reference = ray.put(shards)
    num_learners = _num_learners(learner_group)
    if len(shards) != num_learners:
        logger.warning(
            "The checkpoint has the replays of %d Learners, but there are %d now: rows are redistributed.",
            len(shards),
            num_learners,
        )
    fits = [
        ask_learner(learner_group, index, lambda own: own.refill_replay(ray.get(reference)))
        for index in range(num_learners)
    ]
    if not all(fits):
        logger.warning("The replay starts empty: the checkpoint's lacks columns that are needed now.")
    return all(fits)


def _num_learners(learner_group: LearnerGroup) -> int:
    return max(1, len(learner_group))  # of a local one the length is 0
