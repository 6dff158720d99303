"""A script that measures the cost of one artifact for the process that runs it, and prints it as JSON.

    python measure.py RUNNER ARTIFACT OBSERVATION_SHAPE

It is run by its path, so that the runners beside it are imported without the package around them: it measures what a
device needs. Observations come one at a time.
"""

from __future__ import annotations

import importlib
import json
import resource
import statistics
import sys
import time
from pathlib import Path

_WARM_UP_CALLS = 50
_CALLS = 1000


def peak_memory_bytes() -> int:
    """Return the peak resident memory of this process, bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: on Linux its ru_maxrss starts at the memory of the process that started this one.
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def main() -> None:
    """Load the artifact, run it on one observation and read the memory; then measure the time. The order matters."""
    runner_name, path, shape_text = sys.argv[1:]
    runner = importlib.import_module(runner_name)
    if runner_name in ("pt2_runner", "torchscript_runner"):
        runner.torch.set_num_threads(1)
    import numpy as np

    shape = json.loads(shape_text)
    obs = np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(1, *shape)
    q_values = runner.load(path)
    q_values(obs)
    memory = peak_memory_bytes()
    for _ in range(_WARM_UP_CALLS):
        q_values(obs)
    times = []
    for _ in range(_CALLS):
        start = time.perf_counter()
        q_values(obs)
        times.append(time.perf_counter() - start)
    print(json.dumps({"peak_memory_bytes": memory, "latency_ms": 1e3 * statistics.median(times)}))


if __name__ == "__main__":
    main()
