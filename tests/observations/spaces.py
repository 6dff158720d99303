"""Spaces of every kind that becomes one vector."""

import gymnasium as gym
import numpy as np


class Missions(gym.Space):
    """Texts, without being a Text: as MiniGrid's MissionSpace."""

    def __init__(self):
        super().__init__(dtype=str)

    def sample(self, mask=None, probability=None):
        return str(self.np_random.choice(["go to the red ball", "open the door", "get the key"]))

    def contains(self, x):
        return isinstance(x, str)

    def __eq__(self, other):
        return isinstance(other, Missions)


NUMBERS = {
    "scalar": gym.spaces.Box(-1.0, 1.0, ()),
    "float64": gym.spaces.Box(-1e3, 1e3, (2, 3), np.float64),
    "matrix": gym.spaces.Box(-1.0, 1.0, (2, 3)),
    "float16": gym.spaces.Box(-1.0, 1.0, (3,), np.float16),
    "float16 matrix": gym.spaces.Box(-1.0, 1.0, (2, 3), np.float16),
    "bytes": gym.spaces.Box(0, 255, (4,), np.uint8),
    "int8": gym.spaces.Box(-128, 127, (2, 2), np.int8),
    "int64": gym.spaces.Box(-(10**6), 10**6, (2,), np.int64),
    "int16 of three axes": gym.spaces.Box(-9, 9, (2, 3, 2), np.int16),
    "four axes": gym.spaces.Box(0.0, 1.0, (2, 1, 2, 1)),
    "bool": gym.spaces.Box(0, 1, (5,), np.bool_),
    "binary": gym.spaces.MultiBinary([2, 2]),
}
CASES = {
    "discrete": gym.spaces.Discrete(4),
    "start": gym.spaces.Discrete(4, start=-2),
    "multi": gym.spaces.MultiDiscrete([3, 2]),
    "grid": gym.spaces.MultiDiscrete([[3, 2], [1, 4]], start=[[0, 1], [2, -1]]),
}
COMPOSED = {
    "dict": gym.spaces.Dict({"z": NUMBERS["int8"], "a": CASES["start"], "m": NUMBERS["scalar"]}),
    "tuple": gym.spaces.Tuple((CASES["multi"], NUMBERS["float64"], CASES["grid"])),
    "nested": gym.spaces.Dict(
        {
            "pair": gym.spaces.Tuple((CASES["start"], gym.spaces.Dict({"b": NUMBERS["bool"], "a": NUMBERS["matrix"]}))),
            "far": NUMBERS["int64"],
            "small image": gym.spaces.Box(0, 10, (7, 7, 3), np.uint8),
        }
    ),
}
TEXTS = {
    "text": gym.spaces.Text(12, charset="ab cd"),
    "missions": Missions(),
    "with texts": gym.spaces.Dict(mission=Missions(), at=CASES["start"], note=gym.spaces.Text(6), x=NUMBERS["float64"]),
}
