"""Environments that show images beside other parts."""

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.env.multi_agent_env import MultiAgentEnv

from rllib_kd import Teacher
from rllib_kd.observations.spaces import input_space
from tests.observations.environments import Signs

SIDE = 20  # pixels


class Crossing(Signs):
    """Pays 1 for stepping to the side on which an image has a bright patch; to the other one if a switch is on.

    Neither the image nor the switch alone tells the action. An episode has eight steps.
    """

    observation_space = gym.spaces.Dict(
        {
            "switch": gym.spaces.Box(-1.0, 1.0, (3,), np.float32),
            "eye": gym.spaces.Box(0, 255, (SIDE, SIDE, 1), np.uint8),
        }
    )

    def look(self):
        side, switched = (int(number) for number in self.np_random.integers(2, size=2))
        self.wanted = side ^ switched
        image = self.np_random.integers(0, 100, (SIDE, SIDE, 1), np.uint8)
        row, column = self.np_random.integers(0, SIDE - 5), self.np_random.integers(0, SIDE // 2 - 5)
        column += side * SIDE // 2
        image[row : row + 5, column : column + 5] += 150
        noise = self.np_random.uniform(-0.2, 0.2, 2)
        return {"eye": image, "switch": np.array([2.0 * switched - 1.0, *noise], np.float32)}


class Masked(Crossing):
    """Has a third action, which raises: the mask beside the observation tells."""

    features = Crossing.observation_space
    observation_space = gym.spaces.Dict(observations=features, action_mask=gym.spaces.Box(0, 1, (3,), np.int8))
    action_space = gym.spaces.Discrete(3)

    def look(self):
        return {"observations": super().look(), "action_mask": np.array([1, 1, 0], np.int8)}

    def step(self, action):
        assert action < 2
        return super().step(action)


class Crossings(MultiAgentEnv):
    """Two agents, each in a `Crossing` of its own."""

    def __init__(self, config=None):
        super().__init__()
        self.games = {"left": Crossing(), "right": Crossing()}
        self.agents = self.possible_agents = list(self.games)
        self.observation_spaces = dict.fromkeys(self.games, Crossing.observation_space)
        self.action_spaces = dict.fromkeys(self.games, Crossing.action_space)

    def reset(self, *, seed=None, options=None):
        return {agent: game.reset(seed=seed)[0] for agent, game in self.games.items()}, {}

    def step(self, actions):
        done = {agent: game.step(actions[agent]) for agent, game in self.games.items()}
        obs, rewards, _, ends = ({agent: result[i] for agent, result in done.items()} for i in range(4))
        is_over = all(ends.values())
        return obs, rewards, {"__all__": False}, {**ends, "__all__": is_over}, {}


def oracle(num_actions=2):
    """A teacher that plays perfectly: of vectors of the image and the switch, in this order."""

    def q_values(obs):
        image = obs[:, : SIDE * SIDE].unflatten(1, (SIDE, SIDE))
        side = image[:, :, SIDE // 2 :].amax((1, 2)) > image[:, :, : SIDE // 2].amax((1, 2))
        wanted = (side ^ (obs[:, SIDE * SIDE] > 0)).long()
        return torch.nn.functional.one_hot(wanted, num_actions).float()

    return Teacher.from_callable(
        q_values,
        observation_space=input_space(Crossing.observation_space),
        action_space=gym.spaces.Discrete(num_actions),
    )
