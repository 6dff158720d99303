"""The typer app, and functions that its commands share."""

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
#: Log levels, with the flags that RLlib has for them.
_FLAGS = {"INFO": "-v", "DEBUG": "-vv"}
_MAX_ERROR = 2_000  # characters: messages may quote a file


@app.callback(invoke_without_command=True)
def rllib(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the versions and exit.")] = False,
) -> None:
    """Train, distil, compare and export policies with Ray RLlib."""
    if version:
        from importlib.metadata import version as version_of

        typer.echo(f"rllib-kd {version_of('rllib-kd')}, ray {version_of('ray')}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


def one_or_all(teachers: list[str] | None) -> str | list[str] | None:
    """Return the one teacher, the list of an ensemble's teachers, or None."""
    return teachers[0] if teachers and len(teachers) == 1 else teachers or None


def given_options(context: typer.Context) -> set[str]:
    """Return the names of the parameters that the user has set: not those that keep their defaults."""
    return {name for name in context.params if str(context.get_parameter_source(name)).endswith("COMMANDLINE")}


@contextmanager
def clean_warnings_of_others() -> Iterator[None]:
    """Print warnings of other packages without colours and without the escape sequences of names in them."""
    original = warnings.formatwarning

    def clean(*args: Any, **kwargs: Any) -> str:
        return printable(re.sub(r"\x1b\[[\d;]*m", "", original(*args, **kwargs)), lines=True)

    warnings.formatwarning = clean
    try:
        yield
    finally:
        warnings.formatwarning = original


def with_log_level(arguments: list[str]) -> list[str]:
    """Return the arguments with `-v INFO` and `-v DEBUG` as the flags that typer counts, `-v` and `-vv`."""
    if arguments[:1] != ["train"]:
        return arguments
    counted: list[str] = []
    for argument in arguments:
        if counted[-1:] == ["-v"] and isinstance(logging.getLevelName(argument.upper()), int):
            if argument.upper() not in _FLAGS:
                fail(f"-v takes {' or '.join(_FLAGS)}, got '{argument}'. Without -v, only errors are shown.", code=2)
            counted[-1] = _FLAGS[argument.upper()]
        else:
            counted.append(argument)
    return counted


def without_key(arguments: list[str]) -> list[str]:
    """Return the arguments without the API key of --wandb-key, to be printed: whoever goes on gives it again."""
    flag, shown = "--wandb-key", []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if argument != flag and before != flag and not argument.startswith(f"{flag}="):
            shown.append(argument)
    return shown


def log_level(verbose: int) -> str | None:
    """Return the name of the level that so many `-v` ask for; None without any."""
    return [None, *_FLAGS][min(verbose, len(_FLAGS))]


def set_log_level(verbose: int) -> None:
    """Show Ray's log from the level of `-v` on: without it none, since the summary has the errors of trials."""
    level = log_level(verbose) or logging.CRITICAL
    for name in ("ray", "ray.tune", "ray.rllib", "ray._common.deprecation"):
        logging.getLogger(name).setLevel(level)


def echo(text: object, *, err: bool = False) -> None:
    """Print text that may contain names from files, without their control characters."""
    typer.echo(printable(text, lines=True), err=err)


def fail(message: str, *, code: int) -> NoReturn:
    """Print an error in one line on stderr, and exit with `code`."""
    typer.echo(f"error: {one_line(message, limit=_MAX_ERROR)}", err=True)
    raise SystemExit(code)
