"""cluster.yaml on one machine: Ray's fake cloud, in Linux namespaces in which no other process can be seen or ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE
from ray.autoscaler._private.util import prepare_config

TIMEOUT = 1_000  # seconds, after which something hangs that should not
#: Processes, mounts, network and host name of their own; with the first process all end. Others are root inside too.
UNSHARE = ["unshare", "-pfmnu", "--mount-proc", "--kill-child", *([] if os.geteuid() == 0 else ["--map-root-user"])]


def why_impossible() -> str | None:
    """What keeps this machine from making the namespaces, as the profile of many containers does; None if nothing."""
    try:
        done = subprocess.run([*UNSHARE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, text=True)
    except FileNotFoundError as error:
        return str(error)
    return done.stderr.strip() or f"unshare ended with {done.returncode}" if done.returncode else None


def on_one_machine(cluster: dict[str, Any]) -> dict[str, Any]:
    """The cluster of a launcher's file for one machine of two cores.

    Names, limits and custom resources of the workers stay. What changes: the provider, which has a name of its own for
    the head; at most one CPU and 100 MB of objects a node; idle nodes leave after 3 seconds; nothing is installed.
    """
    config = prepare_config(cluster)
    types = config["available_node_types"]
    for node_type in types.values():
        node_type["node_config"] = {}
        node_type["resources"] |= {"CPU": min(node_type["resources"]["CPU"], 1), "object_store_memory": 100_000_000}
    for name in types.keys() - {config["head_node_type"]}:
        types[name]["labels"] = {"node_type": name}
    types[FAKE_HEAD_NODE_TYPE] = types.pop(config["head_node_type"])
    return config | {
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        "idle_timeout_minutes": 3 / 60,
        "file_mounts": {},
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "provider": {
            "type": "external",  # by module: for its own name of the provider, Ray's wheel lacks a file
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "head_node_id": FAKE_HEAD_NODE_ID,
            "gcs_address": "127.0.0.1:6379",
            "launch_multiple": True,
            "disable_node_updaters": True,  # that would copy and install
        },
    }


@dataclass
class Seen:
    """What happened to a cluster while a command ran on it.

    Args:
        workers: how many of each node type there were, one entry whenever that changed.
        actors: for each class the node types on which its actors lived, one entry for each actor.
        returncode: of the command; None if it did not end.
        output: of Ray, of all commands, and of the autoscaler.
    """

    workers: list[dict[str, int]]
    actors: dict[str, list[str]]
    returncode: int | None
    output: str


def run_on(cluster: dict[str, Any], commands: list[list[str]], folder: Path) -> list[Seen]:
    """Start the head, and run the commands, each when the workers of the one before have left."""
    config, seen, log = folder / "cluster.json", folder / "seen.json", folder / "log.txt"
    config.write_text(json.dumps(on_one_machine(cluster)))
    script = str(Path(__file__).with_name("in_namespace.py"))
    inside = [sys.executable, script, str(config), str(seen), json.dumps(commands)]
    # Nobody can come near this cluster; with tokens Ray would write one into the home folder.
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    with log.open("w") as output:
        subprocess.run([*UNSHARE, *inside], stdout=output, stderr=output, env=environment, timeout=TIMEOUT)
    assert seen.exists(), log.read_text()
    return [Seen(**each, output=log.read_text()) for each in json.loads(seen.read_text())]
