"""Runs a function on one hostile input after the other, in forked processes, and measures what each takes."""

from __future__ import annotations

import dataclasses
import gc
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

_CPU_SECONDS = 16  # until a process is killed
_WALL_SECONDS = 240  # the same, where it waits for something
_ADDRESS_SPACE = 6 * 2**30  # bytes, beyond what the process has


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of one input.

    Args:
        verdict: "accepted", "refused" (a ValueError of one line), or what else happened.
        seconds: of processor time.
        megabytes: by which the memory of the process grew at its peak.
        executed: whether the input ran a program.
    """

    verdict: str
    seconds: float
    megabytes: float
    executed: bool = False


def forget_garbage() -> None:
    """Keep what was there when this process was forked, also what nobody refers to.

    References to Ray's objects and actors tell Ray when they are collected. From a fork that goes over the connection
    of its parent, whose next request then waits for ever.
    """
    gc.freeze()


def measure(function: Callable[[], Any], marker: Path | None = None) -> Outcome:
    """Run a function in this process; its ValueErrors are refusals."""
    before, started = _reset_peak(), time.process_time()
    verdict = "accepted"
    try:
        function()
    except ValueError as error:
        verdict = "refused" if str(error).isprintable() else f"a message of several lines: {str(error)[:300]!r}"
    except BaseException as error:
        verdict = f"{type(error).__name__}: {str(error)[:300]}"
    seconds = time.process_time() - started
    grown = max(0, _status("VmHWM") - before) / 2**20
    executed = marker is not None and marker.exists()
    if executed and marker is not None:
        marker.unlink()
    return Outcome(verdict, seconds, grown, executed)


def measure_apart(function: Callable[[], Any], marker: Path | None = None) -> Outcome:
    """The same in a process of its own, which is killed if it takes too long or too much."""
    ((_, outcome),) = measure_each([0], lambda _: function, marker=marker, num_workers=1)
    return outcome


def measure_each(
    numbers: Sequence[int],
    make: Callable[[int], Callable[[], Any]],
    *,
    marker: Path | None = None,
    num_workers: int = 2,
    warm_up: Callable[[], Any] = lambda: None,
) -> Iterator[tuple[int, Outcome]]:
    """The same for many inputs, several in a process.

    Args:
        numbers: of the inputs.
        make: from such a number to the function to run; it is called in the process, and not measured.
        marker: file that an input makes if it is executed.
        num_workers: processes at once.
        warm_up: first call in each process: what every input shares is loaded then.
    """
    waiting = [list(numbers)[i::num_workers] for i in range(num_workers)]
    workers = [_Worker(own, make, marker, warm_up) for own in waiting if own]
    while workers:
        ready = multiprocessing.connection.wait([worker.results for worker in workers], timeout=1)
        for worker in list(workers):
            if worker.results in ready or time.monotonic() - worker.last_heard > _WALL_SECONDS:
                yield from worker.collect()
                if not worker.numbers:
                    worker.end()
                    workers.remove(worker)


class _Worker:
    def __init__(self, numbers: list[int], make: Any, marker: Path | None, warm_up: Any):
        self.numbers = numbers
        self._make, self._marker, self._warm_up = make, marker, warm_up
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")
        self.results, sending = context.Pipe(duplex=False)
        self._process = context.Process(target=self._work, args=(sending, list(self.numbers)), daemon=True)
        self._process.start()
        sending.close()
        self.last_heard, self._is_warm = time.monotonic(), False

    def _work(self, sending: Any, numbers: list[int]) -> None:
        forget_garbage()
        marker = None if self._marker is None else self._marker.with_name(f"{self._marker.name}-{os.getpid()}")
        os.environ["FUZZING_MARKER"] = str(marker)
        self._warm_up()
        sending.send((None, None))
        used = _status("VmSize")
        resource.setrlimit(resource.RLIMIT_AS, (used + _ADDRESS_SPACE, used + _ADDRESS_SPACE))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for number in numbers:
            _limit_cpu(resource.RLIM_INFINITY)  # to make an input may take its time
            function = self._make(number)
            _limit_cpu(int(time.process_time()) + _CPU_SECONDS)
            sending.send((number, measure(function, marker)))

    def collect(self) -> Iterator[tuple[int, Outcome]]:
        """What has come back. A process that died, or that waits for ever, has one input less to try."""
        try:
            if not self.results.poll(0):
                self._process.kill()
                raise EOFError
            number, outcome = self.results.recv()
        except EOFError:
            self._process.join()
            if not self._is_warm:
                raise RuntimeError("what is not changed does not load") from None
            number = self.numbers[0]
            code = self._process.exitcode or 0
            is_slow = code in (-signal.SIGXCPU, -signal.SIGKILL)
            reason = "too slow" if is_slow else f"the process ended with {code}"
            outcome = Outcome(reason, float(_CPU_SECONDS) if is_slow else 0.0, 0.0)
            self.numbers.remove(number)
            yield number, outcome
            if self.numbers:
                self._start()
            return
        self.last_heard, self._is_warm = time.monotonic(), True
        if number is not None:
            self.numbers.remove(number)
            yield number, outcome

    def end(self) -> None:
        """After its last input."""
        self._process.join(10)
        self.results.close()


def _limit_cpu(seconds: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _reset_peak() -> int:
    """Let the peak of the memory begin anew; returns the memory now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise KeyError(name)
