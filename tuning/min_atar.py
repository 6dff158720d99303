"""Students of MinAtar (Young and Tian 2019, arXiv 1903.03176): five games with chance, in pictures of 10 × 10.

    python tuning/min_atar.py --teachers FOLDER [GAME ...] [--seeds N] [--compressions 0.25 0.067 0.037 0.01]
        [--env-steps N] [--training-intensity X] [--lr X] [--episodes N] [--teacher-env-steps N]
        [--out docs/results/minatar.jsonl]

`pip install --no-deps minatar` (GPL; the package itself needs it nowhere). A game's teacher is trained by this
package's TD, once, into FOLDER. Each student then learns alone, with the defaults; student, teacher and a random policy
play the same fresh episodes. An action sticks with a probability of 0.1, as the games are published.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from by_size import Task, main  # isort: skip
from measuring import train_to  # isort: skip

#: Of a teacher's TD: with 3, these two hardly learn.
N_STEP = {"asterix": 1, "seaquest": 1}
#: Of the paper: a convolution of 16 channels, and 128 units.
NETWORK = {
    "conv_filters": [[16, 3, 1, "valid"]],
    "conv_activation": "relu",
    "head_fcnet_hiddens": [128],
    "head_fcnet_activation": "relu",
}
GAMES = ("asterix", "breakout", "freeway", "seaquest", "space_invaders")


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


def td_settings(env_steps: int, explored: int) -> dict[str, Any]:
    """Return settings of `config.training()` for a teacher by TD alone.

    Args:
        env_steps: of its training.
        explored: env steps until the share of random actions has fallen from 1 to 0.05.
    """
    return {
        "lr": [[0, 5e-4], [env_steps, 5e-5]],
        "training_intensity": 16.0,
        "num_steps_sampled_before_learning_starts": 5_000,
        "replay_buffer_config": {"capacity": 200_000},
        "target_network_update_freq": 0,
        "tau": 0.005,
        "epsilon": [[0, 1.0], [explored, 0.05]],
    }


def train_teacher(task: Task, env_steps: int, folder: Path) -> None:
    """Train a teacher with the network of the paper by TD alone."""
    config = (
        task.config(seed=0)
        .rl_module(model_config=dict(NETWORK))
        .training(n_step=N_STEP.get(task.name, 3), train_batch_size_per_learner=32)
        .training(**td_settings(env_steps, env_steps // 10))
        .distillation(teacher=None, td_coeff=1.0)
    )
    train_to(config, env_steps, folder)


TASKS = [Task(game, MinAtar, train_teacher, {"game": game}) for game in GAMES]


if __name__ == "__main__":
    main(TASKS, __doc__, out="docs/results/minatar.jsonl")
