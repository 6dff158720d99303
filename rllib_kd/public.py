"""What `from rllib_kd import ...` gives has its public name everywhere: also in pickles, and in messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

_Public = TypeVar("_Public", bound=Callable[..., Any])


def public(definition: _Public) -> _Public:
    """Decorate a class or function that `rllib_kd` hands out: pickles then name it so, whatever file it is in.

    With `rllib_kd/__init__.py`, which finds it by this name, its code can move and older pickles are still read.
    """
    definition.__module__ = "rllib_kd"
    return definition
