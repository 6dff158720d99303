"""DistillDQN on discrete observations, in an environment of the user's own: trained, resumed, compared."""

import gymnasium as gym
import numpy as np
import pytest

from rllib_kd import DistillDQN, compare, load_teacher
from rllib_kd.observations.spaces import input_space
from tests.conftest import make_q_module
from tests.environments.own_files import write_files


@pytest.mark.parametrize("kind", ["start", "grid"])
def test_all_see_the_same_encoding(own_folder, cartpole_config, build, tmp_path, kind, monkeypatch):
    write_files(own_folder)
    config = cartpole_config.environment("cells.py:Cells", env_config={"kind": kind})
    algo = build(config.distillation(teacher=random_teacher(tmp_path, kind)))
    algo.train()
    path = algo.save_to_path(str(tmp_path / "student"))
    monkeypatch.chdir("/")
    done = compare(algo, path, num_episodes=3)
    assert done.student.returns == done.teacher.returns
    assert done.agreement_on_student_states == 1.0
    space = load_teacher(path).observation_space
    assert not isinstance(space, gym.spaces.Box)
    assert input_space(space).shape == algo.get_module().observation_space.shape
    algo.stop()
    resumed = DistillDQN.from_checkpoint(path)
    env_steps = resumed.num_env_steps
    resumed.train()
    assert resumed.num_env_steps > env_steps
    assert np.isfinite(resumed.evaluate()["env_runners"]["episode_return_mean"])
    resumed.stop()


def random_teacher(tmp_path, kind):
    """One whose connectors are not recorded: it takes one-hot vectors."""
    size = {"start": 4, "grid": 6}[kind]
    module = make_q_module(gym.spaces.Box(0.0, 1.0, (size,), np.float32), gym.spaces.Discrete(2))
    return module.save_to_path(str(tmp_path / "teacher"))
