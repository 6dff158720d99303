"""Teachers: where they come from, and what they can do. One file an origin; `load_teacher` recognises it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rllib_kd.teachers.base import Teacher


class PackagedTeacher(NamedTuple):
    """A teacher that comes with the package."""

    path: Path
    env: str  # in which it was trained


#: By name.
PACKAGED_TEACHERS = {"cartpole": PackagedTeacher(Path(__file__).parent / "cartpole", "CartPole-v1")}


def absolute_uri(path: str) -> str:
    """A URI as it is, and a path that means the same in every working directory."""
    return path if "://" in path else str(Path(path).expanduser().absolute())


def absolute_teacher_uri(teacher: str | os.PathLike[str]) -> str:
    """Name, URI or path of a teacher as a string that means the same in every working directory.

    Raises:
        ValueError: it is none of these.
    """
    if not isinstance(teacher, str | os.PathLike):
        raise ValueError(
            f"A teacher is the path or URI of a checkpoint, or one of the names {sorted(PACKAGED_TEACHERS)}. Got "
            f"{teacher!r}; several teachers at once are not supported yet."
        )
    text = os.fspath(teacher)
    return text if text in PACKAGED_TEACHERS else absolute_uri(text)


def load_teacher(teacher: str | os.PathLike[str], *, trust_checkpoint: bool = False) -> Teacher:
    """Load a teacher.

    Args:
        teacher: the name of a packaged teacher ("cartpole"), or path or URI of an RLlib checkpoint: an Algorithm's
            directory, or its rl_module folder.
        trust_checkpoint: whether what a checkpoint holds may be executed: for RLModules and connectors of one's own.

    Raises:
        ValueError: nothing is there, it is no teacher, or it holds more than data; the message says what to do.
    """
    from rllib_kd.teachers.rllib import load_rllib

    uri = absolute_teacher_uri(teacher)
    if uri in PACKAGED_TEACHERS:
        uri = str(PACKAGED_TEACHERS[uri].path)
    return load_rllib(uri, trust_checkpoint=trust_checkpoint)
