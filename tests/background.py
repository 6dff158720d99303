"""What happens beside a test, and waiting for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Found = TypeVar("Found")


def in_background(function: Callable[[], Found]) -> Future[Found]:
    """Call a function in a daemon thread: unlike an executor's threads, it does not delay the end of the process."""
    future: Future[Found] = Future()

    def call() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return future


def wait_for(what: Callable[[], Found], seconds: float = 300.0, *, pause: float = 0.05) -> Found:
    """Ask again after each pause until the answer is true, and return it; so many seconds later it is an error."""
    deadline = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < deadline, f"not true within {seconds:g} s"
        time.sleep(pause)
    return value
