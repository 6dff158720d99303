"""Ten million labelled states through a cheap environment: memory and speed must stay flat.

    python tests/benchmarks/long_run.py [--states N] [--out FOLDER]

Writes `long_run.csv` (one row an iteration) and `long_run.png`, with the machine and the date in the CSV's first line.
It can be ended at any time (Ctrl-C): what was measured is kept.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import platform
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script: its own package, beside the installed one

from tests.benchmarks.harness import algorithm, distillation_config  # isort: skip
from tests.benchmarks.memory import resident_mb  # isort: skip
import ray
import torch
from matplotlib.figure import Figure

STATES_PER_ITERATION = 100_000
COLUMNS = ("seconds", "states", "gradient_steps", "states_per_s", "cpu_us_per_state", "rss_mb")


def run(num_states: int, path: Path) -> None:
    """Train, and append a row an iteration."""
    config = distillation_config().training(training_intensity=1.0, replay_buffer_config={"capacity": 100_000})
    config.reporting(min_sample_timesteps_per_iteration=STATES_PER_ITERATION)
    about = f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, Ray {ray.__version__}, one process"
    with path.open("w") as file, algorithm(config) as algo:
        file.write(f"# {about}\n")
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        start, states = time.monotonic(), 0
        while states < num_states:
            before, cpu, then = states, time.process_time(), time.monotonic()
            states = int(algo.train()["num_env_steps_sampled_lifetime"])
            new = states - before
            cpu_us = 1e6 * (time.process_time() - cpu) / new
            numbers = (new / (time.monotonic() - then), cpu_us, resident_mb())
            seconds = f"{time.monotonic() - start:.1f}"
            writer.writerow([seconds, states, algo.num_gradient_steps, *(f"{number:.4g}" for number in numbers)])
            file.flush()


def plot(path: Path) -> None:
    """Memory and cost over the states, beside the CSV."""
    lines = path.read_text().splitlines()
    rows = list(csv.DictReader(lines[1:]))
    millions = [int(row["states"]) / 1e6 for row in rows]
    figure = Figure(figsize=(6, 4), layout="constrained")
    panels = zip(figure.subplots(2, 1, sharex=True), ("rss_mb", "cpu_us_per_state"), strict=True)
    for axes, name in panels:
        values = [float(row[name]) for row in rows]
        axes.plot(millions, values)
        axes.set_ylim(0, 1.2 * max(values))
        axes.set_ylabel(name)
    axes.set_xlabel("million labelled states")
    figure.suptitle(lines[0].removeprefix("# "), fontsize=8)
    figure.savefig(path.with_suffix(".png"), dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--states", type=int, default=10_000_000, help="labelled states", metavar="N")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "docs" / "results", metavar="FOLDER")
    args = parser.parse_args()
    torch.set_num_threads(1)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "long_run.csv"
    try:
        run(args.states, path)
    except KeyboardInterrupt:
        print("Ended early.")
    finally:
        plot(path)


if __name__ == "__main__":
    main()
