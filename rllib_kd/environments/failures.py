"""Failures of the user's code, above all of environments: the error and the line that raised it, in one line."""

from __future__ import annotations

import functools
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

#: Folders of code between the user's and this package, whose lines explain nothing.
_PASSED_THROUGH = ("ray", "gymnasium", "numpy", "torch", "tree")
#: The package, in this process and where another machine has installed it.
_OWN, _OWN_NAME = os.path.join(Path(__file__).parents[1], ""), __name__.partition(".")[0]
_STANDARD = os.path.dirname(os.__file__)
_PACKAGES = {"site-packages", "dist-packages"}
#: Packages that end a process as it should end: a worker of Ray, and a command that is used wrongly.
_ENDING = ("ray", "typer", "click")
_Function = TypeVar("_Function", bound=Callable[..., Any])
_FRAME = re.compile(r'\s*File "(?P<file>.+)", line (?P<line>\d+), in (?P<function>.+)')


class SamplingFailedError(RuntimeError):
    """An EnvRunner has failed. The message has its error, and the line of the user's code."""


class EnvFailedError(SamplingFailedError):
    """An environment has failed. The message names it, its method, its error, and the line of the user's code."""


class ExitedError(RuntimeError):
    """The user's code has called `sys.exit()`. The message has its line."""


class Frame(NamedTuple):
    """One line of a traceback."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}, in {self.function}"


def failure(env: Any, error: BaseException, *, doing: str) -> EnvFailedError:
    """Return the failure to raise from `error`.

    Args:
        env: environment as in the config: an id, a class or a function.
        error: the environment's exception.
        doing: the method that was called; if a vector env resets in its `step()`, the traceback shows that.
    """
    while isinstance(error, RecursionError) and error.__context__ is not None:
        error = error.__context__  # RLlib makes a new environment within the handler of its last error
    frames = frames_of(error)
    methods = [frame.function for frame in frames if frame.function in ("reset", "step", "render", "__init__")]
    users = [frame.function for frame in frames if is_users(frame) and frame.function in methods]
    reason = f"The environment '{name_of(env)}' raised in {(users or [doing])[-1]}(): {described(error)}"
    hint = ". It must not end the process: an episode ends by `terminated` or `truncated`"
    return EnvFailedError(f"{reason}{hint if isinstance(error, SystemExit) else ''}")


def users_errors() -> tuple[type[BaseException], ...]:
    """Return what the user's code may raise, for an `except` clause: errors, and `sys.exit()`, as games call it.

    Only the clause itself may call this, `except users_errors() as error:`, since it looks at what was raised: another
    `SystemExit` passes (`is_users_exit()`).
    """
    return (Exception, SystemExit) if is_users_exit(sys.exc_info()[1]) else (Exception,)


def is_users_exit(error: BaseException | None) -> bool:
    """Return whether the user's code has called `sys.exit()`: not this package, Ray, or a handler of a signal."""
    if not isinstance(error, SystemExit):
        return False
    handlers = {getattr(signal.getsignal(number), "__code__", None) for number in signal.valid_signals()}
    if any(frame.f_code in handlers for frame, _ in traceback.walk_tb(error.__traceback__)):
        return False
    last = frames_of(error)[-1]
    return not is_own(last) and _package_of(last) not in _ENDING


def exits_are_errors(function: _Function) -> _Function:
    """Let a function raise an `ExitedError` where the user's code calls `sys.exit()`.

    A command would end without a message, and an actor of Ray would die without a reason.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except SystemExit as error:
            if not is_users_exit(error):
                raise
            raise ExitedError(f"Code of your own has ended the process: {described(error)}. Raise an error.") from error

    return call  # type: ignore[return-value]


def layers(env: Any) -> Iterator[Any]:
    """Yield an environment or vector env, and what it wraps, from the outside in.

    An attribute `env` may also be anything else, such as a map, or an object that has the environment itself as `env`.
    """
    seen: set[int] = set()
    while id(env) not in seen and callable(getattr(env, "step", None)):
        yield env
        seen.add(id(env))
        env = getattr(env, "__dict__", {}).get("env")


def name_of(env: Any) -> str:
    """Return the name of a config's environment, which is an id, a class or a function."""
    return str(getattr(env, "__name__", env))


def described(error: BaseException) -> str:
    """Return type and message of an error in one line, and where it was raised."""
    text = " ".join(f"{type(error).__name__}: {error}".rstrip(": ").split())
    place = users_line(frames_of(error))
    return text if place is None else f"{text} ({place})"


def frames_of(error: BaseException) -> list[Frame]:
    """Return the lines of an error's traceback, the innermost last."""
    entries = traceback.extract_tb(error.__traceback__)
    return [Frame(entry.filename, entry.lineno or 0, entry.name) for entry in entries]


def frames_in(text: str) -> list[Frame]:
    """Return the lines of a printed traceback, the innermost last."""
    matches = filter(None, map(_FRAME.match, text.splitlines()))
    return [Frame(match["file"], int(match["line"]), match["function"]) for match in matches]


def users_line(frames: Sequence[Frame]) -> Frame | None:
    """Return the innermost line of the user's code; else of another package than those in between; else None."""
    own = [frame for frame in frames if is_users(frame)]
    mine = [frame for frame in own if not is_installed(frame.file)]
    return next(reversed(mine or own), None)


def is_own(frame: Frame) -> bool:
    """Return whether a line belongs to this package, as it is in this process."""
    return frame.file.startswith(_OWN)


def is_users(frame: Frame) -> bool:
    """Return whether a line belongs to the user's code or to a package of environments."""
    if is_own(frame) or frame.file.startswith("<"):
        return False
    if (package := _package_of(frame)) is not None:
        return package not in (*_PASSED_THROUGH, _OWN_NAME)
    return not is_installed(frame.file) and "/ray/" not in frame.file


def is_installed(file: str | Path) -> bool:
    """Return whether a file belongs to an installed package or to Python's standard library."""
    path = Path(file)
    return bool(_PACKAGES & {*path.parts}) or path.is_relative_to(_STANDARD)


def _package_of(frame: Frame) -> str | None:
    """Return the installed package that a line belongs to; None if it belongs to none."""
    parts = Path(frame.file).parts
    if parts[:2] == ("python", "ray"):  # Ray's source is in a folder `python`
        return "ray"
    if parts[0] in _PASSED_THROUGH:  # Cython records paths from the root of its package's source
        return parts[0]
    return next((parts[i + 1] for i in reversed(range(len(parts) - 1)) if parts[i] in _PACKAGES), None)
