"""How other functions act in a module's place in RLlib's own loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced_passes(module: Any, passes: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """In this context, functions are called instead of a module's passes.

    The passes of this object alone are replaced: connectors and callbacks expect RLlib's class.

    Args:
        module: an RLModule.
        passes: functions by the names of the passes, such as `forward_exploration`.
    """
    own = {name: vars(module)[name] for name in passes if name in vars(module)}  # that the object had before
    for name, function in passes.items():
        setattr(module, name, function)
    try:
        yield
    finally:
        for name in passes:
            delattr(module, name)
        for name, function in own.items():
            setattr(module, name, function)
