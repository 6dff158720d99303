"""Failures of environments and EnvRunners: the error and the line of the user's code that raised it, in one line."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

#: Folders of code between the user's and this package, whose lines explain nothing.
_PASSED_THROUGH = ("ray", "gymnasium", "numpy", "torch", "tree")
#: The package, in this process and where another machine has installed it.
_OWN, _OWN_NAME = os.path.join(Path(__file__).parents[1], ""), __name__.partition(".")[0]
_STANDARD = os.path.dirname(os.__file__)
_PACKAGES = ("site-packages", "dist-packages")
_FRAME = re.compile(r'\s*File "(?P<file>.+)", line (?P<line>\d+), in (?P<function>.+)')


class SamplingFailedError(RuntimeError):
    """An EnvRunner has failed. The message has its error, and the line of the user's code."""


class EnvFailedError(SamplingFailedError):
    """An environment has failed. The message names it, its method, its error, and the line of the user's code."""


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
    return EnvFailedError(f"The environment '{name_of(env)}' raised in {(users or [doing])[-1]}(): {described(error)}")


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
    mine = [frame for frame in own if not any(folder in Path(frame.file).parts for folder in _PACKAGES)]
    return next(reversed(mine or own), None)


def is_own(frame: Frame) -> bool:
    """Return whether a line belongs to this package, as it is in this process."""
    return frame.file.startswith(_OWN)


def is_users(frame: Frame) -> bool:
    """Return whether a line belongs to the user's code or to a package of environments."""
    if is_own(frame) or frame.file.startswith("<"):
        return False
    parts = Path(frame.file).parts
    if parts[0] in _PASSED_THROUGH:  # Cython records paths from the root of its package's source
        return False
    packages = [parts[i + 1] for i, part in enumerate(parts[:-1]) if part in _PACKAGES]
    if packages:
        return packages[-1] not in (*_PASSED_THROUGH, _OWN_NAME)
    return not frame.file.startswith(_STANDARD) and "/ray/" not in frame.file
