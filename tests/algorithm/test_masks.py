"""Games with illegal moves, from a teacher by TD alone to an exported student: an illegal action raises."""

import gymnasium as gym
import numpy as np
import pytest
from ray.rllib.algorithms.dqn import DQNConfig

from rllib_kd import DistillDQN, DistillDQNConfig, compare, load_teacher
from rllib_kd.algorithm.defaults import FOR_IMAGES, FOR_VECTORS, settle_defaults
from rllib_kd.algorithm.preflight import check_environment
from rllib_kd.evaluation.comparing import evaluate
from rllib_kd.export.deployment import deploy
from rllib_kd.observations.frames import VALID
from rllib_kd.observations.masks import MASK
from rllib_kd.wire import TEACHER_Q
from tests.algorithm.small import small_config
from tests.conftest import make_q_module
from tests.env_runner.runners import ALL_COLUMNS, Silent
from tests.observations.masked import NUMBERS, BesideParts, ByMethod, InDict, InInfo, Payments, Two, own_policy


def masked_config(env):
    config = small_config(env).training(gamma=0.5, lr=3e-3)
    return config.distillation(num_baseline_episodes=4)


def td_config(env):
    return masked_config(env).training(epsilon=[(0, 1.0), (1500, 0.1)]).distillation(teacher=None, td_coeff=1.0)


@pytest.mark.slow
@pytest.mark.parametrize("env", [InDict, BesideParts, InInfo])
def test_from_td_to_a_device(build, tmp_path, env):
    teacher = build(td_config(env))
    assert teacher.env_runner._samples_directly
    for _ in range(5):
        teacher.train()
    random_return = np.mean(compare(teacher, teacher, env, num_episodes=100).random.returns)
    best = evaluate(teacher, env, num_episodes=100).return_mean
    assert best > 1.15 * random_return
    assert teacher.evaluate()["env_runners"]["episode_return_mean"] > random_return  # by RLlib's own loop
    path = teacher.save_to_path(str(tmp_path / "teacher"))
    teacher.stop()

    student = build(masked_config(env).distillation(teacher=path).rl_module(model_config={"fcnet_hiddens": [16]}))
    for _ in range(4):
        student.train()
    done = compare(path, student, env, num_episodes=10, epsilon=0.1)
    assert done.agreement_on_student_states > 0.8
    student_path = student.save_to_path(str(tmp_path / "student"))
    student.stop()
    played = deploy(student_path, tmp_path / "network", env, format="safetensors", num_episodes=4)
    assert played.return_mean == played.torch_return
    assert played.exported.agreement == 1.0
    assert load_teacher(tmp_path / "network").q_values  # files of masked students can teach
    resumed = DistillDQN.from_checkpoint(path)
    resumed.train()
    resumed.stop()


@pytest.mark.parametrize("env", [InDict, pytest.param(InInfo, marks=pytest.mark.slow)])
def test_through_rllibs_episodes(build, env):
    algo = build(td_config(env).callbacks(Silent))
    assert not algo.env_runner._samples_directly
    algo.train()
    algo.evaluate()


@pytest.mark.slow
def test_each_kind_of_loss_and_turns_of_the_student(build, tmp_path):
    teacher = build(td_config(ByMethod))
    teacher.train()
    path = teacher.save_to_path(str(tmp_path / "teacher"))
    teacher.stop()
    for loss in ("mse", "kl", "margin"):  # of values, of policies, and of actions
        config = masked_config(ByMethod).distillation(teacher=path, loss=loss, teacher_fraction=0.5, restarts=2)
        result = build(config.training(epsilon=0.2)).train()
        assert np.isfinite(result["learners"]["default_policy"]["kd_loss"])


def test_several_agents(build, tmp_path):
    teacher = make_q_module(NUMBERS, Two().action_spaces["a"]).save_to_path(str(tmp_path / "teacher"))
    config = (
        masked_config(Two)
        .environment(disable_env_checking=True)  # RLlib's check takes any action
        .multi_agent(policies={"a", "b"}, policy_mapping_fn=own_policy)
        .distillation(teacher={"a": teacher, "b": teacher}, td_coeff=1.0, teacher_fraction=0.5)
        .training(epsilon=0.3)
    )
    algo = build(config)
    algo.train()
    algo.evaluate()
    (fragment,), _ = algo.env_runner.sample_columns(teacher_fraction=0.5, epsilon=0.3, names=ALL_COLUMNS, num_shards=1)
    for columns in fragment.values():
        acted = columns[VALID]
        assert 0 < acted.sum() < len(acted)
        np.testing.assert_array_equal(np.isneginf(columns[TEACHER_Q])[acted], ~columns[MASK][acted])


def test_rllibs_dqn_is_told_that_it_knows_no_masks(caplog):
    check_environment(DQNConfig().environment(InDict), (InDict().observation_space, InDict.action_space))
    (record,) = (record for record in caplog.records if record.name.startswith("rllib_kd"))
    assert "RLlib's DQN does not support masks" in record.getMessage()
    caplog.clear()
    spaces = (InInfo.observation_space, InInfo.action_space)
    check_environment(DQNConfig().environment(InInfo), spaces)
    check_environment(masked_config(InDict), (InDict().observation_space, InDict.action_space))
    assert not caplog.records


def test_defaults_follow_from_what_is_beside_the_mask():
    def settled(observations):
        config = DistillDQNConfig()
        space = gym.spaces.Dict(observations=observations, action_mask=gym.spaces.MultiBinary(4))
        settle_defaults(config, (space, Payments.action_space), {})
        return config.training_intensity

    assert settled(NUMBERS) == FOR_VECTORS["training_intensity"]
    assert settled(gym.spaces.Box(0, 255, (84, 84, 4), np.uint8)) == FOR_IMAGES["training_intensity"]
    assert settled(gym.spaces.Box(0, 1, (6, 7, 2), np.int8)) == FOR_VECTORS["training_intensity"]  # a board
