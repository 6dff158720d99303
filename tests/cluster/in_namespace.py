"""Starts an autoscaling Ray, runs a command on it, and writes down what it saw of workers and actors.

python in_namespace.py CONFIG OUT COMMAND...: the first process in the namespaces that `fake_cloud.py` makes. What it started dies with it.
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
from pathlib import Path

import ray
import yaml

GIVE_UP = 60  # seconds for idle workers to leave
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
    """The `ray start` of cluster.yaml, for the fake provider, with the version of the autoscaler that `ray up` takes."""
    config = yaml.safe_load(Path(config_path).read_text())
    resources = config["available_node_types"][config["head_node_type"]]["resources"]
    environment = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": config["provider"]["head_node_id"],
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    command = ["ray", "start", "--head", "--port=6379", f"--autoscaling-config={config_path}"]
    command += [f"--num-cpus={resources['CPU']}", f"--object-store-memory={resources['object_store_memory']}"]
    subprocess.run([*command, "--include-dashboard=false"], env=os.environ | environment, check=True)


class Watch:
    """What was seen of the cluster, in looks one after another."""

    def __init__(self) -> None:
        self.workers: list[dict[str, int]] = []  # how many of each node type, whenever it changed
        self.actors: dict[str, dict[str, str]] = {}  # class -> actor's id -> type of the node that it lived on
        self._types: dict[str, str] = {}

    def look(self) -> None:
        alive = [node for node in ray.nodes() if node["Alive"]]
        print([n["Labels"] for n in alive], flush=True)
        self._types |= {node["NodeID"]: node["Labels"].get("ray.io/node-group", "head") for node in alive}
        workers = Counter(node_type for node in alive if (node_type := self._types[node["NodeID"]]) != "head")
        if not self.workers or workers != self.workers[-1]:
            self.workers.append(dict(workers))
        for actor in ray._private.state.actors().values():  # the public list needs the dashboard
            if actor["Address"]["NodeID"] in self._types:
                lived = self.actors.setdefault(actor["ActorClassName"], {})
                lived[actor["ActorID"]] = self._types[actor["Address"]["NodeID"]]


def main() -> None:
    config_path, out, *command = sys.argv[1:]
    isolate()
    start_head(config_path)
    ray.init("auto", log_to_driver=False)
    watch = Watch()
    watch.look()
    running = subprocess.Popen(command)
    while running.poll() is None:
        watch.look()
        time.sleep(0.25)
    ended = time.monotonic()
    while watch.workers[-1] and time.monotonic() - ended < GIVE_UP:
        time.sleep(0.25)
        watch.look()
    seen = {"workers": watch.workers, "actors": watch.actors, "exit_code": running.returncode}
    Path(out).write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
