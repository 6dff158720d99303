"""Names of packaged teachers, and absolute paths of others."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

from rllib_kd.checkpoints.uris import absolute_uri
from rllib_kd.teachers.base import Teacher

logger = logging.getLogger(__name__)


class PackagedTeacher(NamedTuple):
    """A teacher that comes with the package."""

    path: Path
    env: str  # in which it was trained


#: Packaged teachers by name.
PACKAGED_TEACHERS = {"cartpole": PackagedTeacher(Path(__file__).parent / "cartpole", "CartPole-v1")}


def absolute_teachers(teacher: Any) -> Any:
    """Apply `absolute_teacher_uri()`, to each member of a list; return a loaded teacher as it is."""
    if isinstance(teacher, list | tuple):
        return [absolute_teachers(member) for member in teacher]
    return teacher if isinstance(teacher, Teacher) else absolute_teacher_uri(teacher)


def absolute_teacher_uri(teacher: str | os.PathLike[str]) -> str:
    """Return the name, URI or absolute path of a teacher, valid in every working directory.

    Raises:
        ValueError: it is none of these.
    """
    if not isinstance(teacher, str | os.PathLike):
        raise ValueError(
            f"A teacher must be the path or URI of a checkpoint, or one of the names {sorted(PACKAGED_TEACHERS)}; a "
            f"list of them is an ensemble. Got {teacher!r}."
        )
    text = os.fspath(teacher)
    if text not in PACKAGED_TEACHERS:
        return absolute_uri(text)
    if os.path.isdir(text):
        logger.warning("'%s' means the teacher that comes with rllib_kd. Write './%s' for the folder here.", text, text)
    return text
