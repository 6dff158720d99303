"""Observations that an earlier connector has written to the batch, such as stacks of frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core.columns import Columns


def change_written(batch: dict[str, Any], change: Callable[[Any], Any]) -> bool:
    """Change the observations in a batch that is not joined yet: networks get these, and not those of the episodes.

    Args:
        batch: as connectors get it.
        change: from one observation to another.

    Returns:
        Whether the batch has observations.
    """
    if Columns.OBS not in batch:
        return False
    ConnectorV2.foreach_batch_item_change_in_place(batch, Columns.OBS, lambda obs, *_: change(obs))
    return True
