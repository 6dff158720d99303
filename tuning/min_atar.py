"""Students of MinAtar (Young and Tian 2019, arXiv 1903.03176): five games with chance, in pictures of 10 × 10.

    python tuning/min_atar.py --teachers FOLDER [GAME ...] [--seeds N] [--compressions 0.25 0.067 0.037 0.01]
        [--env-steps N] [--teacher-env-steps N] [--out docs/results/minatar.jsonl]

`pip install --no-deps minatar` (GPL; the package itself needs it nowhere). A game's teacher is trained by this
package's TD, once, into FOLDER. Each student then learns alone, with the defaults; student, teacher and a random policy
play the same fresh episodes. An action sticks with a probability of 0.1, as the games are published. A row is printed
and written as soon as it is measured; one that is in the file is not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium as gym
import numpy as np
import ray

from rllib_kd import DistillDQNConfig, compare
from rllib_kd.evaluation.comparing import evaluate

from games import train_to  # isort: skip
from results_page import interval  # isort: skip

GAMES = ("asterix", "breakout", "freeway", "seaquest", "space_invaders")
COMPRESSIONS = (0.25, 0.067, 0.037, 0.01)
NUM_EPISODES = 200
#: Of the resets that judge: far from those of training and validation.
FIRST_SEED = 3_000_000


class MinAtar(gym.Env):
    """A game, whose episodes a seed fixes: MinAtar's own wrapper keeps the last action over a reset.

    Args:
        config: "game": one of `GAMES`.
    """

    MAX_STEPS = 5_000  # MinAtar has no limit, and a good player of some games never loses

    def __init__(self, config: Mapping[str, Any]):
        from minatar import Environment

        self._game = Environment(config["game"])
        self._actions = self._game.minimal_action_set()
        self._num_steps = 0
        self.action_space = gym.spaces.Discrete(len(self._actions))
        self.observation_space = gym.spaces.Box(0.0, 1.0, self._game.state_shape(), dtype=np.bool_)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a game."""
        super().reset(seed=seed)
        self._game.seed(seed)
        self._game.last_action = 0
        self._game.reset()
        self._num_steps = 0
        return self._game.state(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Play one frame."""
        reward, is_over = self._game.act(self._actions[int(action)])
        self._num_steps += 1
        return self._game.state(), float(reward), bool(is_over), self._num_steps >= self.MAX_STEPS, {}


def config_of(game: str, seed: int) -> DistillDQNConfig:
    """Return what teacher and student have in common."""
    config = (
        DistillDQNConfig()
        .environment(MinAtar, env_config={"game": game})
        .reporting(min_sample_timesteps_per_iteration=10_000)
        .evaluation(evaluation_interval=None)
        .distillation(num_baseline_episodes=0)
        .debugging(seed=seed)
    )
    config.store_buffer_in_checkpoints = False
    return config


def train_teacher(game: str, env_steps: int, folder: Path) -> None:
    """Train a teacher with the network of the paper, a convolution of 16 channels and 128 units, by TD alone."""
    network = {
        "conv_filters": [[16, 3, 1, "valid"]],
        "conv_activation": "relu",
        "head_fcnet_hiddens": [128],
        "head_fcnet_activation": "relu",
    }
    config = (
        config_of(game, seed=0)
        .rl_module(model_config=network)
        .training(
            n_step=3,
            lr=[[0, 5e-4], [env_steps, 5e-5]],
            train_batch_size_per_learner=32,
            training_intensity=16.0,
            num_steps_sampled_before_learning_starts=5_000,
            replay_buffer_config={"capacity": 200_000},
            target_network_update_freq=0,
            tau=0.005,
            epsilon=[[0, 1.0], [env_steps // 10, 0.05]],
        )
        .distillation(teacher=None, td_coeff=1.0)
    )
    train_to(config, env_steps, folder.resolve())


def measure(game: str, compression: float, seed: int, teacher: Path, work: Path, env_steps: int) -> dict[str, Any]:
    """Train a student, and return its row."""
    began, folder = time.perf_counter(), work / f"{game}-{compression:g}-{seed}"
    config = config_of(game, seed).distillation(teacher=str(teacher), compression=compression)
    train_to(config, env_steps, folder.resolve())
    seconds = time.perf_counter() - began
    played = compare(
        str(teacher), str(folder), MinAtar, env_config={"game": game}, num_episodes=NUM_EPISODES, seed=FIRST_SEED
    )
    return {
        "game": game,
        "compression": compression,
        "seed": seed,
        "env_steps": env_steps,
        "parameters": played.student.num_parameters,
        "teacher_parameters": played.teacher.num_parameters,
        "return_ratio": round(played.return_ratio, 4),
        "teacher_return": round(played.teacher.return_mean, 3),
        "random_return": round(played.random.return_mean, 3),
        "agreement": round(played.agreement_on_student_states, 4),
        "q_regret": round(played.q_regret_on_student_states, 4),
        "seconds": round(seconds, 1),
        **{
            f"{who}_returns": [round(value, 3) for value in getattr(played, who).returns]
            for who in ("teacher", "student", "random")
        },
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return ratios by game and size: interquartile means over seeds, with 95 % intervals as `results.py` has them."""
    by_size: dict[float, dict[str, dict[str, Any]]] = {}
    for row in rows:
        played = {who: {"returns": row[f"{who}_returns"]} for who in ("teacher", "student", "random")}
        seeds = by_size.setdefault(row["compression"], {}).setdefault(row["game"], {})
        seeds[str(row["seed"])] = {"students": {"one": {**played, "return_ratio": row["return_ratio"]}}}
    games = sorted({row["game"] for row in rows})
    lines = [f"| parameters | {' | '.join(games)} | all |", "|---" * (len(games) + 2) + "|"]
    for size, of_games in sorted(by_size.items(), reverse=True):
        measured = {game: {"seeds": of_games[game]} for game in games if game in of_games}
        cells = [_cell(interval([measured[game]], "one")) if game in measured else "" for game in games]
        cells.append(_cell(interval(list(measured.values()), "one")))
        lines.append(f"| {100 * size:.3g} % | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(ratios: tuple[float, float, float]) -> str:
    return "{:.3f} ({:.3f} to {:.3f})".format(*ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("games", nargs="*", metavar="GAME", help=f"of {', '.join(GAMES)}; default: all")
    parser.add_argument("--teachers", type=Path, required=True, help="folder of the teachers, and of checkpoints")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--compressions", type=float, nargs="+", default=COMPRESSIONS)
    parser.add_argument("--env-steps", type=int, default=200_000)
    parser.add_argument("--teacher-env-steps", type=int, default=500_000)
    parser.add_argument("--teacher-only", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("docs/results/minatar.jsonl"))
    asked = parser.parse_args()
    if unknown := set(asked.games) - set(GAMES):
        parser.error(f"unknown games: {', '.join(sorted(unknown))}. Known are {', '.join(GAMES)}.")
    games = asked.games or GAMES
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    for game in games:
        if not (asked.teachers / game).exists():
            train_teacher(game, asked.teacher_env_steps, asked.teachers / game)
            path, own = str(asked.teachers / game), {"game": game}
            played = evaluate(path, MinAtar, env_config=own, num_episodes=NUM_EPISODES, seed=FIRST_SEED)
            print(f"teacher of {game}: {played.return_mean:.2f} ± {played.return_ci95:.2f}", flush=True)
    rows = [json.loads(line) for line in asked.out.read_text().splitlines()] if asked.out.exists() else []
    for seed in range(asked.seeds) if not asked.teacher_only else ():
        for game in games:
            for compression in asked.compressions:
                key = {"game": game, "compression": compression, "seed": seed, "env_steps": asked.env_steps}
                if any(row.items() >= key.items() for row in rows):
                    continue
                row = measure(game, compression, seed, asked.teachers / game, asked.teachers, asked.env_steps)
                rows.append(row)
                with asked.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print({name: value for name, value in row.items() if not name.endswith("_returns")}, flush=True)
    print(table([row for row in rows if row["env_steps"] == asked.env_steps]))


if __name__ == "__main__":
    main()
