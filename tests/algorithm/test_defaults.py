"""Defaults that depend on what a student sees."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from rllib_kd import DistillDQNConfig
from rllib_kd.algorithm.defaults import FOR_IMAGES, FOR_SEQUENCES, FOR_VECTORS, settle_defaults
from rllib_kd.algorithm.settings import apply_settings
from rllib_kd.learner import replay
from rllib_kd.learner.replay import ColumnarReplay, default_capacity, make_replay
from rllib_kd.teachers.base import Teacher
from tests.conftest import CARTPOLE_ACTIONS, CARTPOLE_OBS, make_q_module

IMAGES = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)


@pytest.mark.parametrize(
    ("space", "teacher", "expected"),
    [
        (CARTPOLE_OBS, None, FOR_VECTORS),
        (IMAGES, None, FOR_IMAGES),
        (None, None, FOR_VECTORS),
        (None, gym.spaces.Box(0.0, 1.0, (84, 84, 4), np.float32), FOR_IMAGES),
    ],
)
def test_vectors_and_images_have_their_own(space, teacher, expected):
    config = DistillDQNConfig()
    spaces = None if space is None else (space, CARTPOLE_ACTIONS)
    conv = {"conv_filters": [[4, 8, 4]], "head_fcnet_hiddens": [8]}
    teachers = {} if teacher is None else {"default_policy": Teacher(make_q_module(teacher, **conv))}
    settle_defaults(config, spaces, teachers)
    by_size = {"lr": None} if expected is FOR_IMAGES else {}  # the Learner sees the student's size
    assert {name: getattr(config, name) for name in expected} == expected | by_size


def test_the_learning_rate_of_images_does_not_depend_on_the_size_with_td():
    config = DistillDQNConfig().distillation(td_coeff=[[0, 0.0], [1_000, 1.0]])
    settle_defaults(config, (IMAGES, CARTPOLE_ACTIONS), {})
    assert config.lr == FOR_IMAGES["lr"]


@pytest.mark.parametrize(("space", "expected"), [(CARTPOLE_OBS, FOR_SEQUENCES), (IMAGES, FOR_IMAGES)])
def test_recurrent_students_of_vectors_have_larger_batches(space, expected):
    config = DistillDQNConfig().rl_module(model_config={"use_lstm": True})
    settle_defaults(config, (space, CARTPOLE_ACTIONS), {})
    assert {name: getattr(config, name) for name in expected} == expected


def test_what_is_set_stays_even_if_it_is_the_default_of_the_other_kind():
    config = DistillDQNConfig().training(**FOR_VECTORS)
    settle_defaults(config, (IMAGES, CARTPOLE_ACTIONS), {})
    assert {name: getattr(config, name) for name in FOR_VECTORS} == FOR_VECTORS


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.training(train_batch_size=64),
        lambda config: config.update_from_dict({"train_batch_size": 64}),
        lambda config: apply_settings(config, {"train_batch_size": 64.0}),
    ],
)
def test_a_batch_size_of_all_learners_counts_as_set(change):
    for num_learners, expected in ((0, 64), (2, 32)):
        config = change(DistillDQNConfig()).learners(num_learners=num_learners)
        settle_defaults(config, (CARTPOLE_OBS, CARTPOLE_ACTIONS), {})
        assert config.train_batch_size_per_learner == expected


def rows(*shape, dtype=np.uint8):
    return {"obs": np.zeros((3, *shape), dtype), "teacher_q": np.zeros((3, 6), np.float32)}


def test_the_replay_keeps_more_images_than_vectors_but_within_four_gibibytes():
    assert default_capacity(rows(8, dtype=np.float32)) == 50_000
    assert default_capacity(rows(84, 84)) == 400_000
    assert default_capacity(rows(210, 160, 3)) == 2**32 // (210 * 160 * 3 + 24)


def test_a_replay_of_default_capacity_comes_back(monkeypatch):
    monkeypatch.setattr(replay, "_MOST_VECTORS", 4)
    full = make_replay({"capacity": None}, seed=0)
    assert full.get_state()["capacity"] == 0  # nothing has come yet: a number, since a checkpoint's arrays are data
    for _ in range(2):
        full.add(rows(2, dtype=np.float32))
    assert (full.capacity, len(full)) == (4, 4)
    again = ColumnarReplay(None, seed=1)
    again.set_state(full.get_state())
    assert again.capacity == 4
    assert torch.equal(again.sample_indices(2, 8), full.sample_indices(2, 8))
