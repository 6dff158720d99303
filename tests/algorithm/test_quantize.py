"""`quantize`: what it excludes is refused before anything starts."""

import gymnasium as gym
import numpy as np
import pytest

from rllib_kd import DistillDQNConfig
from rllib_kd.algorithm.preflight import check_environment

DISCRETE = gym.spaces.Discrete(2)


def config(**distillation) -> DistillDQNConfig:
    config = DistillDQNConfig().environment("CartPole-v1")
    return config.distillation(teacher="cartpole", quantize="int8", **distillation)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.distillation(quantize="int4"), "`quantize` must be None or 'int8', got 'int4'"),
        (lambda c: c.distillation(td_coeff=1.0), "not supported with `td_coeff`=1.0.* Leave td_coeff at 0"),
        (lambda c: c.distillation(feature_coeff=0.1), "`feature_coeff`=0.1.* Set feature_coeff=0"),
        (lambda c: c.distillation(bf16=True), "`bf16`=True"),
        (
            lambda c: c.distillation(loss="mse"),
            "`normalize_q_values`=True.* Set normalize_q_values=False, or loss='kl'",
        ),
        (lambda c: c.training(num_atoms=5, v_min=0.0, v_max=9.0), "`num_atoms`=5"),
        (lambda c: c.training(dueling=True), "`dueling`=True"),
        (lambda c: c.distillation(student="rusu-net3"), "'student' is 'rusu-net3', with convolutions"),
        (lambda c: c.distillation(student={"tree": {"max_leaf_nodes": 4}}), "a tree has no weights"),
        (
            lambda c: c.distillation(students={"a": {"fcnet_hiddens": [4], "fcnet_use_layernorm": True}}),
            "'a' has fcnet_use_layernorm=True",
        ),
        (lambda c: c.rl_module(model_config={"fcnet_use_layernorm": True}), "'student' has fcnet_use_layernorm=True"),
    ],
)
def test_what_it_excludes_is_named_with_a_remedy(change, message):
    with pytest.raises(ValueError, match=message):
        change(config()).validate()


@pytest.mark.parametrize(
    "distillation",
    [
        {},
        {"student": "linear"},
        {"loss": "mse", "normalize_q_values": False},
        {"restarts": 4},
        {"students": {"a": {"fcnet_hiddens": [4]}, "b": {"compression": 0.01}}},
    ],
)
def test_what_it_takes(distillation):
    config(**distillation).validate()


def test_images_are_refused():
    images = gym.spaces.Box(0, 255, (84, 84, 4), np.uint8)
    with pytest.raises(ValueError, match=r"for observations that are vectors, got Box\(84, 84, 4\).* with --int8"):
        check_environment(config(), (images, DISCRETE))
    check_environment(config(), (gym.spaces.Box(-1.0, 1.0, (3,)), DISCRETE))
