"""How fast `rllib serve` answers on this machine: a policy beside its teacher, each served in turn.

    python tests/benchmarks/serving.py STUDENT [--teacher cartpole] [--clients 1 8 32] [--seconds 10] [--json FILE]

Clients are threads of this process with one connection each, which send the next request as soon as they have the last
answer: with 32 of them, requests wait for each other, and what is measured is throughput. They share the machine's
cores with the server. A row is printed, and written, as it is measured: requests/s, and the median and 99th percentile
of the time from request to answer, ms.
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script: its own package, beside the installed one

from rllib_kd.evaluation.sources import open_source
from rllib_kd.experiment.connection import connection
from rllib_kd.export.serve.deployment import serving
from rllib_kd.export.serve.policy import ServedPolicy

WARM_UP_S = 1.0


def load(host: str, port: int, body: bytes, *, num_clients: int, seconds: float) -> list[float]:
    """Latencies of all answers in this time, s, after a warm-up."""
    begin = time.perf_counter() + WARM_UP_S
    latencies: list[list[float]] = [[] for _ in range(num_clients)]
    failures: list[str] = []

    def ask(own: list[float]) -> None:
        connected = http.client.HTTPConnection(host, port, timeout=30)
        connected.connect()
        connected.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while (start := time.perf_counter()) < begin + seconds:
            connected.request("POST", "/act", body)
            answer = connected.getresponse()
            content = answer.read()
            if answer.status != 200:
                failures.append(f"{answer.status}: {content[:200]!r}")
                return
            if start >= begin:
                own.append(time.perf_counter() - start)

    threads = [threading.Thread(target=ask, args=(own,)) for own in latencies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise RuntimeError(f"{len(failures)} clients got no answer, the first one {failures[0]}")
    return [latency for own in latencies for latency in own]


def rows_of(name: str, policy: ServedPolicy, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each number of clients."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    body = json.dumps(policy.reader.example()).encode()
    rows = []
    with connection({"CPU": 1.0}), serving(policy, host="127.0.0.1", port=port):
        for num_clients in args.clients:
            latencies = load("127.0.0.1", port, body, num_clients=num_clients, seconds=args.seconds)
            p50, p99 = (1e3 * float(np.quantile(latencies, share)) for share in (0.5, 0.99))
            row = {"policy": name, "clients": num_clients, "requests": len(latencies), "p50_ms": p50, "p99_ms": p99}
            rows.append(row | {"requests_per_s": len(latencies) / args.seconds})
    return rows


def line(row: dict[str, Any]) -> str:
    """A row in 80 columns."""
    figures = f"{row['requests_per_s']:>11,.0f} {row['p50_ms']:>9.2f} {row['p99_ms']:>9.2f}"
    return f"{row['policy'][-32:]:<32} {row['clients']:>8} {figures}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", help="checkpoint, run folder or exported file")
    parser.add_argument("--teacher", default="cartpole", help="served beside it (default: cartpole)")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 8, 32], help="at once", metavar="N")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each row", metavar="S")
    parser.add_argument("--json", type=Path, help="where to write the rows", metavar="FILE")
    args = parser.parse_args()
    policies = {name: ServedPolicy(open_source(path).network()) for name, path in vars(args).items() if name in NAMES}
    print(f"{'policy':<32} {'clients':>8} {'requests/s':>11} {'p50, ms':>9} {'p99, ms':>9}", flush=True)
    rows: list[dict[str, Any]] = []
    for name, policy in policies.items():
        rows += rows_of(name, policy, args)
        print("\n".join(map(line, rows[-len(args.clients) :])), flush=True)
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1) + "\n")


NAMES = ("student", "teacher")


if __name__ == "__main__":
    main()
