"""The decorator of public names: pickles and messages name them `rllib_kd.NAME`, wherever their code is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

_Public = TypeVar("_Public", bound=Callable[..., Any])


def public(definition: _Public) -> _Public:
    """Decorate a public class or function, so that pickles name it `rllib_kd.NAME`.

    `rllib_kd/__init__.py` finds it by this name, so its code can move, and older pickles are still read.
    """
    definition.__module__ = "rllib_kd"
    return definition
