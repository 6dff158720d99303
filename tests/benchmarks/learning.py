"""What students reach, measured over training seeds: seven studies of the defaults.

    python tests/benchmarks/learning.py returns FOLDER --rows rows.jsonl [--csv table.csv] [--env-steps 100000 200000]
    python tests/benchmarks/learning.py temperature FOLDER --rows rows.jsonl [--csv table.csv]
    python tests/benchmarks/learning.py init FOLDER --rows rows.jsonl [--csv table.csv]
    python tests/benchmarks/learning.py mixture FOLDER --rows rows.jsonl [--csv table.csv]
    python tests/benchmarks/learning.py small FOLDER --rows rows.jsonl [--csv table.csv]
    python tests/benchmarks/learning.py tiny FOLDER --rows rows.jsonl [--csv table.csv]
    python tests/benchmarks/learning.py losses FOLDER --rows rows.jsonl [--csv table.csv] [--task ENV=NAME]

FOLDER holds the teachers of `TASKS`; `--task` adds an environment and the name of its teacher there. A run that is in
the rows already is not made again, so that a study can be interrupted, and continued by the same command.

`returns`: the last student of each seed, at the defaults, beside its teacher in the same 500 episodes. `temperature`:
`temperature="auto"` beside fixed ones, and `mse` with normalised Q-values, with raw ones, and with first weights from
the teacher. `init`: env steps until two evaluations in a row give a student 95 % of its teacher's return, with random
first weights and with those from its teacher. `mixture`: the share of the steps that stays with the teacher.
`small`: what helps a student that is too small for its task: states weighted by how much the choice of action matters,
and the reverse KL divergence. `tiny`: what networks of 2 to 8 units need: restarts, with one weight of the regret or
with several, β that falls to 0, and inputs on one scale. `losses`: the default loss beside others, for students from 32
units to linear, and with `--activations tanh relu` the one that a student has if only its widths are set beside
another. A teacher for LunarLander: tuning/lunarlander_teacher.py.

Everywhere, return ratio = (student − random) / (teacher − random), of mean returns over the same reset seeds.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import ray
import scipy.stats
import torch
from rich.console import Console
from rich.table import Table

from rllib_kd import DistillDQNConfig, load_teacher
from rllib_kd.environments.making import env_maker
from rllib_kd.evaluation.playing import RandomActions, play
from rllib_kd.evaluation.policies import GreedyQ
from rllib_kd.evaluation.sources import open_source

TASKS = {
    "CartPole-v1": "dqn-CartPole-v1.zip",
    "Acrobot-v1": "dqn-Acrobot-v1.zip",
    "MountainCar-v0": "dqn-MountainCar-v0.zip",
    "LunarLander-v3": "lunarlander",
}
FIRST_EPISODE_SEED = 3_000_000  # of the resets that judge a student: far from those of its training
GOOD = 0.95  # return ratio
TEMPERATURES = (0.001, 0.01, 0.1, 1.0, 10.0)  # return units
TEACHER_FRACTIONS = (0.0, 0.25, 0.5, 0.75)  # at the end of training
BOOTSTRAPS = 10_000


@dataclass(frozen=True)
class Run:
    """One student: the defaults, and what is set beside them."""

    env: str
    seed: int
    env_steps: int
    num_episodes: int  # that judge it
    hiddens: tuple[int, ...] = (32,)
    activation: str = "relu"
    settings: tuple[tuple[str, Any], ...] = ()
    curve: int = 0  # env steps between the points of a curve that ends where it stays good; 0: the last student only

    @property
    def key(self) -> str:
        """The same for the same run."""
        return json.dumps(asdict(self), sort_keys=True)


# --- Studies ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Study:
    """Runs in each environment, of each student, with each of the settings, with each seed.

    Args:
        envs: names of `TASKS`.
        env_steps: of each run.
        seeds: of the training.
        num_episodes: that judge a student.
        hiddens: of the students.
        activations: of the students, by their names in PyTorch.
        settings: of `.distillation()`, beside the defaults.
        curve: as in `Run`.
    """

    envs: Sequence[str]
    env_steps: int
    seeds: Sequence[int]
    num_episodes: int = 100
    hiddens: Sequence[tuple[int, ...]] = ((32,),)
    activations: Sequence[str] = ("relu",)
    settings: Sequence[dict[str, Any]] = ({},)
    curve: int = 0

    def runs(self) -> list[Run]:
        """In the order of the table."""
        return [
            Run(env, seed, self.env_steps, self.num_episodes, hiddens, activation, tuple(settings.items()), self.curve)
            for env in self.envs
            for hiddens in self.hiddens
            for activation in self.activations
            for settings in self.settings
            for seed in self.seeds
        ]


STUDIES = {
    "returns": Study(["Acrobot-v1", "MountainCar-v0"], 100_000, range(10, 15), num_episodes=500),
    "temperature": Study(
        ["CartPole-v1", "Acrobot-v1", "MountainCar-v0"],
        20_000,
        range(20, 28),
        settings=[
            *({"temperature": value} for value in ("auto", *TEMPERATURES)),
            *({"loss": "mse", "normalize_q_values": value} for value in (True, False)),
            {"loss": "mse", "init": "teacher"},
        ],
    ),
    "init": Study(
        ["CartPole-v1", "MountainCar-v0"],
        20_000,
        range(30, 35),
        num_episodes=50,
        hiddens=[(8,), (32,), (16, 16)],
        settings=[{"init": "random"}, {"init": "teacher"}],
        curve=1_000,
    ),
    # Both for students that can learn all that their teacher does, and for some that cannot.
    "mixture": Study(
        ["MountainCar-v0"],
        100_000,
        range(40, 45),
        hiddens=[(32,), (8,)],
        settings=[{"teacher_fraction": [[0, 1.0], [10_000, end]]} for end in TEACHER_FRACTIONS],
    ),
    "small": Study(
        ["Acrobot-v1", "MountainCar-v0"],
        100_000,
        range(50, 55),
        hiddens=[(32,), (8,), ()],
        settings=[{"gap_weighting": False}, {"gap_weighting": True}, {"loss": "reverse_kl"}],
    ),
    "losses": Study(
        ["CartPole-v1", "Acrobot-v1", "MountainCar-v0", "LunarLander-v3"],
        100_000,
        range(70, 73),
        hiddens=[(32,), (8,), (4, 4), ()],
        activations=["tanh"],
        settings=[
            {"loss": "kl"},
            {"loss": "kl", "regret_coeff": 0.0},
            {"loss": "reverse_kl"},
            {"loss": "jsd"},
            {"loss": "mse"},
        ],
    ),
    # Restarts with the defaults, and without each of what they consist of.
    "tiny": Study(
        ["LunarLander-v3", "Acrobot-v1", "MountainCar-v0", "CartPole-v1"],
        100_000,
        range(65, 70),
        hiddens=[(2, 2), (), (4, 4), (8,)],
        activations=["tanh"],
        settings=[
            {"restarts": 16},
            {},
            {"restarts": 16, "regret_coeff": 1.0},
            {"restarts": 16, "teacher_fraction": [[0, 1.0], [10_000, 0.5]]},
            {"restarts": 16, "normalize_observations": False},
        ],
    ),
}


# --- Measuring --------------------------------------------------------------------------------------------------------


def measure(run: Run, teachers: Path) -> dict[str, Any]:
    """A row: the run, and what its student reached."""
    path = teachers / TASKS[run.env]
    teacher, random = baselines(run.env, path, run.num_episodes)
    config = (
        DistillDQNConfig()
        .environment(run.env)
        .rl_module(model_config={"fcnet_hiddens": list(run.hiddens), "fcnet_activation": run.activation})
        .distillation(teacher=path, num_baseline_episodes=0, **dict(run.settings))
        .debugging(seed=run.seed)
    )
    algo = config.build_algo()
    row = asdict(run) | {"key": run.key, "teacher_returns": teacher.tolist(), "random_returns": random.tolist()}
    was_good = None
    try:
        for env_steps in _sampled(algo):
            is_last = env_steps >= run.env_steps
            if not is_last and not run.curve:
                continue
            returns = play_greedily(open_source(algo).network(), run.env, run.num_episodes)
            ratio = float(return_ratio(returns, teacher, random))
            is_good = ratio >= GOOD
            now = {"env_steps": env_steps, "gradient_steps": algo.num_gradient_steps}
            row |= {"returns": returns.tolist(), "return_ratio": ratio}
            # Good twice in a row: a single evaluation is good by chance.
            if run.curve and is_good and was_good:
                return row | {"good_after": was_good}
            was_good = now if is_good else None
            if is_last:
                return row | {"good_after": None}
    finally:
        algo.stop()
    raise AssertionError("Training does not end by itself.")


def _sampled(algo: Any) -> Iterator[int]:
    while True:
        yield int(algo.train()["num_env_steps_sampled_lifetime"])


def play_greedily(network: Any, env: str, num_episodes: int) -> np.ndarray:
    """Undiscounted returns `[num_episodes]`."""
    return _returns(GreedyQ(network), env, num_episodes)


@cache
def baselines(env: str, teacher: Path, num_episodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns of the teacher and of a random policy in the same episodes."""
    network = load_teacher(teacher)
    random = RandomActions(int(network.action_space.n), seed=0)
    return play_greedily(network, env, num_episodes), _returns(random, env, num_episodes)


def _returns(policy: Any, env: str, num_episodes: int) -> np.ndarray:
    return np.asarray(play(env_maker(env), policy, range(FIRST_EPISODE_SEED, FIRST_EPISODE_SEED + num_episodes))[0])


def return_ratio(student: np.ndarray, teacher: np.ndarray, random: np.ndarray) -> np.ndarray:
    """(student − random) / (teacher − random), of means over the last axis."""
    return (student.mean(-1) - random.mean(-1)) / (teacher.mean(-1) - random.mean(-1))


# --- Intervals --------------------------------------------------------------------------------------------------------


def interval_over_seeds(ratios: np.ndarray) -> tuple[float, float, float]:
    """Mean of the seeds `[S]`, and its 95 % interval (Student's t), which takes the episodes as they are."""
    mean, spread = ratios.mean(), ratios.std(ddof=1) / np.sqrt(len(ratios))
    half = scipy.stats.t.ppf(0.975, len(ratios) - 1) * spread
    return float(mean), float(mean - half), float(mean + half)


def bootstrap_interval(students: np.ndarray, teacher: np.ndarray, random: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean return ratio, for other training seeds and other episodes.

    Both are drawn with replacement: seeds by themselves, and episodes for all policies at once, because all have played
    the same ones. With few seeds it is a little narrow.

    Args:
        students: returns `[S, episodes]`.
        teacher: `[episodes]`.
        random: `[episodes]`.
    """
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(BOOTSTRAPS):
        seeds, episodes = (rng.integers(size, size=size) for size in students.shape)
        ratios.append(return_ratio(students[seeds][:, episodes].mean(0), teacher[episodes], random[episodes]))
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)


# --- Tables -----------------------------------------------------------------------------------------------------------


def groups_of(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Rows that differ in nothing but the seed."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        what = [row["env"], row["hiddens"], row.get("activation", ""), row["settings"], row["env_steps"]]
        groups.setdefault(json.dumps(what), []).append(row)
    return list(groups.values())


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each setting; `minus_first` compares it with the first of the same environment, student and length."""
    lines, firsts = [], {}
    for group in groups_of(rows):
        line = _line(group)
        first = firsts.setdefault((line["env"], line["student"], line["activation"], line["env_steps"]), group)
        if group[0]["settings"] and not group[0]["curve"] and len(group) > 1:
            line["minus_first"] = "" if first is group else _difference(group, first)
        lines.append(line)
    return lines


def _difference(group: Sequence[dict[str, Any]], first: Sequence[dict[str, Any]]) -> str:
    """Of the mean return ratios, with its 95 % interval (Welch's t)."""
    own, others = ([row["return_ratio"] for row in rows] for rows in (group, first))
    if np.ptp(own) == np.ptp(others) == 0.0:
        return f"{own[0] - others[0]:+.3f}"
    interval = scipy.stats.ttest_ind(own, others, equal_var=False).confidence_interval()
    return f"{np.mean(own) - np.mean(others):+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"


def _line(group: Sequence[dict[str, Any]]) -> dict[str, Any]:
    first = group[0]
    line = {
        "env": first["env"],
        "student": " × ".join(map(str, first["hiddens"])) or "linear",
        "activation": first.get("activation", ""),  # of students of other kinds, there is no one
        "settings": ", ".join(f"{name}={value}" for name, value in first["settings"]) or "defaults",
        "env_steps": first["env_steps"],
        "seeds": len(group),
        "episodes": first["num_episodes"],
    }
    if first["curve"]:
        good = [row["good_after"] for row in group]
        for unit in ("env_steps", "gradient_steps"):
            steps = [np.inf if where is None else where[unit] for where in good]
            line[f"{unit}_to_95"] = f"{np.median(steps):.0f} ({min(steps):.0f} to {max(steps):.0f})"
        return line
    ratios = np.array([row["return_ratio"] for row in group])
    line["return"] = round(float(np.mean([row["returns"] for row in group])), 2)
    line["teacher"] = round(float(np.mean(first["teacher_returns"])), 2)
    line["random"] = round(float(np.mean(first["random_returns"])), 2)
    line["ratios"] = " ".join(f"{ratio:.3f}" for ratio in ratios)
    line["ratio"] = round(float(ratios.mean()), 4)
    if len(group) > 1:
        both = bootstrap_interval(
            np.array([row["returns"] for row in group]),
            np.array(first["teacher_returns"]),
            np.array(first["random_returns"]),
        )
        line |= {"ratio_lower_t": round(interval_over_seeds(ratios)[1], 4), "ratio_lower_bootstrap": round(both[0], 4)}
    return line


def show(lines: Sequence[dict[str, Any]], csv_path: Path | None) -> None:
    """Print the lines as a table, and write them where a path is given: all but the keys of rows."""
    lines = [{name: value for name, value in line.items() if name != "key"} for line in lines]
    table = Table(*lines[0])
    for line in lines:
        table.add_row(*map(str, line.values()))
    Console(width=180).print(table)
    if csv_path:
        with csv_path.open("w", newline="") as file:
            writer = csv.DictWriter(file, lines[0])
            writer.writeheader()
            writer.writerows(lines)


def measured(path: Path, runs: Mapping[str, Callable[[], dict[str, Any]]]) -> list[dict[str, Any]]:
    """Rows of all runs, given by key; a run that is in the file already is not made again, and new ones are added."""
    known = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    rows = {row["key"]: row for row in known}
    torch.set_num_threads(1)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    for key, measure_one in runs.items():
        if key not in rows:
            rows[key] = measure_one() | {"key": key}
            with path.open("a") as file:
                file.write(json.dumps(rows[key]) + "\n")
    ray.shutdown()
    return [rows[key] for key in runs]


def study_parser(doc: str | None, envs: Collection[str], seeds: Sequence[int]) -> argparse.ArgumentParser:
    """Flags of a study whose rows go on where they were: its teachers, rows and table, environments and seeds."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teachers", type=Path)
    parser.add_argument("--rows", type=Path, required=True, help="JSON, a line for each run")
    parser.add_argument("--csv", type=Path, help="where to write the table")
    parser.add_argument("--env", nargs="+", choices=envs, default=list(envs))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(seeds))
    return parser


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("teachers", type=Path)
    parser.add_argument("--rows", type=Path, required=True, help="JSON, a line for each run")
    parser.add_argument("--csv", type=Path, help="where to write the table")
    parser.add_argument(
        "--task", action="append", default=[], help="one more environment, and its teacher in the folder"
    )
    parser.add_argument("--env", nargs="+", help="of the tasks; default: the study's")
    parser.add_argument("--env-steps", nargs="+", type=int, help="of each run; several make runs of each length")
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--hiddens", nargs="+", type=json.loads, help="of the students, like [8] [4,4] []")
    parser.add_argument("--activations", nargs="+", help="of the students, by their names in PyTorch")
    parser.add_argument(
        "--settings", nargs="+", type=json.loads, help="""of .distillation(), like '{"restarts": 16}'"""
    )
    args = parser.parse_args()

    TASKS.update(task.rsplit("=", 1) for task in args.task)
    if unknown := set(args.env or ()) - set(TASKS):
        parser.error(f"no teacher is known for {', '.join(sorted(unknown))}. Name it: --task ENV=NAME.")
    study = STUDIES[args.study]
    study = replace(
        study,
        envs=args.env or study.envs,
        seeds=args.seeds or study.seeds,
        hiddens=[tuple(widths) for widths in args.hiddens or study.hiddens],
        activations=args.activations or study.activations,
        settings=args.settings or study.settings,
    )
    lengths = args.env_steps or [study.env_steps]
    runs = [run for env_steps in lengths for run in replace(study, env_steps=env_steps).runs()]
    rows = measured(args.rows, {run.key: partial(measure, run, args.teachers) for run in runs})
    show(summary(rows), args.csv)


if __name__ == "__main__":
    main()
