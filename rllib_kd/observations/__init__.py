"""Observations: from those of an environment to the inputs of a network.

The public names are imported at their first use: frames.py and spaces.py do not need Ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rllib_kd.observations.pipeline import (
        Flatten,
        Function,
        Images,
        Normalize,
        ObservationPipeline,
        RLlibConnectors,
        SideBySide,
        StackFrames,
    )

__all__ = [
    "Flatten",
    "Function",
    "Images",
    "Normalize",
    "ObservationPipeline",
    "RLlibConnectors",
    "SideBySide",
    "StackFrames",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("rllib_kd.observations.pipeline"), name)
