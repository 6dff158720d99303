"""The config of a run without baselines, for searches that play and judge by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rllib_kd.algorithm.algorithm import DistillDQNConfig
from rllib_kd.algorithm.settings import apply_settings
from rllib_kd.teachers.base import Teacher


def student_config(env: Any, teacher: Teacher, settings: Mapping[str, Any], *, seed: int) -> DistillDQNConfig:
    """Return the config of one student.

    Args:
        env: environment, as in `config.environment()`.
        teacher: the teacher.
        settings: further settings by name.
        seed: seed of the run.

    Raises:
        ValueError: a setting is unknown, or the config refuses its value.
    """
    config = DistillDQNConfig().distillation(teacher=teacher, num_baseline_episodes=0).environment(env)
    # The monitor of CPU and memory takes 0.4 s to stop.
    config.debugging(seed=seed, log_sys_usage=False)
    apply_settings(config, settings)
    return config


def refuse_recurrent(config: DistillDQNConfig) -> None:
    """Check that students have no memory, where their sizes are searched.

    Raises:
        ValueError: they have one.
    """
    if config.is_recurrent:
        raise ValueError(
            "Recurrent students ('use_lstm') are not supported here: the sizes are those of students without a memory. "
            "Train recurrent ones of several sizes by .distillation(students={...}), and compare them."
        )
