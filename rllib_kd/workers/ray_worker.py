"""The worker process of a local Ray: asks the fork server for a process that has imported the package already.

If that is not possible, this process becomes Ray's own worker. This script imports little, since it is run for every
worker.
"""

import json
import os
import runpy
import signal
import socket
import struct
import sys

SERVER = "RLLIB_KD_FORK_SERVER"  # environment variable: name of the server's socket
WORKER = "RLLIB_KD_RAY_WORKER"  # environment variable: path of Ray's own script of a worker

_SECONDS = 30.0  # in which the server has imported the package
_SECONDS_TO_BEGIN = 60.0  # as long as Ray waits for a worker


def is_forked(server: str) -> bool:
    """Ask the server to fork a process like this one, which runs the script of `sys.argv`."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_SECONDS)
            connection.connect(f"\0{server}")
            if not is_of_this_user(connection):
                return False
            socket.send_fds(connection, [b"1"], [0, 1, 2])
            connection.sendall(json.dumps(_this_process()).encode())
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)  # the server has read it, and forks
            connection.settimeout(_SECONDS_TO_BEGIN)  # in which the fork is connected to Ray, or ends
            return connection.recv(1) == b"1"
    except OSError:
        return False


def is_of_this_user(connection: socket.socket) -> bool:
    """Return whether the process at the other end is of this user: all users see the names of these sockets."""
    _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return user == os.getuid()


def _this_process() -> dict[str, object]:
    """Return what the fork takes from this process."""
    import resource  # here: Windows has none, and forking.py imports this file everywhere

    with open("/proc/self/oom_score_adj", encoding="utf-8") as file:
        oom_score = file.read()
    limits = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    umask = os.umask(0)
    os.umask(umask)
    return {
        "arguments": sys.argv,
        "path": sys.path,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "oom_score": oom_score,
        "limits": {name: resource.getrlimit(getattr(resource, name)) for name in limits},
        "cpus": list(os.sched_getaffinity(0)),
        "umask": umask,
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "blocked_signals": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
    }


if __name__ == "__main__":
    sys.argv[0] = os.environ[WORKER]
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = os.path.dirname(sys.argv[0])
    if not is_forked(os.environ.get(SERVER, "")):
        runpy.run_path(sys.argv[0], run_name="__main__")
