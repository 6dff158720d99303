"""EnvRunners in environments with masks of legal actions: an illegal one raises there."""

import gymnasium as gym
import numpy as np
import pytest
from ray.rllib.connectors.env_to_module import FlattenObservations

from rllib_kd import DistillDQNConfig
from rllib_kd.env_runner.capture import capture_sampling, put_back_sampling
from rllib_kd.env_runner.single_agent import DistillEnvRunner
from rllib_kd.env_runner.students import StudentsEnvRunner
from rllib_kd.environments.failures import EnvFailedError
from rllib_kd.observations.frames import VALID
from rllib_kd.observations.masks import MASK
from rllib_kd.teachers.base import Teacher
from tests.conftest import make_q_module
from tests.env_runner.runners import ALL_COLUMNS, Silent, make_runner, sample
from tests.observations.masked import ALL, NUM_ACTIONS, NUMBERS, ByMethod, InDict, InInfo, Payments
from tests.observations.masked import MASK as MASK_SPACE


def teacher_of(outputs="q_values"):
    return Teacher(make_q_module(NUMBERS, Payments.action_space), outputs=outputs)


def config_of(env):
    return (
        DistillDQNConfig()
        .environment(env)
        .env_runners(num_envs_per_env_runner=3, rollout_fragment_length=20)
        .rl_module(model_config={"fcnet_hiddens": [4]})
        .distillation(teacher="cartpole")
        .debugging(seed=0)
    )


@pytest.mark.parametrize("env", ALL)
def test_both_ways_of_sampling_yield_the_same_masks(cluster, env):
    config, teacher = config_of(env), teacher_of()
    direct, by_rllib = make_runner(config, teacher), make_runner(config.copy().callbacks(Silent), teacher)
    assert direct._samples_directly
    assert not by_rllib._samples_directly
    (columns,), _ = sample(direct, teacher_fraction=0.5, epsilon=0.5)
    (expected,), _ = sample(by_rllib, teacher_fraction=0.5, epsilon=0.5)
    for name in (*ALL_COLUMNS, MASK):  # RLlib does not count the steps that only reset, so that it samples more
        rows, expected_rows = (some[name].reshape(3, -1, *some[name].shape[1:])[:, :20] for some in (columns, expected))
        np.testing.assert_array_equal(rows, expected_rows, err_msg=name)
    acted = columns[VALID]
    assert columns["obs"].shape[1:] == NUMBERS.shape
    assert not columns[MASK][acted].all(-1).any()
    np.testing.assert_array_equal(np.isneginf(columns["teacher_q"]), np.isneginf(columns["teacher_q"]) & ~columns[MASK])
    np.testing.assert_array_equal(np.isneginf(columns["teacher_q"])[acted], ~columns[MASK][acted])
    assert columns[MASK][acted, columns["actions"][acted].astype(int)].all()
    final = columns[MASK].reshape(3, -1, NUM_ACTIONS)[:, -1]
    np.testing.assert_array_equal(final, direct.mask)


def test_without_td_the_labels_have_the_mask(cluster):
    (columns,), _ = sample(make_runner(config_of(InInfo), teacher_of()), names=("obs", "teacher_q"))
    assert columns.keys() == {"obs", "teacher_q"}
    assert np.isneginf(columns["teacher_q"]).any(-1).all()


def test_probabilities_are_of_legal_actions(cluster):
    (columns,), _ = sample(make_runner(config_of(InDict), teacher_of("log_probs")), names=("obs", "teacher_q"))
    np.testing.assert_allclose(np.exp(columns["teacher_q"]).sum(-1), 1.0, rtol=1e-5)
    assert np.isneginf(columns["teacher_q"]).any(-1).all()


@pytest.mark.parametrize("env", [InDict, InInfo, ByMethod])
@pytest.mark.parametrize("explore", [False, True])
def test_rllibs_own_loop_takes_legal_actions(cluster, env, explore):
    config = config_of(env).training(epsilon=1.0)
    config.validate()
    runner = StudentsEnvRunner(config=config, worker_index=0)
    episodes = runner.sample(num_episodes=5, explore=explore)
    assert min(episode.get_return() for episode in episodes if episode.is_done) > 0.5
    assert "forward_inference" not in vars(runner.module)


@pytest.mark.parametrize("teacher", [False, True])
def test_baselines_take_legal_actions(cluster, teacher):
    runner = make_runner(config_of(ByMethod), teacher_of())
    assert len(runner.play_episodes(5, teacher=teacher)["default_policy"]) >= 5


def test_a_broken_mask_names_the_environment(cluster):
    class Forgets(InInfo):
        def info(self):
            return super().info() if self.t < 2 else {}

    runner = make_runner(config_of(Forgets), teacher_of())
    with pytest.raises(
        EnvFailedError, match=r"environment 'Forgets' has a mask .* after step\(\): info\['action_mask'\]"
    ):
        sample(runner)


def test_a_method_in_other_processes_is_refused(cluster):
    config = config_of(ByMethod).env_runners(gym_env_vectorize_mode="async", num_envs_per_env_runner=2)
    with pytest.raises(ValueError, match=r"action_masks\(\), which vector envs in other processes do not pass on"):
        make_runner(config, teacher_of())


def test_masks_go_on_after_a_checkpoint(cluster):
    runners = [make_runner(config_of(ByMethod), teacher_of()) for _ in range(2)]
    sample(runners[0])
    put_back_sampling(runners[1], capture_sampling(runners[0]))
    assert not runners[1]._needs_initial_reset  # it goes on in the middle of an episode
    (one,), (other,) = (sample(runner, epsilon=0.5)[0] for runner in runners)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_taxi(cluster):
    config = config_of("Taxi-v3").distillation(teacher=None, td_coeff=1.0)
    config.validate()
    runner = DistillEnvRunner(config=config, worker_index=0)
    assert runner._samples_directly
    names = tuple(name for name in ALL_COLUMNS if name != "teacher_q")
    (columns,), _ = sample(runner, names, teacher_fraction=0.0, epsilon=1.0)
    acted = columns[VALID]
    assert columns["obs"].shape[1:] == (500,)
    assert columns[MASK][acted, columns["actions"][acted].astype(int)].all()
    assert gym.make("Taxi-v3").reset()[1]["action_mask"].shape == columns[MASK].shape[1:]


class Pictures(InDict):
    """Shows two frames of a picture beside the mask."""

    def __init__(self, config=None):
        super().__init__(config)
        picture = gym.spaces.Box(0, 255, (16, 16, 2), np.uint8)
        self.observation_space = gym.spaces.Dict({"observation": picture, "action_mask": MASK_SPACE})
        self.frames = np.zeros((16, 16, 2), np.uint8)

    def shown(self, obs):
        self.frames = np.stack([self.frames[..., 1], np.full((16, 16), 50 * obs.argmax(), np.uint8)], -1)
        return {"observation": self.frames, "action_mask": self.legal.copy()}


def test_images_beside_a_mask(cluster):
    config = config_of(Pictures).rl_module(model_config={"conv_filters": [[2, 8, 4]], "head_fcnet_hiddens": [4]})
    seen = gym.spaces.Box(0, 1, (16, 16, 2), np.float32)
    teacher = Teacher(make_q_module(seen, Payments.action_space, conv_filters=[[2, 8, 4]], head_fcnet_hiddens=[4]))
    direct, by_rllib = make_runner(config, teacher), make_runner(config.copy().callbacks(Silent), teacher)
    assert direct._samples_directly
    (columns,), _ = sample(direct, epsilon=0.5)
    (expected,), _ = sample(by_rllib, epsilon=0.5)
    assert columns["obs"].dtype == np.uint8
    for some in (columns, expected):
        acted = some[VALID]
        np.testing.assert_array_equal(np.isneginf(some["teacher_q"])[acted], ~some[MASK][acted])
        assert some[MASK][acted, some["actions"][acted].astype(int)].all()


@pytest.mark.parametrize("removed", [["action_mask"], None])
def test_connectors_of_the_users_see_the_mask(cluster, removed):
    config = config_of(InDict).env_runners(
        env_to_module_connector=lambda env, spaces, device: FlattenObservations(
            InDict().observation_space, InDict.action_space, keys_to_remove=removed
        )
    )
    size = NUM_ACTIONS if removed else 2 * NUM_ACTIONS
    seen = gym.spaces.Box(-np.inf, np.inf, (size,), np.float32)
    teacher = Teacher(make_q_module(seen, Payments.action_space))
    for runner in (make_runner(config, teacher), make_runner(config.copy().callbacks(Silent), teacher)):
        (columns,), _ = sample(runner, epsilon=0.5)
        acted = columns[VALID]
        assert columns["obs"].shape[1:] == (size,)
        if not removed:
            np.testing.assert_array_equal(columns["obs"][acted, :NUM_ACTIONS] == 1, columns[MASK][acted])
        np.testing.assert_array_equal(np.isneginf(columns["teacher_q"])[acted], ~columns[MASK][acted])
