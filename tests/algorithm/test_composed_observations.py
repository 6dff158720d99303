"""Observations of several parts, from a teacher by TD alone to an exported student."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.dqn import DQNConfig

from rllib_kd import DistillDQN, compare, load_teacher
from rllib_kd.evaluation.comparing import evaluate
from rllib_kd.experiment.experiment import _flatten_observations
from rllib_kd.export.artifact import q_function
from rllib_kd.export.deployment import deploy
from rllib_kd.export.runners.flatten import flatten, parts_in
from rllib_kd.observations.flattening import Flattener
from rllib_kd.observations.spaces import input_space
from tests.algorithm.small import small_config
from tests.conftest import make_q_module
from tests.observations.environments import Missioned, Signs


def signs_config(env=Signs):
    return small_config(env)


@pytest.mark.slow
def test_from_td_to_a_device(build, tmp_path):
    teacher = build(
        signs_config().training(lr=3e-3, epsilon=[(0, 1.0), (1000, 0.1)]).distillation(teacher=None, td_coeff=1.0)
    )
    assert teacher.env_runner._samples_directly
    for _ in range(6):
        teacher.train()
    assert evaluate(teacher, num_episodes=10).return_mean > 7.5  # 4 by chance, of 8
    assert teacher.evaluate()["env_runners"]["episode_return_mean"] > 7.5  # by RLlib's own loop
    path = teacher.save_to_path(str(tmp_path / "teacher"))
    teacher.stop()

    student = build(signs_config().distillation(teacher=path).rl_module(model_config={"fcnet_hiddens": [8]}))
    assert student.env_runner._teacher_view is None  # it labels what the student sees
    for _ in range(6):
        student.train()
    done = compare(path, student, Signs, num_episodes=10)
    assert done.teacher.return_mean > 7.5
    assert done.agreement_on_student_states > 0.95
    student_path = student.save_to_path(str(tmp_path / "student"))
    student.stop()
    check_resumes(student_path)
    check_plays_on_a_device(student_path, tmp_path / "student.safetensors")


def check_resumes(path):
    resumed = DistillDQN.from_checkpoint(path)
    env_steps = resumed.num_env_steps
    resumed.train()
    assert resumed.num_env_steps > env_steps
    resumed.stop()


def check_plays_on_a_device(path, out):
    network = load_teacher(path)
    done = deploy(path, out, Signs, format="safetensors", num_episodes=4)
    assert done.return_mean == done.torch_return > 7.0
    q, parts, env = q_function(out), parts_in(str(out)), Signs()
    obs, _ = env.reset(seed=3)
    for _ in range(8):
        vector = flatten(parts, obs)
        np.testing.assert_array_equal(vector, Flattener(env.observation_space)(obs, 1)[0])
        action = int(q(vector[None]).argmax(-1)[0])
        assert action == int(network.q_values(torch.from_numpy(vector[None])).argmax(-1)[0])
        obs, *_ = env.step(action)


def test_texts_alone_are_learned_from_and_evaluated(build, tmp_path):
    algo = build(signs_config(Missioned).distillation(teacher=None, td_coeff=1.0))
    algo.train()
    assert algo.evaluate()["env_runners"]["episode_return_mean"] == 5.0
    path = algo.save_to_path(str(tmp_path / "algo"))
    assert isinstance(load_teacher(path).observation_space, gym.spaces.Text)  # what is read as data
    assert evaluate(path, Missioned, num_episodes=2).returns == [5.0, 5.0]


@pytest.mark.parametrize("env", [Signs, pytest.param(Missioned, marks=pytest.mark.slow)])
def test_rllibs_dqn_learns_on_them(cluster, env):
    config = (
        DQNConfig()
        .environment(env)
        .env_runners(num_env_runners=0)
        .training(num_steps_sampled_before_learning_starts=64)
    )
    _flatten_observations(config, (env.observation_space, env.action_space))
    algo = config.reporting(min_sample_timesteps_per_iteration=80).build_algo()
    try:
        assert np.isfinite(algo.train()["learners"]["default_policy"]["total_loss"])
        assert len(evaluate(algo, env, num_episodes=2).returns) == 2
    finally:
        algo.stop()


@pytest.mark.slow
def test_a_family_and_its_copies_on_remote_env_runners(build, tmp_path):
    flat = make_q_module(input_space(Signs.observation_space), Signs.action_space)  # its connectors are not recorded
    config = signs_config().distillation(
        teacher=flat.save_to_path(str(tmp_path / "teacher")),
        students={"wide": {"fcnet_hiddens": [8]}, "linear": {"fcnet_hiddens": []}},
        restarts=2,
        num_validation_episodes=2,
    )
    config._model_config = {}
    algo = build(config.env_runners(num_env_runners=1))
    for _ in range(2):
        algo.train()
    path = algo.save_to_path(str(tmp_path / "family"))  # copies are chosen by validation episodes
    for name in ("wide", "linear"):
        student = load_teacher(f"{path}/learner_group/learner/rl_module/{name}")
        assert student.for_space(Signs.observation_space).takes(Signs.observation_space)
        assert len(evaluate(student, Signs, num_episodes=2).returns) == 2
