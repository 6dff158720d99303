"""Pipelines against RLlib's own connectors: from a checkpoint as data, and from a running Algorithm."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray import cloudpickle
from ray.rllib.connectors.env_to_module.env_to_module_pipeline import EnvToModulePipeline
from ray.rllib.connectors.env_to_module.frame_stacking import FrameStackingEnvToModule
from ray.rllib.connectors.env_to_module.mean_std_filter import MeanStdFilter
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_kd.checkpoints.connectors import is_default_connector, pipeline_of
from rllib_kd.checkpoints.rllib import open_checkpoint
from rllib_kd.environments.making import env_maker
from rllib_kd.observations.pipeline import (
    Flatten,
    Function,
    Normalize,
    ObservationPipeline,
    RLlibConnectors,
    Shown,
    StackFrames,
)
from tests.rllib_checkpoints import KINDS, build_dqn

STAGES = {
    "plain": [],
    "filter": [Normalize],
    "clipped filter": [Normalize],
    "one-hot": [Flatten],
    "parts": [Flatten],
    "flat and filtered": [Flatten, Normalize],
    "frames": [StackFrames],
}


@pytest.fixture(scope="module", params=STAGES)
def saved(request, cluster, tmp_path_factory):
    """Kind, path of the checkpoint, and the pipeline of the Algorithm while it ran."""
    algo = build_dqn(request.param)
    path = algo.save_to_path(str(tmp_path_factory.mktemp("checkpoints") / "algo"))
    running = pipeline_of(algo.env_runner._env_to_module)
    algo.stop()
    return request.param, path, running


def everything_shown(env, num_envs=3, num_steps=20):
    envs = gym.vector.SyncVectorEnv([env_maker(env)] * num_envs)
    rng = np.random.default_rng(0)
    obs, _ = envs.reset(seed=[1, 2, 3])
    ended = np.zeros(num_envs, dtype=bool)
    yield Shown(obs, np.ones(num_envs, dtype=bool))
    for _ in range(num_steps):
        actions = rng.integers(envs.single_action_space.n, size=num_envs)
        obs, rewards, terminateds, truncateds, _ = envs.step(actions)
        yield Shown(obs, ended, actions, rewards)
        ended = terminateds | truncateds
    envs.close()


def test_views_are_what_rllibs_connectors_make(saved):
    kind, path, running = saved
    read = open_checkpoint(path).load_observation_pipeline()
    assert [type(stage) for stage in read.stages] == STAGES[kind]
    assert [type(stage) for stage in running.stages] == STAGES[kind]
    rllib = EnvToModulePipeline.from_checkpoint(f"{path}/env_runner/env_to_module_connector")
    own = [piece for piece in rllib.connectors if not is_default_connector(piece)]
    alone = EnvToModulePipeline(rllib.input_observation_space, rllib.input_action_space, connectors=own)
    reference = ObservationPipeline(rllib.input_observation_space, (RLlibConnectors(alone),)).start()
    views = [read.start(), running.start()]
    restarts = 0
    for shown in everything_shown(KINDS[kind]["env"]):
        expected = reference(shown)
        restarts += int(shown.first.sum())
        for view in views:
            assert view(shown) == pytest.approx(expected, abs=1e-6)
    assert restarts > 3  # episodes began on the way
    assert np.ptp(expected) > 0


@pytest.mark.parametrize("saved", ["filter", "flat and filtered"], indirect=True)
def test_a_filter_stays_as_it_is(saved):
    kind, path, _ = saved
    pipeline = open_checkpoint(path).load_observation_pipeline()
    shown = next(everything_shown(KINDS[kind]["env"]))
    before = pipeline.start()(shown)
    view = pipeline.start()
    for other in everything_shown(KINDS[kind]["env"]):
        view(other)
    assert np.array_equal(pipeline.start()(shown), before)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
def test_normalised_observations_are_floats_whatever_the_environment_shows(dtype):
    pipeline = ObservationPipeline(gym.spaces.Box(-10, 10, (3,)), (Normalize(np.full(3, 3.0), np.full(3, 2.0), None),))
    view = pipeline.start()
    assert view(Shown(np.array([[5, 0, 4]], dtype), np.array([True]))).tolist() == [[1.0, -1.5, 0.5]]


@pytest.mark.parametrize("dtype", [np.int64, np.float32])
def test_a_filter_of_rllib_keeps_the_type_of_its_observations(dtype):
    space = gym.spaces.Box(-100, 100, (3,), dtype)
    connectors = EnvToModulePipeline(space, gym.spaces.Discrete(2), connectors=[MeanStdFilter()])
    rng = np.random.default_rng(0)
    for _ in range(20):
        episode = SingleAgentEpisode(observation_space=space, observations=[rng.normal(0, 3, 3).astype(dtype)])
        connectors(rl_module=None, batch={}, episodes=[episode], explore=False, shared_data={}, metrics=None)
    obs = rng.normal(0, 9, (5, 3)).astype(dtype)
    expected = connectors.connectors[0]._filters[None](obs, update=False).astype(np.float32)
    view = pipeline_of(connectors).start()
    np.testing.assert_allclose(view(Shown(obs, np.ones(5, dtype=bool))), expected, rtol=1e-6)


def test_a_pipeline_without_stages_makes_vectors_of_parts():
    space = gym.spaces.Dict(at=gym.spaces.Discrete(3), speed=gym.spaces.Box(-1, 1, (2,)))
    obs = {"at": np.array([2, 0]), "speed": np.array([[0.5, 0.25], [0, 1]], np.float32)}
    pipeline = ObservationPipeline(space)
    np.testing.assert_array_equal(
        pipeline.start()(Shown(obs, np.ones(2, bool))), [[0, 0, 1, 0.5, 0.25], [1, 0, 0, 0, 1]]
    )
    assert pipeline == ObservationPipeline(space, (Flatten(space),))
    assert ObservationPipeline(space["speed"]).stages == ()


def test_a_stage_may_reverse_an_axis():
    pipeline = ObservationPipeline(gym.spaces.Box(-1, 1, (3,)), (Function(lambda obs: obs[:, ::-1]),))
    inputs = pipeline.start()(Shown(np.array([[1, 2, 3]], np.float32), np.ones(1, bool)))
    assert torch.from_numpy(inputs).tolist() == [[3, 2, 1]]


def test_views_do_not_share_their_memory():
    pipeline = ObservationPipeline(gym.spaces.Box(0, 1, (1, 1, 1)), (StackFrames(2),))
    one, other = pipeline.start(), pipeline.start()
    first, later = np.array([True]), np.array([False])
    assert one(Shown(np.full((1, 1, 1, 1), 1.0), first)).ravel().tolist() == [0, 1]
    assert other(Shown(np.full((1, 1, 1, 1), 5.0), first)).ravel().tolist() == [0, 5]
    assert one(Shown(np.full((1, 1, 1, 1), 2.0), later)).ravel().tolist() == [1, 2]
    assert one(Shown(np.full((1, 1, 1, 1), 3.0), first)).ravel().tolist() == [0, 3]


def test_discrete_numbers_may_come_as_floats_and_in_rows_and_columns():
    first = np.ones(2, dtype=bool)
    one, several = gym.spaces.Discrete(3), gym.spaces.MultiDiscrete([[2, 3], [1, 2]])
    assert Flatten(one).start()(Shown(np.array([2.0, 0.0], np.float32), first)).tolist() == [[0, 0, 1], [1, 0, 0]]
    numbers = np.array([[[1, 2], [0, 0]], [[0, 1], [0, 1]]])
    expected = [[0, 1, 0, 0, 1, 1, 1, 0], [1, 0, 0, 1, 0, 1, 0, 1]]
    for shown in (numbers, numbers.astype(np.float32)):
        assert Flatten(several).start()(Shown(shown, first)).tolist() == expected
    parts = gym.spaces.Dict(a=one, b=gym.spaces.Box(-1, 1, (2,)))
    shown = {"b": np.array([[0.5, 0.25]] * 2), "a": np.array([2, 0])}
    assert Flatten(parts).start()(Shown(shown, first)).tolist() == [[0, 0, 1, 0.5, 0.25], [1, 0, 0, 0.5, 0.25]]


def test_a_long_episode_takes_no_more_memory_and_looks_back_over_its_cuts():
    space = gym.spaces.Box(0.0, 1e6, (2, 2, 1), np.float32)
    frames = FrameStackingEnvToModule(num_frames=4)
    connectors = EnvToModulePipeline(
        input_observation_space=space, input_action_space=gym.spaces.Discrete(2), connectors=[frames]
    )
    view = ObservationPipeline(space, (RLlibConnectors(connectors),)).start()
    first, sizes = np.array([True]), []
    for step in range(1_000):
        obs = np.full((1, 2, 2, 1), step, np.float32)
        seen = view(Shown(obs, first if step == 0 else ~first, np.zeros(1, np.int64), np.zeros(1, np.float32)))
        assert seen[0, 0, 0].tolist() == [max(0, step - back) for back in (3, 2, 1, 0)]
        if step % 250 == 0:
            sizes.append(len(cloudpickle.dumps(view)))
    assert sizes[-1] < 1.5 * sizes[1]
