"""main(): signals, errors, exit codes.

Ray is imported when a command runs, not for its help. Exit codes: 0 done, 1 failed or interrupted, 2 bad usage.
"""

from __future__ import annotations

import atexit
import gc
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import typer

from rllib_kd.cli import label, play, serve, shrink, sweep, train  # noqa: F401 (importing them adds their commands)
from rllib_kd.cli.app import app, clean_warnings_of_others, echo, fail, with_log_level
from rllib_kd.cli.gone import refuse_what_is_gone
from rllib_kd.environments.failures import ExitedError, SamplingFailedError, exits_are_errors
from rllib_kd.export.failures import ProgramFailedError
from rllib_kd.relay import printed_warnings
from rllib_kd.workers.forking import ServerOfCommand, this_process_is_a_command


def main(arguments: list[str] | None = None) -> None:
    """Run the command line.

    Args:
        arguments: command and flags; None: those of this process, which is nothing but this command, and may be forked.
    """
    this_process_is_a_command(arguments is None)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # tables have characters that Latin-1 lacks
    arguments = sys.argv[1:] if arguments is None else arguments
    atexit.register(gc.freeze)  # or the interpreter looks through a million objects, and needs a second to end
    try:
        with _ending_on_signals(), printed_warnings(), clean_warnings_of_others():
            refuse_what_is_gone(arguments)
            try:
                run = exits_are_errors(app)
                code = run(with_log_level(arguments), prog_name="rllib", standalone_mode=False, obj=arguments)
            except _UsageError as error:
                command = error.ctx.command_path if error.ctx is not None else "rllib"
                message = error.format_message()
                end = "" if message.endswith((".", "?", "!")) else "."
                fail(f"{message}{end} See `{command} --help`.", code=2)
            except ValueError as error:
                fail(str(error), code=2)
            except (OSError, SamplingFailedError, ExitedError, ProgramFailedError) as error:
                fail(str(error), code=1)
            except Exception:  # unforeseen; its message, too, may quote a file
                echo(traceback.format_exc().rstrip("\n"), err=True)
                raise SystemExit(1) from None
    except ServerOfCommand as forked:
        server = forked.with_traceback(None)
    else:
        raise SystemExit(code)
    server.run()


#: Typer's class of usage errors: some versions of typer contain a copy of click, and others import it.
_UsageError: Any = typer.BadParameter.__mro__[1]
_SECONDS_TO_RETURN = 0.1  # from where an exception was ignored


@contextmanager
def _ending_on_signals() -> Iterator[None]:
    """On Ctrl-C and SIGTERM, print one line and exit through all `finally` blocks. Training sets its own handlers."""
    received: list[int] = []
    ends = threading.Event()

    def end(signum: int, frame: FrameType | None) -> None:
        if not received:
            with suppress(RuntimeError, OSError, ValueError):  # stderr may be a pipe whose reader has ended, or in use
                typer.echo("error: interrupted", err=True)
        received.append(signum)
        while frame is not None:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                os._exit(1)  # an import may swallow an exception, or print it; and nothing runs yet
            frame = frame.f_back
        raise SystemExit(1)

    def end_again() -> None:
        if not ends.wait(_SECONDS_TO_RETURN):
            os.kill(os.getpid(), received[0])

    def on_swallowed(ignored: sys.UnraisableHookArgs) -> None:
        """Send the signal again if its exception was raised where Python ignores all: in a hook of os.fork(), ..."""
        if received and isinstance(ignored.exc_value, SystemExit):
            threading.Thread(target=end_again, daemon=True).start()
        else:
            previous_hook(ignored)

    previous = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    previous_hook, sys.unraisablehook = sys.unraisablehook, on_swallowed
    try:
        yield
    finally:
        ends.set()
        sys.unraisablehook = previous_hook
        for number, handler in previous.items():
            signal.signal(number, handler)
