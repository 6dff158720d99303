"""The students of a family that learn from their own states, beside those that learn from the states of all.

    python tests/benchmarks/own_states.py FOLDER --rows rows.jsonl [--csv table.csv] [--env ENV ...] [--seeds 0 1 2]
        [--env-steps 100000] [--own-states true false linear] [--tiny]

FOLDER holds the teachers of learning.py. A family of 64, 32, 16 and 8 units and a linear student, or with `--tiny` of 8
and 4 units, 4 × 4, 2 × 2, and linear. Each plays 100 episodes that no training has seen. A run that is in the rows
already is not made again; families of other students need other rows.
"""

from __future__ import annotations

import itertools
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script: its own package, beside the installed one

from tests.benchmarks.learning import (  # isort: skip  # sets the threads
    TASKS,
    baselines,
    measured,
    play_greedily,
    return_ratio,
    show,
    study_parser,
)
from rllib_kd import DistillDQNConfig
from rllib_kd.evaluation.sources import open_source

SMALL: dict[str, Any] = {**{str(units): {"fcnet_hiddens": [units]} for units in (64, 32, 16, 8)}, "linear": "linear"}
TINY: dict[str, Any] = {
    **{
        name: {"fcnet_hiddens": [int(units) for units in name.split("x")], "fcnet_activation": "tanh"}
        for name in ("8", "4", "4x4", "2x2")
    },
    "linear": "linear",
}
NUM_EPISODES = 100


def measure(
    env: str, teacher: Path, family: dict[str, Any], own_states: bool | str, seed: int, env_steps: int
) -> dict[str, Any]:
    """A row: the run, and the return ratio of each student."""
    config = (
        DistillDQNConfig()
        .environment(env)
        .distillation(teacher=str(teacher), students=family, own_states=own_states, num_baseline_episodes=0)
        .debugging(seed=seed)
    )
    algo = config.build_algo()
    try:
        while algo.train()["num_env_steps_sampled_lifetime"] < env_steps:
            pass
        students = {name: open_source(algo.get_module(name)).network() for name in family}
    finally:
        algo.stop()
    bounds = baselines(env, teacher, NUM_EPISODES)
    ratios = {
        name: round(float(return_ratio(play_greedily(student, env, NUM_EPISODES), *bounds)), 4)
        for name, student in students.items()
    }
    return {"env": env, "own_states": own_states, "seed": seed, "env_steps": env_steps} | ratios


def main() -> None:
    parser = study_parser(__doc__, TASKS, range(3))
    parser.add_argument("--env-steps", type=int, default=100_000)
    parser.add_argument("--own-states", nargs="+", default=["true", "false"], choices=["true", "false", "linear"])
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    each = [word if word == "linear" else json.loads(word) for word in args.own_states]
    runs = {
        f"{env} {own_states} {seed} {args.env_steps}": partial(
            measure, env, args.teachers / TASKS[env], TINY if args.tiny else SMALL, own_states, seed, args.env_steps
        )
        for env, own_states, seed in itertools.product(args.env, each, args.seeds)
    }
    rows = measured(args.rows, runs)
    show(rows, args.csv)


if __name__ == "__main__":
    main()
