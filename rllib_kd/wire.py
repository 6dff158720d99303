"""What travels between EnvRunners, driver and Learners: columns by name, samples, packed weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import ray
import tree

logger = logging.getLogger(__name__)


_SMALL = 100_000  # bytes that Ray would rather send along than store


class Sample(NamedTuple):
    """What an EnvRunner answers to a request.

    Args:
        worker_index: whose answer it is.
        shards: columns as `hand_over()` makes them, for each Learner.
        metrics: RLlib's.
        weights_seq_no: of the student that acted; Learners count their updates by it.
        connector_states: of an EnvRunner with connectors of its own, by component; else empty.
        not_finite: the first numbers that its environments have returned and that are not finite, in words; else empty.
    """

    worker_index: int
    shards: list[Any]
    metrics: dict[str, Any]
    weights_seq_no: int
    connector_states: dict[str, Any]
    not_finite: str = ""


def hand_over(env_runner: Any, columns: Mapping[str, Any]) -> Any:
    """Columns on their way to a Learner: a reference, or themselves where it is in the process that samples."""
    is_here = env_runner.worker_index == 0 and env_runner.config.num_learners == 0
    return columns if is_here else ray.put(columns)


def receive(columns: Any) -> Mapping[str, Any]:
    """What `hand_over()` was given.

    Raises:
        ray.exceptions.ObjectLostError: it was lost with the EnvRunner that has sampled it.
    """
    return ray.get(columns) if isinstance(columns, ray.ObjectRef) else columns


def pack_weights(weights: Mapping[str, Any]) -> Any:
    """A copy on its way to EnvRunners: of small weights itself, of larger ones a reference, stored once for all.

    RLlib's `set_state()` takes both.
    """
    size = sum(np.asarray(leaf).nbytes for leaf in tree.flatten(weights))
    return tree.map_structure(np.array, weights) if size <= _SMALL else ray.put(weights)


#: Columns of labels: Q-values `[A]`, return distributions `[A, atoms]`, and what the last layer gets, `[units]`.
TEACHER_Q, TEACHER_PROBS, TEACHER_FEATURES = "teacher_q", "teacher_probs", "teacher_features"
