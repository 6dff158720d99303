"""A process that has imported the package, and forks Ray's workers, each as ray_worker.py asks for it.

Importing PyTorch, RLlib and this package takes each of Ray's processes some seconds; a fork has it all at once, and
shares the memory of it. The process is itself a fork of a command, or a script of its own beside a program in Python.
It ends with the one that has started it.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import runpy
import select
import signal
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>

#: Variables that Ray, this package or a shell sets for each worker begin with these; a fork has those of the worker.
_OF_WORKERS = (
    *("RAY_", "RLLIB_KD_", "TUNE_", "PL_DISABLE_FORK", "PYTHONBREAKPOINT", "PYTHONPATH", "SPT_NOENV"),
    *("PWD", "OLDPWD", "PS1", "SHLVL"),
)

#: Libraries set these for themselves when they are imported: tensorboardX, scikit-learn, MLflow, pygame, PyTorch's
#: compiler. The process that asks may have imported them, and this one not.
_OF_LIBRARIES = (
    *("CRC32C_SW_MODE", "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK", "_MLFLOW_TELEMETRY_SESSION_ID"),
    *("PYGAME_", "SDL_", "TORCHINDUCTOR_CACHE_DIR"),
)

_FIRST_JOB = "01000000"  # a job's id, in each Ray

_NO_JOB = "ffffffff"  # in its place: the worker is started ahead

#: Ray's C++ part reads these when it is imported. Of the second, a worker wants to know whether the process lives; a
#: driver asks for neither.
_AT_IMPORT = ("RAY_JOB_ID", "RAY_RAYLET_PID")

_OF_JEMALLOC = "jemalloc_bg_thd"  # a thread of pyarrow's memory pool, which is made for forks

_OF_RAY = os.path.join("ray", "thirdparty_files")  # importing Ray puts this folder on sys.path

_MOST_BYTES = 10_000_000  # of a request, which is mostly environment variables


def serve(listener: int, path: list[str], parent: int, differing: list[str]) -> None:
    """Import the package, and fork the workers that are asked for. Returns in each fork, not in this process.

    Args:
        listener: number of the socket's file, which listens.
        path: sys.path of the process that has started this one, by which it finds the package.
        parent: id of that process.
        differing: what environment variables begin with that no import reads.
    """
    _end_with(parent)
    before = dict(os.environ)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored, a process cannot wait for its forks
    with socket.socket(fileno=listener) as listening:
        sys.path[:] = path
        import_package(parent)
        gc.disable()
        import torch._dynamo  # noqa: F401 (the first optimizer imports it)

        gc.freeze()
        if not _forks_differ():
            sys.exit("Importing this version of Ray uses its random generator.")
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel forgets forks that have ended
        while True:
            connection, _ = listening.accept()
            wanted, files = _request(connection)
            environment = None if wanted is None else _environment(wanted["environment"], before, differing)
            if wanted is not None and environment is not None and _is_whole() and os.fork() == 0:
                break
            connection.close()
            for file in files:
                os.close(file)
    _become(wanted, environment, files, connection)


def _end_with(parent: int) -> None:
    """Let the kernel kill this process when the one that started it has ended, however it did."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit()


def import_package(parent: int) -> None:
    """Import what Tune's trials, EnvRunners and Learners need, as workers of the Ray of process `parent` do."""
    before = {name: os.environ.get(name) for name in _AT_IMPORT}
    os.environ |= dict(zip(_AT_IMPORT, (_FIRST_JOB, str(parent)), strict=True))
    gc.disable()  # of what modules make, all stays
    from rllib_kd import _rllib

    with _rllib.no_random_ids():
        import rllib_kd.algorithm.algorithm  # noqa: F401
    gc.freeze()
    gc.enable()
    for name, value in before.items():
        del os.environ[name]
        if value is not None:
            os.environ[name] = value


def _forks_differ() -> bool:
    """Return whether two forks draw different ids: they would be one if imports had seeded Ray's random generator.

    Also lets OpenBLAS end its threads, as it does before each fork, to start them again when it needs them.
    """
    from rllib_kd._rllib import random_id

    ids = set()
    for _ in range(2):
        reading, writing = os.pipe()
        if os.fork() == 0:
            os.write(writing, random_id())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as file:
            ids.add(file.read())
        os.wait()
    return len(ids) == 2


def _request(connection: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """Return the description of the requested worker, and its files: standard input, output and errors."""
    from rllib_kd.workers.ray_worker import is_of_this_user

    files: list[int] = []
    try:
        connection.settimeout(5.0)
        if not is_of_this_user(connection):
            return None, files
        _, files, _, _ = socket.recv_fds(connection, 1, 3)
        text = b""
        while len(text) < _MOST_BYTES and (part := connection.recv(1 << 16)):
            text += part
        wanted = json.loads(text)
        if isinstance(wanted, dict):
            connection.sendall(b"1")  # fails if that process no longer waits: it has become Ray's own worker
            return wanted, files
    except (OSError, ValueError):
        pass
    return None, files


def _is_whole() -> bool:
    """Return whether a fork is all of this process: it has one thread, and locks that others hold stay locked."""
    names = []
    for thread in os.listdir("/proc/self/task"):
        with suppress(OSError):  # it has ended since
            names.append(Path(f"/proc/self/task/{thread}/comm").read_text(encoding="utf-8").strip())
    return len(names) - names.count(_OF_JEMALLOC) == 1


def _environment(
    wanted: Mapping[str, str], before: Mapping[str, str], differing: Sequence[str]
) -> dict[str, str] | None:
    """Return a worker's environment variables; None if modules would have been imported with others than here.

    Args:
        wanted: variables of the process that asks.
        before: variables of this process at its start; imports have set some since.
        differing: as serve() takes it.
    """
    if wanted.get("RAY_JOB_ID") not in (_FIRST_JOB, _NO_JOB):
        return None
    ignored = (*_OF_WORKERS, *_OF_LIBRARIES, *differing)
    names = {name for name in {*wanted, *before} if not name.startswith(ignored)}
    if any(wanted.get(name) not in (before.get(name), os.environ.get(name)) for name in names):
        return None
    return {**wanted, **{name: value for name, value in os.environ.items() if value != before.get(name)}}


def _become(wanted: dict[str, Any], environment: dict[str, str], files: list[int], connection: socket.socket) -> None:
    """Turn this fork into the process that was asked for: what a process inherits, and what imports have set."""
    import numpy as np
    import torch

    from rllib_kd import _rllib
    from rllib_kd.relay import send_warnings

    os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, wanted["blocked_signals"])
    for name, limits in wanted["limits"].items():
        resource.setrlimit(getattr(resource, name), limits)
    os.sched_setaffinity(0, wanted["cpus"])
    os.setpriority(os.PRIO_PROCESS, 0, wanted["niceness"])
    with open("/proc/self/oom_score_adj", "w", encoding="utf-8") as score:
        score.write(wanted["oom_score"])
    os.umask(wanted["umask"])
    os.chdir(wanted["folder"])
    sys.argv = wanted["arguments"]
    sys.path[:] = [*{folder for folder in sys.path if folder.endswith(_OF_RAY)}, *wanted["path"]]
    os.environ.clear()
    os.environ.update(environment)
    gc.enable()
    np.random.seed()  # or all forks would draw the same numbers; Python's own generator sees to it by itself
    torch.default_generator.seed()
    _rllib.read_environment_again()
    _rllib.torch_has_the_threads_of_a_task()
    _rllib.call_when_connected(partial(_has_begun, connection))
    send_warnings()
    _end_with_raylet()


def _has_begun(connection: socket.socket) -> None:
    """Notify the process that requested this one that it is no longer needed."""
    connection.sendall(b"1")
    connection.close()


def _end_with_raylet() -> None:
    """End this process when Ray's daemon has ended, as Ray's workers do: here, they look at another process for it."""
    raylet = os.pidfd_open(int(os.environ["RAY_RAYLET_PID"]))

    def wait() -> None:
        select.select([raylet], [], [])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def run(**arguments: Any) -> None:
    """Serve, as `serve()` describes it; in each fork, run the script that was asked for."""
    serve(**arguments)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    run(**json.loads(sys.argv[1]))
