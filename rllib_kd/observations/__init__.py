"""From what an environment shows to what a network takes.

The public names are imported when they are first used: frames.py and spaces.py can be had without Ray.
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
