"""How long `rllib shrink --minutes N` takes where env steps are slow, and what it certifies.

    python tests/benchmarks/slow_environments.py [--milliseconds 0.5 1.5 5] [--minutes 1 2 4] [--keep 0.9] [--json FILE]

The environment is CartPole with at most 200 env steps, each of which sleeps. A row is printed, and written, as it is
measured: how long the run took, without Ray's start, and what it ended with.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium as gym
import ray

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script: its own package, beside the installed one

from rllib_kd import Shrink


class SlowCartPole(gym.Wrapper):
    """CartPole whose env steps sleep.

    Args:
        config: "milliseconds": for how long.
    """

    def __init__(self, config: dict[str, float]):
        super().__init__(gym.make("CartPole-v1", max_episode_steps=200))
        self._seconds = config["milliseconds"] / 1e3

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Sleep, then take a step."""
        time.sleep(self._seconds)
        return super().step(action)


def row(milliseconds: float, minutes: float, keep: float) -> dict[str, Any]:
    """Return what a run took, and what it ended with."""
    with tempfile.TemporaryDirectory() as folder:
        shrink = Shrink(
            "cartpole",
            f"{Path(__file__).resolve()}:SlowCartPole",
            env_config={"milliseconds": milliseconds},
            minutes=minutes,
            keep=keep,
            out=Path(folder) / "run",
        )
        began = time.perf_counter()
        result = shrink.run(progress=False)
        took = time.perf_counter() - began
    tested = [student.certificate.num_episodes for student in result.students if student.certificate is not None]
    return {
        "milliseconds": milliseconds,
        "minutes": minutes,
        "keep": keep,
        "share_of_minutes": round(took / 60 / minutes, 2),
        "certified": None if result.certified is None else result.certified.num_parameters,
        "certificate_episodes": tested,
        "validation_episodes": sum(len(student.validation_returns) for student in result.students),
        "verdict": result.verdict,
    }


def main() -> None:
    """Print and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--milliseconds", type=float, nargs="+", default=[0.5, 1.5, 5.0], help="of an env step")
    parser.add_argument("--minutes", type=float, nargs="+", default=[1.0, 2.0, 4.0], help="of each run")
    parser.add_argument("--keep", type=float, default=0.9, help="return ratio to be certified")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    args = parser.parse_args()
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    rows = []
    for milliseconds in args.milliseconds:
        for minutes in args.minutes:
            rows.append(row(milliseconds, minutes, args.keep))
            print(json.dumps(rows[-1]), flush=True)
            if args.json:
                args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
