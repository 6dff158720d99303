"""The command without a process of its own."""

import sys
from collections.abc import Callable, Iterator
from functools import cache
from subprocess import CompletedProcess

import pytest
import typer.main

from rllib_kd.cli.main import main


@pytest.fixture(scope="session", autouse=True)
def one_command() -> Iterator[None]:
    """For every call, typer reads the signatures of all commands anew: once is enough."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", cache(typer.main.get_command))
        yield


@pytest.fixture
def rllib(
    cluster: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., CompletedProcess[str]]:
    """Run the command here, on the Ray that tests share: several times cheaper than a process that starts its own."""

    def call(*arguments: str) -> CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["rllib", *arguments])
        capsys.readouterr()  # what came before is not the command's
        with pytest.raises(SystemExit) as exit_:
            main()
        output, error = capsys.readouterr()
        return CompletedProcess(arguments, exit_.value.code or 0, output, error)

    return call
