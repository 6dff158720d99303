"""The global random generators of this process, captured and put back."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def capture_random_state() -> dict[str, Any]:
    """The global generators, which an environment or a module may draw from."""
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state().numpy()}


def put_back_random_state(state: Mapping[str, Any]) -> None:
    """Go on from `capture_random_state()`."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(torch.from_numpy(state["torch"]))
