"""Start the fork server, and let Ray's workers be its forks."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from glob import glob
from pathlib import Path
from typing import Any

from rllib_kd.cluster import ray_address
from rllib_kd.workers import ray_worker

_HERE = Path(__file__).parent

#: Those of NVIDIA, also on Jetson and in WSL, and of AMD.
_GPUS = ("/dev/nvidia[0-9]*", "/dev/nvhost-gpu", "/dev/dxg", "/dev/kfd")


class ServerOfCommand(BaseException):
    """Raised in the fork of a command that becomes its fork server.

    On its way up to `main()`, all that the command has set in this process is undone.

    Args:
        arguments: those of `fork_server.run()`.
    """

    def __init__(self, arguments: dict[str, Any]):
        super().__init__()
        self.arguments = arguments

    def run(self) -> None:
        """Become the server."""
        from rllib_kd.workers import fork_server  # here: Windows lacks modules that it imports

        fork_server.run(**self.arguments)


class ForkServer:
    """A process that forks Ray's workers. It ends when this process ends, if not before.

    Its forks work for the first job of each Ray that this process starts.

    Args:
        differing: what environment variables begin with that may change until Ray starts. If others change, workers are
            not forked, since imports may have read them.
        of_command: whether this process is a command that has imported next to nothing: then it imports the package
            here, and the server is its fork. False: the server imports it, while this process does something else.

    Raises:
        ServerOfCommand: in the fork of a command.
    """

    def __init__(self, differing: Sequence[str] = (), *, of_command: bool = False):
        self.name = f"rllib_kd-{os.urandom(16).hex()}"
        path = [folder for folder in sys.path if isinstance(folder, str)]  # imports ignore others, such as a Path
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"\0{self.name}")
            listener.listen(socket.SOMAXCONN)  # workers can ask, and wait, from now on
            arguments = {
                "listener": listener.fileno(),
                "path": path,
                "parent": os.getpid(),
                "differing": list(differing),
            }
            self._wait = self._fork(arguments) if of_command else self._start(arguments)

    def _start(self, arguments: dict[str, Any]) -> Callable[[], object]:
        """Start the server as a script; return what waits for its end."""
        process = subprocess.Popen(
            [sys.executable, _HERE / "fork_server.py", json.dumps(arguments)],
            env=dict(os.environ),  # without what C libraries have set, readline for instance, and Python does not know
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[arguments["listener"]],
            start_new_session=True,  # out of reach of the terminal's signals
        )
        self._pid = process.pid
        return process.wait

    def _fork(self, arguments: dict[str, Any]) -> Callable[[], object]:
        """Fork the server; return what waits for its end."""
        from rllib_kd.workers.fork_server import import_package

        import_package(os.getpid())
        for stream in filter(None, (sys.stdout, sys.stderr)):  # None: the command was started with a closed one
            stream.flush()
        # What is raised during a fork gets lost: a signal has to wait.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # on threads of OpenBLAS, which it ends before
                self._pid = os.fork()
            if self._pid == 0:
                os.setsid()
                nothing = os.open(os.devnull, os.O_RDWR)
                for number in range(3):
                    os.dup2(nothing, number)
                raise ServerOfCommand({**arguments, "listener": os.dup(arguments["listener"])})
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return partial(os.waitpid, self._pid, 0)

    @contextmanager
    def forking(self) -> Iterator[None]:
        """In this context, workers of a Ray that is started are forks if that is possible."""
        from rllib_kd import _rllib

        own = {ray_worker.SERVER: self.name, ray_worker.WORKER: _rllib.path_of_ray_worker()}
        os.environ.update(own)
        try:
            with _rllib.workers_started_by(str(_HERE / "ray_worker.py")):
                yield
        finally:
            for name in own:
                os.environ.pop(name, None)

    def close(self) -> None:
        """End the process. Its forks live on."""
        with suppress(ProcessLookupError, ChildProcessError):  # where SIGCHLD is ignored, the kernel forgets processes
            os.kill(self._pid, signal.SIGKILL)
            self._wait()


_begun: ForkServer | None = None  # before Ray starts
_is_command = False


def this_process_is_a_command(is_one: bool) -> None:
    """Set whether this process does nothing but run the command line, so that it may fork itself.

    A fork that ends unwinds all that called the command: `with` and `finally` of a program would run in each worker.
    """
    global _is_command
    _is_command = is_one


def is_possible() -> bool:
    """Return whether workers can be forked: on Linux, without a GPU, whose driver does not outlive a fork."""
    return sys.platform == "linux" and not any(map(glob, _GPUS))


def begin(*, address: str | None = None) -> None:
    """Start the server now.

    A command that has imported next to nothing imports the package, and forks itself. Otherwise, and in a program that
    calls `main()`, the server imports the package, while this process may still do so itself. Does nothing if workers
    cannot be forked, or Ray will be joined, or runs in this process already.

    Args:
        address: of a Ray to join; None: RAY_ADDRESS, or there will be a local Ray.
    """
    global _begun
    if _begun is None and is_possible() and not (ray_address(address) or _ray_runs()):
        of_command = _is_command and "torch" not in sys.modules and threading.active_count() == 1
        if of_command:
            _open_standard_files()
        _begun = ForkServer(of_command=of_command)


def _open_standard_files() -> None:
    """Open those of a command that was started without them: the next file would have their number otherwise."""
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(number, True)
    os.close(number)


def _ray_runs() -> bool:
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


@contextmanager
def forked_workers() -> Iterator[None]:
    """In this context, workers of a Ray that is started are forks if that is possible."""
    global _begun
    begin()
    server, _begun = _begun, None
    if server is None:
        yield
        return
    try:
        with server.forking():
            yield
    finally:
        server.close()
