"""Start the fork server, and let Ray's workers be its forks."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from glob import glob
from pathlib import Path

from rllib_kd.workers import ray_worker

_HERE = Path(__file__).parent

#: Those of NVIDIA, also on Jetson and in WSL, and of AMD.
_GPUS = ("/dev/nvidia[0-9]*", "/dev/nvhost-gpu", "/dev/dxg", "/dev/kfd")

_FIRST_JOB = "01000000"  # its id, in each Ray


class ForkServer:
    """A process that forks Ray's workers. It ends when this process ends, if not before.

    Its forks work for the first job of each Ray that this process starts.

    Args:
        differing: what environment variables begin with that may change until Ray starts. If others change, workers are
            not forked, since imports may have read them.
    """

    def __init__(self, differing: Sequence[str] = ()):
        self.name = f"rllib_kd-{os.urandom(16).hex()}"
        path = [folder for folder in sys.path if isinstance(folder, str)]  # imports ignore others, such as a Path
        # Ray reads these two when it is imported. Of the second it wants to know whether the process lives.
        variables = {"RAY_JOB_ID": _FIRST_JOB, "RAY_RAYLET_PID": str(os.getpid())}
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"\0{self.name}")
            listener.listen(socket.SOMAXCONN)  # workers can ask, and wait, from now on
            arguments = {
                "listener": listener.fileno(),
                "path": path,
                "parent": os.getpid(),
                "differing": list(differing),
            }
            self._process = subprocess.Popen(
                [sys.executable, _HERE / "fork_server.py", json.dumps(arguments)],
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[listener.fileno()],
                start_new_session=True,  # out of reach of the terminal's signals
            )

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
        self._process.kill()
        self._process.wait()


_begun: ForkServer | None = None  # before Ray starts


def is_possible() -> bool:
    """Return whether workers can be forked: on Linux, without a GPU, whose driver does not outlive a fork."""
    return sys.platform == "linux" and not any(map(glob, _GPUS))


def begin(*, address: str | None = None) -> None:
    """Start the server now, so that it imports the package while this process still does so itself.

    Does nothing if workers cannot be forked, or Ray will be joined, or runs in this process already.

    Args:
        address: of a Ray to join; None: RAY_ADDRESS, or there will be a local Ray.
    """
    global _begun
    if _begun is None and is_possible() and not (address or os.environ.get("RAY_ADDRESS") or _ray_runs()):
        _begun = ForkServer()


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
