"""Environments that show images beside other parts."""

import gymnasium as gym
import numpy as np

SIDE = 20  # pixels


class Crossing(gym.Env):
    """Pays 1 for stepping to the side on which an image has a bright patch; to the other one if a switch is on.

    Neither the image nor the switch alone tells the action. An episode has eight steps.
    """

    observation_space = gym.spaces.Dict(
        {
            "switch": gym.spaces.Box(-1.0, 1.0, (3,), np.float32),
            "eye": gym.spaces.Box(0, 255, (SIDE, SIDE, 1), np.uint8),
        }
    )
    action_space = gym.spaces.Discrete(2)

    def __init__(self, config=None):
        self.length = (config or {}).get("length", 8)

    def look(self):
        side, switched = (int(number) for number in self.np_random.integers(2, size=2))
        self.wanted = side ^ switched
        image = self.np_random.integers(0, 100, (SIDE, SIDE, 1), np.uint8)
        row, column = self.np_random.integers(0, SIDE - 5), self.np_random.integers(0, SIDE // 2 - 5)
        column += side * SIDE // 2
        image[row : row + 5, column : column + 5] += 150
        noise = self.np_random.uniform(-0.2, 0.2, 2)
        return {"eye": image, "switch": np.array([2.0 * switched - 1.0, *noise], np.float32)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.look(), {}

    def step(self, action):
        self.t += 1
        reward = float(action == self.wanted)
        return self.look(), reward, False, self.t >= self.length, {}
