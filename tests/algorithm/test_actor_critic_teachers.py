"""A run whose teacher is an actor-critic."""

import numpy as np
import pytest

from rllib_kd import DistillDQN
from tests.conftest import CARTPOLE_OBS
from tests.formats import actor_critic_weights, mlp, sb3_zip


@pytest.fixture
def actor_critic(tmp_path):
    return str(sb3_zip(tmp_path / "ppo.zip", actor_critic_weights(mlp(4, 16, 16, 2)), CARTPOLE_OBS, 2))


def test_a_student_of_an_actor_critic_learns_and_is_restored(build, cartpole_config, actor_critic, tmp_path):
    config = cartpole_config.distillation(teacher=actor_critic, teacher_explores=True)
    algo = build(config)
    result = algo.train()
    student = result["learners"]["default_policy"]
    assert np.isfinite(student["regret_nats"])
    assert "q_regret" not in student
    assert result["distillation"]["temperature"] == 1.0
    restored = DistillDQN.from_checkpoint(algo.save_to_path(str(tmp_path / "checkpoint")))
    try:
        assert "regret_nats" in restored.train()["learners"]["default_policy"]  # without the teacher's file
    finally:
        restored.stop()


def test_what_needs_q_values_is_refused_before_actors_start(build, cartpole_config, actor_critic):
    with pytest.raises(ValueError, match="`loss`='mse' needs a teacher with Q-values"):
        build(cartpole_config.distillation(teacher=actor_critic, loss="mse").env_runners(num_env_runners=1))
