"""Teachers of Stable-Baselines3 as RLlib checkpoints: until the package reads their format, the tests convert it."""

import io
import zipfile
from pathlib import Path

import gymnasium as gym
import torch

from tests.conftest import make_q_module


def convert(zip_path: Path, env_id: str, out: Path) -> str:
    """Write an RLModule checkpoint with the weights of a DQN with two layers of 256 units."""
    with zipfile.ZipFile(zip_path) as archive:
        weights = torch.load(io.BytesIO(archive.read("policy.pth")), weights_only=True, map_location="cpu")
    env = gym.make(env_id)
    module = make_q_module(env.observation_space, env.action_space, fcnet_hiddens=[256, 256])
    names = [f"q_net.q_net.{layer}.{kind}" for layer in (0, 2, 4) for kind in ("weight", "bias")]
    with torch.no_grad():
        for parameter, name in zip(module.parameters(), names, strict=True):
            parameter.copy_(weights[name])
    return module.save_to_path(str(out))
