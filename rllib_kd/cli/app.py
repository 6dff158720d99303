"""The typer app, and what its commands share."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer

from rllib_kd.text import one_line, printable

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


_MAX_ERROR = 2_000  # characters: messages may hold what is in a file


@app.callback(invoke_without_command=True)
def rllib(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Show it and exit.")] = False
) -> None:
    """Train, distil, compare and export policies with Ray RLlib."""
    if version:
        from importlib.metadata import version as version_of

        typer.echo(f"rllib-kd {version_of('rllib-kd')}, ray {version_of('ray')}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


def one_or_all(teachers: list[str] | None) -> str | list[str] | None:
    """What was given several times is an ensemble."""
    return teachers[0] if teachers and len(teachers) == 1 else teachers or None


@contextmanager
def clean_warnings_of_others() -> Iterator[None]:
    """What other packages warn of: without their colours, and without the escape sequences of names in it."""
    original = warnings.formatwarning

    def clean(*args: Any, **kwargs: Any) -> str:
        return printable(re.sub(r"\x1b\[[\d;]*m", "", original(*args, **kwargs)), lines=True)

    warnings.formatwarning = clean
    try:
        yield
    finally:
        warnings.formatwarning = original


def set_log_level(verbose: int) -> None:
    # Unasked, only what this command says itself: errors of trials are in its summary.
    """Show the log of Ray from the level that `-v` asks for."""
    level = {0: logging.CRITICAL, 1: logging.INFO}.get(verbose, logging.DEBUG)
    for name in ("ray", "ray.tune", "ray.rllib", "ray._common.deprecation"):
        logging.getLogger(name).setLevel(level)


def echo(text: object, *, err: bool = False) -> None:
    """Print what may hold names from files."""
    typer.echo(printable(text, lines=True), err=err)


def fail(message: str, *, code: int) -> NoReturn:
    """Print an error in one line, and exit."""
    typer.echo(f"error: {one_line(message, limit=_MAX_ERROR)}", err=True)
    raise SystemExit(code)
