"""The config that actors read: all that follows from environment, rows and teachers is set in it, without networks."""

from __future__ import annotations

from typing import Any, TypeVar

from rllib_kd.algorithm.checks.labels import note_outputs
from rllib_kd.algorithm.config import DistillationConfig
from rllib_kd.algorithm.defaults import settle_defaults
from rllib_kd.algorithm.recorded import settle_recorded
from rllib_kd.algorithm.students import shape_students
from rllib_kd.algorithm.teachers import Teachers, has_networks, without_networks
from rllib_kd.offline.stream import RecordedFiles

_Config = TypeVar("_Config", bound=DistillationConfig)


def concrete_config(
    given: _Config, spaces: tuple[Any, Any] | None, teachers: Teachers, files: RecordedFiles | None
) -> _Config:
    """Return a frozen copy of a config, in which every value is settled.

    Args:
        given: config, as a user has set it.
        spaces: spaces of the environment, or of recorded rows; None if unknown.
        teachers: teachers by group.
        files: files of recorded rows; None if environments are sampled.
    """
    config = given.copy(copy_frozen=False)
    config.settle_environment()
    if files is not None:
        settle_recorded(config, files, spaces)
    settle_defaults(config, spaces, teachers)
    shape_students(config, teachers, spaces)
    note_outputs(config, teachers)
    loaded = [group_id for group_id, teacher in config.teachers.items() if has_networks(teacher)]
    config.set_teachers(lambda _, teacher: without_networks(teacher))
    config.note_loaded_teachers(loaded)
    config.freeze()
    return config
