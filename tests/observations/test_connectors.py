"""Connectors that are added for a space: one encoding for RLlib's loop, for players, and in files."""

import gymnasium as gym
import numpy as np
import pytest
import tree
from pyarrow.fs import LocalFileSystem
from ray.rllib.connectors.env_to_module import EnvToModulePipeline, FlattenObservations
from ray.rllib.connectors.env_to_module.observation_preprocessor import SingleAgentObservationPreprocessor
from ray.rllib.env import INPUT_ENV_SINGLE_SPACES
from ray.rllib.env.multi_agent_episode import MultiAgentEpisode
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_kd import DistillDQNConfig
from rllib_kd.checkpoints.connectors import connector_stages, is_flattening, pipeline_of
from rllib_kd.checkpoints.pickles import Name
from rllib_kd.checkpoints.rllib import RLlibCheckpoint
from rllib_kd.observations.connectors import OneVector, connector_for, flatten_observations
from rllib_kd.observations.flattening import Flattener
from rllib_kd.observations.pipeline import Flatten, RLlibConnectors, Shown
from rllib_kd.observations.spaces import input_space, same_space
from tests.observations.spaces import CASES, COMPOSED, NUMBERS, TEXTS

ACTIONS = gym.spaces.Discrete(2)
PLAIN = {
    "discrete": CASES["discrete"],
    "multi": CASES["multi"],
    "row": gym.spaces.MultiBinary(3),
    "matrix of floats": NUMBERS["matrix"],
}
SPACES = NUMBERS | CASES | COMPOSED | TEXTS | PLAIN


def observations(space, count=20):
    space.seed(0)
    return [space.sample() for _ in range(count)]


def by_connector(connector, space, obs):
    """What RLlib's loop gives to a network: the last observation of an episode."""
    episode = SingleAgentEpisode(observations=[obs], observation_space=space, action_space=ACTIONS)
    pipeline = EnvToModulePipeline(space, ACTIONS, connectors=[connector])
    pipeline(rl_module=None, batch={}, episodes=[episode], explore=False, shared_data={}, metrics=None)
    return np.asarray(episode.get_observations(-1))


@pytest.mark.parametrize("name", SPACES)
def test_one_encoding(name):
    space = SPACES[name]
    seen = observations(space)
    expected = [Flattener(space)(obs, 1)[0] for obs in seen]
    vectors = [by_connector(connector_for(space), space, obs) for obs in seen]
    np.testing.assert_array_equal(vectors, expected)
    assert {vector.dtype for vector in vectors} <= {np.dtype(np.float32), np.dtype(np.float64)}  # as networks take them
    view = Flatten(space).start()
    np.testing.assert_array_equal([view(Shown(obs, np.ones(1, dtype=bool)))[0] for obs in seen], expected)
    if name in CASES:  # artifacts are played with floats
        floats = np.array(seen, np.float32)
        np.testing.assert_array_equal(view(Shown(floats, np.ones(len(seen), dtype=bool))), expected)


@pytest.mark.parametrize("name", PLAIN)
def test_rllibs_own_connector_is_used_where_it_can_be(name):
    space = PLAIN[name]
    assert type(connector_for(space)) is FlattenObservations.func
    obs = observations(space, 1)[0]
    ours, theirs = (by_connector(make(), space, obs) for make in (OneVector, FlattenObservations))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("space", [COMPOSED["dict"].spaces["m"], gym.spaces.Dict(b=ACTIONS, a=NUMBERS["matrix"])])
def test_both_connectors_make_the_same_of_composed_observations(space):
    for obs in observations(space, 3):
        ours, theirs = (by_connector(make(), space, obs) for make in (OneVector, FlattenObservations))
        np.testing.assert_array_equal(ours, theirs)


def test_agents_are_encoded_each_for_itself():
    spaces = gym.spaces.Dict(ant=TEXTS["with texts"], bee=CASES["start"], cow=gym.spaces.Box(-1, 1, (2,)))
    actions = gym.spaces.Dict(dict.fromkeys(spaces.spaces, ACTIONS))
    obs = observations(spaces, 1)[0]
    episode = MultiAgentEpisode(
        observations=[obs], observation_space=dict(spaces), action_space=dict(actions), agent_module_ids={}
    )
    pipeline = EnvToModulePipeline(spaces, actions, connectors=[OneVector(multi_agent=True)])
    pipeline(rl_module=None, batch={}, episodes=[episode], explore=False, shared_data={}, metrics=None)
    for agent, space in spaces.items():
        last = episode.agent_episodes[agent].get_observations(-1)
        np.testing.assert_array_equal(last, obs[agent] if agent == "cow" else Flattener(space)(obs[agent], 1)[0])
        assert pipeline.observation_space[agent].shape == last.shape
        assert episode.agent_episodes[agent].observation_space == pipeline.observation_space[agent]


@pytest.mark.parametrize("name", SPACES)
def test_the_config_adds_it_and_players_know_it(name):
    space = SPACES[name]
    spaces = {INPUT_ENV_SINGLE_SPACES: (space, ACTIONS)}
    connectors = DistillDQNConfig().build_env_to_module_connector(spaces=spaces)
    assert connectors.observation_space.shape == input_space(space).shape
    assert pipeline_of(connectors).stages == (Flatten(space),)


class Reading(SingleAgentObservationPreprocessor):
    """The user's own: of a Dict it passes on one part."""

    def recompute_output_observation_space(self, input_observation_space, input_action_space):
        return input_observation_space["read"]

    def preprocess(self, observation, episode):
        return observation["read"]


def behind(part):
    """The connectors of a config whose user passes on this part of an observation."""
    config = DistillDQNConfig().env_runners(env_to_module_connector=lambda env, spaces, device: Reading())
    space = gym.spaces.Dict(read=part, hidden=NUMBERS["matrix"])
    return config.build_env_to_module_connector(spaces={INPUT_ENV_SINGLE_SPACES: (space, ACTIONS)})


@pytest.mark.parametrize("name", ["matrix", "image of floats"])
def test_floats_from_the_users_own_connectors_stay_as_they_are(name):
    part = {"matrix": NUMBERS["matrix"], "image of floats": gym.spaces.Box(0, 1, (84, 84, 4), np.float32)}[name]
    connectors = behind(part)
    assert connectors.observation_space == part
    assert [type(stage) for stage in pipeline_of(connectors).stages] == [RLlibConnectors]


@pytest.mark.parametrize("name", ["discrete", "with texts"])
def test_what_else_the_users_own_connectors_return_is_encoded(name):
    part = SPACES[name]
    connectors = behind(part)
    assert connectors.observation_space.shape == input_space(part).shape
    pipeline = pipeline_of(connectors)
    for obs in observations(part, 3):
        whole = {"read": obs, "hidden": np.zeros(NUMBERS["matrix"].shape)}
        shown = Shown(tree.map_structure(lambda part: np.array([part]), whole), np.ones(1, dtype=bool))
        np.testing.assert_array_equal(pipeline.start()(shown)[0], Flattener(part)(obs, 1)[0])


@pytest.mark.parametrize("name", SPACES)
def test_it_is_read_from_a_checkpoint_as_data(name, tmp_path):
    space = SPACES[name]
    spaces = {INPUT_ENV_SINGLE_SPACES: (space, ACTIONS)}
    folder = tmp_path / "env_runner" / "env_to_module_connector"
    connectors = DistillDQNConfig().build_env_to_module_connector(spaces=spaces)
    connectors.save_to_path(str(folder), state=connectors.get_state())
    opened = RLlibCheckpoint("x", LocalFileSystem(), str(tmp_path), str(tmp_path), trusted=False)
    pipeline = opened.load_observation_pipeline()
    assert same_space(pipeline.observation_space, space)
    for obs in observations(space, 3):
        shown = Shown(obs, np.ones(1, dtype=bool))
        np.testing.assert_array_equal(pipeline.start()(shown), pipeline_of(connectors).start()(shown))
    if name not in ("missions", "with texts"):  # a class of the user's own is read as a Text
        assert pipeline == pipeline_of(connectors)


def test_the_former_name_of_the_connector_is_read():
    former = Name("rllib_kd.observations.discrete", "OneHotObservations")
    assert connector_stages([(former, {}, {})], CASES["start"]) == (Flatten(CASES["start"]),)
    assert is_flattening(former)


def test_numbers_from_elsewhere_are_another_space():
    assert not same_space(gym.spaces.Discrete(4), gym.spaces.Discrete(4, start=1))
    assert not same_space(gym.spaces.MultiDiscrete([4]), gym.spaces.MultiDiscrete([4], start=[1]))
    assert same_space(gym.spaces.Discrete(4, start=1), gym.spaces.Discrete(4, start=1))


def test_rllibs_algorithms_get_connectors_for_what_becomes_one_vector_alone():
    for space, expected in ((CASES["discrete"], FlattenObservations.func), (COMPOSED["nested"], OneVector)):
        (connector,) = flatten_observations(None, {INPUT_ENV_SINGLE_SPACES: (space, ACTIONS)}, None)
        assert type(connector) is expected
    for space in (gym.spaces.Box(0, 1, (2,)), gym.spaces.Box(0, 255, (9, 9, 3), np.uint8)):
        assert flatten_observations(None, {INPUT_ENV_SINGLE_SPACES: (space, ACTIONS)}, None) == []
    assert flatten_observations(None, None, None) == []
