"""What happens beside a test, and ends no later than it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Found = TypeVar("Found")


def in_background(function: Callable[[], Found]) -> Future[Found]:
    """Call a function in a thread that keeps nobody waiting: unlike an executor's, not even if it never ends."""
    future: Future[Found] = Future()

    def call() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return future
