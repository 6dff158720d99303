"""load_teacher(): find, recognise, load and check a teacher."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from ray.rllib.core.rl_module.rl_module import RLModule

from rllib_kd.checkpoints.rllib import RLlibCheckpoint, open_checkpoint
from rllib_kd.checkpoints.tune import Location, resolve
from rllib_kd.observations.pipeline import ObservationPipeline
from rllib_kd.teachers.base import Teacher
from rllib_kd.teachers.cleanrl import load_cleanrl
from rllib_kd.teachers.ensemble import ensemble_of
from rllib_kd.teachers.names import PACKAGED_TEACHERS, PackagedTeacher, absolute_teacher_uri
from rllib_kd.teachers.onnx import load_onnx
from rllib_kd.teachers.recognition import Found, find
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
            folder, or its rl_module folder), of a Tune experiment or trial (its best checkpoint by evaluation; its
            newest if training did not evaluate; "RUN@newest" and "RUN@best" choose), of a Stable-Baselines3 zip of DQN
            or QR-DQN, or of a folder with that zip alone, of a `.cleanrl_model`, safetensors, ONNX or TorchScript. A
            list of them, or of loaded teachers, is an ensemble, whose Q-values are their means.
        pipeline: pipeline from the environment's observations to those of this teacher's training. It precedes the
            pipeline in the checkpoint (connectors, VecNormalize, channel order). With it a teacher may see more than
            its student: `ObservationPipeline(env.observation_space, (Function(lambda obs: obs["everything"]),))`.
        trust_checkpoint: whether code in a checkpoint may be run: needed for custom RLModules and connectors, and for
            TorchScript.

    Returns:
        The frozen teacher.

    Raises:
        ValueError: there is nothing at the path, it is not a teacher, contains more than data, or does not return
            finite Q-values; the message has the remedy.
    """
    if isinstance(teacher, Sequence) and not isinstance(teacher, str):
        members = (
            member
            if isinstance(member, Teacher)
            else load_teacher(member, pipeline=pipeline, trust_checkpoint=trust_checkpoint)
            for member in teacher
        )
        return ensemble_of(list(members))
    return OpenedCheckpoint(teacher, trust_checkpoint=trust_checkpoint).load(pipeline)


class OpenedCheckpoint:
    """A checkpoint of any origin. It is found at once; it is recognised, read and built at its first use, once.

    Args:
        path: name of a packaged teacher, or path or URI as in `load_teacher()`; or a location from `resolve()`.
        trust_checkpoint: as in `load_teacher()`.
        continues: as in `resolve()`.

    Raises:
        ValueError: there is nothing, or a run folder has no checkpoint to choose.
    """

    def __init__(
        self, path: str | os.PathLike[str] | Location, *, trust_checkpoint: bool = False, continues: bool = False
    ):
        self._trusted = trust_checkpoint
        self._packaged: PackagedTeacher | None = None
        if isinstance(path, Location):
            self.name, self.location = path.uri, path
            return
        uri = absolute_teacher_uri(path)
        self.name, self._packaged = os.fspath(path), PACKAGED_TEACHERS.get(uri)
        self.location = resolve(path if self._packaged is None else self._packaged.path, continues=continues)

    def algorithm(self) -> str | None:
        """Return the name of the algorithm that trained it; None if the checkpoint does not record it."""
        if self._packaged is not None:
            return "DQN"
        return None if self.rllib is None else self.rllib.algorithm()

    def environment(self) -> tuple[Any, dict[Any, Any]]:
        """Return the environment in which it was trained, and its config; None and {} if they are not recorded.

        They are not checked.
        """
        if self._packaged is not None:
            return self._packaged.env, {}
        return (None, {}) if self.rllib is None else self._environment

    @cached_property
    def rllib(self) -> RLlibCheckpoint | None:
        """Return the checkpoint of RLlib; None if it is a file of another library."""
        if self._found.origin != "rllib":
            return None
        at = self._found.filesystem, self._found.path
        return open_checkpoint(self._found.uri, at=at, trust_checkpoint=self._trusted)

    @cached_property
    def module(self) -> RLModule | None:
        """Return the RLModule of an RLlib checkpoint, which may have no Q-values; None for other libraries."""
        return None if self.rllib is None else self.rllib.load_module()

    @cached_property
    def network(self) -> Teacher:
        """Return the Q-network, as `load_teacher()` returns it."""
        loaded = self.load()
        self._found = dataclasses.replace(self._found, content=b"")  # which is no longer needed
        return loaded

    def load(self, pipeline: ObservationPipeline | None = None) -> Teacher:
        """Return the Q-network with another pipeline before it, as in `load_teacher()`."""
        loaded = self._loaded()
        loaded.trained_return = self.location.trained_return
        if pipeline is not None:
            own_stages = () if loaded.pipeline is None else loaded.pipeline.stages
            loaded.pipeline = dataclasses.replace(pipeline, stages=(*pipeline.stages, *own_stages))
        return loaded.checked()

    def _loaded(self) -> Teacher:
        if self.rllib is not None:
            return load_rllib(self.rllib, self.module)
        found, uri = self._found, self.location.uri
        match found.origin:
            case "sb3":
                return load_sb3(found.content, uri, found.vec_normalize())
            case "cleanrl":
                return load_cleanrl(found.content, uri)
            case "safetensors":
                return load_safetensors(found.content, uri, found.description())
            case "onnx":
                return load_onnx(found.content, uri)
            case _:
                return load_torchscript(found.content, uri, found.description(), trust_checkpoint=self._trusted)

    @cached_property
    def _found(self) -> Found:
        return find(self.location)

    @cached_property
    def _environment(self) -> tuple[Any, dict[Any, Any]]:
        assert self.rllib is not None
        return self.rllib.environment()
