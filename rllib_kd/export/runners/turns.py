"""A script that measures the latencies of several artifacts, which take turns, and prints them as JSON.

    python turns.py RUNNER OBSERVATION_SHAPE ARTIFACT...

It is run by its path, as measure.py is. Other programs slow a machine down for seconds. The artifacts take turns of
milliseconds, so that all of them are slowed down alike, and can be compared within a repeat.
"""

from __future__ import annotations

import importlib
import json
import statistics
import sys
import time

_REPEATS = 15
_SECONDS, _LEAST_CALLS, _MOST_CALLS = 0.02, 5, 1_000  # of an artifact in a repeat


def main() -> None:
    """Print the median time of one call in each repeat, ms, as a list for each artifact."""
    runner_name, shape_text, *paths = sys.argv[1:]
    runner = importlib.import_module(runner_name)
    if runner_name in ("pt2_runner", "torchscript_runner"):
        runner.torch.set_num_threads(1)
    import numpy as np

    shape = json.loads(shape_text)
    obs = np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(1, *shape)
    artifacts = [runner.load(path) for path in paths]
    medians: list[list[float]] = [[] for _ in artifacts]
    for repeat in range(_REPEATS + 1):
        for q_values, own in zip(artifacts, medians, strict=True):
            median = _median(q_values, obs)
            if repeat:  # the first one warms up
                own.append(1e3 * median)
    print(json.dumps(medians))


def _median(q_values, obs) -> float:
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < _LEAST_CALLS or (len(times) < _MOST_CALLS and time.perf_counter() - began < _SECONDS):
        start = time.perf_counter()
        q_values(obs)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
