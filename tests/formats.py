"""Files of other libraries, written as those write them."""

from __future__ import annotations

import base64
import io
import itertools
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import nn

from rllib_kd.observations.pipeline import Shown

CHECKPOINTS = Path(__file__).parent / "checkpoints"


def nature_cnn(channels: int, num_actions: int, *, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Mnih et al. 2015, channels first, for frames of 84 × 84."""
    convolutions = [nn.Conv2d(channels, 32, 8, 4), nn.Conv2d(32, 64, 4, 2), nn.Conv2d(64, 64, 3, 1)]
    layers = [layer for convolution in convolutions for layer in (convolution, nn.ReLU())]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(3136, 512), activation(), nn.Linear(512, num_actions))


def mlp(*widths: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers with activations between them."""
    layers = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), activation())]
    return nn.Sequential(*layers[:-1])


def to_bytes(value: Any) -> bytes:
    """As `torch.save()` writes it."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def serialized(value: Any, *, gym_era: bool = False) -> dict[str, Any]:
    """An entry of `data` that is no JSON."""
    content = pickle.dumps(value, 3)
    if gym_era:
        content = content.replace(b"cgymnasium.spaces", b"cgym.spaces").replace(b"numpy._core", b"numpy.core")
        assert b"gymnasium" not in content
    return {":type:": str(type(value)), ":serialized:": base64.b64encode(content).decode()}


def sb3_zip(
    path: Path,
    weights: dict[str, torch.Tensor],
    observation_space: gym.Space,
    num_actions: int,
    *,
    gym_era: bool = False,
    data: dict[str, Any] | None = None,
    policy_kwargs: Any = None,
    files: dict[str, bytes] | None = None,
) -> Path:
    """A zip of Stable-Baselines3, with the entries that say something of the network.

    Args:
        path: to write.
        weights: of the policy.
        observation_space: as saved.
        num_actions: of the Discrete.
        gym_era: under the names of `gym`.
        data: over the entries of `data`.
        policy_kwargs: an entry of `data`.
        files: over the files in the zip.
    """
    entries = {
        "observation_space": serialized(observation_space, gym_era=gym_era),
        "action_space": serialized(gym.spaces.Discrete(num_actions), gym_era=gym_era),
        "policy_kwargs": policy_kwargs or {},
        "learning_rate": {":type:": "<class 'function'>", ":serialized:": base64.b64encode(b"cos\nsystem\n.").decode()},
    }
    contents = {
        "data": json.dumps(entries | (data or {})).encode(),
        "policy.pth": to_bytes(weights),
        "policy.optimizer.pth": b"",
        "_stable_baselines3_version": b"1.0",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (contents | (files or {})).items():
            archive.writestr(name, content)
    return path


def sb3_weights(network: nn.Sequential, *, kind: str = "q_net", has_images: bool = False) -> dict[str, torch.Tensor]:
    """The weights of a Q-network, and of its target network, under the names of Stable-Baselines3."""
    names = {f"{i}.": f"{kind}.{i}." for i in range(len(network))}
    if has_images:
        names |= {f"{i}.": f"features_extractor.cnn.{i}." for i in (0, 2, 4)}
        names |= {"7.": "features_extractor.linear.0.", "9.": f"{kind}.0."}
    weights = {}
    for name, value in network.state_dict().items():
        number, _, rest = name.partition(".")
        weights[f"{kind}.{names[number + '.']}{rest}"] = value
        weights[f"{kind}_target.{names[number + '.']}{rest}"] = value + 1
    return weights


def actor_critic_weights(
    network: nn.Sequential, *, has_images: bool = False, extractor: str = "shared", num_shared: int = 0
) -> dict[str, torch.Tensor]:
    """The weights of a policy, and of a critic beside it, under the names of Stable-Baselines3's A2C and PPO.

    Args:
        network: to the logits; behind convolutions the last layer alone is the head.
        has_images: whether it begins with the convolutions of `nature_cnn()`.
        extractor: "shared" by policy and value, under three names; "own", one each; or "old", as before 1.7.
        num_shared: hidden layers that policy and value shared before 1.7.
    """
    state = network.state_dict()
    numbers = sorted({int(name.partition(".")[0]) for name in state})
    parts: dict[int, str] = {}
    if has_images:
        parts = {0: "cnn.0", 2: "cnn.2", 4: "cnn.4", 7: "linear.0"}
    hidden = [number for number in numbers[:-1] if number not in parts]
    weights = {}
    for name, value in state.items():
        number, _, kind = name.partition(".")
        if int(number) in parts:
            inner = f"{parts[int(number)]}.{kind}"
            weights[f"features_extractor.{inner}"] = value
            if extractor != "old":
                weights[f"pi_features_extractor.{inner}"] = value
                weights[f"vf_features_extractor.{inner}"] = value + 1 if extractor == "own" else value
        elif int(number) == numbers[-1]:
            weights |= {f"action_net.{kind}": value, f"value_net.{kind}": value[:1] + 1}
        else:
            place = hidden.index(int(number))
            if place < num_shared:
                weights[f"mlp_extractor.shared_net.{2 * place}.{kind}"] = value
            else:
                own = f"{2 * (place - num_shared)}.{kind}"
                weights |= {f"mlp_extractor.policy_net.{own}": value, f"mlp_extractor.value_net.{own}": value + 1}
    return weights


def frames(count: int, channels: int = 4, seed: int = 0) -> np.ndarray:
    """Images of bytes, channels first."""
    return np.random.default_rng(seed).integers(0, 256, (count, channels, 84, 84), dtype=np.uint8)


@torch.no_grad()
def say(network, obs) -> np.ndarray:
    return network(torch.as_tensor(obs).float()).numpy()


def q_values(teacher: Any, obs: np.ndarray) -> np.ndarray:
    """What it says of what an environment shows."""
    view = teacher.start()
    return teacher.q_values(torch.as_tensor(view(Shown(obs, first=np.ones(len(obs), dtype=bool))))).numpy()
