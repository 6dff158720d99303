"""Check that a remote Learner has written its part of a checkpoint: RLlib drops its errors."""

from __future__ import annotations

from ray.rllib.core.learner.learner_group import LearnerGroup

from rllib_kd.algorithm.dead_learners import LEARNER_HAS_DIED


def num_learner_saves(learner_group: LearnerGroup) -> int | None:
    """Return how often a remote Learner has saved; None if it is local, has died, or was given up by RLlib."""
    if learner_group.is_local:
        return None
    answers = learner_group.foreach_learner(lambda own: own.num_saves, remote_actor_ids=[0])
    return next((answer.get() for answer in answers if answer.ok), None)  # RLlib returns errors


def check_learner_has_saved(learner_group: LearnerGroup, path: str, *, num_saves_before: int | None) -> None:
    """Check that a remote Learner has saved since it was counted.

    Args:
        learner_group: the Learners of the run. A local Learner raises its errors itself.
        path: path of the checkpoint, for the message.
        num_saves_before: result of `num_learner_saves()` before the checkpoint was written.

    Raises:
        OSError: the Learner did not save, or died. RLlib gives up a Learner in both cases.
    """
    if not learner_group.is_local and num_learner_saves(learner_group) in (None, num_saves_before):
        raise OSError(
            f"The Learner could not write its part of the checkpoint '{path}': its disk is full or read-only, or: "
            f"{LEARNER_HAS_DIED}"
        )
