"""Teachers of Stable-Baselines3 beside Stable-Baselines3 itself, which is installed for tests alone."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.dqn.torch.default_dqn_torch_rl_module import DefaultDQNTorchRLModule
from sb3_contrib import QRDQN
from stable_baselines3 import DQN
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from rllib_kd import load_teacher
from rllib_kd.observations.pipeline import Shown


class Anything(gym.Env):
    """Random observations of a space."""

    def __init__(self, observation_space):
        self.observation_space, self.action_space = observation_space, gym.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


def images(*shape):
    return gym.spaces.Box(0, 255, shape, np.uint8)


KINDS = {
    "MLP": (DQN, gym.spaces.Box(-1, 1, (4,)), {"net_arch": [16, 8]}),
    "MLP, tanh": (DQN, gym.spaces.Box(-1, 1, (4,)), {"net_arch": [16], "activation_fn": torch.nn.Tanh}),
    "linear": (DQN, gym.spaces.Box(-1, 1, (4,)), {"net_arch": []}),
    "a matrix": (DQN, gym.spaces.Box(-1, 1, (3, 2)), {"net_arch": [8]}),
    "bytes": (DQN, images(12), {"net_arch": [8]}),
    "discrete": (DQN, gym.spaces.Discrete(5), {"net_arch": [8]}),
    "several discrete": (DQN, gym.spaces.MultiDiscrete([3, 4]), {"net_arch": [8]}),
    "bits": (DQN, gym.spaces.MultiBinary(5), {"net_arch": [8]}),
    "images, channels last": (DQN, images(84, 84, 4), {}),
    "images, channels first": (DQN, images(2, 40, 48), {"net_arch": [8]}),
    "images, fewer features": (DQN, images(36, 36, 1), {"features_extractor_kwargs": {"features_dim": 16}}),
    "quantiles": (QRDQN, gym.spaces.Box(-1, 1, (4,)), {"net_arch": [16], "n_quantiles": 25}),
    "quantiles of images": (QRDQN, images(36, 36, 3), {"n_quantiles": 5}),
}


@torch.no_grad()
def original(model, obs):
    """Q-values as Stable-Baselines3 computes them."""
    tensor, _ = model.policy.obs_to_tensor(obs)
    return (model.policy.q_net(tensor) if isinstance(model, DQN) else model.policy.quantile_net(tensor).mean(1)).numpy()


def converted(teacher, obs):
    seen = teacher.start()(Shown(obs, first=np.ones(len(obs), dtype=bool)))
    return teacher.q_values(torch.as_tensor(seen)).numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_q_values_are_those_of_the_original(tmp_path, kind):
    algorithm, space, policy_kwargs = KINDS[kind]
    policy = "CnnPolicy" if len(space.shape) == 3 else "MlpPolicy"
    model = algorithm(policy, Anything(space), buffer_size=8, policy_kwargs=policy_kwargs, seed=0)
    model.save(tmp_path / "model.zip")
    obs = np.stack([model.observation_space.sample() for _ in range(5)])  # of images, channels first
    teacher = load_teacher(tmp_path / "model.zip")
    assert converted(teacher, obs) == pytest.approx(original(model, obs), abs=1e-6)
    assert isinstance(teacher.module, DefaultDQNTorchRLModule)
    if space.shape != model.observation_space.shape:
        assert converted(teacher, np.moveaxis(obs, 1, -1)) == pytest.approx(original(model, obs), abs=1e-6)


def test_vec_normalize_as_the_original_applies_it(tmp_path):
    envs = VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")]), clip_obs=1.5)
    model = DQN("MlpPolicy", envs, learning_starts=0, buffer_size=100, policy_kwargs={"net_arch": [8]}, seed=0)
    model.learn(100)
    model.save(tmp_path / "model.zip")
    envs.save(tmp_path / "vecnormalize.pkl")
    obs = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    teacher = load_teacher(tmp_path / "model.zip")
    assert converted(teacher, obs) == pytest.approx(original(model, envs.normalize_obs(obs)), abs=1e-5)


def test_observations_of_several_parts_are_refused(tmp_path):
    space = gym.spaces.Dict(a=gym.spaces.Box(-1, 1, (3,)), b=gym.spaces.Discrete(2))
    DQN("MultiInputPolicy", Anything(space), buffer_size=8).save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match=r"it sees Dict\(.*\), which is not supported"):
        load_teacher(tmp_path / "model.zip")
