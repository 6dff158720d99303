"""Students of every kind of network, and of what stands before one."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from rllib_kd.export.artifact import FORMATS
from rllib_kd.networks.dqn_module import student_module_spec
from rllib_kd.observations.pipeline import Flatten, Normalize
from rllib_kd.teachers.base import Teacher
from tests.conftest import CARTPOLE_ACTIONS, CARTPOLE_OBS, make_q_module

ROOT = Path(__file__).parents[2]
IMAGES = gym.spaces.Box(-1.0, 1.0, (84, 84, 4))
SMALL_IMAGES = gym.spaces.Box(-1.0, 1.0, (13, 11, 3))  # no side is a multiple of a stride
THREE_ACTIONS = gym.spaces.Discrete(3)


def linear_student(observation_space: gym.Space = CARTPOLE_OBS) -> Teacher:
    config = {"fcnet_hiddens": [], "dueling": False, "double_q": True, "num_atoms": 1, "epsilon": 0.0}
    spec = student_module_spec(config | {"v_min": -10.0, "v_max": 10.0})
    spec.observation_space, spec.action_space, spec.inference_only = observation_space, CARTPOLE_ACTIONS, True
    return Teacher(spec.build())


def network(observation_space: gym.Space = CARTPOLE_OBS, **model_config) -> Teacher:
    """Random weights, biases too: an artifact that forgets them must not look right."""
    module = make_q_module(observation_space, THREE_ACTIONS, **model_config)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(-0.5, 0.5)
    return Teacher(module)


LINEAR = {"linear": CARTPOLE_OBS, "linear in pixels": SMALL_IMAGES}
MLPS = {
    "one relu layer": {"fcnet_hiddens": [16]},
    "two tanh layers": {"fcnet_hiddens": [16, 8], "fcnet_activation": "tanh"},
    "head layers": {"head_fcnet_hiddens": [8, 6], "head_fcnet_activation": "tanh"},
    "dueling": {"dueling": True, "head_fcnet_hiddens": [8]},
}
OTHERS = {
    "layer norm, elu": {"fcnet_use_layernorm": True, "fcnet_activation": "elu"},
    "silu, sigmoid": {"fcnet_activation": "silu", "head_fcnet_hiddens": [8], "head_fcnet_activation": "Sigmoid"},
    "C51": {"num_atoms": 7},
    "dueling C51": {"num_atoms": 7, "dueling": True},
    "cnn": {
        "observation_space": IMAGES,
        "conv_filters": [[4, 8, 4, "valid"], [6, [4, 3], [2, 1], "valid"]],
        "conv_activation": "relu",
        "head_fcnet_hiddens": [16],
    },
    "cnn with padding": {
        "observation_space": SMALL_IMAGES,
        "conv_filters": [[4, 4, 3], [5, [3, 2], [1, 2]]],
        "conv_activation": "tanh",
        "dueling": True,
    },
}

FILTER = Normalize(np.array([0.1, -0.2, 0.3, 0.0]), np.array([0.5, 2.0, 1.0, 0.1]) + 1e-8, clip=1.5)
PIPELINES = {
    "filter": (CARTPOLE_OBS, CARTPOLE_OBS, (FILTER,)),
    "filter without bounds": (CARTPOLE_OBS, CARTPOLE_OBS, (Normalize(FILTER.mean, None, None),)),
    "one-hot from -1": (
        gym.spaces.Discrete(5, start=-1),
        gym.spaces.Box(0, 1, (5,)),
        (Flatten(gym.spaces.Discrete(5, start=-1)),),
    ),
    "grid from 2": (
        gym.spaces.MultiDiscrete([[2, 3]], start=[[2, -1]]),
        gym.spaces.Box(0, 1, (5,)),
        (Flatten(gym.spaces.MultiDiscrete([[2, 3]], start=[[2, -1]])),),
    ),
    "one-hot": (gym.spaces.Discrete(5), gym.spaces.Box(0, 1, (5,)), (Flatten(gym.spaces.Discrete(5)),)),
    "one-hots, filtered": (
        gym.spaces.MultiDiscrete([2, 3]),
        gym.spaces.Box(0, 1, (5,)),
        (Flatten(gym.spaces.MultiDiscrete([2, 3])), Normalize(np.full(5, 0.4), np.full(5, 0.3), 10.0)),
    ),
    "one-hots in rows and columns": (
        gym.spaces.MultiDiscrete([[2, 3], [4, 2]]),
        gym.spaces.Box(0, 1, (11,)),
        (Flatten(gym.spaces.MultiDiscrete([[2, 3], [4, 2]])),),
    ),
    "bits": (gym.spaces.MultiBinary(5), gym.spaces.Box(0, 1, (5,)), (Flatten(gym.spaces.MultiBinary(5)),)),
    "flat": (gym.spaces.Box(-1, 1, (2, 3)), gym.spaces.Box(-1, 1, (6,)), (Flatten(gym.spaces.Box(-1, 1, (2, 3))),)),
}

#: Formats of networks: Python files are for trees.
NETWORK_FORMATS = tuple(name for name in FORMATS if name != "python")
#: Formats of one file, which any process loads. C is compiled: tests/export/c has its networks in one program.
ONE_FILE = tuple(name for name in NETWORK_FORMATS if name != "c")
#: Where each file is played in a process of its own, as many others are: the one that imports torch is slow.
SLOW_TO_PLAY = [pytest.param(name, marks=pytest.mark.slow) for name in ("pt2", "torchscript")]
QUICK_TO_PLAY = [name for name in ONE_FILE if name not in ("pt2", "torchscript")]
