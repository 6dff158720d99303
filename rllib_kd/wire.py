"""Data sent between EnvRunners, driver and Learners: columns by name, samples, packed weights."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import ray
import tree
from ray.exceptions import ObjectStoreFullError, OutOfDiskError

logger = logging.getLogger(__name__)

_SMALL = 100_000  # bytes that Ray would rather send along than store
_SECONDS_FOR_ROOM = 60.0  # in which the driver learns from earlier samples


class Sample(NamedTuple):
    """An EnvRunner's answer to a request.

    Args:
        worker_index: index of the EnvRunner.
        shards: columns from `hand_over()`, for each Learner.
        metrics: RLlib's metrics.
        weights_seq_no: number of updates of the student that acted.
        connector_states: states of custom connectors, by component; empty without any.
        not_finite: the message for the first numbers of its environments that are not finite; empty if there are none.
    """

    worker_index: int
    shards: list[Any]
    metrics: dict[str, Any]
    weights_seq_no: int
    connector_states: dict[str, Any]
    not_finite: str = ""


def hand_over(env_runner: Any, columns: Mapping[str, Any]) -> Any:
    """Return columns for a Learner: a reference, or the columns themselves if it is in the same process.

    Raises:
        ray.exceptions.OutOfDiskError: the object store had no room in time, and the disk is too full to spill to.
    """
    is_here = env_runner.worker_index == 0
    if is_here and env_runner.config.num_learners == 0:
        return columns
    return _put(columns, seconds=0.0 if is_here else _SECONDS_FOR_ROOM)  # the driver would wait for itself


def _put(columns: Mapping[str, Any], *, seconds: float) -> ray.ObjectRef:
    """Put columns into the object store. Where Ray does not spill what is in it, wait so many seconds for room."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return ray.put(columns)
        except (ObjectStoreFullError, OutOfDiskError):
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.1)


def receive(columns: Any) -> Mapping[str, Any]:
    """Return the columns that were passed to `hand_over()`.

    Raises:
        ray.exceptions.ObjectLostError: they were lost with the EnvRunner that sampled them.
    """
    return ray.get(columns) if isinstance(columns, ray.ObjectRef) else columns


def receive_all(references: Sequence[Any] | None) -> list[Mapping[str, Any]]:
    """Return the columns of several `hand_over()`. They come one by one: only those of a dead EnvRunner are lost."""
    fragments = []
    for reference in references or ():
        try:
            fragments.append(receive(reference))
        except ray.exceptions.ObjectLostError as error:
            logger.warning("A fragment was lost with the EnvRunner that sampled it: %s", error)
    return fragments


def pack_weights(weights: Mapping[str, Any]) -> Any:
    """Return a copy for EnvRunners: small weights themselves, or a reference to larger ones, which are stored once.

    RLlib's `set_state()` takes both.
    """
    size = sum(np.asarray(leaf).nbytes for leaf in tree.flatten(weights))
    return tree.map_structure(np.array, weights) if size <= _SMALL else ray.put(weights)


#: What the outputs of a frozen policy are: Q-values (return units), or the log-probabilities of its actions (nats).
Outputs = Literal["q_values", "log_probs"]
Q_VALUES: Final = "q_values"
LOG_PROBS: Final = "log_probs"
#: Columns of labels: Q-values or log-probabilities `[A]`, return distributions `[A, atoms]`, and inputs of the last
#: layer `[units]`.
TEACHER_Q, TEACHER_PROBS, TEACHER_FEATURES = "teacher_q", "teacher_probs", "teacher_features"
#: Column of a family: who acts in a state: 0 for the teacher, i + 1 for the student at place i of `students`.
ACTING: Final = "acting"
#: Columns of sequences, which recurrent students learn from: whether a state is learned from, and the parts of the
#: student's state before the first one, by RLlib's names of these parts.
LEARNED: Final = "learned"
STATE_COLUMNS: Final = {"h": "state_h", "c": "state_c"}
#: The same of the student's state before the second one, from which TD runs over the next states.
NEXT_STATE_COLUMNS: Final = {part: f"next_{column}" for part, column in STATE_COLUMNS.items()}
#: In files, the name of log-probabilities, which pass as `teacher_q` between processes.
TEACHER_LOG_PROBS = "teacher_log_probs"
#: In files, the column that ranks actions, by what the teacher's outputs are.
RANKING_COLUMN: Final = {Q_VALUES: TEACHER_Q, LOG_PROBS: TEACHER_LOG_PROBS}
