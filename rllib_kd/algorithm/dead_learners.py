"""Learners that have died, named at whatever moment it shows: RLlib then fails in many ways, most of them wordless."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
from ray.rllib.core.learner.learner_group import LearnerGroup

LEARNER_HAS_DIED = (
    "A Learner has died, with the node it was on or by itself, and RLlib restarts EnvRunners but never Learners. Stop "
    "this algorithm and go on from the last checkpoint: DistillDQN.from_checkpoint(path). `rllib train "
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
    """Raise a `LearnerDiedError` from what else is raised here if a remote Learner has died.

    Args:
        learner_group: of a run; None: there is none yet.
    """
    try:
        yield
    # What a Learner itself has raised, and that it could not save, has words of its own; RLlib gives it up, too.
    except (LearnerDiedError, ray.exceptions.RayTaskError, OSError):
        raise
    except Exception as error:  # RayActorError; then, of a group with fewer members, IndexError, AssertionError, ...
        if learner_group is None or not has_dead_learners(learner_group):
            raise
        raise LearnerDiedError from error


def has_dead_learners(learner_group: LearnerGroup) -> bool:
    """Whether a remote Learner no longer answers."""
    if learner_group.is_local:
        return False
    answers = list(learner_group.foreach_learner(lambda own: True, timeout_seconds=_SECONDS_TO_ANSWER))
    return len(answers) < len(learner_group) or not all(answer.ok for answer in answers)


def ask_learner(learner_group: LearnerGroup, index: int, question: Callable[[Any], Any]) -> Any:
    """Return what one Learner answers.

    Args:
        learner_group: of a run.
        index: of the Learner; 0 of a local one.
        question: is called with the Learner.

    Raises:
        LearnerDiedError: it does not answer.
    """
    return ask_learners(learner_group, question, index=index)[0]


def ask_learners(learner_group: LearnerGroup, question: Callable[[Any], Any], *, index: int | None = None) -> list[Any]:
    """Return what the Learners answer. RLlib itself returns what they raise as if it was an answer.

    Args:
        learner_group: of a run.
        question: is called with each Learner.
        index: of the only Learner that is asked; None asks all.

    Raises:
        LearnerDiedError: one has died, or RLlib has given all of them up.
        Exception: what a Learner has raised.
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
