"""Small games with illegal moves, which show their masks in each of the usual ways."""

import gymnasium as gym
import numpy as np
from ray.rllib.env.multi_agent_env import MultiAgentEnv

NUM_ACTIONS = 4
NUMBERS = gym.spaces.Box(0.0, 1.0, (NUM_ACTIONS,), np.float32)
MASK = gym.spaces.Box(0, 1, (NUM_ACTIONS,), np.int8)


class Payments(gym.Env):
    """Shows what each action pays, in [0, 1]; the highest one is always illegal, and raises."""

    observation_space = NUMBERS
    action_space = gym.spaces.Discrete(NUM_ACTIONS)

    def __init__(self, config=None):
        self.length = (config or {}).get("length", 8)

    def look(self):
        self.pays = self.np_random.random(NUM_ACTIONS).astype(np.float32)
        self.legal = (self.np_random.random(NUM_ACTIONS) < 0.5).astype(np.int8)
        self.legal[self.pays.argsort()[-2]] = 1
        self.legal[self.pays.argmax()] = 0
        return self.pays

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.shown(self.look()), self.info()

    def step(self, action):
        assert self.legal[action], f"the action {action} is illegal: {self.legal}"
        self.t += 1
        pay = float(self.pays[action])
        is_over = self.t >= self.length
        obs = self.look()
        if is_over:
            self.legal[:] = 0  # as in games of several players
        return self.shown(obs), pay, is_over, False, self.info()

    def shown(self, obs):
        return obs

    def info(self):
        return {}


class InDict(Payments):
    """As RLlib's environments show it."""

    key = "observations"

    def __init__(self, config=None):
        super().__init__(config)
        self.observation_space = gym.spaces.Dict({self.key: NUMBERS, "action_mask": MASK})

    def shown(self, obs):
        return {self.key: obs, "action_mask": self.legal.copy()}


class InPettingZoosDict(InDict):
    key = "observation"


class BesideParts(Payments):
    """Beside several other parts."""

    observation_space = gym.spaces.Dict(
        {
            "left": gym.spaces.Box(0.0, 1.0, (2,), np.float32),
            "right": gym.spaces.Box(0.0, 1.0, (2,), np.float32),
            "action_mask": gym.spaces.MultiBinary(NUM_ACTIONS),
        }
    )

    def shown(self, obs):
        return {"left": obs[:2], "right": obs[2:], "action_mask": self.legal.copy()}


class InInfo(Payments):
    def info(self):
        return {"action_mask": self.legal.copy()}


class ByMethod(Payments):
    """As MaskablePPO's environments show it."""

    def action_masks(self):
        return self.legal.astype(bool)


ALL = (InDict, InPettingZoosDict, BesideParts, InInfo, ByMethod)


class Two(MultiAgentEnv):
    """Two agents, each of which plays a game of its own."""

    def __init__(self, config=None):
        super().__init__()
        self.agents = self.possible_agents = ["a", "b"]
        self.games = {agent: InDict({"length": 6}) for agent in self.agents}
        space = self.games["a"].observation_space
        self.observation_spaces = dict.fromkeys(self.agents, space)
        self.action_spaces = dict.fromkeys(self.agents, Payments.action_space)

    def reset(self, *, seed=None, options=None):
        seeds = {"a": seed, "b": None if seed is None else seed + 1}
        return {agent: game.reset(seed=seeds[agent])[0] for agent, game in self.games.items()}, {}

    def step(self, actions):
        results = {agent: self.games[agent].step(action) for agent, action in actions.items()}
        obs, rewards, ended = ({agent: own[i] for agent, own in results.items()} for i in range(3))
        is_over = all(ended.values())
        return obs, rewards, ended | {"__all__": is_over}, {"__all__": False}, {}


def own_policy(agent, *args, **kwargs):
    """Each agent has a policy of its name."""
    return agent
