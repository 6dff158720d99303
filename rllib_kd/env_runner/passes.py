"""How other functions act in a module's place in RLlib's own loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced_passes(module: Any, passes: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """In this context, functions are called instead of a module's passes.

    The passes of this object alone are replaced: connectors and callbacks expect RLlib's class. A pass that is replaced
    already stays as it is.

    Args:
        module: an RLModule.
        passes: functions by the names of the passes, such as `forward_exploration`.
    """
    new = {name: function for name, function in passes.items() if name not in vars(module)}
    for name, function in new.items():
        setattr(module, name, function)
    try:
        yield
    finally:
        for name in new:
            delattr(module, name)
