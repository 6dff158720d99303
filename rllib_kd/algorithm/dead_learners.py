"""One clear error for Learners that have died: RLlib then fails in many ways, most of them without a message."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
from ray.rllib.core.learner.learner_group import LearnerGroup

from rllib_kd.learner.distributed import PeerFailedError, raise_failure

LEARNER_HAS_DIED = (
    "A Learner has died, alone or with its node, and RLlib restarts EnvRunners but never Learners. Stop this "
    "algorithm and continue from the last checkpoint: DistillDQN.from_checkpoint(path). `rllib train "
    "--checkpoint-freq N --max-failures N` does so by itself, and under Ray Tune FailureConfig(max_failures=...)."
)

_SECONDS_TO_ANSWER = 60.0
_Method = TypeVar("_Method", bound=Callable[..., Any])


class LearnerDiedError(RuntimeError):
    """A remote Learner has died."""

    def __init__(self) -> None:
        super().__init__(LEARNER_HAS_DIED)

    def __reduce__(self) -> tuple[type[LearnerDiedError], tuple[()]]:
        return type(self), ()


def names_dead_learners(method: _Method) -> _Method:
    """Let a method of an Algorithm raise a `LearnerDiedError` if it fails because a Learner has died."""

    @functools.wraps(method)
    def named(self: Any, *args: Any, **kwargs: Any) -> Any:
        with naming_dead_learners(getattr(self, "learner_group", None)):
            return method(self, *args, **kwargs)

    return named  # type: ignore[return-value]


@contextmanager
def naming_dead_learners(learner_group: LearnerGroup | None) -> Iterator[None]:
    """If an exception is raised in this context and a remote Learner has died, raise a `LearnerDiedError` from it.

    Args:
        learner_group: the Learners of a run; None: there are none yet.
    """
    try:
        yield
    # Exceptions of a Learner itself, and failures to save, have messages of their own; RLlib gives it up, too.
    except (LearnerDiedError, OSError):
        raise
    except Exception as error:  # RayActorError; then, of a group with fewer members, IndexError, AssertionError, ...
        has_lost_peers = isinstance(error, PeerFailedError)
        if learner_group is None or (isinstance(error, ray.exceptions.RayTaskError) and not has_lost_peers):
            raise
        if len(learner_group) > 1 and (reason := _reason_in(learner_group)) is not None:
            raise reason from error
        if has_lost_peers or not has_dead_learners(learner_group):
            raise
        raise LearnerDiedError from error


def raise_failures(learner_group: LearnerGroup) -> None:
    """Raise the error by which a remote Learner has failed, which RLlib drops when it restores.

    Args:
        learner_group: the Learners of a run. A local Learner raises its errors itself.

    Raises:
        LearnerDiedError: a Learner has died.
        Exception: raised by a Learner.
    """
    if not learner_group.is_local and (reason := _reason_in(learner_group)) is not None:
        raise reason


def _reason_in(learner_group: LearnerGroup) -> Exception | None:
    """Return the error of a Learner that made the others fail; a `LearnerDiedError` if it has died; None: neither."""
    answers = list(learner_group.foreach_learner(raise_failure, healthy_only=False, timeout_seconds=_SECONDS_TO_ANSWER))
    errors = [answer.get() for answer in answers if not answer.ok]
    own = [error for error in errors if isinstance(error, ray.exceptions.RayTaskError)]
    has_died = any(isinstance(error, ray.exceptions.RayActorError) for error in errors)
    return next(iter(own), LearnerDiedError() if has_died else None)


def has_dead_learners(learner_group: LearnerGroup) -> bool:
    """Return whether a remote Learner no longer answers."""
    if learner_group.is_local:
        return False
    answers = list(learner_group.foreach_learner(lambda own: True, timeout_seconds=_SECONDS_TO_ANSWER))
    return len(answers) < len(learner_group) or not all(answer.ok for answer in answers)


def ask_learner(learner_group: LearnerGroup, index: int, question: Callable[[Any], Any]) -> Any:
    """Call a function on one Learner and return its result.

    Args:
        learner_group: the Learners of a run.
        index: index of the Learner; 0 for a local one.
        question: a function of the Learner.

    Raises:
        LearnerDiedError: the Learner does not answer.
    """
    return ask_learners(learner_group, question, index=index)[0]


def ask_learners(learner_group: LearnerGroup, question: Callable[[Any], Any], *, index: int | None = None) -> list[Any]:
    """Call a function on the Learners and return the results. RLlib itself returns exceptions among the results.

    Args:
        learner_group: the Learners of a run.
        question: a function of a Learner.
        index: index of the only Learner to call; None: all.

    Raises:
        LearnerDiedError: a Learner has died, or RLlib has given up all of them.
        Exception: raised by a Learner.
    """
    ids = None if learner_group.is_local or index is None else [index]
    answers = list(learner_group.foreach_learner(question, remote_actor_ids=ids))
    if not answers:
        raise LearnerDiedError
    for answer in answers:
        if not answer.ok:
            error = answer.get()
            if isinstance(error, ray.exceptions.RayActorError):
                raise LearnerDiedError from error
            raise error
    return [answer.get() for answer in answers]
