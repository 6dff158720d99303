"""What integers cost a student of an Atari game: its files of 8 bits beside PyTorch, in the same games.

    python tests/benchmarks/integers_atari.py GAME TEACHER FOLDER [--student rusu-net3] [--steps 3000] [--games 20]
        [--json FILE]

FOLDER is recorded by `images.py record`. The student learns from these states alone, and so plays worse than one that
sees its own mistakes: what counts is the difference between its files. All play the same games, which no training has
seen. Bytes are those of weights, of flash (C) or of the file (ONNX), beside the teacher's weights as 32-bit floats.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script: its own package, beside the installed one

import numpy as np
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME

from rllib_kd import DistillDQNConfig, Teacher, load_teacher
from rllib_kd.environments.making import env_maker
from rllib_kd.evaluation.playing import play
from rllib_kd.evaluation.policies import GreedyQ
from rllib_kd.evaluation.sources import open_source
from rllib_kd.export.artifact import DeviceCost, deployment_cost, q_function
from rllib_kd.export.export import artifact_view, export
from tests.benchmarks.images import STEADY, learner_of, parts
from tests.benchmarks.integers import FILES, File
from tests.benchmarks.learning import FIRST_EPISODE_SEED, interval_over_seeds


def train(args: argparse.Namespace, teacher: Teacher) -> Teacher:
    """Return a student that has learned from the recorded states."""
    config = DistillDQNConfig().environment(args.game, env_config=STEADY).debugging(seed=0)
    config.training(lr=[[0, 1e-3], [args.steps, 1e-4]], train_batch_size_per_learner=128)
    config.training(replay_buffer_config={"capacity": args.states})
    config.distillation(teacher=args.teacher, student=args.student, num_baseline_episodes=0)
    learner = learner_of(config, teacher)
    for columns in parts(args.folder, held_out=False):
        if len(learner.groups[DEFAULT_MODULE_ID].replay) < args.states:
            learner.update([{name: columns[name] for name in ("obs", "teacher_q", "valid", "context")}])
    learner.update([], num_gradient_steps=args.steps, timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: 0})
    return open_source(learner.module[DEFAULT_MODULE_ID]).network()


def played(policy: Any, args: argparse.Namespace, **kwargs: Any) -> tuple[dict[str, float], Any]:
    """Mean return with its 95 % interval, and the states of some games."""
    seeds = range(FIRST_EPISODE_SEED, FIRST_EPISODE_SEED + args.games)
    returns, states = play(env_maker(args.game, STEADY), policy, seeds, **kwargs)
    mean, low, _ = interval_over_seeds(np.array(returns, dtype=float))
    return {"return": mean, "interval": mean - low}, states


def rows_of(student: Teacher, teacher: Teacher, args: argparse.Namespace) -> list[Mapping[str, Any]]:
    """A row for PyTorch and for each file."""
    returns, (states,) = played(GreedyQ(student), args, views=[artifact_view(student)])
    floats = 4 * teacher.num_parameters
    rows = [{"file": "PyTorch, 32 bits", **returns, "bytes": 4 * student.num_parameters, "agreement": 1.0}]
    states = states[np.random.default_rng(0).choice(len(states), min(len(states), 2_000), replace=False)]
    with tempfile.TemporaryDirectory() as folder:
        for kind, name in FILES.items():
            exported = export(student, Path(folder) / name, format=kind, obs=states, int8=True)
            returns, _ = played(File(q_function(exported.path), student), args)
            cost = deployment_cost(exported.path)
            size = cost.flash_bytes if isinstance(cost, DeviceCost) else cost.disk_bytes
            row = {"bytes": size, "agreement": exported.agreement, "ms": cost.latency_ms}
            rows.append({"file": f"{kind}, 8 bits", **returns, **row})
    return [row | {"of_the_teachers_bytes": row["bytes"] / floats} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("game", help='such as "ALE/SpaceInvaders-v5"')
    parser.add_argument("teacher")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--student", default="rusu-net3")
    parser.add_argument("--states", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=3_000)
    parser.add_argument("--games", type=int, default=20)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    teacher = load_teacher(args.teacher)
    rows = rows_of(train(args, teacher), teacher, args)
    for row in rows:
        print({name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}, flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
