"""Connectors of the user's, and those that make a network's inputs of what they return."""

import gymnasium as gym
import numpy as np
import pytest
import torch
import tree
from pyarrow.fs import LocalFileSystem
from ray.rllib.connectors.common.flatten_observations import FlattenObservations
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.connectors.env_to_module import EnvToModulePipeline, MeanStdFilter, PrevActionsPrevRewards
from ray.rllib.connectors.env_to_module.frame_stacking import FrameStackingEnvToModule
from ray.rllib.connectors.env_to_module.observation_preprocessor import SingleAgentObservationPreprocessor
from ray.rllib.core.columns import Columns
from ray.rllib.env import INPUT_ENV_SINGLE_SPACES
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_kd import DistillDQNConfig
from rllib_kd.checkpoints.connectors import is_default_connector, pipeline_of
from rllib_kd.checkpoints.rllib import RLlibCheckpoint
from rllib_kd.observations.connectors import MaskApart, OneVector
from rllib_kd.observations.flattening import Flattener
from rllib_kd.observations.images import as_input
from rllib_kd.observations.masks import MASK, features_space
from rllib_kd.observations.pipeline import Flatten, Images, Normalize, Shown, StackFrames
from tests.observations.spaces import CASES, NUMBERS, TEXTS

ACTIONS = gym.spaces.Discrete(2)
BYTES = gym.spaces.Box(0, 255, (16, 16, 1), np.uint8)
GRID = gym.spaces.Box(0, 9, (4, 4, 1), np.int64)
MASKED = gym.spaces.Dict({"observation": BYTES, MASK: gym.spaces.MultiBinary(2)})


class Written(ConnectorV2):
    """Writes one part of a Dict to the batch."""

    def recompute_output_observation_space(self, input_observation_space, input_action_space):
        return input_observation_space["read"]

    def __call__(self, *, batch, episodes, **kwargs):
        for episode in self.single_agent_episode_iterator(episodes):
            part = episode.get_observations(-1)["read"]
            self.add_batch_item(batch, Columns.OBS, item_to_add=part, single_agent_episode=episode)
        return batch


class Darker(SingleAgentObservationPreprocessor):
    """Changes the image beside a mask."""

    def preprocess(self, observation, episode):
        return {**observation, "observation": observation["observation"] // 2}


class Forgetful(SingleAgentObservationPreprocessor):
    """Returns another observation, but not its space."""

    def preprocess(self, observation, episode):
        return np.zeros(3)


def connectors_behind(make, space):
    config = DistillDQNConfig().env_runners(env_to_module_connector=lambda env, spaces, device: make())
    return config.build_env_to_module_connector(spaces={INPUT_ENV_SINGLE_SPACES: (space, ACTIONS)})


def in_rllibs_loop(connectors, observations):
    """What a network gets in an episode of these observations."""
    space = connectors.input_observation_space
    added = [connector for connector in connectors.connectors if not is_default_connector(connector)]
    pipeline = EnvToModulePipeline(space, ACTIONS, connectors=added)
    episode, seen = SingleAgentEpisode(observation_space=space, action_space=ACTIONS), []
    for step, obs in enumerate(observations):
        episode.observation_space = space
        episode.add_env_step(obs, 0, 0.0) if step else episode.add_env_reset(obs)
        settings = {"explore": False, "shared_data": {}, "metrics": None}
        batch = pipeline(rl_module=None, batch={}, episodes=[episode], **settings)
        written = batch.get(Columns.OBS, {(episode.id_,): [episode.get_observations(-1)]})
        ((item,),) = written.values()  # one for each episode
        seen.append(item)
    return np.stack(seen)


def in_play(pipeline, observations):
    """What it gets if `compare()` and the commands play."""
    view, seen = pipeline.start(), []
    for step, obs in enumerate(observations):
        rows = tree.map_structure(lambda part: np.array([part]), obs)
        mask = rows.pop(MASK).astype(bool) if isinstance(rows, dict) and MASK in rows else None
        shown = rows if mask is None else rows["observation"]
        actions = None if step == 0 else np.zeros(1, np.int64)
        seen.append(view(Shown(shown, np.array([step == 0]), actions, None if step == 0 else np.zeros(1), mask))[0])
    return np.stack(seen)


def observations(space, count=4):
    space.seed(0)
    return [space.sample() for _ in range(count)]


@pytest.mark.parametrize("name", ["discrete", "with texts", "image"])
def test_what_is_written_to_the_batch_is_encoded_there(name):
    part = {"discrete": CASES["discrete"], "with texts": TEXTS["with texts"], "image": BYTES}[name]
    space = gym.spaces.Dict(read=part, hidden=NUMBERS["matrix"])
    connectors, seen = connectors_behind(Written, space), observations(space)
    if name == "image":
        expected = np.stack([obs["read"] / np.float32(255) for obs in seen])
    else:
        expected = np.stack([Flattener(part)(obs["read"], 1)[0] for obs in seen])
    np.testing.assert_array_equal(in_rllibs_loop(connectors, seen), expected)
    np.testing.assert_array_equal(in_play(pipeline_of(connectors), seen), expected)


@pytest.mark.parametrize(("space", "last"), [(BYTES, Images), (GRID, Flatten)])
def test_frames_are_stacked_before_they_become_inputs(space, last, tmp_path):
    connectors, seen = connectors_behind(lambda: FrameStackingEnvToModule(num_frames=3), space), observations(space)
    frames = [np.zeros(space.shape, space.dtype)] * 2 + seen
    stacks = np.stack([np.concatenate(frames[i : i + 3], axis=-1) for i in range(len(seen))])
    expected = as_input(torch.from_numpy(stacks), stacks.shape[1:]).numpy() if space is BYTES else stacks.reshape(4, -1)
    assert connectors.observation_space.shape == expected.shape[1:]
    np.testing.assert_array_equal(in_rllibs_loop(connectors, seen), expected)

    folder = tmp_path / "env_runner" / "env_to_module_connector"
    connectors.save_to_path(str(folder), state=connectors.get_state())
    opened = RLlibCheckpoint("x", LocalFileSystem(), str(tmp_path), str(tmp_path), trusted=False)
    for pipeline in (pipeline_of(connectors), opened.load_observation_pipeline()):
        first, second = pipeline.stages
        assert first == StackFrames(3)
        assert isinstance(second, last)
        np.testing.assert_array_equal(in_play(pipeline, seen), expected)


@pytest.mark.parametrize(
    "make",
    [MeanStdFilter, FlattenObservations, lambda: FrameStackingEnvToModule(num_frames=2), PrevActionsPrevRewards],
)
def test_rllibs_connectors_that_cannot_be_read_as_data_are_named(make, tmp_path):
    pipeline = EnvToModulePipeline(gym.spaces.Box(-1, 1, (9, 9, 1)), ACTIONS, connectors=[])
    connectors = [FrameStackingEnvToModule(num_frames=1), make()]
    names = ", ".join(type(connector).__name__ for connector in connectors)
    for connector in connectors:
        pipeline.append(connector)
    folder = tmp_path / "env_runner" / "env_to_module_connector"
    pipeline.save_to_path(str(folder), state=pipeline.get_state())
    opened = RLlibCheckpoint("x", LocalFileSystem(), str(tmp_path), str(tmp_path), trusted=False)
    with pytest.raises(ValueError, match=rf"its connectors {names} cannot be read as data .*Let a wrapper.*trust"):
        opened.load_observation_pipeline()
    trusted = RLlibCheckpoint("x", LocalFileSystem(), str(tmp_path), str(tmp_path), trusted=True)
    assert trusted.load_observation_pipeline() is not None  # as the message says


def test_behind_connectors_that_see_the_mask_it_is_taken_out():
    connectors, seen = connectors_behind(Darker, MASKED), observations(MASKED)
    expected = np.stack([(obs["observation"] // 2) / np.float32(255) for obs in seen])
    np.testing.assert_array_equal(in_rllibs_loop(connectors, seen), expected)
    pipeline = pipeline_of(connectors)
    assert pipeline.observation_space == MASKED
    np.testing.assert_array_equal(in_play(pipeline, seen), expected)


def test_a_mask_that_the_environment_does_not_show_as_such_is_refused():
    space = gym.spaces.Dict(read=MASKED, hidden=NUMBERS["matrix"])
    with pytest.raises(ValueError, match="illegal actions would be taken"):
        connectors_behind(Written, space)
    whole = gym.spaces.Dict({**space.spaces, MASK: MASKED[MASK]})
    assert connectors_behind(Written, whole).observation_space == gym.spaces.Box(0, 1, BYTES.shape)


@pytest.mark.parametrize("name", ["discrete", "dict", "integers"])
def test_filters_of_what_is_no_box_of_floats_are_refused(name):
    integers = gym.spaces.Box(0, 9, (3,), np.int64)
    space = {"discrete": CASES["discrete"], "dict": gym.spaces.Dict(a=NUMBERS["matrix"]), "integers": integers}[name]
    with pytest.raises(ValueError, match=r"MeanStdFilter takes .*floats.* Put OneVector\(\) before it"):
        connectors_behind(MeanStdFilter, space)
    pipeline = pipeline_of(connectors_behind(lambda: [OneVector(), MeanStdFilter()], space))
    assert [type(stage) for stage in pipeline.stages] == [Flatten, Normalize]


def test_a_filter_beside_a_mask_needs_the_rest_alone():
    space = gym.spaces.Dict({**MASKED.spaces, "observation": NUMBERS["matrix"]})
    with pytest.raises(ValueError, match=r"Put MaskApart\(\) and OneVector\(\) before it"):
        connectors_behind(MeanStdFilter, space)
    pipeline = pipeline_of(connectors_behind(lambda: [MaskApart(), OneVector(), MeanStdFilter()], space))
    assert pipeline.observation_space == features_space(space)
    assert [type(stage) for stage in pipeline.stages] == [Flatten, Normalize]


def test_an_observation_that_is_not_of_its_space_is_an_error_with_the_remedy():
    connectors = connectors_behind(Forgetful, TEXTS["with texts"])
    with pytest.raises(ValueError, match=r"does not match its space .* let its recompute_output_observation_space\(\)"):
        in_rllibs_loop(connectors, observations(TEXTS["with texts"]))
