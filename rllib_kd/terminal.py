"""The terminal: bars, and lines on stderr; nothing is shown without a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from rllib_kd.text import one_line

_MAX_LINE = 2_000  # characters


def say(message: str) -> None:
    """Print one line on stderr, above a progress line."""
    if sys.stderr is not None:  # None: the process was started without
        print(one_line(message, limit=_MAX_LINE), file=sys.stderr)  # which rich has put its own file in place of


@contextmanager
def bar(title: str, *, total: int | None, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on stderr, which disappears at the end; nothing is printed in a file or pipe.

        with bar("teacher", total=num_episodes) as advance:
            advance(1)

    Args:
        title: name of the task, up to 20 characters.
        total: number of steps; None: unknown.
        shown: False: not shown on a terminal either.

    Yields:
        A function to call with the number of steps since its last call.
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


@contextmanager
def line(*, shown: bool = True) -> Iterator[Callable[[str], None]]:
    """Show one line on stderr, which disappears at the end; nothing is printed in a file or pipe.

    Args:
        shown: False: not shown on a terminal either.

    Yields:
        A function that replaces the line by another text.
    """
    if not (shown and watched()):
        yield lambda text: None
        return
    with Live(Text("starting"), console=Console(stderr=True), transient=True) as live:
        yield lambda text: live.update(Text(one_line(text), no_wrap=True, overflow="ellipsis"))


def watched() -> bool:
    """Return whether stderr is a terminal, and not closed. With FORCE_COLOR, rich takes a file for one, too."""
    return sys.stderr is not None and sys.stderr.isatty()
