"""Exports to ONNX in half the time."""

from collections.abc import Iterator
from functools import cache

import pytest


@pytest.fixture(scope="session", autouse=True)
def one_registry() -> Iterator[None]:
    """For every export, PyTorch parses the source of its five hundred translations to ONNX: once is enough."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:  # of another PyTorch: exports take their time
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(cache(ONNXRegistry.from_torchlib)))
        yield
