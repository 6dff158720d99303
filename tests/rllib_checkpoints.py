"""Checkpoints that RLlib wrote, with connectors of all kinds, and the environments in which they mean something."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray import cloudpickle
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.connectors.env_to_module import FlattenObservations, MeanStdFilter
from ray.rllib.connectors.env_to_module.frame_stacking import FrameStackingEnvToModule
from ray.rllib.connectors.env_to_module.observation_preprocessor import SingleAgentObservationPreprocessor
from ray.rllib.core.rl_module.rl_module import RLModule

from tests.conftest import make_q_module


class Frames(gym.Env):
    """Random frames; an episode has seven steps."""

    observation_space: gym.Space = gym.spaces.Box(0.0, 1.0, (8, 8, 1), np.float32)
    action_space = gym.spaces.Discrete(3)

    def __init__(self, config: Any = None):
        self.t = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.look(), {}

    def look(self) -> Any:
        return self.np_random.random((8, 8, 1)).astype(np.float32)

    def step(self, action):
        self.t += 1
        return self.look(), float(action == self.t % 3), self.t >= 7, False, {}


class Parts(Frames):
    """Random observations of several parts."""

    observation_space = gym.spaces.Dict(
        {
            "b": gym.spaces.Discrete(4),
            "a": gym.spaces.Box(-1.0, 1.0, (3, 2), np.float32),
            "c": gym.spaces.Tuple((gym.spaces.MultiDiscrete([2, 3]), gym.spaces.MultiBinary(2))),
        }
    )

    def look(self) -> Any:
        self.observation_space.seed(int(self.np_random.integers(2**30)))
        return self.observation_space.sample()


class Doubled(SingleAgentObservationPreprocessor):
    """A connector of one's own."""

    def preprocess(self, observation, episode):
        return 2 * observation


def connector(make):
    """As RLlib wants it: a function of env, spaces and device."""
    return lambda env=None, spaces=None, device=None: make()


KINDS: dict[str, dict[str, Any]] = {
    "plain": {"env": "CartPole-v1"},
    "filter": {"env": "CartPole-v1", "connector": connector(MeanStdFilter)},
    "clipped filter": {"env": "CartPole-v1", "connector": connector(lambda: MeanStdFilter(clip_by_value=0.5))},
    "one-hot": {"env": "FrozenLake-v1", "connector": connector(FlattenObservations)},
    "parts": {"env": Parts, "connector": connector(FlattenObservations)},
    "flat and filtered": {"env": Parts, "connector": lambda env=None, spaces=None, device=None: flat_and_filtered()},
    "frames": {
        "env": Frames,
        "connector": connector(lambda: FrameStackingEnvToModule(num_frames=3)),
        "model_config": {"conv_filters": [[4, 4, 2], [8, 4, 1]]},
    },
    "own": {"env": "CartPole-v1", "connector": connector(Doubled)},
}


def flat_and_filtered() -> list[Any]:
    return [FlattenObservations(), MeanStdFilter()]


def write_checkpoint(
    path: Path, env: Any, env_config: Any = None, module: RLModule | None = None, space: gym.Space | None = None
) -> str:
    """An Algorithm's checkpoint, as far as it is read, without an Algorithm.

    Args:
        path: of the folder to write.
        env: that it records.
        env_config: that it records.
        module: the network; default: any for CartPole-v1.
        space: discrete, which is flattened to what the network takes.
    """
    module = module or make_q_module(fcnet_hiddens=[8])
    module.save_to_path(str(path / "learner_group/learner/rl_module/default_policy"))
    config = {"env": env, "env_config": {} if env_config is None else env_config}
    (path / "class_and_ctor_args.pkl").write_bytes(cloudpickle.dumps({"ctor_args_and_kwargs": ((config,), {})}))
    if space is not None:
        folder = path / "env_runner/env_to_module_connector"
        folder.mkdir(parents=True)
        connectors = {"connectors": [(type(FlattenObservations()), (), {})]}
        content = {"ctor_args_and_kwargs": ((space, module.action_space), connectors)}
        (folder / "class_and_ctor_args.pkl").write_bytes(pickle.dumps(content))
    return str(path)


def write_frozen_lake(path: Path, env_config: Any = None, *, env: Any = "FrozenLake-v1") -> str:
    """A checkpoint whose policy walks straight to the goal, which it reaches where the ice is not slippery."""
    left, down, right = np.eye(4)[[0, 1, 2]]
    actions = np.tile(left, (16, 1))
    actions[[0, 4, 9]], actions[[8, 13, 14]] = down, right
    module = make_q_module(gym.spaces.Box(0, 1, (16,), np.float32), gym.spaces.Discrete(4), fcnet_hiddens=[16])
    weights = {"encoder.net.mlp.0.weight": np.eye(16), "af.net.mlp.0.weight": actions.T}
    state = {key: torch.as_tensor(weights.get(key, 0 * value)).float() for key, value in module.state_dict().items()}
    module.load_state_dict(state)
    return write_checkpoint(path, env, env_config, module, gym.spaces.Discrete(16))


def build_dqn(kind: str) -> Algorithm:
    """RLlib's DQN, which has sampled a little, so that filters know something."""
    settings = KINDS[kind]
    algo = (
        DQNConfig()
        .environment(settings["env"])
        .env_runners(num_env_runners=0, env_to_module_connector=settings.get("connector"))
        .rl_module(model_config={"fcnet_hiddens": [8], **settings.get("model_config", {})})
        .debugging(seed=0)
        .build_algo()
    )
    algo.env_runner.sample(num_timesteps=40, explore=True)
    return algo


def save_dqn(kind: str, path: Path) -> Path:
    """A checkpoint of `build_dqn()`."""
    algo = build_dqn(kind)
    algo.save_to_path(str(path))
    algo.stop()
    return path
