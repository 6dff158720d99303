"""The command without a process of its own."""

from collections.abc import Iterator
from functools import cache

import pytest
import typer.main


@pytest.fixture(scope="session", autouse=True)
def one_command() -> Iterator[None]:
    """For every call, typer reads the signatures of all commands anew: once is enough."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", cache(typer.main.get_command))
        yield
