"""Settings and what the labels are: Q-values, or log-probabilities."""

import pytest

from rllib_kd import DistillDQNConfig
from rllib_kd.algorithm.checks.labels import check_labels, note_outputs
from rllib_kd.teachers.base import Teacher
from tests.conftest import CARTPOLE_ACTIONS, CARTPOLE_OBS, make_q_module
from tests.formats import mlp

ACTOR_CRITIC = Teacher.from_callable(
    mlp(4, 8, 2), observation_space=CARTPOLE_OBS, action_space=CARTPOLE_ACTIONS, outputs="logits"
)
Q_NETWORK = Teacher(make_q_module(), source="dqn")


def config_with(**settings):
    config = DistillDQNConfig().environment("CartPole-v1").distillation(teacher="cartpole", **settings)
    config.validate()
    return config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"loss": "mse"},
            r"`loss`='mse' needs a teacher with Q-values, but 'Sequential' is an actor-critic.*'kl', 'nll'",
        ),
        ({"loss": "huber"}, "`loss`='huber' needs a teacher with Q-values"),
        ({"td_coeff": 1.0}, r"`td_coeff`=1\.0 needs a teacher with Q-values.*Leave it at 0"),
        ({"td_coeff": [[0, 0.0], [10, 1.0]]}, "`td_coeff`=.* needs a teacher with Q-values"),
        ({"gap_weighting": True}, "`gap_weighting`=True needs a teacher with Q-values"),
        ({"value_gate": True, "td_coeff": 1.0}, "needs a teacher with Q-values"),
    ],
)
def test_what_needs_q_values_is_refused_for_actor_critics(settings, message):
    config = config_with(**settings)
    check_labels(config, {"default_policy": Q_NETWORK})
    with pytest.raises(ValueError, match=message):
        check_labels(config, {"default_policy": ACTOR_CRITIC})


@pytest.mark.parametrize("loss", ["kl", "reverse_kl", "jsd", "nll", "margin"])
def test_losses_that_rank_actions_take_both(loss):
    for teacher in (Q_NETWORK, ACTOR_CRITIC):
        check_labels(config_with(loss=loss), {"default_policy": teacher})


def test_only_a_policy_can_be_drawn_from():
    config = config_with(teacher_explores=True)
    check_labels(config, {"default_policy": ACTOR_CRITIC})
    with pytest.raises(ValueError, match=r"`teacher_explores` lets a teacher draw.*'dqn' has Q-values and no policy"):
        check_labels(config, {"default_policy": Q_NETWORK})


def test_teachers_of_a_checkpoint_that_is_not_restored_yet_are_not_checked():
    config = config_with(loss="mse")
    check_labels(config, {"default_policy": Teacher()})
    config.set_outputs({"default_policy": "log_probs"})
    note_outputs(config, {"default_policy": Teacher()})
    assert config.outputs_of("default_policy") == "log_probs"  # as its config has it


def test_a_policy_has_temperature_1_unless_another_one_is_set():
    config = config_with()
    note_outputs(config, {"left": Q_NETWORK, "right": ACTOR_CRITIC})
    assert (config.outputs_of("left"), config.outputs_of("right")) == ("q_values", "log_probs")
    assert config.temperatures(5.0, "log_probs")[0] == 1.0
    assert config.temperatures(5.0, "q_values")[0] == 0.5
    assert config_with(temperature=0.3).temperatures(5.0, "log_probs")[0] == 0.3


def test_a_described_teacher_is_no_dict_of_policies(tmp_path):
    described = {"path": "net.pth", "network": {"activation": "relu"}}
    config = config_with().distillation(teacher=described)
    assert config.teachers["default_policy"]["path"].endswith("/net.pth")  # absolute
    assert config.teachers["default_policy"]["network"] == described["network"]
    config.validate()
    config.set_teachers(lambda _, teacher: "checkpoint:teacher")
    assert config.teacher == "checkpoint:teacher"
    with pytest.raises(ValueError, match="has no key 'activation'"):
        config.distillation(teacher={"path": "net.pth", "activation": "relu"})
    with pytest.raises(ValueError, match="needs a path and a dict as its network"):
        config.distillation(teacher={"path": "net.pth", "network": "relu"})
    ensemble = config.distillation(teacher=[described, "cartpole"])
    ensemble.validate()
    assert ensemble.teachers["default_policy"][1] == "cartpole"
