"""Observations with two axes: RLlib's networks take them as vectors only."""

import gymnasium as gym
import numpy as np
import pytest

from rllib_kd import compare, load_teacher
from rllib_kd.environments.making import check_gymnasium_id
from rllib_kd.evaluation.comparing import evaluate
from rllib_kd.evaluation.sources import open_source
from rllib_kd.teachers.base import Teacher

FAMILY = {"s8": {"fcnet_hiddens": [8]}, "linear": {"fcnet_hiddens": []}}


class Matrix(gym.ObservationWrapper):
    """CartPole as [[x, v], [angle, its velocity]]."""

    def __init__(self, config=None):
        super().__init__(gym.make("CartPole-v1"))
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2, 2), np.float32)

    def observation(self, obs):
        return obs.reshape(2, 2)


def matrix_teacher() -> Teacher:
    cartpole = load_teacher("cartpole")
    return Teacher.from_callable(
        lambda obs: cartpole.q_values(obs.flatten(1)),
        observation_space=Matrix().observation_space,
        action_space=cartpole.action_space,
    )


@pytest.mark.parametrize(
    ("students", "td_coeff"),
    [pytest.param(None, 1.0, id="one, TD"), pytest.param(FAMILY, 0.0, id="family", marks=pytest.mark.slow)],
)
def test_students_of_matrices_learn_and_play_from_their_folders(cartpole_config, build, tmp_path, students, td_coeff):
    config = cartpole_config.environment(Matrix).distillation(teacher=matrix_teacher(), td_coeff=td_coeff)
    algo = build(config.distillation(students=students))
    for _ in range(12):
        algo.train()
    names = list(students or ["default_policy"])
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    for name in names:
        module = f"{path}/learner_group/learner/rl_module/{name}"
        result = compare(matrix_teacher(), module, Matrix, num_episodes=2)
        assert result.agreement_on_teacher_states > 0.6  # the pipeline's rows are not mixed up
        assert len(evaluate(module, Matrix, num_episodes=2).returns) == 2


def test_a_member_of_a_family_knows_where_it_was_trained(cartpole_config, build, tmp_path):
    path = build(cartpole_config.distillation(students=FAMILY)).save_to_path(str(tmp_path / "checkpoint"))
    for name in FAMILY:
        assert open_source(f"{path}/learner_group/learner/rl_module/{name}").environment() == ("CartPole-v1", {})


def test_an_id_may_name_the_module_that_registers_it(tmp_path, monkeypatch):
    (tmp_path / "my_envs.py").write_text(
        "import gymnasium as gym\n"
        "gym.register('Mine-v0', 'gymnasium.envs.classic_control:CartPoleEnv', max_episode_steps=7)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    check_gymnasium_id("my_envs:Mine-v0")
    assert max(evaluate("cartpole", "my_envs:Mine-v0", num_episodes=3).returns) <= 7
    for unknown, reason in (("my_envs:Yours-v0", "Yours"), ("no_envs:Mine-v0", "No module named 'no_envs'")):
        with pytest.raises(ValueError, match=f"nor with gymnasium: .*{reason}"):
            check_gymnasium_id(unknown)
