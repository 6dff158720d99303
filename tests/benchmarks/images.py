"""Atari students on recorded states: whether data, gradient steps or size limit them, without playing.

    python tests/benchmarks/images.py record GAME TEACHER FOLDER [--states 200000] [--epsilon 0.05] [--seed 0]
    python tests/benchmarks/images.py train GAME TEACHER FOLDER --rows rows.jsonl [--student rusu-net3 ...]
        [--states 120000 ...] [--every 1 ...] [--steps 6000 ...] [--settings '{"loss": "kl", "temperature": 0.01}' ...]

`record` lets the teacher play, and writes what it saw, with its Q-values, in parts. `train` trains a student by the
package's own Learner on the first states, without those of the last parts, which are of other games: one run for each
combination of what is given several times. With `--every 4`, it learns from each fourth of these states alone. A
student is a preset, or a number, its compression. A row has agreement and Q-regret on states that the student was
trained on, and on states of the other games. If only the second are bad, more or other states would help; if both are,
more steps or units would. A run that is in the rows already is not made again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import ray
import torch
from ray.rllib.core import COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME

from rllib_kd import DistillDQNConfig, load_teacher
from rllib_kd.algorithm.first_weights import FirstStates
from rllib_kd.algorithm.students import shape_students
from rllib_kd.environments.making import env_maker
from rllib_kd.evaluation.measures import agreement, confusion_and_regret
from rllib_kd.evaluation.sources import open_source
from rllib_kd.learner.learner import DistillDQNTorchLearner
from rllib_kd.observations.frames import observations, pack
from rllib_kd.observations.pipeline import Shown
from rllib_kd.students.sizes import PRESETS
from rllib_kd.teachers.base import Teacher

STEADY = {"repeat_action_probability": 0.0}
NUM_ENVS = 16
PART = 500  # steps of each environment in a file
SHOWN_EVERY = 500  # gradient steps
HELD_OUT = 0.2  # share of the parts
JUDGED = 4_000  # states of each kind
SHAPE = (84, 84, 4)


# --- Recording --------------------------------------------------------------------------------------------------------


def record(game: str, teacher: Teacher, folder: Path, *, num_states: int, epsilon: float, seed: int) -> None:
    """Write `part_N.npz`: packed columns `obs` `[R, 84, 84]`, `teacher_q` `[R, A]`, `step` `[R]` of its game, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    envs = env_maker(game, STEADY).vector(NUM_ENVS)
    view = teacher.start()
    obs, _ = envs.reset(seed=[seed * 1_000_000 + i for i in range(NUM_ENVS)])
    first, steps = np.ones(NUM_ENVS, dtype=bool), np.zeros(NUM_ENVS, dtype=int)
    ended = np.zeros(NUM_ENVS, dtype=bool)
    for part in range(-(-num_states // (PART * NUM_ENVS))):
        rows: list[dict[str, np.ndarray]] = []
        for _ in range(PART):
            steps = np.where(first, 0, steps + 1)
            q_values = teacher.q_values(torch.from_numpy(view(Shown(obs, first)))).numpy()
            rows.append({"obs": obs.copy(), "teacher_q": q_values, "step": steps})
            random = rng.integers(q_values.shape[1], size=NUM_ENVS)
            actions = np.where(rng.random(NUM_ENVS) < epsilon, random, q_values.argmax(1))
            obs, _, terminateds, truncateds, _ = envs.step(actions)
            first, ended = ended, terminateds | truncateds  # ALE starts the next game in the step after the last
        columns = {name: np.concatenate([[row[name][i] for row in rows] for i in range(NUM_ENVS)]) for name in rows[0]}
        np.savez(folder / f"part_{part:04}.npz", **pack(columns, SHAPE, always=True))
        print(f"{(part + 1) * PART * NUM_ENVS} states", flush=True)
    envs.close()


# --- Training ---------------------------------------------------------------------------------------------------------


def parts(folder: Path, *, held_out: bool) -> Iterator[dict[str, np.ndarray]]:
    """The columns of the first parts, or of the last ones."""
    paths = sorted(folder.glob("part_*.npz"))
    first = len(paths) - max(1, round(HELD_OUT * len(paths)))
    for path in paths[first:] if held_out else paths[:first]:
        with np.load(path) as file:
            yield dict(file)


def judged(folder: Path, *, held_out: bool, num_states: int) -> np.ndarray:
    """Some stacks of those among the first states, `[M, 84, 84, 4]`, bytes."""
    rng, chosen, seen = np.random.default_rng(0), [], 0
    for columns in parts(folder, held_out=held_out):
        rows = np.flatnonzero(~columns["context"])
        seen += len(rows)
        chosen.append(observations(columns, rng.choice(rows, size=min(len(rows), 500), replace=False)))
        if seen >= num_states:
            break
    stacks = np.concatenate(chosen)
    return stacks[rng.permutation(len(stacks))[:JUDGED]]


def train(run: Mapping[str, Any], teacher: Teacher, folder: Path) -> Iterator[dict[str, Any]]:
    """Rows of one student, as it learns."""
    settings = dict(run["settings"])
    training = {name: settings.pop(name) for name in ("lr", "train_batch_size_per_learner") if name in settings}
    num_steps = run["steps"]
    config = DistillDQNConfig().environment(run["game"], env_config=STEADY)
    config.training(**{"lr": [[0, 1e-3], [num_steps, 1e-4]], "train_batch_size_per_learner": 128} | training)
    config.training(replay_buffer_config={"capacity": run["states"] * 9 // 8})  # also earlier frames of first stacks
    size = {"student": run["student"]} if run["student"] in PRESETS else {"compression": float(run["student"])}
    config.distillation(teacher=run["teacher"], num_baseline_episodes=0, **size, **settings)
    config.debugging(seed=run["seed"])
    learner = learner_of(config, teacher)
    for columns in parts(folder, held_out=False):
        if len(learner.groups[DEFAULT_MODULE_ID].replay) >= run["states"] // run["every"]:
            break
        columns["valid"] = columns["valid"] & (np.arange(len(columns["valid"])) % run["every"] == 0)
        learner.update([{name: columns[name] for name in ("obs", "teacher_q", "valid", "context")}])
    if config.init != "random":
        first = FirstStates()
        first.keep(next(parts(folder, held_out=False)))
        weights = first.initial_weights(learner.module[DEFAULT_MODULE_ID].unwrapped(), teacher, config)
        learner.set_state({COMPONENT_RL_MODULE: {DEFAULT_MODULE_ID: weights}})
    states = {held_out: judged(folder, held_out=held_out, num_states=run["states"]) for held_out in (False, True)}
    began = time.perf_counter()
    for step in range(0, num_steps, SHOWN_EVERY):
        count = min(SHOWN_EVERY, num_steps - step)
        learner.update([], num_gradient_steps=count, timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: step})
        yield {"step": step + count, "seconds": time.perf_counter() - began} | {
            f"{name}_{kind}": value
            for held_out, kind in ((False, "trained_on"), (True, "of_other_games"))
            for name, value in measure(learner.module[DEFAULT_MODULE_ID], teacher, states[held_out]).items()
        }


def learner_of(config: DistillDQNConfig, teacher: Teacher) -> DistillDQNTorchLearner:
    """A Learner of this config by itself, without an Algorithm."""
    config.settle_environment()
    shape_students(config, {DEFAULT_MODULE_ID: teacher})
    config.validate()
    spaces = {DEFAULT_MODULE_ID: (teacher.input_space, teacher.action_space)}
    spec = config.get_multi_rl_module_spec(spaces=spaces, inference_only=False)
    learner = DistillDQNTorchLearner(config=config, module_spec=spec)
    learner.build()
    return learner


def measure(student: Any, teacher: Teacher, stacks: np.ndarray) -> dict[str, float]:
    """Agreement, and mean Q-regret in return units, on stacks of bytes `[M, 84, 84, 4]`."""
    inputs = stacks.astype(np.float32) / 255.0
    confusion, regret = confusion_and_regret(teacher, open_source(student).network(), inputs, inputs)
    return {"agreement": agreement(confusion), "regret": regret}


# --- The command ------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("record", "train"))
    parser.add_argument("game", help='such as "ALE/SpaceInvaders-v5"')
    parser.add_argument("teacher")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--states", type=int, nargs="+", default=[120_000])
    parser.add_argument("--every", type=int, nargs="+", default=[1], help="learn from each so-many-th state alone")
    parser.add_argument("--epsilon", type=float, default=0.05, help="share of random actions while recording")
    parser.add_argument("--rows", type=Path, help="JSON, a line for each look at a student")
    parser.add_argument("--student", nargs="+", default=["rusu-net3"])
    parser.add_argument("--steps", type=int, nargs="+", default=[6_000])
    parser.add_argument("--settings", type=json.loads, nargs="+", default=[{"temperature": 0.01}])
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    torch.set_num_threads(1)
    teacher = load_teacher(args.teacher)
    if args.what == "record":
        record(
            args.game,
            teacher,
            args.folder,
            num_states=max(args.states),
            epsilon=args.epsilon,
            seed=args.seed[0],
        )
        return
    if args.rows is None:
        parser.error("--rows is missing: the file that the results are written to")
    done = {row["key"] for row in map(json.loads, args.rows.read_text().splitlines())} if args.rows.exists() else set()
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    for student, states, every, steps, settings, seed in itertools.product(
        args.student, args.states, args.every, args.steps, args.settings, args.seed
    ):
        run = {"game": args.game, "teacher": args.teacher, "student": student, "states": states, "steps": steps}
        run |= {"settings": settings, "seed": seed, "every": every}
        key = json.dumps(run, sort_keys=True)
        if key in done:
            continue
        for row in train(run, teacher, args.folder):
            print(student, states, settings, {name: round(value, 4) for name, value in row.items()}, flush=True)
        with args.rows.open("a") as file:
            file.write(json.dumps({"key": key} | run | row) + "\n")
    ray.shutdown()


if __name__ == "__main__":
    main()
