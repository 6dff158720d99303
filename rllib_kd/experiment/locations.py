"""The location of Tune's checkpoints."""

from __future__ import annotations

from ray import tune


def location(checkpoint: tune.Checkpoint) -> str:
    """Return the path or URI of a checkpoint, as `rllib evaluate` takes it."""
    kind = checkpoint.filesystem.type_name
    return checkpoint.path if kind == "local" else f"{kind}://{checkpoint.path}"
