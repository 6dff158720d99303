"""Ctrl-C and SIGTERM save a checkpoint, then end the run."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from ray import tune
from ray.tune.result import SHOULD_CHECKPOINT

from rllib_kd.experiment.locations import location
from rllib_kd.terminal import say

_SIGHUP = getattr(signal, "SIGHUP", None)  # of a closed terminal or a lost ssh; Windows has none
#: Seconds within which another SIGTERM counts as the same request: `timeout` signals its child, then the child's group.
_ECHO = 2.0
#: Seconds that a run waits for the end of an iteration after SIGTERM or SIGHUP: schedulers kill a process that has not
#: ended 30 to 90 s later, without a message. After Ctrl-C it waits until the user presses it again.
_PATIENCE = 60.0
_interrupt = threading.Event()  # of this process, as signals are: Tune pickles callbacks, and restores copies of them


class _Deadline:
    """The time at which to stop waiting for the end of an iteration, one for this process, as the event is."""

    at = math.inf


class SaveOnInterrupt(tune.Callback):
    """A callback that saves a checkpoint of every trial at its next result after Ctrl-C, and ends training.

    The experiment can be resumed. After SIGTERM and SIGHUP it waits at most `_PATIENCE` seconds.
    """

    def __init__(self) -> None:
        self._is_announced = False
        self._reported: set[str] = set()
        self._saved: set[str] = set()

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        """Ask for a checkpoint after a signal: Tune calls this at every result."""
        self._reported.add(trial.trial_id)
        if _interrupt.is_set():
            result[SHOULD_CHECKPOINT] = True

    def on_trial_save(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Note which trials are saved: Tune calls this after every checkpoint."""
        if _interrupt.is_set():
            self._saved.add(trial.trial_id)

    def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
        """End training once all trials are saved: Tune calls this several times a second."""
        if not _interrupt.is_set():
            return
        running = {trial.trial_id for trial in trials if trial.status == "RUNNING"}
        waiting = (running & self._reported) - self._saved  # what has not reported yet has nothing to lose
        if not waiting:
            os.kill(os.getpid(), signal.SIGUSR1)  # Tune then writes the experiment's state, and returns
            return
        last = _last_checkpoints([trial for trial in trials if trial.trial_id in waiting])
        is_bounded = _Deadline.at < math.inf
        if not self._is_announced:
            self._is_announced = True
            bound = f", if it ends within {_PATIENCE:g} s; {last}" if is_bounded else ""
            say(f"stopping: a checkpoint will be saved after this iteration{bound}. Ctrl-C again ends at once.")
        if time.monotonic() > _Deadline.at:
            say(f"the iteration did not end within {_PATIENCE:g} s of the signal, so nothing more is saved: {last}.")
            raise SystemExit(1)

    def __getstate__(self) -> dict[str, Any]:
        return dict(vars(SaveOnInterrupt()))


@contextmanager
def saving_on_interrupt(notice: str = "") -> Iterator[threading.Event]:
    """On Ctrl-C, SIGTERM and SIGHUP, let `SaveOnInterrupt` save checkpoints and end training.

    A second Ctrl-C or SIGTERM raises SystemExit at once. Under `nohup`, SIGHUP stays ignored.

    Args:
        notice: what to say at the first signal.

    Yields:
        An event that is set by the first signal.
    """
    first_at = -math.inf

    def interrupt(signum: int, frame: FrameType | None) -> None:
        nonlocal first_at
        if signum == _SIGHUP:
            _leave_closed_terminals(terminals)
        if signum != signal.SIGINT and _Deadline.at == math.inf:
            _Deadline.at = time.monotonic() + _PATIENCE
        if not _interrupt.is_set():
            first_at = time.monotonic()
            _interrupt.set()
            if notice:
                _try_to_say(notice)
        elif signum == signal.SIGINT or (signum == signal.SIGTERM and time.monotonic() - first_at > _ECHO):
            _try_to_say("interrupted")
            raise SystemExit(1)

    _interrupt.clear()
    _Deadline.at = math.inf
    if threading.current_thread() is not threading.main_thread():  # which alone may have handlers
        yield _interrupt
        return
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
    handled = [signal.SIGINT, signal.SIGTERM]
    if _SIGHUP is not None and signal.getsignal(_SIGHUP) != signal.SIG_IGN:
        handled.append(_SIGHUP)
    previous = {number: signal.signal(number, interrupt) for number in handled}
    try:
        yield _interrupt
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _try_to_say(text: str) -> None:
    """Say something in a handler, if that is possible: stderr may be a pipe whose reader has ended, or in use."""
    with suppress(RuntimeError, OSError, ValueError):
        say(text)


def _last_checkpoints(trials: Sequence[Any]) -> str:
    """Describe the checkpoints from which training can be resumed if nothing more is saved."""
    places = [location(trial.checkpoint) for trial in trials if trial.checkpoint is not None]
    if not places:
        return "there is no earlier checkpoint"
    return f"the last checkpoint is {', '.join(places)} (continue from it with --resume)"


def _leave_closed_terminals(descriptors: Sequence[int]) -> None:
    """Redirect output from closed terminals to /dev/null: an output error must not prevent saving."""
    for descriptor in descriptors:
        if not os.isatty(descriptor):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)
