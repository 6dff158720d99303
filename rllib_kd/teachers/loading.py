"""load_teacher(): recognise, load, check."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

from rllib_kd.observations.pipeline import ObservationPipeline
from rllib_kd.teachers.base import Teacher
from rllib_kd.teachers.cleanrl import load_cleanrl
from rllib_kd.teachers.ensemble import ensemble_of
from rllib_kd.teachers.names import PACKAGED_TEACHERS, absolute_teacher_uri
from rllib_kd.teachers.onnx import load_onnx
from rllib_kd.teachers.recognition import find
from rllib_kd.teachers.rllib import load_rllib
from rllib_kd.teachers.safetensors import load_safetensors
from rllib_kd.teachers.sb3 import load_sb3
from rllib_kd.teachers.torchscript import load_torchscript


def load_teacher(
    teacher: str | os.PathLike[str] | Sequence[str | os.PathLike[str] | Teacher],
    *,
    pipeline: ObservationPipeline | None = None,
    trust_checkpoint: bool = False,
) -> Teacher:
    """Load a teacher of any origin, recognised by its content.

    Args:
        teacher: the name of a packaged teacher ("cartpole"), or path or URI of an RLlib checkpoint (an Algorithm's
            directory, or its rl_module folder), of a Tune experiment or trial (its best checkpoint by evaluation; its
            newest if training did not evaluate; "RUN@newest" and "RUN@best" choose), of a Stable-Baselines3 zip of DQN
            or QR-DQN, a `.cleanrl_model`, safetensors, ONNX or TorchScript. A list of them, or of teachers that are
            loaded already, is an ensemble, whose Q-values are their means.
        pipeline: from what the environment shows to what it showed this teacher in training. It comes before what the
            checkpoint itself brings: connectors, VecNormalize, channel order. With it a teacher may see more than its
            student: `ObservationPipeline(env.observation_space, (Function(lambda obs: obs["everything"]),))`.
        trust_checkpoint: whether what a checkpoint holds may be executed: for RLModules and connectors of one's own,
            and for TorchScript.

    Raises:
        ValueError: nothing is there, it is no teacher, holds more than data, or does not return finite Q-values; the
            message says what to do.
    """
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
