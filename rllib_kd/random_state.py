"""Random generators: one for a policy's draws; the global ones of this process, seeded, captured and restored."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

#: Mixed into the seed of a policy's generator; not 0, which numpy takes for no number at all.
_OF_POLICIES = 1


def policy_generator(seed: int | None, *salt: int) -> np.random.Generator:
    """Return a generator for a policy's draws in environments that are reset with this seed.

    gymnasium makes `env.np_random` by `default_rng(seed)`, too: a policy with the same generator would know what the
    environment draws next, and could play at random and never lose.

    Args:
        seed: ≥ 0; None: a random one.
        salt: numbers ≥ 0 that make it another generator.
    """
    return np.random.default_rng(None if seed is None else [seed, _OF_POLICIES, *salt])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators, from which environments may draw; put them back at the end.

    Args:
        seed: ≥ 0.
    """
    before, seed = capture_random_state(), int(seed)  # which may be one of numpy's
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
