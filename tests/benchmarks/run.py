"""How fast it is, always beside a baseline in the same run.

    python tests/benchmarks/run.py [--only NAME] [--json FILE]

Every figure is the median of several repetitions, on one thread, by turns with its baseline. Ratios travel between
machines, absolute figures do not. docs/speed.md says what each name measures, and what the ratios were.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script: its own package, beside the installed one

from tests.benchmarks import concurrency, env_runner, family, learner, memory  # isort: skip
import ray
import torch
from rich.console import Console
from rich.table import Table

BENCHMARKS = learner.BENCHMARKS | family.BENCHMARKS | env_runner.BENCHMARKS | concurrency.BENCHMARKS | memory.BENCHMARKS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=BENCHMARKS, help="one benchmark instead of all", metavar="NAME")
    parser.add_argument("--json", type=Path, help="where to write the rows", metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(1)
    # More logical CPUs than there may be: environments that sleep need none.
    ray.init("local", num_cpus=20, include_dashboard=False, log_to_driver=False)
    rows = [BENCHMARKS[name](name) for name in ([args.only] if args.only else BENCHMARKS)]
    ray.shutdown()
    table = Table()
    for column in ("name", "value", "baseline", "unit", "ratio"):
        table.add_column(column, justify="left" if column in ("name", "unit") else "right")
    for row in rows:
        table.add_row(
            row["name"], f"{row['value']:,.4g}", f"{row['baseline']:,.4g}", row["unit"], f"{row['ratio']:.2f}"
        )
    Console(width=80).print(table)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
