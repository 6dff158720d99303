"""An environment with observations of many parts."""

import gymnasium as gym
import numpy as np

from tests.observations.spaces import Missions


class Signs(gym.Env):
    """Pays 1 for the action that a sign asks for, unless a switch is on, which asks for the other one."""

    observation_space = gym.spaces.Dict(
        {
            "sign": gym.spaces.Text(12, charset="efghilort "),
            "at": gym.spaces.Tuple((gym.spaces.Discrete(3, start=2), gym.spaces.Box(-1.0, 1.0, (1, 2), np.float64))),
            "switch": gym.spaces.Dict({"on": gym.spaces.Box(0, 1, (), np.int8)}),
        }
    )
    action_space = gym.spaces.Discrete(2)

    def __init__(self, config=None):
        self.length = (config or {}).get("length", 8)

    def look(self):
        self.wanted, on = (int(number) for number in self.np_random.integers(2, size=2))
        return {
            "sign": ("go left", "go right")[self.wanted ^ on],
            "at": (2 + self.t % 3, self.np_random.uniform(-1, 1, (1, 2))),
            "switch": {"on": np.array(on, np.int8)},
        }

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.look(), {}

    def step(self, action):
        self.t += 1
        reward = float(action == self.wanted)
        return self.look(), reward, False, self.t >= self.length, {}


class Missioned(gym.Env):
    """Shows a mission alone."""

    observation_space = Missions()
    action_space = gym.spaces.Discrete(2)

    def __init__(self, config=None):
        self.t = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return "open the door", {}

    def step(self, action):
        self.t += 1
        return ("get the key", "open the door")[self.t % 2], 1.0, self.t >= 5, False, {}
