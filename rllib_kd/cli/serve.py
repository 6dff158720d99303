"""`rllib serve`."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from rllib_kd.cli.app import app, echo, set_log_level
from rllib_kd.cli.options import Address, Policy, Trust, option
from rllib_kd.cluster import ray_address


@app.command()
def serve(
    checkpoint: Policy,
    host: Annotated[str, option("Host to listen on (default: 127.0.0.1).", metavar="HOST")] = "127.0.0.1",
    port: Annotated[int, option("Port to listen on (default: 8000).", metavar="N")] = 8000,
    replicas: Annotated[int, option("Processes that serve requests (default: 1).", metavar="N")] = 1,
    address: Address = None,
    trust_checkpoint: Trust = False,
) -> None:
    """Serve the greedy actions of a policy by HTTP, with Ray Serve.

    \b
    rllib serve ~/ray_results/cartpole
    curl -d '{"observations": [[0, 0, 0, 0]]}' http://127.0.0.1:8000/act
    """  # noqa: D301 (a real backspace, which keeps the lines apart)
    from rllib_kd.export.serve.deployment import require_serve

    require_serve()
    from rllib_kd.evaluation.sources import open_source
    from rllib_kd.experiment.connection import LocalRay, connection
    from rllib_kd.experiment.names import check_not_empty
    from rllib_kd.export.serve.deployment import serving
    from rllib_kd.export.serve.policy import ServedPolicy

    set_log_level(0)
    check_not_empty(address=address, host=host)
    _check_numbers(port, replicas)
    policy = ServedPolicy(open_source(checkpoint, trust_checkpoint=trust_checkpoint).network())
    policy.check()
    address = ray_address(address)
    local = LocalRay()
    if address is None:
        _check_free(host, port)
        local = LocalRay(num_cpus=max(replicas, os.cpu_count() or 1))
    with (
        connection({}, address=address, local=local),
        _noting(replicas),
        serving(policy, host=host, port=port, num_replicas=replicas, ends_serve=address is not None) as url,
        _until_signal() as stopped,
    ):
        echo(f"serving {checkpoint} on {url}: POST /act, GET /health, GET /openapi.json; Ctrl-C ends it")
        stopped.wait()


def _check_numbers(port: int, replicas: int) -> None:
    if not 1 <= port <= 65_535:
        raise ValueError(f"--port must be from 1 to 65535, got {port}.")
    if replicas < 1:
        raise ValueError(f"--replicas must be at least 1, got {replicas}.")


def _check_free(host: str, port: int) -> None:
    """Raise a ValueError if nothing can listen there: Serve would try for minutes."""
    import socket  # not for `rllib --help`

    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except (OSError, ValueError) as error:  # of names that no host can have, too
        reason = getattr(error, "strerror", None) or "it is not the name of a host"
        raise ValueError(
            f"Nothing can listen on '{host}', port {port}: {reason}. Choose another --host or --port."
        ) from error


@contextmanager
def _noting(replicas: int) -> Iterator[None]:
    """Print a note if replicas have to wait for CPUs."""
    import ray

    from rllib_kd.terminal import say

    there = ray.cluster_resources().get("CPU", 0.0)
    if there < replicas:
        say(
            f"note: --replicas {replicas} needs as many CPUs, but Ray has {there:g}. They wait until the cluster grows."
        )
    yield


@contextmanager
def _until_signal() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C and SIGTERM set. Within, they end the command with exit code 0."""
    stopped = threading.Event()
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(signum: int, frame: object) -> None:
        for number, handler in previous.items():  # a second one ends at once
            signal.signal(number, handler)
        stopped.set()

    for number in previous:
        signal.signal(number, stop)
    try:
        yield stopped
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
