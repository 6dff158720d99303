"""Games with illegal moves, tables and words: a teacher by TD, its student of 32 units, and the student's files.

    python tuning/games.py [GAME ...] [--seeds N] [--out docs/results/games.jsonl]

Each row is printed as it is measured, and written to the JSON lines. `connect_four` and `tictactoe` need
`pip install pettingzoo pygame`, `minigrid` needs `pip install minigrid`, and `cards` needs `pip install sb3-contrib`,
whose MaskablePPO is its teacher.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium as gym
import numpy as np
from ray.tune.registry import register_env

from rllib_kd import DistillDQNConfig, compare
from rllib_kd.evaluation.comparing import evaluate
from rllib_kd.export.deployment import deploy

from measuring import FIRST_SEED, append_row, start_ray, train_to  # isort: skip

STUDENT = {"fcnet_hiddens": [32], "fcnet_activation": "relu"}
FORMATS = ("onnx", "safetensors")
NUM_EPISODES = 500
#: As `rllib train --no-teacher` sets it: with 0.05 from the beginning, the teacher never finds the cliff's end.
EXPLORATION = [[0, 1.0], [10_000, 0.05]]


class BoardGame(gym.Env):
    """The first player of a board game of PettingZoo, against a random opponent: +1 for a win, −1 for a loss.

    Args:
        config: "game": the module in `pettingzoo.classic`.
    """

    def __init__(self, config: Mapping[str, Any]):
        from importlib import import_module

        name = config["game"]
        self._game = import_module(f"pettingzoo.classic.{name}").env()
        self._game.reset()
        self._me, self._other = self._game.possible_agents
        self.observation_space = self._game.observation_space(self._me)
        self.action_space = self._game.action_space(self._me)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Begin a game; the opponent may begin."""
        super().reset(seed=seed)
        self._game.reset()
        if self.np_random.random() < 0.5:
            self._me, self._other = self._other, self._me
        if self._game.agent_selection == self._other:
            self._reply()
        return self._game.observe(self._me), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Play a move, and the opponent's reply."""
        self._game.step(int(action))
        if not self._is_over():
            self._reply()
        return self._game.observe(self._me), float(self._game.rewards[self._me]), self._is_over(), False, {}

    def _is_over(self) -> bool:
        return any(self._game.terminations.values())

    def _reply(self) -> None:
        legal = np.flatnonzero(self._game.observe(self._other)["action_mask"])
        self._game.step(int(self.np_random.choice(legal)))


class Cards(gym.Env):
    """Six cards in the hand; each is played once, and pays its value times a weight that is shown before.

    The mask is given by `action_masks()`, as Stable-Baselines3 wants it; a card that is gone raises an error.
    """

    NUM_CARDS = 6
    observation_space = gym.spaces.Box(0.0, 1.0, (2 * NUM_CARDS + 1,), np.float32)
    action_space = gym.spaces.Discrete(NUM_CARDS)

    def __init__(self, config: Any = None):
        pass

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Deal."""
        super().reset(seed=seed)
        self._values = self.np_random.random(self.NUM_CARDS)
        self._left = np.ones(self.NUM_CARDS, dtype=bool)
        self._weight = self.np_random.random()
        return self._look(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Play a card."""
        if not self._left[action]:
            raise ValueError(f"The card {action} is gone.")
        pay = float(self._values[action] * self._weight)
        self._left[action] = False
        self._weight = self.np_random.random()
        return self._look(), pay, not self._left.any(), False, {}

    def action_masks(self) -> np.ndarray:
        """Return which cards are left."""
        return self._left.copy()

    def _look(self) -> np.ndarray:
        return np.concatenate([self._values, self._left, [self._weight]]).astype(np.float32)


def _limited_cliff(config: Any) -> gym.Env:
    return gym.wrappers.TimeLimit(gym.make("CliffWalking-v1"), 200)


@dataclass(frozen=True)
class Game:
    """A game, and how its teacher is trained.

    Args:
        env: environment, as in `config.environment()`.
        env_config: its config.
        env_steps: of the teacher's training.
        student_env_steps: of the student's.
        training: settings of the teacher that differ from the defaults, with the reason in docs/results/games.md.
    """

    env: Any
    env_config: Mapping[str, Any] = field(default_factory=dict)
    env_steps: int = 50_000
    student_env_steps: int = 50_000
    training: Mapping[str, Any] = field(default_factory=dict)


#: Of a game with one reward, at its end: more and smaller gradient steps, and targets that follow each of them.
_SPARSE: dict[str, Any] = {
    "gamma": 0.97,
    "n_step": 3,
    "lr": [[0, 5e-4], [50_000, 5e-5]],
    "train_batch_size_per_learner": 64,
    "training_intensity": 32.0,
    "target_network_update_freq": 0,
    "tau": 0.01,
    "grad_clip": 10.0,
    "epsilon": [[0, 1.0], [20_000, 0.05]],
}
GAMES = {
    "taxi": Game("Taxi-v3"),
    "frozen_lake": Game("FrozenLake-v1"),
    "frozen_lake_dry": Game("FrozenLake-v1", {"is_slippery": False}),
    "cliff": Game("cliff-200"),
    "blackjack": Game("Blackjack-v1"),
    "tictactoe": Game(BoardGame, {"game": "tictactoe_v3"}),
    "connect_four": Game(BoardGame, {"game": "connect_four_v3"}, env_steps=100_000),
    "minigrid": Game(
        "minigrid:MiniGrid-Empty-5x5-v0",  # a Dict of the view, the direction and the mission's text
        training=_SPARSE,
    ),
    "cards": Game(Cards),
}


def config_of(game: Game) -> DistillDQNConfig:
    """Return what teacher and student have in common."""
    return (
        DistillDQNConfig()
        .environment(game.env, env_config=dict(game.env_config))
        .reporting(min_sample_timesteps_per_iteration=5_000)
        .evaluation(evaluation_interval=None)
        .distillation(num_baseline_episodes=0)
    )


def train_teacher(game: Game, seed: int, folder: Path) -> str:
    """Train a teacher by TD alone, and return its path."""
    config = config_of(game).distillation(teacher=None, td_coeff=1.0).debugging(seed=seed)
    return train_to(config.training(**{"epsilon": EXPLORATION, **game.training}), game.env_steps, folder)


def train_maskable_ppo(seed: int, folder: Path) -> str:
    """Train MaskablePPO on the cards, and return the path of its zip."""
    from sb3_contrib import MaskablePPO

    model = MaskablePPO("MlpPolicy", Cards(), seed=seed, n_steps=1024, device="cpu")
    model.learn(100_000)
    path = folder / "maskable_ppo.zip"
    model.save(path)
    return str(path)


def measure(name: str, seed: int, folder: Path) -> dict[str, Any]:
    """Return the row of one game and seed."""
    game, began = GAMES[name], time.perf_counter()
    teacher = train_maskable_ppo(seed, folder) if name == "cards" else train_teacher(game, seed, folder / "teacher")
    trained = time.perf_counter()
    config = config_of(game).distillation(teacher=teacher).rl_module(model_config=STUDENT).debugging(seed=seed)
    student = train_to(config, game.student_env_steps, folder / "student")
    distilled = time.perf_counter()
    played = compare(teacher, student, game.env, env_config=game.env_config, num_episodes=NUM_EPISODES, seed=FIRST_SEED)
    row: dict[str, Any] = {
        "game": name,
        "seed": seed,
        "teacher": "MaskablePPO" if name == "cards" else f"TD, {game.env_steps} env steps",
        "teacher_return": round(played.teacher.return_mean, 4),
        "student_return": round(played.student.return_mean, 4),
        "random_return": round(played.random.return_mean, 4),
        "return_ratio": round(played.return_ratio, 4),
        "agreement": round(played.agreement_on_student_states, 4),
        "teacher_minutes": round((trained - began) / 60, 2),
        "student_minutes": round((distilled - trained) / 60, 2),
    }
    for artifact_format in FORMATS:
        done = deploy(
            student,
            folder / f"student.{artifact_format}",
            game.env,
            format=artifact_format,
            env_config=game.env_config,
            num_episodes=100,
        )
        row[f"{artifact_format}_agreement"] = done.exported.agreement
        row[f"{artifact_format}_same_return"] = done.return_mean == done.torch_return
    return row


def main(measure_row: Callable[[str, int, Path], dict[str, Any]] = measure) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("games", nargs="*", metavar="GAME", help=f"of {', '.join(GAMES)}; default: all")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("docs/results/games.jsonl"))
    parser.add_argument("--teacher-only", action="store_true", help="train the teacher, and print what it reaches")
    asked = parser.parse_args()
    if unknown := set(asked.games) - GAMES.keys():
        parser.error(f"unknown games: {', '.join(sorted(unknown))}. Known are {', '.join(GAMES)}.")
    start_ray()
    register_env("cliff-200", _limited_cliff)
    for name in asked.games or GAMES:
        for seed in range(asked.seeds):
            with tempfile.TemporaryDirectory() as folder:
                if asked.teacher_only:
                    game = GAMES[name]
                    path = train_teacher(game, seed, Path(folder) / "teacher")
                    played = evaluate(path, game.env, env_config=game.env_config, num_episodes=200, seed=FIRST_SEED)
                    print(name, seed, played.return_mean, flush=True)
                    continue
                row = measure_row(name, seed, Path(folder))
            print(json.dumps(row), flush=True)
            append_row(asked.out, row)


if __name__ == "__main__":
    main()
