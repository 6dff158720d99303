"""What it costs to give up a student late, and what it costs to give one up early.

    python tests/benchmarks/giving_up.py [--runs 100] [--max-episodes 5000] [--json FILE]

Here, a test looks at its result after each 50 episodes. A student may be given up from a share of the budget on. For
students around `keep`, rows have how many are certified, and the mean number of episodes of those that are not.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script: its own package, beside the installed one

from rllib_kd.certificates import certificate
from rllib_kd.certificates.certification import BATCH
from tests.benchmarks.certificates import SCENARIOS, Generator, Returns

KEEP, ALPHA = 0.97, 0.025  # of the first of several candidates
RATIOS = (0.94, 0.96, 0.98, 0.985, 0.99, 1.0)
SHARES = (0.0, 0.03, 0.1)
VALIDATION_EPISODES = 50


def highway(rng: Generator, n: int, ratio: float) -> Returns:
    """Noise as measured on highway-fast-v0: 0.28 of the distance to the random policy, with a correlation of 0.43."""
    shared, own, other = rng.standard_normal((3, n))
    student = np.clip(ratio + 0.28 * (0.66 * shared + 0.75 * own), -0.4, 1.4)
    return student, np.clip(1 + 0.28 * (0.66 * shared + 0.75 * other), -0.4, 1.4), 0.2 * rng.standard_normal(n)


TASKS = {name: SCENARIOS[name] for name in ("LunarLander", "CartPole", "MountainCar", "Acrobot")} | {"highway": highway}


def run(returns: Returns, seen: np.ndarray) -> tuple[bool, int]:
    """Return whether a student is certified, and after how many episodes the test ends."""
    max_episodes = len(returns[0])
    test = certificate.RatioTest(KEEP, ALPHA, seen=seen, max_episodes=max_episodes)
    for first in range(0, max_episodes, BATCH):
        student, teacher, random = (policy[first : first + BATCH] for policy in returns)
        test.update(student=student, teacher=teacher, random=random)
        if test.is_certified or test.is_hopeless:
            break
    return test.is_certified, test.num_episodes


def rows(num_runs: int, max_episodes: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each task, return ratio and share; all shares see the same episodes."""
    for task, play in TASKS.items():
        for ratio in RATIOS:
            for share in SHARES:
                with mock.patch.object(certificate, "SHARE_TO_GIVE_UP", share):
                    found = []
                    for seed in range(num_runs):
                        rng = np.random.default_rng(seed)
                        seen = np.concatenate(play(rng, VALIDATION_EPISODES, ratio))
                        found.append(run(play(rng, max_episodes, ratio), seen))
                lost = [episodes for is_certified, episodes in found if not is_certified]
                yield {
                    "task": task,
                    "return_ratio": ratio,
                    "share": share,
                    "certified": 1 - len(lost) / num_runs,
                    "episodes_if_not": round(float(np.mean(lost))) if lost else None,
                }


def main() -> None:
    """Print the rows as they are measured, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--max-episodes", type=int, default=5_000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    measured = []
    for row in rows(arguments.runs, arguments.max_episodes):
        measured.append(row)
        print(json.dumps(row), flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
