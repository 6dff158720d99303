"""Teachers that see something else than their students: other views, frames, bytes."""

import shutil

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.connectors.env_to_module.observation_preprocessor import SingleAgentObservationPreprocessor
from torch import nn

from rllib_kd import DistillDQNConfig, Teacher, load_teacher
from rllib_kd.evaluation.comparing import evaluate
from rllib_kd.observations.pipeline import Function, Images, ObservationPipeline, Shown
from tests.conftest import CARTPOLE_ACTIONS, CARTPOLE_OBS, make_q_module, states
from tests.formats import CHECKPOINTS, nature_cnn, q_values, sb3_weights, sb3_zip


class TwoViews(gym.Env):
    """CartPole that shows its whole state, and beside it only position and angle, in centimetres and degrees."""

    observation_space = gym.spaces.Dict({"state": CARTPOLE_OBS, "camera": gym.spaces.Box(-1e3, 1e3, (2,), np.float32)})
    action_space = CARTPOLE_ACTIONS

    def __init__(self, config=None):
        self.env = gym.make("CartPole-v1")

    def show(self, obs):
        return {"state": obs, "camera": np.array([100 * obs[0], np.degrees(obs[2])], np.float32)}

    def reset(self, *, seed=None, options=None):
        obs, info = self.env.reset(seed=seed)
        return self.show(obs), info

    def step(self, action):
        obs, *rest = self.env.step(action)
        return self.show(obs), *rest


class Camera(SingleAgentObservationPreprocessor):
    """What the student sees: metres and radians."""

    def recompute_output_observation_space(self, input_observation_space, input_action_space):
        return input_observation_space["camera"]

    def preprocess(self, observation, episode):
        return observation["camera"] / np.float32([100, 57.3])


def privileged(path="cartpole"):
    """A teacher that sees the state where the student sees the camera."""
    pipeline = ObservationPipeline(TwoViews.observation_space, (Function(lambda obs: obs["state"]),))
    return load_teacher(path, pipeline=pipeline)


def test_a_privileged_teacher_plays_where_more_is_shown():
    assert evaluate(privileged(), TwoViews, num_episodes=2, seed=3).returns == [500.0, 500.0]
    with pytest.raises(ValueError, match="was made for observations"):
        evaluate("cartpole", TwoViews, num_episodes=1)


def test_a_pipeline_comes_before_what_the_checkpoint_brings(tmp_path):
    for name in ("dqn.zip", "vecnormalize.pkl"):
        shutil.copy(CHECKPOINTS / "sb3-2.9" / name, tmp_path)
    plain, teacher = load_teacher(tmp_path / "dqn.zip"), privileged(tmp_path / "dqn.zip")
    obs = {"state": states(5), "camera": np.zeros((5, 2), np.float32)}
    shown = Shown(obs, first=np.ones(5, dtype=bool))
    assert teacher.q_values(torch.as_tensor(teacher.start()(shown))).numpy() == pytest.approx(
        q_values(plain, states(5))
    )


IMAGE = gym.spaces.Box(0, 255, (6, 5, 3), np.uint8)
PARTS = gym.spaces.Dict(image=IMAGE, more=gym.spaces.Box(-1, 1, (2,)))


def load_module(tmp_path, pipeline):
    space = gym.spaces.Box(0, 1, IMAGE.shape, np.float32)
    module = make_q_module(space, CARTPOLE_ACTIONS, conv_filters=[[2, 3, 2]], fcnet_hiddens=[])
    return load_teacher(module.save_to_path(str(tmp_path / "module")), pipeline=pipeline)


def load_function(tmp_path, pipeline):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(90, 2))
    space = gym.spaces.Box(0, 1, IMAGE.shape, np.float32)
    return Teacher.from_callable(network, observation_space=space, action_space=CARTPOLE_ACTIONS, pipeline=pipeline)


@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize("load", [load_module, load_function])
def test_images_are_converted_after_a_pipeline_as_without_one(tmp_path, load, channels_first):
    images = np.random.default_rng(0).integers(0, 256, (4, *IMAGE.shape), dtype=np.uint8)
    expected = q_values(load(tmp_path, None), images)
    shown = np.moveaxis(images, -1, 1) if channels_first else images
    one = ObservationPipeline(gym.spaces.Box(0, 255, shown.shape[1:], np.uint8))
    assert q_values(load(tmp_path, one), shown) == pytest.approx(expected, abs=1e-6)
    selects = ObservationPipeline(PARTS, (Function(lambda obs: obs["image"]),))
    teacher, parts = load(tmp_path, selects), {"image": shown, "more": np.zeros((4, 2), np.float32)}
    view = teacher.start()
    assert teacher.q_values(torch.as_tensor(view(Shown(parts, np.ones(4, bool))))).numpy() == pytest.approx(
        expected, abs=1e-6
    )
    divides = Function(lambda obs: obs / np.float32(255))
    for stage in (divides, Images(IMAGE.shape)):
        converted = load(tmp_path, ObservationPipeline(one.observation_space, (stage,)))
        assert q_values(converted, shown) == pytest.approx(expected, abs=1e-6)
    assert converted.pipeline.stages == (Images(IMAGE.shape),)  # once


def test_a_pipeline_to_images_of_another_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"the shape \[7, 5, 3\], but its inputs \[6, 5, 3\]"):
        load_module(tmp_path, ObservationPipeline(gym.spaces.Box(0, 255, (7, 5, 3), np.uint8)))


def test_a_pipeline_for_a_teacher_that_is_loaded_is_refused():
    loaded = load_teacher("cartpole")
    with pytest.raises(ValueError, match=r"cartpole' already is\. Load each teacher with its own"):
        load_teacher([loaded, "cartpole"], pipeline=ObservationPipeline(CARTPOLE_OBS))


def test_a_student_learns_from_a_teacher_that_sees_more(build, cartpole_config):
    algo = build(
        cartpole_config.environment(TwoViews)
        .env_runners(env_to_module_connector=lambda env=None, spaces=None, device=None: Camera())
        .distillation(teacher=privileged(), num_baseline_episodes=4, rollout_policy="teacher")
    )
    assert algo.get_module().observation_space.shape == (2,)
    result = algo.train()
    assert result["distillation"]["teacher_return"] == 500.0
    assert np.isfinite(result["learners"]["default_policy"]["kd_loss"])


class Frames(gym.Env):
    """Random frames as RLlib's networks take them."""

    observation_space = gym.spaces.Box(0, 1, (84, 84, 4), np.float32)
    action_space = gym.spaces.Discrete(3)

    def __init__(self, config=None):
        self.t = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.np_random.random((84, 84, 4), dtype=np.float32), {}

    def step(self, action):
        self.t += 1
        return self.np_random.random((84, 84, 4), dtype=np.float32), 0.0, self.t > 5, False, {}


@pytest.mark.slow
def test_a_teacher_of_bytes_and_a_student_of_floats(build, tmp_path):
    weights = sb3_weights(nature_cnn(4, 3), has_images=True)
    path = sb3_zip(tmp_path / "a.zip", weights, gym.spaces.Box(0, 255, (4, 84, 84), np.uint8), 3)
    algo = build(
        DistillDQNConfig()
        .environment(Frames)
        .env_runners(num_envs_per_env_runner=2, rollout_fragment_length=8)
        .training(train_batch_size_per_learner=8, num_steps_sampled_before_learning_starts=8, training_intensity=1)
        .reporting(min_sample_timesteps_per_iteration=16)
        .distillation(teacher=path, compression=0.02, num_baseline_episodes=0)
    )
    result = algo.train()
    assert 0.01 < result["distillation"]["compression"] <= 0.02
    assert algo.get_module().model_config["conv_filters"][0][1:] == [8, 4, "valid"]
    assert np.isfinite(result["learners"]["default_policy"]["kd_loss"])


def test_a_teacher_that_plays_far_worse_than_it_trained_is_named(build, caplog, cartpole_config):
    teacher = load_teacher("cartpole")
    teacher.trained_return = 5000.0
    build(cartpole_config.distillation(teacher=teacher, num_baseline_episodes=4))
    assert "far worse than in its training: its mean return over 4 episodes is 500.0" in caplog.text
    assert "was 5,000.0 at the end of its training" in caplog.text
