"""What is said when an environment fails, or returns what is not finite."""

import sys

import gymnasium as gym
import numpy as np
import pytest
import torch

from rllib_kd import load_teacher
from rllib_kd.env_runner import column_sampler, explaining
from rllib_kd.env_runner.column_sampler import NUM_NOT_FINITE_LIFETIME, NUM_STATES_DROPPED_LIFETIME
from rllib_kd.env_runner.single_agent import _as_column
from rllib_kd.environments.failures import EnvFailedError
from rllib_kd.environments.returned import NotFiniteError
from rllib_kd.networks.parts import last_linear
from tests.env_runner.runners import Counting, Silent, make_runner, sample
from tests.rllib_checkpoints import Doubled, connector


class Failing(gym.Env):
    """Raises, or gives what is not finite, as its config says."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Discrete(3)

    def __init__(self, config):
        self.how, self.t = config["how"], 0

    def reset(self, *, seed=None, options=None):
        self.t += 1
        if self.how == "reset" or (self.how == "second reset" and self.t > 1):
            raise KeyError("no map")
        return np.array([0.0], np.float32), {}

    def step(self, action):
        self.t += 1
        if self.how == "step":
            raise RuntimeError("the simulator\nhas crashed")
        if self.how == "bare":
            raise AssertionError
        if self.how == "exit":
            sys.exit("the window is closed")
        obs = np.array([np.nan if self.how == "observations" and self.t % 4 == 0 else self.t], np.float32)
        return obs, np.inf if self.how == "rewards" and self.t % 4 == 0 else 1.0, self.how == "second reset", False, {}


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "through-rllib"])
@pytest.mark.parametrize(
    ("how", "said", "function"),
    [
        ("reset", "raised in reset(): KeyError: 'no map'", "reset"),
        ("second reset", "raised in reset(): KeyError: 'no map'", "reset"),
        ("step", "raised in step(): RuntimeError: the simulator has crashed", "step"),
        ("bare", "raised in step(): AssertionError", "step"),
    ],
)
def test_an_environment_that_raises_is_an_error_with_reason_and_line(counting_config, how, said, function, direct):
    config = counting_config.environment(Failing, env_config={"how": how})
    runner = make_runner(config if direct else config.callbacks(Silent))
    with pytest.raises(EnvFailedError) as raised:
        sample(runner)
    assert str(raised.value).startswith(f"The environment 'Failing' {said} ({__file__}:")
    assert str(raised.value).endswith(f", in {function})")
    assert raised.value.__cause__ is not None


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "through-rllib"])
def test_a_game_that_ends_the_process_is_an_error_with_its_line(counting_config, direct):
    config = counting_config.environment(Failing, env_config={"how": "exit"})
    said = r"'Failing' raised in step\(\): SystemExit: the window is closed \(.*, in step\)\. It must not end"
    with pytest.raises(EnvFailedError, match=said):
        sample(make_runner(config if direct else config.callbacks(Silent)))


def test_an_evaluation_says_why_its_environment_has_raised(counting_config):
    config = counting_config.environment(Failing, env_config={"how": "step"})
    config.validate()
    evaluation = config.get_evaluation_config_object()
    runner = evaluation.env_runner_cls(config=evaluation, worker_index=0)
    with pytest.raises(EnvFailedError, match=r"'Failing' raised in step\(\): RuntimeError: the simulator has"):
        runner.sample(num_episodes=1)


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "through-rllib"])
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("observations", "as observation of sub-environment 0: nan at index 0 (1 of 1 components)"),
        ("rewards", "as reward of sub-environment 0: inf"),
    ],
)
def test_numbers_that_are_not_finite_are_described_by_their_environment_and_line(counting_config, how, said, direct):
    config = counting_config.environment(Failing, env_config={"how": how})
    runner = make_runner(config if direct else config.callbacks(Silent))
    sample(runner)
    message = runner.not_finite
    assert message.startswith("The environment 'Failing' returned numbers that are not finite from step")
    assert said in message
    assert f"({__file__}:{Failing.step.__code__.co_firstlineno}, in step" in message
    assert "teacher" not in message
    sample(runner)
    assert runner.not_finite == message  # the first ones


@pytest.mark.parametrize("how", ["observations", "rewards"])
@pytest.mark.parametrize("direct", [True, False], ids=["direct", "through-rllib"])
def test_they_are_an_error_in_baselines_and_evaluations(counting_config, how, direct):
    config = counting_config.environment(Failing, env_config={"how": how})
    config = config if direct else config.callbacks(Silent)
    runner = make_runner(config)
    for _ in range(2):  # also after training
        with pytest.raises(NotFiniteError, match="from step"):
            runner.play_episodes(1, teacher=True)
        runner._needs_initial_reset = True
        sample(runner)
    config.validate()
    evaluation = config.get_evaluation_config_object()
    with pytest.raises(NotFiniteError, match="from step"):
        evaluation.env_runner_cls(config=evaluation, worker_index=0).sample(num_timesteps=20)


def test_what_connectors_make_of_finite_numbers_is_not_the_environments(counting_config):
    class Broken(Doubled):
        def preprocess(self, observation, episode=None):
            return observation * np.float32(np.nan)

    runner = make_runner(counting_config.env_runners(env_to_module_connector=connector(Broken)))
    sample(runner)
    assert runner.not_finite.startswith("The env_to_module connectors computed numbers that are not finite")


def test_connectors_are_not_blamed_for_what_the_environment_returns(counting_config):
    config = counting_config.env_runners(env_to_module_connector=connector(Doubled))
    for how in ("observations", "rewards"):
        runner = make_runner(config.copy(copy_frozen=False).environment(Failing, env_config={"how": how}))
        for _ in range(2):
            sample(runner)
        assert runner.not_finite.startswith("The environment 'Failing' returned")


def test_rewards_that_are_too_large_for_32_bits_are_the_environments(counting_config):
    class Rich(Counting):
        def step(self, action):
            obs, _, *others = super().step(action)
            return obs, 1e300, *others

    for config in (counting_config, counting_config.env_runners(env_to_module_connector=connector(Doubled))):
        runner = make_runner(config.copy(copy_frozen=False).environment(Rich, env_config={"length": 5}))
        sample(runner)
        assert runner.not_finite.startswith("The environment 'Rich' returned")


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "through-rllib"])
@pytest.mark.parametrize(
    ("shown", "said"),
    [
        (np.zeros(2, np.float32), "of shape (2,) and dtype float32, but its observation_space has shape (1,)"),
        (np.array(["a"]), "of shape (1,) and dtype <U1, but its observation_space has shape (1,) and dtype float32"),
    ],
)
def test_observations_of_another_shape_or_dtype_are_named_with_their_space(counting_config, shown, said, direct):
    class Other(Failing):
        def step(self, action):
            return shown, *super().step(action)[1:]

    config = counting_config.environment(Other, env_config={"how": ""})
    runner = make_runner(config if direct else config.callbacks(Silent))
    with pytest.raises(EnvFailedError) as raised:
        sample(runner)
    assert str(raised.value).startswith(f"The environment 'Other' returned, in step(), an observation {said}")
    assert f"{__file__}:{Other.step.__code__.co_firstlineno}, in step" in str(raised.value)


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "through-rllib"])
@pytest.mark.parametrize("cause", ["observations", "rewards", "labels"])
def test_states_that_are_dropped_are_counted_by_cause(counting_config, cause, direct):
    config = counting_config.environment(Failing, env_config={"how": cause})
    teacher = load_teacher(config.teacher)
    if cause == "labels":
        last_linear(teacher.module.af).bias.data[0] = torch.nan
    runner = make_runner(config if direct else config.callbacks(Silent), teacher)
    (columns,), metrics = sample(runner)
    dropped = metrics[NUM_STATES_DROPPED_LIFETIME].peek()
    counts = {each: metrics[name].peek() for each, name in NUM_NOT_FINITE_LIFETIME.items()}
    assert dropped > 0
    assert counts == {"observations": 0, "rewards": 0, "labels": 0} | {cause: dropped}
    assert bool(runner.not_finite) == (cause != "labels")
    assert all(np.isfinite(column[columns["valid"]]).all() for column in columns.values())


@pytest.mark.filterwarnings("error")
def test_what_is_too_large_for_32_bits_is_infinite_without_a_warning_of_numpy():
    """So it is dropped, counted and named as any other number that is not finite."""
    column = _as_column(np.array([[1e39, -1e300, 2.0]]))
    assert column.dtype == np.float32
    assert column.tolist() == [[np.inf, -np.inf, 2.0]]


def test_what_is_finite_is_counted_by_no_cause(counting_config):
    _, metrics = sample(make_runner(counting_config))
    assert metrics[NUM_STATES_DROPPED_LIFETIME].peek() == 0
    assert not set(NUM_NOT_FINITE_LIFETIME.values()) & set(metrics)


class Dying(Counting):
    """Its simulator is gone: every environment raises at its second step. Others do at a later one."""

    num_made = 0

    def __init__(self, config):
        super().__init__(config | {"fails_at": config.get("fails_at", 2)})
        Dying.num_made += 1


@pytest.mark.timeout(300)
@pytest.mark.parametrize("plays", [False, True], ids=["sample", "baseline"])
@pytest.mark.parametrize("direct", [True, False], ids=["direct", "through-rllib"])
def test_an_environment_that_always_raises_is_not_replaced_without_end(counting_config, direct, plays):
    config = counting_config.environment(Dying, env_config={"length": 50, "fails_at": 20 if plays else 2})
    config.fault_tolerance(restart_failed_sub_environments=True)
    runner = make_runner(config if direct else config.callbacks(Silent))
    Dying.num_made = 0
    with pytest.raises(EnvFailedError, match=r"the simulator has crashed .*has replaced the environment 10 times in"):
        runner.play_episodes(3, teacher=True) if plays else sample(runner)
    assert Dying.num_made == 10 * 3


@pytest.mark.timeout(300)
def test_evaluations_do_not_replace_it_without_end_either(counting_config):
    config = counting_config.environment(Dying, env_config={"length": 50})
    config.fault_tolerance(restart_failed_sub_environments=True).validate()
    evaluation = config.get_evaluation_config_object()
    runner = evaluation.env_runner_cls(config=evaluation, worker_index=0)
    with pytest.raises(EnvFailedError, match="has replaced the environment 10 times in a row"):
        runner.sample(num_episodes=1)


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "through-rllib"])
def test_failures_are_tolerated_as_often_as_they_come_after_something_whole(counting_config, direct):
    config = counting_config.environment(Dying, env_config={"length": 5, "fails_at": 30})
    config.fault_tolerance(restart_failed_sub_environments=True)
    runner = make_runner(config if direct else config.callbacks(Silent))
    Dying.num_made = 0
    for _ in range(50):
        sample(runner)
    runner.play_episodes(200, teacher=True)
    assert Dying.num_made > 20 * 3
    evaluation = config.get_evaluation_config_object()
    Dying.num_made = 0
    evaluation.env_runner_cls(config=evaluation, worker_index=0).sample(num_episodes=300)
    assert Dying.num_made > 10 * evaluation.num_envs_per_env_runner


def test_checkpoints_find_the_explaining_env_runner_where_it_was():
    assert column_sampler.ExplainingEnvRunner is explaining.ExplainingEnvRunner
