"""How often a certificate is wrong, and how many episodes it needs: returns like those of known environments.

    python tests/benchmarks/certificates.py [--runs 1000] [--only NAME ...] [--csv FILE] [--json FILE]

Each run peeks after every episode, up to 5,000. A student whose return ratio is `keep` or less must be certified in at
most 5 % of the runs; for the others, the median number of episodes is the cost. `t-test` peeks too: what not to do.
`asymptotic` is the confidence sequence of arXiv 2103.06476, from 100 episodes on. `candidates` tests four students
whose return ratio is `keep`, on the same seeds, smallest first: its rate is that of any wrong certificate.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script: its own package, beside the installed one

from rllib_kd.certificates.certificate import MARGIN
from rllib_kd.certificates.evidence import BETS, spend_alpha

KEEP, ALPHA = 0.97, 0.05
MAX_EPISODES = 5_000
VALIDATION_EPISODES = 50  # of teacher and random policy, which the range of returns includes
RATIOS = (KEEP - 0.03, KEEP - 0.01, KEEP, KEEP + 0.01, 0.99, 1.0)

Generator = np.random.Generator
#: Returns [n] of the student, the teacher and the random policy.
Returns = tuple[np.ndarray, np.ndarray, np.ndarray]
#: Whether a method certifies after each episode [n]: of the differences [n], the bound B and α.
Method = Callable[[np.ndarray, float, float], np.ndarray]


def lunar_lander(rng: Generator, n: int, ratio: float, same: float = 0.0, lost: str = "a little") -> Returns:
    """Landings, crashes and timeouts; `same`: share of seeds on which the student repeats its teacher's episode."""

    def landings() -> np.ndarray:
        share = rng.random(n)
        kind = np.where(share < 0.93, 0, np.where(share < 0.96, 1, 2))
        crash = -100 - 80 * np.abs(rng.standard_normal(n))
        return np.choose(kind, [rng.normal(270, 20, n), crash, rng.normal(100, 30, n)])

    crash_mean = -100 - 80 * math.sqrt(2 / math.pi)
    teacher_mean, random_mean = 0.93 * 270 + 0.03 * crash_mean + 0.04 * 100, -60 - 1.6 * 75
    loss = (1 - ratio) * (teacher_mean - random_mean)
    teacher, random = landings(), -60 - rng.gamma(1.6, 75, n)
    student = np.where(rng.random(n) < same, teacher, landings())
    if lost == "crashes":
        crashes = rng.random(n) < loss / (teacher_mean - crash_mean)
        return np.where(crashes, -100 - 80 * np.abs(rng.standard_normal(n)), student), teacher, random
    return student - loss, teacher, random


def cartpole(rng: Generator, n: int, ratio: float) -> Returns:
    """The student repeats its teacher, or falls."""
    teacher = np.where(rng.random(n) < 0.98, 500.0, rng.integers(150, 500, n))
    random = 8.0 + rng.poisson(14, n)
    loss = (1 - ratio) * (0.98 * 500 + 0.02 * 324.5 - 22)
    falls = rng.random(n) < loss / (0.98 * 500 + 0.02 * 324.5 - 104)
    return np.where(falls, rng.integers(9, 200, n), teacher), teacher, random


def cartpole_constant(rng: Generator, n: int, ratio: float) -> Returns:
    """Teacher and student without noise; a student below its teacher scores as a random policy in some episodes."""
    teacher, random = np.full(n, 500.0), np.full(n, 20.0)
    return np.where(rng.random(n) < 1 - ratio, random, teacher), teacher, random


def mountain_car(rng: Generator, n: int, ratio: float) -> Returns:
    """Few different returns; −200 for failing."""

    def drives() -> np.ndarray:
        return np.where(rng.random(n) < 0.02, -200.0, -rng.choice([85.0, 90.0, 105.0, 115.0, 120.0], n))

    teacher = drives()
    student = np.where(rng.random(n) < 0.5, teacher, drives())
    return np.where(rng.random(n) < 1 - ratio, -200.0, student), teacher, np.full(n, -200.0)


def acrobot(rng: Generator, n: int, ratio: float) -> Returns:
    """The student and its teacher are independent; −500 for failing."""

    def swings() -> np.ndarray:
        return np.where(rng.random(n) < 0.005, -500.0, -np.round(70 + rng.gamma(3, 4, n)))

    random = np.where(rng.random(n) < 0.97, -500.0, -350.0)
    loss = (1 - ratio) * (0.995 * -82 - 0.005 * 500 + 0.97 * 500 + 0.03 * 350)
    fails = rng.random(n) < loss / (0.995 * (500 - 82))
    return np.where(fails, -500.0, swings()), swings(), random


def catastrophe(rng: Generator, n: int, ratio: float, probability: float, depth: float = 1.0) -> Returns:
    """The student has no noise but a rare catastrophe; `depth`: its loss, in multiples of teacher − random."""
    teacher, random = np.full(n, 1.0), rng.uniform(-0.05, 0.05, n)
    usual = ratio + probability * depth
    return usual - depth * (rng.random(n) < probability), teacher, random


SCENARIOS: dict[str, Callable[[Generator, int, float], Returns]] = {
    "LunarLander": lunar_lander,
    "LunarLander, 80 % same": lambda rng, n, ratio: lunar_lander(rng, n, ratio, same=0.8),
    "LunarLander, crashes": lambda rng, n, ratio: lunar_lander(rng, n, ratio, lost="crashes"),
    "CartPole": cartpole,
    "CartPole, constant": cartpole_constant,
    "MountainCar": mountain_car,
    "Acrobot": acrobot,
    "catastrophe 1 %": lambda rng, n, ratio: catastrophe(rng, n, ratio, 0.01),
    "catastrophe 0.3 %": lambda rng, n, ratio: catastrophe(rng, n, ratio, 0.003),
    "beyond the range: 1 %, depth 2": lambda rng, n, ratio: catastrophe(rng, n, ratio, 0.01, 2.0),
    "beyond the range: 0.3 %, depth 4": lambda rng, n, ratio: catastrophe(rng, n, ratio, 0.003, 4.0),
}
BEYOND = "beyond the range"  # the promise does not hold there: returns far below everything that was seen
WITH_CANDIDATES = "LunarLander", "CartPole", "catastrophe 0.3 %"


def betting(differences: np.ndarray, bound: float, alpha: float) -> np.ndarray:
    """Return what this package does: `log_capital()` without logarithms, in a fourth of the time."""
    with np.errstate(over="ignore", invalid="ignore"):
        capital = np.cumprod(np.maximum(1 + np.outer(BETS / bound, differences), 0.0), axis=1)
        return np.logical_or.accumulate(BETS / BETS.sum() @ capital >= 1 / alpha)


def t_test(differences: np.ndarray, bound: float, alpha: float) -> np.ndarray:
    """Return a normal test from 30 episodes on, as if there were no peeking; α is 5 %."""
    n, mean, spread = _moments(differences)
    return (n >= 30) & (mean >= 1.645 * spread / np.sqrt(n))


def asymptotic(differences: np.ndarray, bound: float, alpha: float) -> np.ndarray:
    """Return the one-sided asymptotic confidence sequence of arXiv 2103.06476, tightest near 100 episodes."""
    n, mean, spread = _moments(differences)
    scaled = n / 100 + 1
    return (n >= 100) & (mean >= spread * np.sqrt(200 * scaled / n**2 * np.log(1 + np.sqrt(scaled) / (2 * alpha))))


def _moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n = np.arange(1.0, len(values) + 1)
    mean = np.cumsum(values) / n
    return n, mean, np.sqrt(np.maximum(np.cumsum(values**2) / n - mean**2, 0))


METHODS: dict[str, Method] = {"certificate": betting, "asymptotic": asymptotic, "t-test": t_test}


def first_certified(returns: Returns, seen: np.ndarray, method: Method, alpha: float = ALPHA) -> float:
    """Return the number of episodes after which a method certifies first; ∞: never."""
    student, teacher, random = returns
    differences = student - KEEP * teacher - (1 - KEEP) * random
    if method is not betting:  # they know no bound
        certifies = method(differences, math.inf, alpha)
        return float(certifies.argmax() + 1) if certifies.any() else math.inf
    low = np.minimum.accumulate(np.minimum(np.minimum(student, teacher), random).clip(max=seen.min()))
    high = np.maximum.accumulate(np.maximum(np.maximum(student, teacher), random).clip(min=seen.max()))
    bounds = (high - low) * (1 + MARGIN)  # known after each episode
    starts = np.flatnonzero(np.diff(bounds, prepend=-1))  # where the range grows
    for start, end in zip(starts, [*starts[1:], len(bounds)], strict=True):
        certifies = method(differences[:end], bounds[start], alpha)[start:]
        if certifies.any():
            return float(start + certifies.argmax() + 1)
    return math.inf


def one_run(
    scenario: Callable[[Generator, int, float], Returns], ratio: float, seed: int, num_episodes: int = MAX_EPISODES
) -> dict[str, float]:
    """Return the number of episodes of each method."""
    rng = np.random.default_rng(seed)
    seen = np.concatenate(scenario(rng, VALIDATION_EPISODES, 1.0)[1:])
    returns = scenario(rng, num_episodes, ratio)
    part = tuple(column[: num_episodes // 8] for column in returns)  # enough for most good students
    first = {}
    for name, method in METHODS.items():
        first[name] = first_certified(part, seen, method)
        if first[name] == math.inf:
            first[name] = first_certified(returns, seen, method)
    return first


def any_of_four(scenario: Callable[[Generator, int, float], Returns], seed: int) -> bool:
    """Return whether one of four students with a return ratio of `keep` is certified, by their shares of α."""
    for index, alpha in enumerate(spend_alpha(ALPHA, 4)):
        rng = np.random.default_rng(seed)
        seen = np.concatenate(scenario(rng, VALIDATION_EPISODES, 1.0)[1:])
        teacher, random = scenario(rng, MAX_EPISODES, KEEP)[1:]
        student = scenario(np.random.default_rng([seed, index]), MAX_EPISODES, KEEP)[0]
        if first_certified((student, teacher, random), seen, betting, alpha) < math.inf:
            return True
    return False


def measure(name: str, runs: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each return ratio."""
    for ratio in RATIOS:
        if name.startswith(BEYOND) and ratio != KEEP:
            continue
        firsts = [one_run(SCENARIOS[name], ratio, seed) for seed in range(runs)]
        row: dict[str, Any] = {"returns": name, "return_ratio": round(ratio, 3), "runs": runs}
        for method in METHODS:
            numbers = np.array([first[method] for first in firsts])
            median = float(np.median(numbers))
            row[f"{method}_rate"] = round(float(np.mean(numbers < math.inf)), 4)
            row[f"{method}_episodes"] = int(median) if math.isfinite(median) else None
        yield row
    if name in WITH_CANDIDATES:
        rate = float(np.mean([any_of_four(SCENARIOS[name], seed) for seed in range(runs)]))
        yield {"returns": f"{name}, candidates", "return_ratio": KEEP, "runs": runs, "certificate_rate": round(rate, 4)}


def show(row: dict[str, Any], console: Console) -> None:
    """Print a row: the share of runs that certify, and the median number of episodes, of each method."""
    cells = [f"{row['returns']:34}", f"{row['return_ratio']:.2f}"]
    for method in METHODS:
        if (rate := row.get(f"{method}_rate")) is not None:
            episodes = row.get(f"{method}_episodes")
            cells.append(f"{method} {100 * rate:5.1f} % {'–' if episodes is None else episodes:>5}")
    console.print("  ".join(cells), highlight=False)
    sys.stdout.flush()


def arguments(description: str | None, kinds: Iterable[str], what: str) -> argparse.Namespace:
    """Return the flags of a simulation of these kinds."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1_000, help="of each row")
    parser.add_argument("--only", nargs="+", choices=list(kinds), default=list(kinds), help=what)
    parser.add_argument("--csv", type=Path, help="where to write the table")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    return parser.parse_args()


def write_rows(rows: Sequence[dict[str, Any]], args: argparse.Namespace) -> None:
    """Write rows where the flags say."""
    if args.csv:
        with args.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), restval="")
            writer.writeheader()
            writer.writerows(rows)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


def main() -> None:
    args = arguments(__doc__, SCENARIOS, "kinds of returns")
    rows, console = [], Console(width=160)
    for name in args.only:
        for row in measure(name, args.runs):
            show(row, console)
            rows.append(row)
    write_rows(rows, args)


if __name__ == "__main__":
    main()
