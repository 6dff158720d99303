"""Capture and restore the global random generators of this process."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def capture_random_state() -> dict[str, Any]:
    """Return the states of the global generators, from which environments and modules may draw."""
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state().numpy()}


def put_back_random_state(state: Mapping[str, Any]) -> None:
    """Restore the state of `capture_random_state()`."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(torch.from_numpy(state["torch"]))
