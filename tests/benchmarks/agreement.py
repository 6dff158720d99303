"""How often a certificate of agreement is wrong, and how many units it needs: simulated recordings with a known truth.

    python tests/benchmarks/agreement.py [--runs 1000] [--only NAME ...] [--csv FILE] [--json FILE]

Each run peeks after every unit, up to 2,000. A student whose mean agreement is `keep` must be certified in at most 5 %
of the runs; for the others, the median number of units is the cost. `single rows` is the same test on single states, as
if these were independent: what not to do. In "too short blocks" the rows do not name their episodes, and blocks of 64
rows lie in episodes of 640: neighbours resemble each other, which the certificate's condition excludes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script: its own package, beside the installed one

from rllib_kd.certificates.agreement import fewest_units
from tests.benchmarks.certificates import arguments, betting, write_rows

KEEP, ALPHA = 0.97, 0.05
MAX_UNITS = 2_000
AGREEMENTS = (KEEP - 0.01, KEEP, 0.98, 0.99, 1.0)

Generator = np.random.Generator
#: Returns the number of states [n] of each unit, and that of those in which student and teacher agree [n].
Recording = Callable[[Generator, int, float], tuple[np.ndarray, np.ndarray]]


def independent(rng: Generator, n: int, mean: float) -> tuple[np.ndarray, np.ndarray]:
    """All states are alike, and independent of each other."""
    sizes = 8 + rng.poisson(14, n)
    return sizes, rng.binomial(sizes, mean)


def difficult(rng: Generator, n: int, mean: float) -> tuple[np.ndarray, np.ndarray]:
    """Episodes differ: the student agrees in a share of their states that is Beta-distributed."""
    sizes = rng.integers(150, 250, n)
    share = rng.beta(20 * mean, 20 * (1 - mean), n) if mean < 1 else np.ones(n)
    return sizes, rng.binomial(sizes, share)


def lost(rng: Generator, n: int, mean: float) -> tuple[np.ndarray, np.ndarray]:
    """In some episodes the student is lost from the beginning, and takes another action in all states."""
    sizes = rng.integers(150, 250, n)
    return sizes, np.where(rng.random(n) < 1 - mean, 0, sizes)


def long_ones(rng: Generator, n: int, mean: float) -> tuple[np.ndarray, np.ndarray]:
    """It is lost in short episodes alone, which end early."""
    is_short = rng.random(n) < 0.2
    sizes = np.where(is_short, 20, 480)
    share = np.where(is_short, 1 - (1 - mean) / 0.2, 1.0)
    return sizes, rng.binomial(sizes, share)


def too_short_blocks(rng: Generator, n: int, mean: float) -> tuple[np.ndarray, np.ndarray]:
    """Ten blocks of each episode, in one of which all or nothing agrees: a tenth of all blocks is drawn."""
    episodes = np.where(rng.random(n) < 1 - mean, 0, 64)
    of_block = rng.integers(n, size=n)  # of n episodes, with repetition
    return np.full(n, 64), episodes[of_block]


RECORDINGS: dict[str, Recording] = {
    "independent states": independent,
    "difficult episodes": difficult,
    "lost episodes": lost,
    "lost in short episodes": long_ones,
    "too short blocks": too_short_blocks,
}


def first_certified(agreements: np.ndarray) -> float:
    """Return the number of units after which the test certifies first; ∞: never."""
    certifies = betting(agreements - KEEP, KEEP, ALPHA)
    return float(certifies.argmax() + 1) if certifies.any() else math.inf


def one_run(recording: Recording, mean: float, seed: int) -> tuple[float, bool]:
    """Return the units that a certificate takes, and whether single rows would be certified at any time."""
    rng = np.random.default_rng(seed)
    sizes, agreeing = recording(rng, MAX_UNITS, mean)
    ends = np.cumsum(sizes[:100])  # of single rows, those of 100 units
    place = np.arange(ends[-1]) - np.repeat(ends - sizes[:100], sizes[:100])
    single = (place < np.repeat(agreeing[:100], sizes[:100])).astype(float)
    return first_certified(agreeing / sizes), first_certified(rng.permutation(single)) < math.inf


def measure(name: str, mean: float, runs: int) -> dict[str, Any]:
    """Return a row."""
    found = [one_run(RECORDINGS[name], mean, seed) for seed in range(runs)]
    units = np.array([first for first, _ in found])
    median = float(np.median(units))
    return {
        "recording": name,
        "agreement": round(mean, 3),
        "runs": runs,
        "certified": round(float(np.mean(units < math.inf)), 4),
        "units": int(median) if math.isfinite(median) else None,
        "certified_by_single_rows": round(float(np.mean([single for _, single in found])), 4),
    }


def main() -> None:
    args = arguments(__doc__, RECORDINGS, "kinds of recordings")
    rows, console = [], Console(width=160)
    console.print(f"at least {fewest_units(KEEP, 1 - ALPHA)} units", highlight=False)
    for name in args.only:
        for mean in AGREEMENTS:
            rows.append(row := measure(name, mean, args.runs))
            cells = f"{name:24} {mean:.2f}  certified {100 * row['certified']:5.1f} %  units {row['units'] or '–':>5}"
            console.print(f"{cells}  single rows {100 * row['certified_by_single_rows']:5.1f} %", highlight=False)
            sys.stdout.flush()
    write_rows(rows, args)


if __name__ == "__main__":
    main()
