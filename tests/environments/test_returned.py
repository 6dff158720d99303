"""What environments may not return: numbers that are not finite, and what does not suit their space."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete
from ray.rllib.algorithms.dqn import DQNConfig
from ray.tune.registry import register_env

from rllib_kd.algorithm.preflight import try_out
from rllib_kd.env_runner.fragment import Fragment
from rllib_kd.environments.failures import EnvFailedError
from rllib_kd.environments.making import checked_call
from rllib_kd.environments.returned import NotFiniteError, find_not_finite, misfit
from rllib_kd.evaluation.playing import RandomActions, play


@pytest.mark.parametrize(
    ("batch", "index", "said"),
    [
        (np.array([0.0, np.nan]), 1, "nan"),
        (np.array([[0.0, 1.0], [np.inf, 2.0]]), 1, "inf at index 0 (1 of 2 components)"),
        (np.array([[np.nan] * 9]), 0, "nan at index 0, 1, 2, 3, 4, ... (9 of 9 components)"),
        (np.array([[[0.0, -np.inf], [np.nan, 0.0]]]), 0, "-inf and nan at index (0, 1), (1, 0) (2 of 4 components)"),
    ],
)
def test_the_first_environment_with_numbers_that_are_not_finite_is_found(batch, index, said):
    found = find_not_finite(batch, "observation")
    assert (found.env_index, str(found)) == (index, said)


def test_parts_of_observations_are_named():
    batch = {"seen": np.zeros((2, 3)), "heard": (np.zeros(2), np.array([0.0, np.nan]))}
    assert find_not_finite(batch, "observation").what == "observation['heard'][1]"


@pytest.mark.parametrize("batch", [np.zeros((2, 3)), np.zeros(2, np.uint8), np.array(["a"]), [], {}])
def test_finite_numbers_and_what_are_no_numbers_are_fine(batch):
    assert find_not_finite(batch, "observation") is None


@pytest.mark.parametrize(
    ("space", "obs", "said"),
    [
        (Box(0, 1, (2,)), np.zeros(2), None),
        (Box(0, 255, (2,), np.uint8), np.zeros(2, np.uint8), None),
        (Discrete(3), 1, None),
        (Dict(a=Box(0, 1, (2,))), {"a": np.zeros(2), "more": 1}, None),
        (
            Box(0, 1, (2,)),
            np.zeros(3, np.float32),
            "observation of shape (3,) and dtype float32, but .* shape (2,) and",
        ),
        (Discrete(3), 0.5, "observation of shape () and dtype float64, but its .* shape () and dtype int64"),
        (Box(0, 1, (2,)), [[1], [1, 2]], "observation that is not an array, but its observation_space has shape (2,)"),
        (Dict(a=Box(0, 1, (2,))), {"a": 1.0}, "observation['a'] of shape () and dtype float64, but"),
        (
            Dict(a=Box(0, 1, (2,))),
            {"b": 1.0},
            "observation of keys ['b'], but its observation_space has the keys ['a']",
        ),
        (Dict(a=Box(0, 1, (2,))), np.zeros(2), "observation of type ndarray, but its observation_space has the keys"),
    ],
)
def test_observations_that_do_not_suit_their_space_are_named_with_both(space, obs, said):
    got = misfit(space, obs)
    assert (got is None) == (said is None)
    for part in (said or "").split(".*"):
        assert part in (got or "")


class Fine(gym.Env):
    observation_space, action_space = Box(-1, 1, (3,)), Discrete(2)

    def reset(self, *, seed=None, options=None):
        return np.zeros(3, np.float32), {}

    def step(self, action):
        return np.zeros(3, np.float32), 0.0, False, False, {}


class FourValues(Fine):
    def step(self, action):
        return np.zeros(3, np.float32), 0.0, False, {}


class SixValues(Fine):
    def step(self, action):
        return np.zeros(3, np.float32), 0.0, False, False, {}, 1


class NoInfo(Fine):
    def reset(self, *, seed=None, options=None):
        return np.zeros(3, np.float32)


class NoSeed(Fine):
    def reset(self):
        return np.zeros(3, np.float32), {}


class NoOptions(Fine):
    def reset(self, seed=None):
        return np.zeros(3, np.float32), {}


class TwoNumbers(Fine):
    """Its observation looks like a pair."""

    observation_space = Box(-1, 1, (2,))

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32)


class NothingSeen(Fine):
    def reset(self, *, seed=None, options=None):
        return None, {}


class RewardInAnArray(Fine):
    def step(self, action):
        return np.zeros(3, np.float32), np.zeros(2), False, False, {}


class RewardOfText(Fine):
    def step(self, action):
        return np.zeros(3, np.float32), "much", False, False, {}


class OldWrapper(gym.Wrapper):
    def __init__(self):
        super().__init__(FourValues())

    def step(self, action):
        obs, reward, done, info, more = self.env.step(action)
        return obs, reward, done, info, more


@pytest.mark.parametrize(
    ("env", "said"),
    [
        (Fine, None),
        (
            FourValues,
            r"'FourValues' returned 4 values from step\(\) \(.*, in step\)\. Expected: return observation, reward,",
        ),
        (SixValues, r"'SixValues' did not return 5 values from step\(\) \("),
        (
            NoInfo,
            r"'NoInfo' did not return 2 values from reset\(\) \(.*, in reset\)\. Expected: return observation, info",
        ),
        (TwoNumbers, r"'TwoNumbers' did not return 2 values from reset\(\) \(\S+, in reset\)\. Expected: return obs"),
        (NoSeed, r"'NoSeed' takes no seed in reset\(\) \(.*, in reset\)\. Expected: def reset\(self, \*, seed=None"),
        (
            NoOptions,
            r"'NoOptions' takes no options in reset\(\) \(.*, in reset\)\. Expected: def reset\(self, \*, seed=",
        ),
        (NothingSeen, r"'NothingSeen' returned, in reset\(\), an observation that is None, but its .* shape \(3,\) \("),
        (RewardInAnArray, r"'RewardInAnArray' returned a reward, terminated or truncated that is not one number from"),
        (RewardOfText, r"not one number from step\(\) \(ValueError: could not convert .*Expected: return observation,"),
        (OldWrapper, r"'FourValues' raised in step\(\): ValueError: not enough values to unpack .*, in step"),
    ],
)
def test_methods_that_are_not_gymnasiums_are_named_with_their_line(env, said):
    register_env(env.__name__, lambda config: env())
    config = DQNConfig().environment(env.__name__)
    if said is None:
        try_out(config)
        return
    with pytest.raises(EnvFailedError, match=said) as raised:
        try_out(config)
    assert __file__ in str(raised.value)


class NumberedInfo(Fine):
    def step(self, action):
        return np.zeros(3, np.float32), 0.0, False, False, {"counts": {1: 2}}


def test_infos_with_keys_that_are_not_texts_are_named():
    envs = gym.wrappers.vector.DictInfoToList(gym.vector.SyncVectorEnv([NumberedInfo]))  # as RLlib has
    envs.reset(seed=0)
    with pytest.raises(
        EnvFailedError, match=r"returned infos with keys that are not texts from step\(\) \(.*, in step\)"
    ):
        checked_call(envs.step, np.zeros(1, int))


class Strict(Fine):
    """Only its second action is legal."""

    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        return obs, {**info, "action_mask": np.array([0, 1])}

    def step(self, action):
        if action != 1:
            raise ValueError("an illegal action")
        return super().step(action)


class Blocked(Strict):
    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        return obs, {**info, "action_mask": np.array([0, 0])}


def test_an_environment_is_tried_with_a_legal_action():
    for env in (Strict, Blocked):
        register_env(env.__name__, lambda config, env=env: env())
    try_out(DQNConfig().environment("Strict"))
    with pytest.raises(EnvFailedError, match=r"'Blocked'.*action mask"):
        try_out(DQNConfig().environment("Blocked"))


def fragment_of(rewards, states, ended):
    """Of one environment."""
    fragment = Fragment(np.zeros(1, dtype=bool))
    for reward, state, end in zip(rewards, states, ended, strict=False):
        fragment.decide(np.array([[state]], np.float32), {}, np.zeros(1, int))
        fragment.step(np.array([reward]), np.array([end]), np.zeros(1, dtype=bool))
    fragment.final_obs = np.array([[states[-1]]], np.float32)
    return fragment


@pytest.mark.parametrize(
    ("rewards", "states", "method"),
    [
        ([1, np.nan, 1], [0, 0, 0, 0], "step"),
        ([1, 1e300, 1], [0, 0, 0, 0], "step"),  # infinite as 32 bits
        ([1, 1, 1], [0, np.nan, 0, 0], "step"),
        ([1, 1, 1], [np.nan, 0, 0, 0], "step() or reset"),  # from before
        ([1, 1, 1], [0, 0, 0, np.nan], "reset"),  # in the step after the end of an episode
        ([1, 1, 1], [0, 0, 0, 0], None),
    ],
)
def test_in_a_fragment_the_method_is_known(rewards, states, method):
    found = fragment_of(rewards, states, ended=[False, True, False]).find_not_finite()
    assert (None if found is None else found[1]) == method


@pytest.mark.parametrize("how", ["reward", "observation", "reset"])
def test_a_comparison_names_the_environment(how):
    class Broken(gym.Wrapper):
        def reset(self, **kwargs):
            obs, info = super().reset(**kwargs)
            return obs * (np.nan if how == "reset" else 1), info

        def step(self, action):
            obs, reward, *others = super().step(action)
            return obs * (np.nan if how == "observation" else 1), np.nan if how == "reward" else reward, *others

    with pytest.raises(NotFiniteError, match=rf"'CartPole-v1' returned .* as .* of sub-environment 0: nan.*{__file__}"):
        play(lambda: Broken(gym.make("CartPole-v1")), RandomActions(2, seed=0), [0, 1])


class Simulation:
    """An object with the methods of an environment, which knows the environment that uses it."""

    def __init__(self, env):
        self.env = env

    def step(self, action):
        return None


@pytest.mark.parametrize("what", ["a map", "a name", "the environment itself"])
def test_an_attribute_env_may_be_anything(what):
    class Own(Fine):
        def __init__(self):
            self.env = {"a map": np.zeros((5, 5)), "a name": "level-1"}.get(what, Simulation(self))
            self.num_steps = 0

        def step(self, action):
            self.num_steps += 1
            obs, *others, _, info = super().step(action)
            return obs * (np.nan if self.num_steps > 3 else 1), *others, self.num_steps == 3, info

    assert play(Own, RandomActions(2, seed=0), [0, 1])[0] == [0.0, 0.0]
    env = Own()
    env.num_steps = 3
    with pytest.raises(NotFiniteError, match=rf"'Own' returned .*nan.*{__file__}:\d+, in step"):
        play(lambda: env, RandomActions(2, seed=0), [0])
