"""What a local Ray starts as its worker process: asks the fork server for one that has imported the package already.

Where that is not possible, this process becomes Ray's own worker. A script that imports little, since it is run for
every worker.
"""

import json
import os
import resource
import runpy
import signal
import socket
import sys

SERVER = "RLLIB_KD_FORK_SERVER"  # environment variable: name of the server's socket
WORKER = "RLLIB_KD_RAY_WORKER"  # environment variable: path of Ray's own script of a worker

_SECONDS = 60.0  # in which the server has imported the package, or it is too late for Ray


def is_forked(server: str, worker: str) -> bool:
    """Ask the server to fork a process like this one, which runs a script with the arguments of this one."""
    with open("/proc/self/oom_score_adj") as file:
        oom_score = file.read()
    limits = {name: resource.getrlimit(getattr(resource, name)) for name in ("RLIMIT_NOFILE", "RLIMIT_CORE")}
    umask = os.umask(0)
    os.umask(umask)
    process = {
        "arguments": [worker, *sys.argv[1:]],
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "oom_score": oom_score,
        "limits": limits,
        "umask": umask,
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "blocked_signals": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
    }
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_SECONDS)
            connection.connect(f"\0{server}")
            socket.send_fds(connection, [b"1"], [0, 1, 2])
            connection.sendall(json.dumps(process).encode())
            connection.shutdown(socket.SHUT_WR)
            return connection.recv(1) == b"1"
    except OSError:
        return False


if __name__ == "__main__":
    own = os.environ[WORKER]
    if not is_forked(os.environ.get(SERVER, ""), own):
        sys.argv[0], sys.path[0] = own, os.path.dirname(own)
        runpy.run_path(own, run_name="__main__")
