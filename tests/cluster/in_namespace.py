"""Starts an autoscaling Ray, runs commands on it, and writes down what it saw of workers and actors.

python in_namespace.py CONFIG SEEN COMMANDS

is the first process in the namespaces that `fake_cloud.py` makes. What it starts dies with it.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

PATIENCE, PATIENCE_WITH_IDLE = 400, 60  # seconds for the command to end, and for workers to leave then
SIOCSIFFLAGS, IFF_UP = 0x8914, 1  # of <linux/sockios.h> and <linux/if.h>


def isolate() -> None:
    """Sessions and object stores of its own, a network of one loopback device, and a host name that leads there."""
    Path("/tmp/ray").mkdir(exist_ok=True)
    for folder in ("/tmp/ray", "/dev/shm"):
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh", b"lo", IFF_UP))
    socket.sethostname("localhost")


def start_head(config_path: str) -> None:
    """Start it as cluster.yaml does, with the autoscaler that `ray up` takes."""
    config = json.loads(Path(config_path).read_text())
    resources = config["available_node_types"][config["head_node_type"]]["resources"]
    environment = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": config["provider"]["head_node_id"],
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--port=6379"]
    command += [f"--autoscaling-config={config_path}", "--include-dashboard=false"]
    command += [f"--num-cpus={resources['CPU']}", f"--object-store-memory={resources['object_store_memory']}"]
    subprocess.run(command, env=os.environ | environment, check=True)


class Watch:
    """What was seen of the cluster, look by look."""

    def __init__(self) -> None:
        self.workers: list[dict[str, int]] = []
        self._node_types: dict[str, str] = {}  # of every node that ever was
        self._actors: dict[str, tuple[str, str]] = {}  # by id: class, and the node that it lived on

    def look(self) -> None:
        alive = {node["NodeID"]: node["Labels"].get("node_type", "head") for node in ray.nodes() if node["Alive"]}
        self._node_types |= alive
        workers = dict(Counter(node_type for node_type in alive.values() if node_type != "head"))
        if not self.workers or workers != self.workers[-1]:
            self.workers.append(workers)
        for actor in ray._private.state.actors().values():  # the public list needs the dashboard
            if actor["Address"]["NodeID"] in self._node_types:  # else it has not found its place yet
                self._actors[actor["ActorID"]] = (actor["ActorClassName"], actor["Address"]["NodeID"])

    def look_until(self, happened: Callable[[], bool], patience: float) -> None:
        start = time.monotonic()
        while not happened() and time.monotonic() - start < patience:
            time.sleep(0.25)
            self.look()

    def actors(self) -> dict[str, list[str]]:
        by_class: dict[str, list[str]] = {}
        for class_name, node in self._actors.values():
            by_class.setdefault(class_name, []).append(self._node_types[node])
        return by_class


def run(command: list[str]) -> dict[str, Any]:
    """What is seen until the command has ended and its workers have left."""
    watch = Watch()
    watch.look()
    running = subprocess.Popen(command)
    watch.look_until(lambda: running.poll() is not None, PATIENCE)
    watch.look_until(lambda: not watch.workers[-1], PATIENCE_WITH_IDLE)
    return {"workers": watch.workers, "actors": watch.actors(), "returncode": running.returncode}


def main() -> None:
    config_path, seen_path, commands = sys.argv[1:]
    isolate()
    start_head(config_path)
    ray.init("auto", log_to_driver=False)
    Path(seen_path).write_text(json.dumps([run(command) for command in json.loads(commands)]))
    print("--- The autoscaler:", Path("/tmp/ray/session_latest/logs/monitor.log").read_text(), sep="\n")


if __name__ == "__main__":
    main()
