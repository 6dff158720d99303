"""load_teacher(): find, recognise, load and check a teacher."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

from ray.rllib.core.rl_module.rl_module import RLModule

from rllib_kd.checkpoints.archives import read_weights
from rllib_kd.checkpoints.pickles import CheckpointError
from rllib_kd.checkpoints.rllib import RLlibCheckpoint, open_checkpoint
from rllib_kd.checkpoints.tune import Location, resolve
from rllib_kd.observations.pipeline import ObservationPipeline
from rllib_kd.public import public
from rllib_kd.teachers import plain
from rllib_kd.teachers.base import Teacher, outputs_of
from rllib_kd.teachers.cleanrl import is_cleanrl, load_cleanrl
from rllib_kd.teachers.described import described_network, pipeline_of_bytes
from rllib_kd.teachers.ensemble import ensemble_of
from rllib_kd.teachers.names import PACKAGED_TEACHERS, PackagedTeacher, absolute_teacher_uri, check_description
from rllib_kd.teachers.onnx import load_onnx
from rllib_kd.teachers.plain import plain_teacher
from rllib_kd.teachers.recognition import FoundCheckpoint, find
from rllib_kd.teachers.rllib import load_rllib
from rllib_kd.teachers.safetensors import load_safetensors
from rllib_kd.teachers.sb3 import NAME_THE_ZIP, is_policy, load_sb3
from rllib_kd.teachers.torchscript import load_pt2, load_torchscript
from rllib_kd.text import one_line


@public
def load_teacher(
    teacher: str
    | os.PathLike[str]
    | Mapping[str, Any]
    | Sequence[str | os.PathLike[str] | Mapping[str, Any] | Teacher],
    *,
    pipeline: ObservationPipeline | None = None,
    trust_checkpoint: bool = False,
) -> Teacher:
    """Load a teacher of any origin, recognised by its content.

    Args:
        teacher: the name of a packaged teacher ("cartpole"), or path or URI of an RLlib checkpoint (an Algorithm's
            folder, or its rl_module folder), of a Tune experiment or trial (its best checkpoint by evaluation; its
            newest if training did not evaluate; "RUN@newest" and "RUN@best" choose), of a Stable-Baselines3 zip of DQN,
            QR-DQN, A2C, PPO or MaskablePPO, or of a folder with that zip alone, of a `.cleanrl_model`, a PyTorch state
            dict, safetensors, ONNX, .pt2 or TorchScript. A dict with the path describes what the file does not record:
            `{"path": "net.pth", "network": {"activation": "relu"}}`. A list of these, or of loaded teachers, is an
            ensemble: Q-values are averaged, and policies of actor-critics.
        pipeline: pipeline from the environment's observations to those of this teacher's training. It precedes the
            pipeline in the checkpoint (connectors, VecNormalize, channel order, bytes to [0, 1]). With it a teacher may
            see more than its student:
            `ObservationPipeline(env.observation_space, (Function(lambda obs: obs["everything"]),))`.
        trust_checkpoint: whether code in a checkpoint may be run: needed for custom RLModules and connectors, and for
            .pt2 and TorchScript.

    Returns:
        The frozen teacher.

    Raises:
        ValueError: there is nothing at the path, it is not a teacher, contains more than data, or does not return
            finite Q-values or logits; or there is a pipeline for teachers that are loaded already. The message has the
            remedy.
    """
    if isinstance(teacher, Sequence) and not isinstance(teacher, str):
        loaded = [member.source for member in teacher if isinstance(member, Teacher)]
        if loaded and pipeline is not None:
            raise ValueError(
                f"`pipeline` is for teachers that are loaded here, but '{one_line(loaded[0])}' already is. Load each "
                "teacher with its own: load_teacher([load_teacher(path, pipeline=...), ...])."
            )
        members = (
            member
            if isinstance(member, Teacher)
            else load_teacher(member, pipeline=pipeline, trust_checkpoint=trust_checkpoint)
            for member in teacher
        )
        return ensemble_of(list(members))
    return OpenedCheckpoint(teacher, trust_checkpoint=trust_checkpoint).load(pipeline)


def load_members(teacher: Any, *, trust_checkpoint: bool = False) -> list[Teacher]:
    """Load the one teacher of a config, or the members of an ensemble, which `as_configured()` combines.

    Args:
        teacher: as in `.distillation(teacher=...)`; loaded ones are returned as they are.
        trust_checkpoint: as in `load_teacher()`.

    Raises:
        ValueError: as `load_teacher()`.
    """
    return [
        member if isinstance(member, Teacher) else load_teacher(member, trust_checkpoint=trust_checkpoint)
        for member in (teacher if isinstance(teacher, list | tuple) else [teacher])
    ]


class OpenedCheckpoint:
    """A checkpoint of any origin. It is found at once; it is recognised, read and built at its first use, once.

    Args:
        path: name of a packaged teacher, path, URI, or a dict of these, as in `load_teacher()`; or a location from
            `resolve()`.
        trust_checkpoint: as in `load_teacher()`.
        continues: as in `resolve()`.

    Raises:
        ValueError: there is nothing, a run folder has no checkpoint to choose, or `trust_checkpoint` is no truth value.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | Mapping[str, Any] | Location,
        *,
        trust_checkpoint: bool = False,
        continues: bool = False,
    ):
        if trust_checkpoint not in (True, False):  # "False" would count as True, and run code
            raise ValueError(f"`trust_checkpoint` must be True or False, got {trust_checkpoint!r:.100}.")
        self._trusted = bool(trust_checkpoint)
        self._packaged: PackagedTeacher | None = None
        self._network: Mapping[str, Any] | None = None  # as the user describes it
        if isinstance(path, Location):
            self.name, self.location = path.uri, path
            return
        if isinstance(path, Mapping):
            check_description(path)
            self._network = path.get("network")
        given: str | os.PathLike[str] = path["path"] if isinstance(path, Mapping) else path
        uri = absolute_teacher_uri(given)
        self.name, self._packaged = os.fspath(given), PACKAGED_TEACHERS.get(uri)
        self.location = resolve(given if self._packaged is None else self._packaged.path, continues=continues)

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
        loaded = self._loaded(has_pipeline=pipeline is not None)
        loaded.trained_return = self.location.trained_return
        if pipeline is not None:
            own = loaded.known_pipeline
            loaded.pipeline = own.after(pipeline, loaded.source)
        return loaded.checked()

    def _loaded(self, *, has_pipeline: bool) -> Teacher:
        if self.rllib is not None:
            self._described(())
            return load_rllib(self.rllib, self.module)
        found, uri = self._found, self.location.uri
        match found.origin:
            case "sb3":
                self._described(())
                return load_sb3(found.content, uri, found.vec_normalize)
            case "weights":
                return self._load_weights(has_pipeline=has_pipeline)
            case "safetensors":
                network = self._described(plain.KEYS)
                return load_safetensors(found.content, uri, found.description(), network, has_pipeline=has_pipeline)
        # Functions, whose outputs may be logits.
        described = self._described(("outputs", "divisor"))
        outputs = outputs_of(described.get("outputs", "q_values"))
        if found.origin == "onnx":
            loaded = load_onnx(found.content, uri)
        else:
            load = load_pt2 if found.origin == "pt2" else load_torchscript
            loaded = load(found.content, uri, found.description(), trust_checkpoint=self._trusted)
        loaded.outputs = outputs
        if "divisor" in described:
            loaded.pipeline = pipeline_of_bytes(loaded, described["divisor"])
        return loaded

    def _load_weights(self, *, has_pipeline: bool) -> Teacher:
        """Load a state dict: of CleanRL, whose networks are known, or of another network, which is described."""
        uri, network = self.location.uri, self._described(plain.KEYS)
        saved = read_weights(self._found.content, uri)
        if not network and is_policy(saved):
            raise CheckpointError(
                f"'{uri}' is the policy of a zip of Stable-Baselines3, without its spaces. {NAME_THE_ZIP}"
            )
        if not network and is_cleanrl(saved):
            return load_cleanrl(saved, uri)
        return plain_teacher(saved, network, uri, has_pipeline=has_pipeline)

    def _described(self, keys: Collection[str]) -> dict[str, Any]:
        """Return the description of the network, which has these keys alone; empty if there is none."""
        return described_network(
            self._network, self._found.description() if keys else None, self.location.uri, keys=keys
        )

    @cached_property
    def _found(self) -> FoundCheckpoint:
        return find(self.location)

    @cached_property
    def _environment(self) -> tuple[Any, dict[Any, Any]]:
        assert self.rllib is not None
        return self.rllib.environment()
