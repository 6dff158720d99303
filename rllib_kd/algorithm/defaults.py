"""Defaults that depend on the student: whether it sees vectors or images, or has a memory.

A student of vectors soon sees nearly all of its states, and profits from many gradient steps on them. A student of
images plays badly in states that are unlike those it has learned from. A new env step is then worth more than another
gradient step on old states, and each gradient step takes a hundred times as long. Its first convolutions are its
teacher's, which have seen more, and small ones learn by larger steps. docs/results/images.md has the measurements.

States of one sequence resemble each other. A batch of a recurrent student therefore needs more of them, and its steps
are smaller: docs/results/recurrent.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym

from rllib_kd import _rllib
from rllib_kd.algorithm.config import DistillationConfig
from rllib_kd.networks.mixed_space import has_images
from rllib_kd.observations.masks import features_space
from rllib_kd.observations.spaces import input_space
from rllib_kd.teachers.base import Teacher

#: By name of the setting.
FOR_VECTORS: dict[str, Any] = {"lr": 3e-3, "training_intensity": 32.0, "train_batch_size_per_learner": 256}
#: Rows of the replay. A tree learns only from what is in the replay when it is regrown.
CAPACITY_FOR_TREES = 200_000
#: `lr` of recurrent students, and with TD.
FOR_IMAGES: dict[str, Any] = {"lr": 1e-3, "training_intensity": 4.0, "train_batch_size_per_learner": 128}
#: Of vectors.
FOR_SEQUENCES: dict[str, Any] = {"lr": 1e-3, "training_intensity": 32.0, "train_batch_size_per_learner": 1024}


def settle_defaults(
    config: DistillationConfig, spaces: tuple[gym.Space, gym.Space] | None, teachers: Mapping[str, Teacher]
) -> None:
    """Set those settings of a config that were left unset and whose defaults depend on what the student sees.

    Args:
        config: config, which is changed.
        spaces: spaces of the environment; None if unknown.
        teachers: teachers by group.
    """
    loaded = [teacher for teacher in teachers.values() if teacher.is_loaded]
    shown = [teacher.observation_space for teacher in loaded] if spaces is None else [spaces[0]]
    seen = [teacher.input_space for teacher in loaded] + [input_space(features_space(space)) for space in shown]
    if config.trees and config.replay_buffer_config.get("capacity") is None:
        config.replay_buffer_config = {**config.replay_buffer_config, "capacity": CAPACITY_FOR_TREES}
    is_image = any(map(has_images, seen))
    for_vectors = FOR_SEQUENCES if config.is_recurrent else FOR_VECTORS
    if config.init is None and (not is_image or config.is_recurrent or config.teacher is None):
        config.init = "random"  # of images it is left to the networks: see FirstWeights
    if config.own_states is None and len(config.students or ()) > 1 and not config.is_offline:
        config.own_states = False if is_image else "linear"
    defaults = dict(FOR_IMAGES if is_image else for_vectors)
    if is_image and not (config.is_recurrent or config.uses_td):
        del defaults["lr"]  # it follows from the student's size: learner/learning_rate.py
    for name, value in defaults.items():
        is_batch_size = name == "train_batch_size_per_learner"
        if not (_rllib.has_batch_size(config) if is_batch_size else getattr(config, name) is not None):
            setattr(config, name, value)
