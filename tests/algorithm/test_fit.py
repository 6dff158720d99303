"""What is checked of an environment when all has been built."""

from types import SimpleNamespace

import gymnasium as gym
import pytest

from rllib_kd.algorithm.fit import check_vector_env
from rllib_kd.env_runner.single_agent import DistillEnvRunner

MODES = gym.vector.AutoresetMode


def group_of(*envs):
    runners = [SimpleNamespace(env=env) for env in envs]
    return SimpleNamespace(
        foreach_env_runner=lambda report: [DistillEnvRunner.autoreset_mode(each) for each in runners]
    )


def env_with(**metadata):
    return SimpleNamespace(metadata=metadata)


@pytest.mark.parametrize("metadata", [{}, {"render_fps": 50}])
def test_a_vector_env_that_does_not_declare_when_it_resets_is_reported_once(caplog, metadata):
    check_vector_env(group_of(None, env_with(**metadata), env_with(**metadata)))
    (message,) = caplog.messages
    assert "assumed to do so in the step after" in message
    assert "metadata = {'autoreset_mode': gymnasium.vector.AutoresetMode.NEXT_STEP}" in message


def test_a_vector_env_that_resets_in_the_next_step_is_fine(caplog):
    check_vector_env(group_of(None, env_with(autoreset_mode=MODES.NEXT_STEP)))
    assert not caplog.messages


@pytest.mark.parametrize("mode", [MODES.SAME_STEP, MODES.DISABLED])
def test_a_vector_env_that_resets_in_another_mode_is_refused(mode):
    with pytest.raises(ValueError, match=rf"resets in mode \['{mode}'\]"):
        check_vector_env(group_of(env_with(autoreset_mode=mode)))
