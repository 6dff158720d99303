"""Names of packaged teachers, and absolute paths of others."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from rllib_kd.checkpoints.uris import absolute_uri
from rllib_kd.teachers.base import Teacher
from rllib_kd.text import one_line

logger = logging.getLogger(__name__)


class PackagedTeacher(NamedTuple):
    """A teacher that comes with the package."""

    path: Path
    env: str  # in which it was trained


#: Packaged teachers by name.
PACKAGED_TEACHERS = {"cartpole": PackagedTeacher(Path(__file__).parent / "cartpole", "CartPole-v1")}
#: The keys of a teacher that is described in a config: its path, and what its file does not record of the network.
DESCRIPTION_KEYS = frozenset({"path", "network"})


def is_described(teacher: Any) -> TypeGuard[Mapping[str, Any]]:
    """Return whether a teacher is a dict with its path, and a description of its network."""
    return isinstance(teacher, Mapping) and "path" in teacher


def is_by_policy(teacher: Any) -> TypeGuard[Mapping[str, Any]]:
    """Return whether this is a dict of teachers by policy, as in multi-agent settings."""
    return isinstance(teacher, Mapping) and not is_described(teacher)


def path_of(teacher: Any) -> str:
    """Return the path of a teacher as a command takes it; of one that is described, without the description."""
    return str(teacher["path"] if is_described(teacher) else teacher)


def check_description(teacher: Mapping[str, Any]) -> None:
    """Check a teacher that is described by a dict.

    Raises:
        ValueError: it has unknown keys, or values of other types.
    """
    path, network = teacher.get("path"), teacher.get("network", {})
    if unknown := sorted(set(map(str, teacher)) - DESCRIPTION_KEYS):
        raise ValueError(
            f"A teacher's description has no key '{unknown[0]}'. Expected {{'path': ..., 'network': {{'activation': "
            "'relu'}}."
        )
    if not isinstance(path, str | os.PathLike) or not isinstance(network, Mapping):
        raise ValueError(
            f"A teacher's description needs a path and a dict as its network, got {teacher!r:.200}. Expected "
            "{'path': ..., 'network': {'activation': 'relu'}}."
        )


def absolute_teachers(teacher: Any) -> Any:
    """Apply `absolute_teacher_uri()`, to each member of a list; return a loaded teacher as it is."""
    if isinstance(teacher, list | tuple):
        return [absolute_teachers(member) for member in teacher]
    if is_described(teacher):
        check_description(teacher)
        return {**teacher, "path": absolute_teacher_uri(teacher["path"])}
    return teacher if isinstance(teacher, Teacher) else absolute_teacher_uri(teacher)


def absolute_teacher_uri(teacher: str | os.PathLike[str]) -> str:
    """Return the name, URI or absolute path of a teacher, valid in every working directory.

    Raises:
        ValueError: it is not one of these.
    """
    if not isinstance(teacher, str | os.PathLike):
        raise ValueError(
            f"A teacher must be the path or URI of a checkpoint, one of the names {sorted(PACKAGED_TEACHERS)}, or a "
            f"Teacher, as of load_teacher() or Teacher.from_callable(); a list of them is an ensemble. Got "
            f"{one_line(repr(teacher), limit=100)}."
        )
    text = os.fspath(teacher)
    if text not in PACKAGED_TEACHERS:
        return absolute_uri(text)
    if os.path.isdir(text):
        logger.warning("'%s' means the teacher that comes with rllib_kd. Write './%s' for the folder here.", text, text)
    return text
