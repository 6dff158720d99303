"""Students that remember, beside those that do not: velocities are hidden from them, and not from their teacher.

    python tests/benchmarks/remembering.py FOLDER --rows rows.jsonl [--csv table.csv] [--env CartPole-v1] [--seeds 0 1]

FOLDER holds the teachers of `learning.TASKS`. Three students of about as many parameters see positions alone: an LSTM
of 32 units behind 32 units; two hidden layers; and two hidden layers that see the last four observations. In `Corridor`
stacks cannot help: a cue is shown in the first step, and needed 12 steps later. Its teacher, which always sees the cue,
has the exact Q-values. The last student of each seed is judged, in episodes that nothing else has seen; each LSTM
is exported to all formats that keep a state, and the files choose actions beside PyTorch. A run that is in the rows
already is not made again.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections import deque
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script: its own package, beside the installed one

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.connectors.env_to_module import FlattenObservations

from rllib_kd import DistillDQNConfig, load_teacher
from rllib_kd.evaluation.playing import RandomActions, play
from rllib_kd.evaluation.policies import GreedyQ
from rllib_kd.evaluation.sources import open_source
from rllib_kd.export.artifact import q_function
from rllib_kd.export.export import export
from rllib_kd.export.recurrent import RECURRENT_FORMATS
from rllib_kd.networks.recurrent import Memory
from rllib_kd.observations.pipeline import Function, ObservationPipeline
from rllib_kd.teachers.base import Teacher
from tests.benchmarks.learning import (
    FIRST_EPISODE_SEED,
    TASKS,
    groups_of,
    measured,
    return_ratio,
    show,
    study_parser,
    summary,
)

NUM_EPISODES = 100
STACKED = 4  # observations that the stacked student sees


class Task(NamedTuple):
    """What is hidden in an environment.

    Args:
        size: entries of its observation.
        hidden: those that the student does not see: velocities, or the cue.
        env_steps: of each run.
    """

    size: int
    hidden: tuple[int, ...]
    env_steps: int

    @property
    def visible(self) -> list[int]:
        """The others."""
        return [i for i in range(self.size) if i not in self.hidden]


HIDDEN = {
    "CartPole-v1": Task(4, (1, 3), 60_000),
    "Acrobot-v1": Task(6, (4, 5), 200_000),
    "MountainCar-v0": Task(2, (1,), 200_000),
    "LunarLander-v3": Task(8, (2, 3, 5), 500_000),
    "Corridor": Task(3, (0,), 200_000),
}

#: Networks of about 8,500 parameters.
STUDENTS: dict[str, dict[str, Any]] = {
    "LSTM": {"fcnet_hiddens": [32], "use_lstm": True, "lstm_cell_size": 32},
    "feed-forward": {"fcnet_hiddens": [88, 88]},
    "stack of 4": {"fcnet_hiddens": [88, 88]},
}


class Corridor(gym.Env):
    """A corridor that ends in a fork: right is the way of the cue.

    The observation is the cue (−1 or 1), what is seen of it (the same in the first step, 0 later), and the place.
    Actions: forward, left, right; the last two count at the end alone. The return is 1 at the way of the cue, 0 at the
    other one, and 0.05 less for each step.
    """

    LENGTH, COST = 12, 0.05
    observation_space = gym.spaces.Box(-1.0, 1.0, (3,), np.float32)
    action_space = gym.spaces.Discrete(3)

    def __init__(self, config: Any = None):
        pass

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._cue, self._place, self._steps = int(self.np_random.choice([-1, 1])), 0, 0
        return self._observed(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        reward, ended = 0.0, False
        if self._place == self.LENGTH and action:
            reward, ended = float((action == 2) == (self._cue == 1)), True
        elif action == 0:
            self._place = min(self._place + 1, self.LENGTH)
        return self._observed(), reward - self.COST, ended, self._steps >= 5 * self.LENGTH, {}

    def _observed(self) -> np.ndarray:
        return np.array([self._cue, self._cue * (self._steps == 0), self._place / self.LENGTH], np.float32)


class Parts(gym.Wrapper):
    """What a student sees, and what is hidden from it, as two parts of the observation.

    Args:
        config: `env`, a name of `HIDDEN`; `stacked`: observations that the student sees.
    """

    def __init__(self, config: dict[str, Any]):
        super().__init__(make_whole(config["env"]))
        self._task = HIDDEN[config["env"]]
        self._past: deque[np.ndarray] = deque(maxlen=config["stacked"])
        self.observation_space = parts_space(**config)

    def reset(self, **kwargs: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        obs, info = self.env.reset(**kwargs)
        self._past.extend([obs[self._task.visible]] * (self._past.maxlen or 1))
        return self._parts(obs), info

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], Any, bool, bool, dict[str, Any]]:
        obs, *rest = self.env.step(action)
        self._past.append(obs[self._task.visible])
        return self._parts(obs), *rest

    def _parts(self, obs: np.ndarray) -> dict[str, np.ndarray]:
        return {"hidden": obs[list(self._task.hidden)], "visible": np.concatenate(self._past)}


def make_whole(env: str) -> gym.Env:
    return Corridor() if env == "Corridor" else gym.make(env)


def parts_space(env: str, stacked: int) -> gym.spaces.Dict:
    task = HIDDEN[env]
    sizes = {"hidden": len(task.hidden), "visible": len(task.visible) * stacked}
    return gym.spaces.Dict({name: gym.spaces.Box(-np.inf, np.inf, (size,), np.float32) for name, size in sizes.items()})


def join(obs: dict[str, np.ndarray], task: Task) -> np.ndarray:
    """The newest observation as the teacher knows it, `[N, D]`."""
    joined = np.empty((len(obs["hidden"]), task.size), np.float32)
    joined[:, list(task.hidden)] = obs["hidden"]
    joined[:, task.visible] = obs["visible"][:, -len(task.visible) :]
    return joined


def visible_alone(env: Any, spaces: Any, device: Any, *, space: gym.Space) -> FlattenObservations:
    """A connector that takes what is hidden from the student."""
    return FlattenObservations(input_observation_space=space, keys_to_remove=["hidden"])


def teacher_of(env: str, folder: Path, pipeline: ObservationPipeline | None = None) -> Teacher:
    """The teacher, which sees everything; that of the corridor is its exact Q-values."""
    if env != "Corridor":
        return load_teacher(folder / TASKS[env], pipeline=pipeline)
    spaces = {"observation_space": Corridor.observation_space, "action_space": Corridor.action_space}
    return Teacher.from_callable(corridor_q, **spaces, pipeline=pipeline)


def corridor_q(obs: torch.Tensor) -> torch.Tensor:
    """Undiscounted Q-values of the best policy in `Corridor`, `[N, 3]`."""
    cue, left_to_go = obs[:, 0], (Corridor.LENGTH * (1 - obs[:, 2])).round()
    value = 1 - Corridor.COST * (left_to_go + 1)
    at_the_end, stays = left_to_go == 0, value - Corridor.COST
    turns = [torch.where(at_the_end, (cue == way).float() - Corridor.COST, stays) for way in (-1, 1)]
    return torch.stack([torch.where(at_the_end, stays, value), *turns], dim=-1)


# --- Measuring --------------------------------------------------------------------------------------------------------


def measure(
    env: str, student: str, seed: int, env_steps: int, folder: Path, settings: dict[str, Any]
) -> dict[str, Any]:
    """A row: what the last student reached. Keys as in the rows of `learning.py`."""
    env_config = {"env": env, "stacked": STACKED if student.startswith("stack") else 1}
    space = parts_space(**env_config)
    pipeline = ObservationPipeline(space, (Function(partial(join, task=HIDDEN[env])),))
    config = (
        DistillDQNConfig()
        .environment(Parts, env_config=env_config)
        .env_runners(env_to_module_connector=partial(visible_alone, space=space))
        .rl_module(model_config=STUDENTS[student] | settings.get("model_config", {}))
        .training(**settings.get("training", {}))
        .distillation(teacher=teacher_of(env, folder, pipeline), num_baseline_episodes=0)
        .distillation(**settings.get("distillation", {}))
        .debugging(seed=seed)
    )
    teacher, random = baselines(env, folder)
    start = time.process_time()
    algo = config.build_algo()
    try:
        while algo.train()["num_env_steps_sampled_lifetime"] < env_steps:
            pass
        seconds = time.process_time() - start
        policy = open_source(algo).policy()
        returns = played(partial(Parts, env_config), policy)
        files = same_actions(algo.get_module(), Parts(env_config)) if student == "LSTM" else {}
    finally:
        algo.stop()
    return {
        "env": env,
        "hiddens": [student],
        "settings": sorted(settings.items()),
        "env_steps": env_steps,  # the end of the iteration in which they are reached
        "num_episodes": NUM_EPISODES,
        "curve": 0,
        "seed": seed,
        "parameters": policy.num_parameters,
        "cpu_seconds": seconds,
        "teacher_returns": teacher.tolist(),
        "random_returns": random.tolist(),
        "returns": returns.tolist(),
        "return_ratio": float(return_ratio(returns, teacher, random)),
        "same_actions": files,
    }


def same_actions(module: Any, env: Parts) -> dict[str, float]:
    """Share of the steps in which an exported file chooses what PyTorch does, by format, while PyTorch plays.

    And `largest_gap`: by how much PyTorch's Q-values of the two actions differ at most, where a file chooses another.
    """
    student, memory = Teacher(module), Memory()
    states = np.random.default_rng(0).normal(size=(256, *module.observation_space.shape)).astype(np.float32)
    equal: dict[str, list[bool]] = {name: [] for name in RECURRENT_FORMATS}
    largest_gap = 0.0
    with tempfile.TemporaryDirectory() as folder:
        functions = {}
        for name in RECURRENT_FORMATS:
            export(student, Path(folder, name + (".h" if name == "c" else "")), format=name, obs=states)
            functions[name] = q_function(Path(folder, name + (".h" if name == "c" else "")))
        for seed in range(FIRST_EPISODE_SEED, FIRST_EPISODE_SEED + NUM_EPISODES):
            parts, is_over = env.reset(seed=seed)[0], False
            memory.begin(module, np.array([True]))
            for function in functions.values():
                function.begin()
            while not is_over:
                obs = parts["visible"][np.newaxis].astype(np.float32)
                q = memory.step(module, torch.from_numpy(obs))[0]
                action = int(q.argmax())
                for name, function in functions.items():
                    chosen = int(function(obs).argmax())
                    equal[name].append(chosen == action)
                    largest_gap = max(largest_gap, float(q[action] - q[chosen]))
                parts, _, terminated, truncated, _ = env.step(action)
                is_over = terminated or truncated
    return {name: float(np.mean(own)) for name, own in equal.items()} | {"largest_gap": largest_gap}


@cache
def baselines(env: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns of the teacher, which sees everything, and of a random policy, in the same episodes."""
    teacher = GreedyQ(teacher_of(env, folder))
    random = RandomActions(int(teacher.action_space.n), seed=0)
    return played(partial(make_whole, env), teacher), played(partial(make_whole, env), random)


def played(make_env: Any, policy: Any) -> np.ndarray:
    return np.asarray(play(make_env, policy, range(FIRST_EPISODE_SEED, FIRST_EPISODE_SEED + NUM_EPISODES))[0])


def main() -> None:
    parser = study_parser(__doc__, HIDDEN, range(90, 95))
    parser.add_argument("--students", nargs="+", choices=STUDENTS, default=list(STUDENTS))
    parser.add_argument("--env-steps", type=int, help="of each run; default: the task's")
    parser.add_argument(
        "--settings", type=json.loads, default={}, help='"model_config", "training" and "distillation", as JSON'
    )
    args = parser.parse_args()

    runs = {}
    for env, student, seed in product(args.env, args.students, args.seeds):
        run = [env, student, seed, args.env_steps or HIDDEN[env].env_steps]
        key = json.dumps([*run, args.settings], sort_keys=True)
        runs[key] = partial(measure, *run, args.teachers, args.settings)
    lines = [
        line | {"parameters": group[0]["parameters"], "cpu_s": round(np.mean([row["cpu_seconds"] for row in group]))}
        for group in groups_of(measured(args.rows, runs))
        for line in summary(group)
    ]
    show(lines, args.csv)


if __name__ == "__main__":
    main()
