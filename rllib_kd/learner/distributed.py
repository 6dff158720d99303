"""Learners that update together: if one fails, the others fail at once, instead of waiting for it."""

from __future__ import annotations

import functools
import os
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import torch

_OF_TORCH = os.path.join(os.path.dirname(torch.__file__), "distributed", "")
_Method = TypeVar("_Method", bound=Callable[..., Any])


class PeerFailedError(RuntimeError):
    """In an update that all Learners make together, another one has failed or died, or did not answer in time."""


def fails_with_its_peers(update: _Method) -> _Method:
    """If `update()` of a Learner raises, end its connections to the other Learners, so that they fail, too.

    Otherwise they would wait for its gradients until the process group's timeout. A Learner that fails because of
    another one raises a `PeerFailedError`. One that fails by itself keeps its error, which `raise_failure()` raises.
    """

    @functools.wraps(update)
    def update_together(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.distributed:
            return update(self, *args, **kwargs)
        try:
            return update(self, *args, **kwargs)
        except Exception as error:
            is_of_another = _is_of_process_group(error)
            self.failure = None if is_of_another else error
            with suppress(Exception):  # the first error counts
                torch.distributed.destroy_process_group()
            if is_of_another:
                raise PeerFailedError(
                    "Another Learner has failed or died, or did not answer in time. The error here was: "
                    + " ".join(f"{type(error).__name__}: {error}".split())
                ) from error
            raise

    return update_together  # type: ignore[return-value]


def keeps_failure(restore: _Method) -> _Method:
    """Keep the error that a method of a Learner raises, for `raise_failure()`: RLlib drops those of remote ones."""

    @functools.wraps(restore)
    def restore_and_keep(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.failure = None
        try:
            return restore(self, *args, **kwargs)
        except Exception as error:
            self.failure = error
            raise

    return restore_and_keep  # type: ignore[return-value]


def raise_failure(learner: Any) -> None:
    """Raise the error of this Learner's last update or restore that failed, unless that was another Learner's."""
    if (failure := getattr(learner, "failure", None)) is not None:
        raise failure


def _is_of_process_group(error: Exception) -> bool:
    """Return whether an error comes from the connections between Learners: PyTorch has no class of its own for it."""
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, RuntimeError) and bool(frames) and frames[-1].filename.startswith(_OF_TORCH)
