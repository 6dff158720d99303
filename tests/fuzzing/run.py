"""A command: changed files of every format, each loaded as a teacher that nobody trusts.

    python tests/fuzzing/run.py --files 3500 --json fuzzing.json

It exits with 1 if a file is executed, takes over 10 s of processor time or over 1 GB, or raises anything but a
ValueError of one line. The same seed makes the same files.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # several processes share the cores
sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.fuzzing.formats import FORMATS, Files, Format, write
from tests.fuzzing.workers import Outcome, measure_each


@dataclasses.dataclass
class Row:
    """What came of the files of one format."""

    format: str
    files: int = 0
    executed: int = 0
    over_2_s: int = 0
    over_10_s: int = 0
    over_300_mb: int = 0
    over_1_gb: int = 0
    no_value_error: int = 0
    accepted: int = 0
    refused: int = 0
    max_seconds: float = 0.0  # of processor time
    max_megabytes: float = 0.0
    seconds: float = 0.0

    def add(self, outcome: Outcome) -> None:
        """One more file."""
        self.files += 1
        self.executed += outcome.executed
        self.over_2_s += outcome.seconds > 2
        self.over_10_s += outcome.seconds > 10
        self.over_300_mb += outcome.megabytes > 300
        self.over_1_gb += outcome.megabytes > 1_000
        self.accepted += outcome.verdict == "accepted"
        self.refused += outcome.verdict == "refused"
        self.no_value_error += outcome.verdict not in ("accepted", "refused")
        self.max_seconds = round(max(self.max_seconds, outcome.seconds), 2)
        self.max_megabytes = round(max(self.max_megabytes, outcome.megabytes))

    @property
    def has_failed(self) -> bool:
        """Whether something happened that must not."""
        return bool(self.executed or self.over_10_s or self.over_1_gb or self.no_value_error)


def case(format_name: str, format: Format, seed: int, number: int, marker: str) -> Files:
    """The files of one number, the same for each seed."""
    return format.case(random.Random(f"{seed}/{format_name}/{number}"), marker)


def fuzz(
    name: str, num_files: int, seed: int = 0, keep: Path | None = None, say: Callable[[str], Any] = lambda line: None
) -> Row:
    """Load changed files of one format.

    Args:
        name: of the format.
        num_files: to make and load.
        seed: of the changes.
        keep: folder for files with which something happened that should not.
        say: takes a line for each of these.
    """
    row, started = Row(name), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        marker = Path(folder) / "executed"
        format = FORMATS[name]()

        def place() -> Path:
            return Path(folder) / f"files-{os.getpid()}"

        def warm_up() -> None:
            for seed_files in format.seeds:
                write(seed_files, place())
                with contextlib.suppress(ValueError) if name == "torchscript" else contextlib.nullcontext():
                    format.play(str(place() / format.path), counts=(2,))

        def make(number: int) -> Callable[[], Any]:
            write(case(name, format, seed, number, os.environ["FUZZING_MARKER"]), place())
            return lambda: format.play(str(place() / format.path))

        for number, outcome in measure_each(range(num_files), make, marker=marker, warm_up=warm_up):
            row.add(outcome)
            is_bad = outcome.verdict not in ("accepted", "refused") or outcome.executed
            if is_bad or outcome.seconds > 2 or outcome.megabytes > 300:
                say(f"{name} {number}: {outcome}")
                if keep is not None:
                    write(case(name, format, seed, number, "marker"), keep / f"{name}-{seed}-{number}")
    row.seconds = round(time.monotonic() - started)
    return row


def main() -> None:
    """Fuzz each format, and print a row for each."""
    warnings.simplefilter("ignore")  # of zips that have a name twice, e.g.
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=3500, help="number of files a format (default: %(default)s)")
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=list(FORMATS), help="formats (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the changes (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--keep", type=Path, help="folder for files with which something happened that should not")
    arguments = parser.parse_args()
    columns = [field.name for field in dataclasses.fields(Row)]
    print(" ".join(columns), flush=True)
    rows = []
    for name in arguments.format:
        rows.append(fuzz(name, arguments.files, arguments.seed, arguments.keep, lambda line: print(line, flush=True)))
        print(" ".join(f"{value!s:>{len(column)}}" for column, value in vars(rows[-1]).items()), flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps([vars(row) for row in rows], indent=2))
    sys.exit(any(row.has_failed for row in rows))


if __name__ == "__main__":
    main()
