"""A config of a small environment."""

import pytest

from rllib_kd import DistillDQNConfig
from tests.conftest import make_q_module
from tests.env_runner.runners import Counting


@pytest.fixture
def counting_config(cluster, tmp_path):
    teacher = make_q_module(Counting.observation_space, Counting.action_space).save_to_path(str(tmp_path / "teacher"))
    return (
        DistillDQNConfig()
        .environment(Counting, env_config={"length": 5})
        .env_runners(num_envs_per_env_runner=3, rollout_fragment_length=8)
        .rl_module(model_config={"fcnet_hiddens": [4]})
        .distillation(teacher=teacher)
        .debugging(seed=0)
    )
