"""Print warnings of all processes of a run on the terminal where it was started.

A trial runs in an actor, its EnvRunners and Learners in other actors, perhaps on other nodes; their logs stay in Ray's
files there. Warnings of this package go through Ray's key-value store to the process that listens, also before the
first result, and also from a trial that never has one.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_LOGGER = logging.getLogger("rllib_kd")
_SECONDS_BETWEEN_LOOKS = 0.3
#: Loggers whose infos the command line prints, too: which checkpoint a run folder means.
_NOTES = ("rllib_kd.checkpoints.tune",)


def send_warnings_from_worker() -> None:
    """In a process of a Ray actor or task, send warnings to the listening process; elsewhere do nothing."""
    if "ray._private.worker" not in sys.modules:  # not to import Ray here
        return
    from rllib_kd._rllib import is_worker_process

    if is_worker_process():
        send_warnings()


def send_warnings() -> None:
    """Send warnings to the listening process, if there is one."""
    _LOGGER.addHandler(_Sender(logging.WARNING))


@contextmanager
def listening() -> Iterator[None]:
    """Log warnings of this package from the worker processes of this one; each text once.

    Does nothing if Ray is not initialized in this process.
    """
    import ray

    from rllib_kd._rllib import KeyValueStore

    store = KeyValueStore()
    # Shutting down an emulated cluster takes the store from a process that is connected to another one.
    if not ray.is_initialized() or not store.is_there():
        yield
        return

    job = ray.get_runtime_context().get_job_id()
    heard: set[bytes] = set()
    is_over = threading.Event()

    def look() -> None:
        keys = set(store.keys(_key(job, "warning"))) - heard
        heard.update(keys)
        values = [store.get(key) for key in keys]
        for _, name, level, message in sorted(json.loads(value) for value in values if value):
            logging.getLogger(name).log(level, "%s", message, extra={"is_relayed": True})

    def look_until_it_is_over() -> None:
        try:
            while not is_over.wait(_SECONDS_BETWEEN_LOOKS):
                look()
            look()
            store.delete(_key(job))
        except Exception as error:  # Ray has ended, and with it all processes that could warn
            _LOGGER.info("Warnings of other processes are no longer shown: %s", error)

    store.put(_key(job, "listens"), b"1")
    thread = threading.Thread(target=look_until_it_is_over, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join(timeout=5.0)


@contextmanager
def printed_warnings() -> Iterator[None]:
    """Print warnings and notes of this package on stderr, above a progress line, each text once."""
    printer = _Printer(logging.INFO)
    levels = {logging.getLogger(name): logging.getLogger(name).level for name in _NOTES}
    _LOGGER.addHandler(printer)
    for notes in levels:
        notes.setLevel(logging.INFO)
    try:
        yield
    finally:
        for notes, level in levels.items():
            notes.setLevel(level)
        _LOGGER.removeHandler(printer)


class _Sender(logging.Handler):
    """Sends warnings to the listening process; if there is none, they are printed here, as without this handler."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            is_heard = not hasattr(record, "is_relayed") and _send(record)
        except Exception:  # a warning must not end what it warns of
            is_heard = False
        has_others = bool(logging.getLogger().handlers) or _LOGGER.handlers != [self]
        if not is_heard and not has_others and logging.lastResort is not None:
            logging.lastResort.handle(record)


class _Printer(logging.Handler):
    def __init__(self, level: int):
        super().__init__(level)
        self._printed: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        from rllib_kd.terminal import say

        is_warning = record.levelno >= logging.WARNING
        if not is_warning and record.name not in _NOTES:
            return
        message = record.getMessage()
        if message not in self._printed:
            self._printed.add(message)
            say(f"{'warning' if is_warning else 'note'}: {message}")


def _send(record: logging.LogRecord) -> bool:
    """Send a warning; return whether a process listens, and so will log it."""
    import hashlib  # here, as in others that `rllib --help` imports: it takes milliseconds

    import ray

    from rllib_kd._rllib import KeyValueStore

    store = KeyValueStore()
    job = ray.get_runtime_context().get_job_id()
    if not store.has(_key(job, "listens")):
        return False
    message = record.getMessage()
    content: list[Any] = [record.created, record.name, record.levelno, message]
    key = _key(job, "warning", hashlib.sha256(message.encode(errors="replace")).hexdigest())
    store.put(key, json.dumps(content), overwrite=False)
    return True


def _key(job: str, *parts: str) -> str:
    return "/".join((job, *parts))
