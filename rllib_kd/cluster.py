"""Which Ray this process joins."""

from __future__ import annotations

import os


def ray_address(given: str | None = None) -> str | None:
    """Return the address of a Ray to join: the given one, otherwise RAY_ADDRESS; None if there is neither.

    An empty RAY_ADDRESS counts as none, as for Ray.
    """
    return given or os.environ.get("RAY_ADDRESS") or None
