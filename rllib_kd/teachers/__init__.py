"""Teachers: where they come from, and what they can do. One file an origin; `load_teacher` recognises it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from rllib_kd.observations import ObservationPipeline
    from rllib_kd.teachers.base import Teacher


class PackagedTeacher(NamedTuple):
    """A teacher that comes with the package."""

    path: Path
    env: str  # in which it was trained


#: By name.
PACKAGED_TEACHERS = {"cartpole": PackagedTeacher(Path(__file__).parent / "cartpole", "CartPole-v1")}


def absolute_uri(path: str) -> str:
    """A URI as it is, and a path that means the same in every working directory.

    Raises:
        ValueError: it is empty, or the home folder that it begins with is not known.
    """
    return path if "://" in path else str(expanded(path).absolute())


def expanded(path: str) -> Path:
    """A path on this machine, with a home folder in the place of `~`.

    Raises:
        ValueError: it is empty, or the home folder is not known.
    """
    if not path:
        raise ValueError("A path is empty. Expected the path or URI of a file or folder, or '.' for this folder.")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"'{path}' begins with a home folder that is not known here. Write the whole path.") from error


def absolute_teachers(teacher: Any) -> Any:
    """As `absolute_teacher_uri()`; of each in a list; and what is loaded already as it is."""
    from rllib_kd.teachers.base import Teacher

    if isinstance(teacher, list | tuple):
        return [absolute_teachers(member) for member in teacher]
    return teacher if isinstance(teacher, Teacher) else absolute_teacher_uri(teacher)


def absolute_teacher_uri(teacher: str | os.PathLike[str]) -> str:
    """Name, URI or path of a teacher as a string that means the same in every working directory.

    Raises:
        ValueError: it is none of these.
    """
    if not isinstance(teacher, str | os.PathLike):
        raise ValueError(
            f"A teacher is the path or URI of a checkpoint, or one of the names {sorted(PACKAGED_TEACHERS)}; a list of "
            f"them is an ensemble. Got {teacher!r}."
        )
    text = os.fspath(teacher)
    return text if text in PACKAGED_TEACHERS else absolute_uri(text)


def load_teacher(
    teacher: str | os.PathLike[str] | Sequence[str | os.PathLike[str] | Teacher],
    *,
    pipeline: ObservationPipeline | None = None,
    trust_checkpoint: bool = False,
) -> Teacher:
    """Load a teacher of any origin, recognised by its content.

    Args:
        teacher: the name of a packaged teacher ("cartpole"), or path or URI of an RLlib checkpoint (an Algorithm's
            directory, or its rl_module folder), of a Tune experiment or trial (its best checkpoint by return), of a
            Stable-Baselines3 zip of DQN or QR-DQN, a `.cleanrl_model`, safetensors, ONNX or TorchScript. A list of
            them, or of teachers that are loaded already, is an ensemble, which says the mean of their Q-values.
        pipeline: from what the environment shows to what it showed this teacher in training. It comes before what the
            checkpoint itself brings: connectors, VecNormalize, channel order. With it a teacher may see more than its
            student: `ObservationPipeline(env.observation_space, (Function(lambda obs: obs["everything"]),))`.
        trust_checkpoint: whether what a checkpoint holds may be executed: for RLModules and connectors of one's own,
            and for TorchScript.

    Raises:
        ValueError: nothing is there, it is no teacher, holds more than data, or does not answer with finite Q-values;
            the message says what to do.
    """
    from rllib_kd.teachers.base import Teacher
    from rllib_kd.teachers.cleanrl import load_cleanrl
    from rllib_kd.teachers.ensemble import ensemble_of
    from rllib_kd.teachers.files import load_onnx, load_safetensors, load_torchscript
    from rllib_kd.teachers.recognition import find
    from rllib_kd.teachers.rllib import load_rllib
    from rllib_kd.teachers.sb3 import load_sb3

    if isinstance(teacher, Sequence) and not isinstance(teacher, str):
        members = (
            member
            if isinstance(member, Teacher)
            else load_teacher(member, pipeline=pipeline, trust_checkpoint=trust_checkpoint)
            for member in teacher
        )
        return ensemble_of(list(members))
    uri = absolute_teacher_uri(teacher)
    found = find(str(PACKAGED_TEACHERS[uri].path) if uri in PACKAGED_TEACHERS else uri)
    match found.origin:
        case "sb3":
            loaded = load_sb3(found.content, uri, found.vec_normalize())
        case "cleanrl":
            loaded = load_cleanrl(found.content, uri)
        case "safetensors":
            loaded = load_safetensors(found.content, uri, found.description())
        case "onnx":
            loaded = load_onnx(found.content, uri)
        case "torchscript":
            loaded = load_torchscript(found.content, uri, found.description(), trust_checkpoint=trust_checkpoint)
        case _:
            loaded = load_rllib(found.uri, trust_checkpoint=trust_checkpoint)
    loaded.trained_return = found.trained_return
    if pipeline is not None:
        own_stages = () if loaded.pipeline is None else loaded.pipeline.stages
        loaded.pipeline = dataclasses.replace(pipeline, stages=(*pipeline.stages, *own_stages))
    return loaded.checked()
