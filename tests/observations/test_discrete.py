"""Discrete observations: one encoding for RLlib's loop, for players, and in files."""

import gymnasium as gym
import numpy as np
import pytest
from pyarrow.fs import LocalFileSystem
from ray.rllib.connectors.env_to_module import EnvToModulePipeline, FlattenObservations
from ray.rllib.env import INPUT_ENV_SINGLE_SPACES
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_kd import DistillDQNConfig
from rllib_kd.checkpoints.connectors import pipeline_of
from rllib_kd.checkpoints.rllib import RLlibCheckpoint
from rllib_kd.observations.discrete import OneHotObservations, connector_for, encode_discrete
from rllib_kd.observations.pipeline import Flatten, Shown
from rllib_kd.observations.spaces import check_spaces, input_space, same_space

ACTIONS = gym.spaces.Discrete(2)
PLAIN = [gym.spaces.Discrete(4), gym.spaces.MultiDiscrete([3, 2]), gym.spaces.MultiBinary(3)]
OTHERS = [
    gym.spaces.Discrete(4, start=3),
    gym.spaces.Discrete(4, start=-2),
    gym.spaces.MultiDiscrete([3, 2], start=[2, 1]),
    gym.spaces.MultiDiscrete([[3, 2], [1, 4]], start=[[0, 1], [2, -1]]),
]


def observations(space, count=20):
    space.seed(0)
    return [space.sample() for _ in range(count)]


def by_connector(connector, space, obs):
    """What RLlib's loop gives to a network: the last observation of an episode."""
    episode = SingleAgentEpisode(observations=[obs], observation_space=space, action_space=ACTIONS)
    pipeline = EnvToModulePipeline(space, ACTIONS, connectors=[connector])
    pipeline(rl_module=None, batch={}, episodes=[episode], explore=False, shared_data={}, metrics=None)
    return np.asarray(episode.get_observations(-1))


@pytest.mark.parametrize("space", [*PLAIN, *OTHERS], ids=str)
def test_one_encoding(space):
    """As gymnasium flattens them, which counts from `start`."""
    seen = observations(space)
    expected = np.array([gym.spaces.flatten(space, obs) for obs in seen], np.float32)
    assert len(np.unique(expected, axis=0)) > 2
    np.testing.assert_array_equal([by_connector(connector_for(space), space, obs) for obs in seen], expected)
    view = Flatten(space).start()
    np.testing.assert_array_equal(view(Shown(np.array(seen), np.ones(len(seen), dtype=bool))), expected)
    floats = np.array(seen, np.float32)
    np.testing.assert_array_equal(view(Shown(floats, np.ones(len(seen), dtype=bool))), expected)
    assert input_space(space).shape == expected.shape[1:]
    check_spaces(input_space(space), ACTIONS)


@pytest.mark.parametrize("space", PLAIN, ids=str)
def test_rllibs_own_connector_is_used_where_it_can_be(space):
    assert type(connector_for(space)) is FlattenObservations.func
    obs = observations(space, 1)[0]
    ours, theirs = (by_connector(make(), space, obs) for make in (OneHotObservations, FlattenObservations))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("space", [*PLAIN, *OTHERS], ids=str)
def test_the_config_adds_it_and_players_know_it(space):
    spaces = {INPUT_ENV_SINGLE_SPACES: (space, ACTIONS)}
    connectors = DistillDQNConfig().build_env_to_module_connector(spaces=spaces)
    assert connectors.observation_space.shape == input_space(space).shape
    assert pipeline_of(connectors).stages == (Flatten(space),)


def test_connectors_of_the_users_own_stay_alone():
    def nothing(env, spaces, device):
        return []

    config = DistillDQNConfig().env_runners(env_to_module_connector=nothing)
    connectors = config.build_env_to_module_connector(spaces={INPUT_ENV_SINGLE_SPACES: (PLAIN[0], ACTIONS)})
    assert pipeline_of(connectors).stages == ()


@pytest.mark.parametrize("space", [*PLAIN, *OTHERS], ids=str)
def test_it_is_read_from_a_checkpoint_as_data(space, tmp_path):
    spaces = {INPUT_ENV_SINGLE_SPACES: (space, ACTIONS)}
    folder = tmp_path / "env_runner" / "env_to_module_connector"
    connectors = DistillDQNConfig().build_env_to_module_connector(spaces=spaces)
    connectors.save_to_path(str(folder), state=connectors.get_state())
    opened = RLlibCheckpoint("x", LocalFileSystem(), str(tmp_path), str(tmp_path), trusted=False)
    assert opened.load_observation_pipeline() == pipeline_of(connectors)
    assert opened.load_observation_pipeline().observation_space == space


def test_numbers_from_elsewhere_are_another_space():
    assert not same_space(gym.spaces.Discrete(4), gym.spaces.Discrete(4, start=1))
    assert not same_space(gym.spaces.MultiDiscrete([4]), gym.spaces.MultiDiscrete([4], start=[1]))
    assert same_space(gym.spaces.Discrete(4, start=1), gym.spaces.Discrete(4, start=1))


def test_rllibs_algorithms_get_connectors_for_discrete_spaces_alone():
    for space, expected in ((PLAIN[0], FlattenObservations.func), (OTHERS[0], OneHotObservations)):
        (connector,) = encode_discrete(None, {INPUT_ENV_SINGLE_SPACES: (space, ACTIONS)}, None)
        assert type(connector) is expected
    assert encode_discrete(None, {INPUT_ENV_SINGLE_SPACES: (gym.spaces.Box(0, 1, (2, 2)), ACTIONS)}, None) == []
    assert encode_discrete(None, None, None) == []
