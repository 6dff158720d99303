"""The learning rate of a student of images, where none is set: small networks learn by larger steps."""

from __future__ import annotations

_SMALL = 40_000  # parameters: measured between 33,000, which learn as well by both rates, and 62,000
_OF_SMALL, _OF_LARGE = 3e-3, 1e-3


def learning_rate_for(num_parameters: int) -> float:
    """Return Adam's learning rate by the parameters that act (docs/results/images.md#learning-rate-by-size)."""
    return _OF_SMALL if num_parameters < _SMALL else _OF_LARGE
