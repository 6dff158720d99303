"""Files of a user, for tests."""

from pathlib import Path

CORRIDOR = '''
import gymnasium as gym
import numpy as np


class Corridor(gym.Env):
    """Walk to the right."""

    def __init__(self, size=5, render_mode=None):
        self.size, self.action_space = size, gym.spaces.Discrete(2)
        self.observation_space = gym.spaces.Box(0.0, 1.0, (2,), np.float32)

    def look(self):
        return np.array([self.at / self.size, self.t / 50], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.t = 0, 0
        return self.look(), {}

    def step(self, action):
        self.at, self.t = max(0, self.at + 2 * int(action) - 1), self.t + 1
        return self.look(), float(self.at >= self.size), self.at >= self.size, self.t >= 50, {}
'''

WAYS = """
import gymnasium as gym
from ray.tune.registry import register_env

from corridor import Corridor


class Configured(Corridor):
    def __init__(self, config):
        super().__init__(**config)


def wrapped(size=5):
    return gym.wrappers.TimeLimit(Corridor(size), 3)


def nothing():
    return None


class NoEnvironment:
    pass


gym.register("Corridor-v7", "corridor:Corridor")
register_env("corridor-of-rays", lambda config: Corridor(**config))
"""

DISCRETE = """
import gymnasium as gym
import numpy as np

SPACES = {
    "discrete": gym.spaces.Discrete(4),
    "start": gym.spaces.Discrete(4, start=3),
    "multi": gym.spaces.MultiDiscrete([4, 2]),
    "grid": gym.spaces.MultiDiscrete([[4, 2]], start=[[2, 1]]),
    "binary": gym.spaces.MultiBinary(3),
}


class Cells(gym.Env):
    def __init__(self, kind="start"):
        self.observation_space, self.action_space = SPACES[kind], gym.spaces.Discrete(2)

    def look(self):
        self.observation_space.seed(int(self.np_random.integers(2**30)))
        return self.observation_space.sample()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.look(), {}

    def step(self, action):
        self.t += 1
        return self.look(), float(action), self.t >= 7, False, {}
"""


def write_files(folder: Path) -> Path:
    """Write all of them."""
    for name, text in (("corridor", CORRIDOR), ("ways", WAYS), ("cells", DISCRETE)):
        (folder / f"{name}.py").write_text(text)
    package = folder / "mine" / "worlds"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("")
    (package / "__init__.py").write_text("from .walk import Walk\n")
    (package / "walk.py").write_text("from corridor import Corridor\n\n\nclass Walk(Corridor):\n    pass\n")
    return folder
