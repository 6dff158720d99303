"""Recurrent teachers: of RLlib's DQN and of actor-critics, through an episode."""

import numpy as np
import pytest
import torch
from ray import cloudpickle
from ray.rllib.algorithms.dqn import DQNConfig

from rllib_kd import Teacher, load_teacher
from rllib_kd.evaluation.comparing import evaluate
from rllib_kd.observations.pipeline import Shown
from rllib_kd.teachers.ensemble import ensemble_of
from rllib_kd.wire import LOG_PROBS, TEACHER_Q
from tests.conftest import CARTPOLE_ACTIONS, CARTPOLE_OBS, make_q_module, states
from tests.teachers.test_actor_critics import make_policy

LSTM = {"use_lstm": True, "lstm_cell_size": 4, "max_seq_len": 5, "fcnet_hiddens": [6]}


def q_module():
    return make_q_module(CARTPOLE_OBS, CARTPOLE_ACTIONS, **LSTM)


def shown(step, *, first=False):
    return Shown(states(3, seed=step), first=np.full(3, first))


def test_a_view_goes_through_the_episode_and_survives_a_pickle():
    module = q_module()
    teacher = cloudpickle.loads(cloudpickle.dumps(Teacher(module)))
    view = teacher.start()
    seen = []
    for step in range(3):
        seen.append(teacher.q_values(torch.from_numpy(view(shown(step, first=step == 0)))))
        view = cloudpickle.loads(cloudpickle.dumps(view))
    obs = torch.stack([torch.from_numpy(states(3, seed=step)) for step in range(3)], dim=1)
    zeros = torch.zeros(3, 1, 4)
    with torch.no_grad():
        expected = module.compute_q_values({"obs": obs, "state_in": {"h": zeros, "c": zeros}})["qf_preds"]
    torch.testing.assert_close(torch.stack(seen, dim=1), expected)


def test_labels_have_masks():
    teacher = Teacher(q_module())
    view, mask = teacher.start(), torch.tensor([[True, False]] * 3)
    q = torch.from_numpy(view(shown(0, first=True)))
    labels = teacher.labels(q, (TEACHER_Q,), mask)[TEACHER_Q]
    assert labels[:, 1].isneginf().all()
    torch.testing.assert_close(labels[:, 0], q[:, 0])


@pytest.mark.parametrize("shared", [True, False])
def test_an_actor_critic_gives_the_log_probabilities_of_its_policy(tmp_path, shared):
    module = make_policy(vf_share_layers=shared, **LSTM)
    teacher = load_teacher(module.save_to_path(str(tmp_path / "module")))
    assert teacher.is_recurrent
    assert teacher.outputs == LOG_PROBS
    view = teacher.start()
    first = teacher.q_values(torch.from_numpy(view(shown(0, first=True))))
    second = teacher.q_values(torch.from_numpy(view(shown(0))))
    assert first.exp().sum(-1).numpy() == pytest.approx(1.0)
    assert not torch.allclose(first, second)


def test_an_ensemble_has_no_memory():
    teacher = Teacher(q_module())
    with pytest.raises(ValueError, match="is recurrent"):
        ensemble_of([teacher, load_teacher("cartpole")])


def test_a_list_of_one_teacher_has_its_memory(tmp_path):
    module = q_module()
    alone = load_teacher([module.save_to_path(str(tmp_path / "module"))])
    views = [teacher.start() for teacher in (alone, Teacher(module))]
    for step in range(2):
        seen, expected = (torch.from_numpy(view(shown(step, first=step == 0))) for view in views)
        torch.testing.assert_close(alone.q_values(seen), expected)


@pytest.mark.slow
def test_a_dqn_of_rllib_teaches(cluster, tmp_path):
    config = DQNConfig().environment("CartPole-v1").rl_module(model_config=LSTM)
    config.env_runners(num_env_runners=0, num_envs_per_env_runner=1).learners(num_learners=0)
    config.training(replay_buffer_config={"type": "EpisodeReplayBuffer", "capacity": 1_000})
    algo = config.build_algo()
    path = algo.save_to_path(str(tmp_path / "dqn"))
    returns = evaluate(algo, "CartPole-v1", num_episodes=3).returns
    algo.stop()
    assert load_teacher(path).is_recurrent
    assert evaluate(path, num_episodes=3).returns == returns
