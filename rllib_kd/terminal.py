"""The terminal: bars, and lines on stderr; silent if no terminal is there to see them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from rllib_kd.text import one_line

_MAX_LINE = 2_000  # characters


def say(message: str) -> None:
    """One line on stderr, above a progress line."""
    print(one_line(message, limit=_MAX_LINE), file=sys.stderr)  # which rich has put its own file in place of


@contextmanager
def bar(title: str, *, total: int | None, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """A bar on stderr that vanishes at the end; in a file or pipe nothing is printed.

        with bar("teacher", total=num_episodes) as advance:
            advance(1)

    Args:
        title: what is being done; of up to 20 characters.
        total: how much there is to do; None: nobody knows.
        shown: False: not even on a terminal.

    Yields:
        A function to be called with how much has been done since its last call.
    """
    short = Column(no_wrap=True, overflow="ellipsis", max_width=20)  # room for the bar at 40 columns
    with Progress(
        TextColumn("{task.description}", markup=False, table_column=short),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True),
        transient=True,
        expand=True,
        disable=not (shown and watched()),
    ) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.advance(task, count)


def watched() -> bool:
    """Whether stderr is a terminal. Rich also calls a file one, where FORCE_COLOR is set."""
    return sys.stderr.isatty()
