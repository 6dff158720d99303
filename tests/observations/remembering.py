"""A task that nothing but a memory solves."""

import gymnasium as gym
import numpy as np

from rllib_kd import Teacher
from rllib_kd.observations.pipeline import Function, ObservationPipeline


class Cue(gym.Env):
    """Shows a cue in the first of `length` steps, −1 or 1, and pays 1 for each action that it asks for."""

    def __init__(self, config=None):
        self.length = (config or {}).get("length", 6)
        one = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.observation_space = gym.spaces.Dict({"cue": one, "shown": one})
        self.action_space = gym.spaces.Discrete(2)

    def look(self):
        shown = self.cue if self.t == 0 else 0.0
        return {"cue": np.array([self.cue], np.float32), "shown": np.array([shown], np.float32)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.cue = 0, float(self.np_random.choice([-1.0, 1.0]))
        return self.look(), {}

    def step(self, action):
        self.t += 1
        return self.look(), float((action == 1) == (self.cue > 0)), self.t == self.length, False, {}


def _q_values(cue):
    return np.concatenate([-cue, cue], -1)


def knowing_teacher():
    """A teacher that sees the cue in every step."""
    one = Cue().observation_space["cue"]
    pipeline = ObservationPipeline(Cue().observation_space, (Function(lambda obs: obs["cue"]),))
    return Teacher.from_callable(
        lambda cue: _q_values(np.asarray(cue)),
        observation_space=one,
        action_space=gym.spaces.Discrete(2),
        pipeline=pipeline,
    )
