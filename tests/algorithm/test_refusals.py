"""What an algorithm cannot be built from."""

from unittest.mock import Mock

import gymnasium as gym
import numpy as np
import pytest
from ray.tune.registry import register_env

from rllib_kd import DistillDQNConfig
from rllib_kd.algorithm.fit import explain_failed_env_runners
from tests.conftest import make_q_module
from tests.observations.test_connectors import Reading


def teacher_of(tmp_path, *spaces):
    return make_q_module(*spaces, fcnet_hiddens=[4]).save_to_path(str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("spaces", "message"),
    [
        (
            (gym.spaces.Box(-1, 1, (6,), np.float32),),
            r"observation space is Box\(6,\), but in 'CartPole-v1' it is Box\(4,\)",
        ),
        (
            (gym.spaces.Box(-1, 1, (4,), np.float32), gym.spaces.Discrete(3)),
            r"action space is Discrete\(3\).*Discrete\(2\)",
        ),
    ],
)
def test_spaces_that_differ_are_both_named(cartpole_config, build, tmp_path, spaces, message):
    with pytest.raises(ValueError, match=message):
        build(cartpole_config.distillation(teacher=teacher_of(tmp_path, *spaces)))


class Continuous(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (4,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, config=None):
        pass


class Parts(Continuous):
    observation_space = gym.spaces.Dict(a=gym.spaces.Sequence(gym.spaces.Discrete(5)))
    action_space = gym.spaces.Discrete(2)


class FromThree(Continuous):
    action_space = gym.spaces.Discrete(2, start=3)


@pytest.mark.parametrize(
    ("env", "message", "num_env_runners"),
    [
        (Continuous, "needs discrete actions 0 to A", 0),
        (FromThree, "needs discrete actions 0 to A", 0),
        (Parts, r"part \['a'\] is Sequence.*which has no fixed number of numbers", 0),
        pytest.param(FromThree, "needs discrete actions 0 to A", 1, marks=pytest.mark.slow),
    ],
)
def test_environments_that_do_not_suit_a_q_network_say_so(cartpole_config, build, env, message, num_env_runners):
    with pytest.raises(ValueError, match=message):
        build(cartpole_config.environment(env).env_runners(num_env_runners=num_env_runners))


@pytest.mark.slow
def test_an_unknown_environment_says_so_with_remote_env_runners(cartpole_config, build):
    with pytest.raises(ValueError, match=r"cannot be made: .*CartPool"):
        build(cartpole_config.environment("CartPool-v1").env_runners(num_env_runners=1))


def test_a_missing_teacher_is_an_error_when_the_algorithm_is_built(cartpole_config, build):
    with pytest.raises(ValueError, match="There is no checkpoint at '/does/not/exist'"):
        build(cartpole_config.distillation(teacher="/does/not/exist"))


def test_an_unreachable_compression_is_an_error_when_the_algorithm_is_built(cartpole_config, build):
    with pytest.raises(ValueError, match="one unit in each layer"):
        build(cartpole_config.rl_module(model_config={}).distillation(compression=1e-5))


class NoSpaces(gym.Env):
    def __init__(self, config=None):
        pass


class NoneAsSpaces(Continuous):
    observation_space = action_space = None


class Raises(Continuous):
    def __init__(self, config=None):
        raise RuntimeError("boom")


REGISTERED = {
    "lacks": (lambda config: NoSpaces(), r"The environment 'lacks' has no observation_space\. Set it in __init__"),
    "none": (lambda config: None, r"The maker of the environment 'none' returned NoneType, expected a gymnasium\.Env"),
    "raises": (
        lambda config: Raises(),
        r"The environment 'raises' cannot be made: RuntimeError: boom \(.*test_refusals",
    ),
}


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (NoSpaces, r"The environment 'NoSpaces' has no observation_space\. Set it in __init__"),
        (NoneAsSpaces, r"The environment 'NoneAsSpaces' has no observation_space\. Set it in __init__"),
        (Raises, r"The environment 'Raises' cannot be made: RuntimeError: boom \(.*test_refusals"),
        *((name, message) for name, (_, message) in REGISTERED.items()),
    ],
)
def test_environments_that_cannot_be_made_by_the_local_env_runner_are_named(cartpole_config, build, env, message):
    if env in REGISTERED:
        register_env(env, REGISTERED[env][0])
    with pytest.raises(ValueError, match=f"^{message}"):
        build(cartpole_config.environment(env).env_runners(num_env_runners=0))


class Odd(gym.Env):
    observation_space = gym.spaces.Dict(read=gym.spaces.Sequence(gym.spaces.Discrete(2)), hidden=gym.spaces.Discrete(2))
    action_space = gym.spaces.Discrete(2)

    def __init__(self, config=None):
        pass


@pytest.mark.parametrize(
    ("connector", "message"),
    [
        (
            lambda env, spaces, device: 1 / 0,
            r"connector cannot be made: ZeroDivisionError.*test_refusals",
        ),
        (lambda env, spaces, device: int("x"), r"connector cannot be made: ValueError.*test_refusals"),
        (lambda env, spaces, device: Reading(), r"They get Sequence"),
    ],
)
def test_connectors_that_remote_env_runners_cannot_make_are_explained(connector, message):
    """RLlib's own error is an IndexError."""
    config = DistillDQNConfig().environment(Odd).env_runners(env_to_module_connector=connector)
    env = Odd()
    env.close = Mock()  # of a simulator
    with pytest.raises(ValueError, match=message):
        explain_failed_env_runners(config, lambda env_config: env)
    env.close.assert_called()
