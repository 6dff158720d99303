"""What is known before any process starts: environment, teacher, and whether Ray has what actors need."""

import gymnasium as gym
import numpy as np
import pytest
import ray

from rllib_kd import DistillDQN, DistillDQNConfig
from rllib_kd.algorithm import preflight as checks
from rllib_kd.algorithm.preflight import actor_resources, check_resources, known_spaces
from tests.conftest import make_q_module


@pytest.fixture
def no_ray(monkeypatch):
    """Ray must not be started."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda *args, **kwargs: pytest.fail("Ray was started"))
    monkeypatch.setattr("ray._private.worker.init", lambda *args, **kwargs: pytest.fail("Ray was started"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def valid() -> DistillDQNConfig:
    return DistillDQNConfig().environment("CartPole-v1").distillation(teacher="cartpole")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.training(lr=-1), "'lr' cannot be -1"),
        (lambda c: c.training(lr=[[0, 1.0], [9, "x"]]), "`lr` must be a number or a schedule"),
        (lambda c: c.training(lr=float("inf")), "expected a finite number"),
        (lambda c: c.distillation(teacher="/does/not/exist"), "no checkpoint at '/does/not/exist'"),
        (lambda c: c.environment("Acrobot-v1"), r"observation space is Box\(4,\), but in 'Acrobot-v1' it is Box\(6,\)"),
        (lambda c: c.environment("Blackjack-v1"), r"it is Tuple\(Discrete\(32\).*of which the student gets Box\(45,\)"),
        (lambda c: c.environment(env=None), r"needs an environment, got None\. Set \.environment\('CartPole-v1'\), or"),
        (lambda c: c.environment("Pendulum-v1"), "needs discrete actions"),
        (lambda c: c.environment("CartPole-v1", env_config={"wrong": 1}), "'CartPole-v1' cannot be made: TypeError"),
        (lambda c: c.env_runners(num_env_runners=500), "EnvRunners and Learners need 500 CPUs, but Ray has"),
        (lambda c: c.learners(num_learners=1, num_gpus_per_learner=64), "need 64 GPUs, but Ray has"),
        (
            lambda c: c.env_runners(num_env_runners=1, custom_resources_per_env_runner={"runner": 2}),
            r"need 2 runners, but Ray has 0 here.*ray.init\(resources=\{'runner': 2.*\}\)",
        ),
        (
            lambda c: c.evaluation(evaluation_interval=1, evaluation_num_env_runners=400),
            r"need 400 CPUs, but Ray has \d+ here\. Lower num_env_runners, .*: ray.init\(num_cpus=400\)\.",
        ),
        (lambda c: c.evaluation(evaluation_config={"num_envs_per_env_runner": 0}), "num_envs_per_env_runner"),
        (
            lambda c: c.evaluation(evaluation_interval=1, evaluation_config={"env": "Acrobot-v1"}),
            r"`evaluation_config`: in 'Acrobot-v1' the observation space is Box\(6,\), but in .* it is Box\(4,\)",
        ),
        (
            lambda c: c.evaluation(evaluation_interval=1, evaluation_config={"env_config": {"wrong": 1}}),
            "'CartPole-v1' cannot be made: TypeError",
        ),
        (lambda c: c.rl_module(model_config={"fcnet_hiddens": ["x"]}), "expected a list of integers"),
        (lambda c: c.distillation(student="rusu-net3"), r"^student='rusu-net3' has convolutions, .* the shape \[4\]"),
        (
            lambda c: c.distillation(students={"a": "linear", "b": {"conv_filters": [[8, 4, 2]]}}),
            r"^students\['b'\]=\{'conv_filters': .* has convolutions, .* have the shape \[4\]",
        ),
        (
            lambda c: c.rl_module(model_config={"conv_filters": [[8, 4, 2]]}),
            r"^model_config=\{'conv_filters': .* has convolutions, .* have the shape \[4\]",
        ),
    ],
)
def test_build_algo_refuses_what_is_known_to_be_wrong_before_ray_starts(no_ray, change, message):
    config = valid()
    with pytest.raises(ValueError, match=message) as raised:
        change(config).build_algo()
    assert "\n" not in str(raised.value)


def test_a_teacher_of_other_actions_is_refused_before_ray_starts(no_ray, tmp_path):
    space = gym.make("CartPole-v1").observation_space
    teacher = make_q_module(space, gym.spaces.Discrete(3)).save_to_path(str(tmp_path / "teacher"))
    with pytest.raises(ValueError, match=r"action space is Discrete\(3\), but in 'CartPole-v1' it is Discrete\(2\)"):
        valid().distillation(teacher=teacher).build_algo()


def test_what_cannot_be_made_here_may_be_made_on_other_nodes(no_ray, monkeypatch):
    def missing(config):
        raise ValueError("no package")

    monkeypatch.setattr("rllib_kd.algorithm.preflight.known_spaces", missing)
    monkeypatch.setattr("rllib_kd.algorithm.algorithm.check_resources", lambda needs: pytest.fail("so far it came"))
    with pytest.raises(ValueError, match="no package"):
        valid().build_algo()
    with pytest.raises(pytest.fail.Exception, match="so far it came"):
        valid().env_runners(num_env_runners=1).build_algo()


def test_evaluations_in_the_environment_of_the_training_are_known_by_any_config():
    """Two arrays cannot be compared by ==, which returns an array."""
    config = valid().evaluation(evaluation_interval=1)
    env_config = {"heights": np.zeros(3), "object": object()}
    spaces = gym.make("CartPole-v1").observation_space, gym.spaces.Discrete(2)
    config.environment("CartPole-v1", env_config=env_config)  # which cannot be made with it
    checks.check_evaluation_environment(config, spaces)
    config.evaluation(evaluation_config={"env_config": {**env_config, "heights": np.ones(3)}})
    with pytest.raises(ValueError, match="'CartPole-v1' cannot be made"):
        checks.check_evaluation_environment(config, spaces)


class Mine(gym.Env):
    """Must not be made before EnvRunners do it."""

    observation_space = gym.spaces.Box(-1, 1, (4,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, config):
        raise AssertionError


def test_environments_of_ones_own_are_not_made():
    assert known_spaces(valid().environment(Mine)) is None
    assert known_spaces(valid().environment(f"{__name__}.Mine")) is None
    given = {"observation_space": Mine.observation_space, "action_space": Mine.action_space}
    assert known_spaces(valid().environment(Mine, **given)) == (Mine.observation_space, Mine.action_space)


# --- Resources --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: c, {}),
        (lambda c: c.env_runners(num_env_runners=2).learners(num_learners=1), {"CPU": 3}),
        (lambda c: c.resources(num_cpus_for_main_process=4), {}),
        (
            lambda c: c.learners(num_learners=2, num_gpus_per_learner=1).env_runners(num_envs_per_env_runner=2),
            {"GPU": 2},
        ),
        (
            lambda c: c.env_runners(
                num_env_runners=2, num_cpus_per_env_runner=0.5, custom_resources_per_env_runner={"runner": 1}
            ),
            {"CPU": 1, "runner": 2},
        ),
        (lambda c: c.evaluation(evaluation_interval=1, evaluation_num_env_runners=3), {"CPU": 3}),
    ],
)
def test_what_actors_need_is_counted_without_this_process(change, expected):
    needs = actor_resources(DistillDQN, change(valid()))
    assert {name: needs.get(name, 0) for name in expected} == expected
    assert set(needs) - set(expected) <= ({"CPU"} if "GPU" in expected else set())


@pytest.fixture
def fake_ray(monkeypatch):
    """Ray with two CPUs, of which so many are free, as others started it or not."""

    def fake(*, free=2.0, is_own=True, group=None):
        monkeypatch.setattr(ray, "is_initialized", lambda: True)
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0, "memory": 1e9})
        monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": free})
        monkeypatch.setattr(checks, "get_current_placement_group", lambda: group)
        monkeypatch.setattr(checks, "_is_own_ray", lambda: is_own)
        monkeypatch.setattr(checks, "_SECONDS_TO_BECOME_FREE", 0.2)

    return fake


def test_more_than_a_ray_of_this_process_has_is_an_error(fake_ray):
    fake_ray()
    check_resources({"CPU": 2.0})
    with pytest.raises(ValueError, match=r"need 3 CPUs, but Ray has 2\. Lower .*: ray.init\(num_cpus=3\)\."):
        check_resources({"CPU": 3.0})
    with pytest.raises(ValueError, match=r"need 3 CPUs and 1 GPUs, but Ray has 2 and 0\."):
        check_resources({"CPU": 3.0, "GPU": 1.0})


def test_a_cluster_may_grow(fake_ray, caplog):
    fake_ray(is_own=False)
    check_resources({"CPU": 3.0})
    assert "need 3 CPUs, but Ray has 2 now. They wait until the cluster grows." in caplog.text


def test_what_others_use_is_waited_for_with_a_word(fake_ray, caplog):
    fake_ray(free=1.0)
    check_resources({"CPU": 1.0})
    assert not caplog.text
    check_resources({"CPU": 2.0})
    assert "need 2 CPUs, but Ray has 1 free now. They wait until other actors end." in caplog.text


def test_within_a_trial_its_placement_group_counts(fake_ray, caplog):
    fake_ray(free=0.0, group=object())
    check_resources({"CPU": 500.0})
    assert not caplog.text


def test_whoever_joins_a_cluster_by_address_learns_of_it_there(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    check_resources({"CPU": 500.0})
    monkeypatch.setenv("RAY_ADDRESS", "")  # as if it was not set
    with pytest.raises(ValueError, match="need 500 CPUs, but Ray has"):
        check_resources({"CPU": 500.0})


def test_a_ray_that_this_process_has_started_is_its_own(cluster):
    assert checks._is_own_ray()
    with pytest.raises(ValueError, match=r"need 5 CPUs, but Ray has 4\."):
        valid().env_runners(num_env_runners=5).build_algo()
