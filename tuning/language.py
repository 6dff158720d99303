"""Students of BabyAI (Chevalier-Boisvert et al. 2019, arXiv 1810.08272): a sentence says which object to go to.

    python tuning/language.py --teachers FOLDER [LEVEL ...] [--seeds N] [--compressions 0.25 0.067 0.04 0.01]
        [--env-steps N] [--teacher-env-steps N] [--out docs/results/language.jsonl]

`pip install minigrid`. A level's teacher is a network of 256 × 256 units that is distilled, once, from the bot of
BabyAI. The bot knows the whole grid: the environment returns its next action beside what the network sees. Each student
then learns from the network alone, with the defaults; student, network and a random policy play the same fresh
episodes.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from ray.rllib.connectors.env_to_module.observation_preprocessor import SingleAgentObservationPreprocessor
from torch import Tensor
from torch.nn import functional as F

from rllib_kd import Teacher
from rllib_kd.evaluation.comparing import evaluate
from rllib_kd.observations import Function, ObservationPipeline

from by_size import NUM_EPISODES, Task, main  # isort: skip
from measuring import FIRST_SEED, train_to  # isort: skip

LEVELS = ("BabyAI-GoToLocalS6N2-v0", "BabyAI-GoToLocalS7N4-v0")
COMPRESSIONS = (0.25, 0.067, 0.04, 0.01)
NUM_ACTIONS = 7
DONE = NUM_ACTIONS - 1  # what the bot says after the last step


class Level(gym.Env):
    """A level as its player sees it: the 7 × 7 fields ahead as one-hot vectors, the direction, and the sentence.

    Args:
        config: "level": gymnasium's id.
    """

    def __init__(self, config: Mapping[str, Any]):
        import minigrid  # noqa: F401  # registers the levels
        from minigrid.wrappers import OneHotPartialObsWrapper

        self.env = OneHotPartialObsWrapper(gym.make(config["level"]))
        self.observation_space, self.action_space = self.env.observation_space, self.env.action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Begin in a new room."""
        return self.env.reset(seed=seed)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Turn, walk, or do something with the object ahead."""
        obs, reward, *ended = self.env.step(action)
        return obs, float(reward), *ended


class Advised(Level):
    """The same, and beside it what the bot would do next."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__(config)
        advice = gym.spaces.Box(0, DONE, (1,), np.float32)
        self.observation_space = gym.spaces.Dict({**self.observation_space.spaces, "advice": advice})

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Begin in a new room, with a new bot."""
        from minigrid.utils.baby_ai_bot import BabyAIBot

        obs, info = super().reset(seed=seed)
        self._bot = BabyAIBot(self.env.unwrapped)
        return self._advised(obs, self._bot.replan()), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Act; the bot plans anew from there. It gives up if a box was opened, which ends the episode."""
        from minigrid.utils.baby_ai_bot import DisappearedBoxError

        obs, reward, is_terminated, is_truncated, info = super().step(action)
        advice = DONE
        if not is_terminated and not is_truncated:
            try:
                advice = self._bot.replan(int(action))
            except DisappearedBoxError:
                is_truncated = True
        return self._advised(obs, advice), reward, is_terminated, is_truncated, info

    @staticmethod
    def _advised(obs: Mapping[str, Any], advice: int) -> dict[str, Any]:
        return {**obs, "advice": np.array([advice], np.float32)}


class Unadvised(SingleAgentObservationPreprocessor):
    """What the network sees of it."""

    def recompute_output_observation_space(self, input_observation_space: Any, input_action_space: Any) -> gym.Space:
        """Return the space without the advice."""
        return gym.spaces.Dict(self._without(input_observation_space.spaces))

    def preprocess(self, observation: Mapping[str, Any], episode: Any) -> dict[str, Any]:
        """Leave the advice out."""
        return self._without(observation)

    @staticmethod
    def _without(parts: Mapping[str, Any]) -> dict[str, Any]:
        return {name: part for name, part in parts.items() if name != "advice"}


def bot(space: gym.spaces.Dict) -> Teacher:
    """Return the bot as a teacher that sees its advice alone."""
    return Teacher.from_callable(
        advised_action,
        observation_space=space["advice"],
        action_space=gym.spaces.Discrete(NUM_ACTIONS),
        pipeline=ObservationPipeline(space, (Function(lambda obs: obs["advice"]),)),
    )


def advised_action(advice: Tensor) -> Tensor:
    """Return 1 for the advised action, and 0 for the others."""
    return F.one_hot(advice[:, 0].long(), NUM_ACTIONS).float()


def train_teacher(task: Task, env_steps: int, folder: Path) -> None:
    """Distil the bot into a network, and keep the network without the connector that hides the advice from it."""
    own = dict(task.env_config)
    advisor = bot(Advised(own).observation_space)
    config = (
        task.config(seed=0)
        .environment(Advised, env_config=own)
        .env_runners(env_to_module_connector=lambda env, spaces, device: Unadvised())
        .rl_module(model_config={"fcnet_hiddens": [256, 256], "fcnet_activation": "relu"})
        .training(lr=[[0, 1e-3], [env_steps, 1e-4]], replay_buffer_config={"capacity": env_steps})
        .distillation(teacher=advisor)
    )
    algorithm = Path(train_to(config, env_steps, folder.with_name(f"{folder.name}-algorithm")))
    shutil.copytree(algorithm / "learner_group" / "learner" / "rl_module" / "default_policy", folder)
    played = evaluate(advisor, Advised, env_config=own, num_episodes=NUM_EPISODES, seed=FIRST_SEED)
    print(f"bot of {task.name}: {played.return_mean:.3f} ± {played.return_ci95:.3f}", flush=True)


TASKS = [Task(level, Level, train_teacher, {"level": level}) for level in LEVELS]


if __name__ == "__main__":
    main(TASKS, __doc__, out="docs/results/language.jsonl", compressions=COMPRESSIONS, teacher_env_steps=200_000)
