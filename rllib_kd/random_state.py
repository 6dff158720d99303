"""The global random generators of this process: seeded for a while, captured, and restored."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators, from which environments may draw; put them back at the end.

    Args:
        seed: ≥ 0.
    """
    before = capture_random_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed % 2**63)  # not those of GPUs, which are not put back
    try:
        yield
    finally:
        put_back_random_state(before)


def capture_random_state() -> dict[str, Any]:
    """Return the states of the global generators, from which environments and modules may draw."""
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state().numpy()}


def put_back_random_state(state: Mapping[str, Any]) -> None:
    """Restore the state of `capture_random_state()`."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(torch.from_numpy(state["torch"]))
