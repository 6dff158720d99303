"""Rates of Learners and EnvRunners, each beside a baseline in the same run.

    python tests/benchmarks/run.py [--only NAME ...] [--quick] [--json FILE] [--compare OLD.json]

Every figure is the median of several repetitions, on one thread, by turns with its baseline. Ratios travel between
machines, absolute figures do not. docs/pages/speed.md explains each name, and docs/results/speed.md has measured
ratios. A row is printed, and written, as it is measured. `--quick` takes some of them with two repetitions, within two
minutes on an idle machine. `--compare` names rows that are worse than in an earlier FILE by more than 3 %, and then
ends with exit code 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script: its own package, beside the installed one

from tests.benchmarks import (  # isort: skip
    concurrency,
    env_runner,
    evaluation,
    family,
    harness,
    labelling,
    learner,
    memory,
    recorded,
    recurrent,
)
import ray
import torch

BENCHMARKS = (
    learner.BENCHMARKS
    | recurrent.BENCHMARKS
    | family.BENCHMARKS
    | env_runner.BENCHMARKS
    | evaluation.BENCHMARKS
    | labelling.BENCHMARKS
    | recorded.BENCHMARKS
    | concurrency.BENCHMARKS
    | memory.BENCHMARKS
)
QUICK = (
    "learner_vs_torch",
    "family_of_8_vs_one",
    "env_runner_vs_bare",
    "env_runner_vs_rllib",
    "iteration_vs_slower_half",
)
TOLERANCE = 0.03


def line(row: dict[str, Any]) -> str:
    """A row in 80 columns."""
    figures = f"{row['value']:>10,.4g} {row['baseline']:>10,.4g} {row['ratio']:>7.2f}"
    return f"{row['name']:<32} {figures}  {row['unit']}"


def is_worse(row: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether a ratio is worse than before by more than the tolerance, and than any repetition was then."""
    sign = 1 if "/s" in row["unit"] else -1  # of rates, more is better; of seconds and bytes, less
    runs = before["runs"]
    turns = [value / base for value, base in zip(runs["value"], runs["baseline"], strict=False)]
    worst = min(sign * ratio for ratio in [*turns, before["ratio"]])
    return sign * (row["ratio"] / before["ratio"] - 1) < -TOLERANCE and sign * row["ratio"] < worst


def compare_with(before: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each row that is worse."""
    known = {row["name"]: row for row in before}
    worse = [row for row in rows if row["name"] in known and is_worse(row, known[row["name"]])]
    return [f"worse: {row['name']}, ratio {row['ratio']:.3f}, was {known[row['name']]['ratio']:.3f}" for row in worse]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, help="some of them", metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="some of them, two repetitions each")
    parser.add_argument("--json", type=Path, help="where to write the rows", metavar="FILE")
    parser.add_argument("--compare", type=Path, help="rows of another run", metavar="OLD.json")
    args = parser.parse_args()
    before = json.loads(args.compare.read_text()) if args.compare else []
    if args.quick:
        harness.REPETITIONS = 2
    torch.set_num_threads(1)
    # More logical CPUs than there may be: environments that sleep need none.
    ray.init("local", num_cpus=20, include_dashboard=False, log_to_driver=False)
    print(f"{'name':<32} {'value':>10} {'baseline':>10} {'ratio':>7}  unit", flush=True)
    rows: list[dict[str, Any]] = []
    try:
        for name in args.only or (QUICK if args.quick else BENCHMARKS):
            rows.append(BENCHMARKS[name](name))
            print(line(rows[-1]), flush=True)
            if args.json:
                args.json.write_text(json.dumps(rows, indent=1) + "\n")
    finally:
        ray.shutdown()
    worse = compare_with(before, rows)
    print("\n".join(worse), end="\n" if worse else "")
    raise SystemExit(1 if worse else 0)


if __name__ == "__main__":
    main()
