"""Small files that would take much, and how to see that they are refused."""

import pickle
import struct

from ray.rllib.algorithms.dqn import DQN
from ray.rllib.connectors.env_to_module import EnvToModulePipeline

from tests.conftest import CARTPOLE_OBS, make_q_module
from tests.fuzzing.workers import measure_apart

MODULE = "learner_group/learner/rl_module/default_policy"
CONNECTORS = "env_runner/env_to_module_connector/class_and_ctor_args.pkl"
#: Of processor time. The goal is 2 (`python tests/fuzzing/run.py`); coverage and a slow machine need a multiple of it.
_SECONDS = 10


def refused(function):
    """It is refused, at once."""
    outcome = measure_apart(function)
    assert outcome.verdict == "refused"
    assert outcome.seconds < _SECONDS
    assert outcome.megabytes < 300


def long(value):
    data = pickle.encode_long(value)
    return b"\x8a" + bytes([len(data)]) + data


def put(place):
    return b"r" + struct.pack("<I", place)


def get(place):
    return b"j" + struct.pack("<I", place)


PRIME = 2**61 - 1  # Python's hash of its multiples is 0


class Recipe:
    """Pickles as a call, with a state."""

    def __init__(self, function, args, state):
        self.parts = (function, args, state)

    def __reduce__(self):
        return self.parts


def write_rllib(path, *, space=CARTPOLE_OBS, connectors=(), module=None, model_config=None, shown=None):
    """An Algorithm's checkpoint, as far as it is read."""
    module = module or make_q_module(fcnet_hiddens=[8])
    module.save_to_path(str(path / MODULE))
    if model_config or shown:
        file = path / MODULE / "class_and_ctor_args.pkl"
        content = pickle.loads(file.read_bytes())
        content["ctor_args_and_kwargs"][1]["model_config"] |= model_config or {}
        content["ctor_args_and_kwargs"][1]["observation_space"] = shown or CARTPOLE_OBS
        file.write_bytes(pickle.dumps(content))
    (path / CONNECTORS).parent.mkdir(parents=True)
    args = ((space, module.action_space), {"connectors": list(connectors)})
    (path / CONNECTORS).write_bytes(pickle.dumps({"class": EnvToModulePipeline, "ctor_args_and_kwargs": args}))
    config = {"class": DQN, "ctor_args_and_kwargs": (({"env": "CartPole-v1"},), {})}
    (path / "class_and_ctor_args.pkl").write_bytes(pickle.dumps(config))
