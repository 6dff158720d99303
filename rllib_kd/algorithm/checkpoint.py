"""What a checkpoint of `DistillDQN` holds, and how it is saved and restored."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Collection
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.fs
from ray.rllib.algorithms.dqn import DQN
from ray.rllib.core import COMPONENT_LEARNER_GROUP
from ray.rllib.utils.annotations import override
from typing_extensions import Self

from rllib_kd.algorithm.dead_learners import names_dead_learners, raise_failures
from rllib_kd.algorithm.fit import check_fit
from rllib_kd.algorithm.format_version import FORMAT_VERSION, STATE_ENTRY, check_format, check_format_at
from rllib_kd.algorithm.learner_saves import check_learner_has_saved, num_learner_saves
from rllib_kd.algorithm.replays import refill_replays, save_replays
from rllib_kd.algorithm.restorable import check_networks
from rllib_kd.algorithm.teachers import TEACHER_IN_CHECKPOINT
from rllib_kd.checkpoints.copies import copied_to, on_this_machine
from rllib_kd.checkpoints.pickles import CheckpointError
from rllib_kd.checkpoints.replacing import replacing
from rllib_kd.checkpoints.replay_files import REPLAY_FOLDER, local_folder, resolve_filesystem
from rllib_kd.checkpoints.whole import lacking


class CheckpointedDQN(DQN):
    """RLlib's DQN with the checkpoints of `DistillDQN`.

    A checkpoint holds RLlib's own parts (Learners with students and optimizers, EnvRunners with connectors, metrics),
    the teachers, the replay of each Learner in a folder of its own, and in the Algorithm's state an entry with the
    format version and the state of each object that `SAVED` names. `DistillDQN.setup()` sets the attributes.
    """

    #: Attributes whose objects have states of their own, beside RLlib's and the teachers.
    SAVED: ClassVar[tuple[str, ...]]

    @override(DQN)
    def get_checkpointable_components(self) -> list[tuple[str, Any]]:
        return [*super().get_checkpointable_components(), *self._teachers.components()]

    @override(DQN)
    def get_ctor_args_and_kwargs(self) -> tuple[tuple, dict[str, Any]]:
        (state,), kwargs = super().get_ctor_args_and_kwargs()
        config = self.config.copy(copy_frozen=False)
        config.set_teachers(lambda group_id, teacher: TEACHER_IN_CHECKPOINT)
        return ({**state, "teacher": config.teacher},), kwargs

    @override(DQN)
    def get_metadata(self) -> dict[str, Any]:
        """Return RLlib's metadata and the iteration, by which results are found faster than by the state."""
        return {**super().get_metadata(), "training_iteration": self.training_iteration}

    @override(DQN)
    @names_dead_learners
    def get_state(
        self,
        components: str | Collection[str] | None = None,
        *,
        not_components: str | Collection[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        is_wanted = partial(self._check_component, components=components, not_components=not_components)
        state = super().get_state(components, not_components=not_components, **kwargs)
        state |= self._teachers.get_state(is_wanted)
        if is_wanted(STATE_ENTRY):
            own = {name.lstrip("_"): getattr(self, name).get_state() for name in self.SAVED}
            state[STATE_ENTRY] = {"format_version": FORMAT_VERSION, **own}
        return state

    @override(DQN)
    def set_state(self, state: dict[str, Any]) -> None:
        own = state.get(STATE_ENTRY)
        check_format(own)
        self._sampling.forget()
        super().set_state(state)
        brings_teachers = self._teachers.set_state(state)
        if own is not None:
            for name in self.SAVED:
                if name.lstrip("_") in own:  # an attribute that an older version lacked stays as new
                    getattr(self, name).set_state(own[name.lstrip("_")])
        if COMPONENT_LEARNER_GROUP in state:
            self._play_newest_student()
        if brings_teachers or not self._teachers:
            self._go_on()

    @override(DQN)
    @names_dead_learners
    def save_to_path(
        self,
        path: str | Path | None = None,
        *,
        state: dict[str, Any] | None = None,
        filesystem: pyarrow.fs.FileSystem | None = None,
        **kwargs: Any,
    ) -> str:
        """Save RLlib's checkpoint, with the replay of each Learner; on a local disk, atomically.

        An older checkpoint at `path` stays until the new one is complete. See `replacing()`. On another filesystem, it
        stays until the new one is complete on this machine, from where it is copied. See `copied_to()`.

        Args:
            path: path or URI of the checkpoint; None: a new temporary folder.
            state: the state to save, instead of the Algorithm's.
            filesystem: filesystem of the path.
            **kwargs: other arguments of RLlib's method.

        Returns:
            The absolute path of the checkpoint on a local disk; otherwise `path`.

        Raises:
            OSError: the checkpoint cannot be written, or a Learner could not write its part.
        """
        path = Path(tempfile.gettempdir(), str(uuid.uuid4())) if path is None else path
        folder = local_folder(path, filesystem)
        with (
            copied_to(*resolve_filesystem(path, filesystem))
            if folder is None
            else replacing(folder, left_out=(REPLAY_FOLDER,))
        ) as new:
            self._write_checkpoint(new, state=state, **kwargs)
        return str(path if folder is None else folder)

    def _write_checkpoint(self, path: Path, *, state: dict[str, Any] | None, **kwargs: Any) -> None:
        if state is None:
            self._choose_restarts()
        num_saves = num_learner_saves(self.learner_group)
        with self._restarts.in_their_places(self.learner_group) if state is None else nullcontext():
            saved = super().save_to_path(path, state=state, **kwargs)
        if state is None:
            check_learner_has_saved(self.learner_group, saved, num_saves_before=num_saves)
            if self.config.store_buffer_in_checkpoints:
                with_rows = self._sampling.stores_rows
                save_replays(self.learner_group, saved, pyarrow.fs.LocalFileSystem(), with_rows=with_rows)

    @classmethod
    @override(DQN)
    def from_checkpoint(cls, path: Any, filesystem: pyarrow.fs.FileSystem | None = None, **kwargs: Any) -> Self:
        """Restore from a checkpoint as RLlib does, but also from a relative path.

        Raises:
            ValueError: another version of this package wrote the checkpoint, and this one cannot read it.
        """
        if isinstance(path, str | Path):
            path = str(local_folder(path, filesystem) or path)
            folder, own_filesystem = resolve_filesystem(path, filesystem)
            check_format_at(f"{folder}/{cls.STATE_FILE_NAME}.pkl", own_filesystem)
        return super().from_checkpoint(path, filesystem=filesystem, **kwargs)

    @override(DQN)
    @names_dead_learners
    def restore_from_path(
        self, path: str | Path, *args: Any, filesystem: pyarrow.fs.FileSystem | None = None, **kwargs: Any
    ) -> None:
        """Restore from a checkpoint as RLlib does; if it is not on a local disk, by a copy on this machine.

        Raises:
            ValueError: the checkpoint is incomplete, or one of other networks or another version.
            OSError: it cannot be read.
        """
        path = str(local_folder(path, filesystem) or path)
        is_whole = "component" not in kwargs
        resolved, filesystem = resolve_filesystem(path, filesystem)
        if is_whole:
            if (lack := lacking(filesystem, resolved)) is not None:
                raise CheckpointError(f"The checkpoint '{path}' is incomplete: {lack}. Restore another one.")
            own = check_format_at(f"{resolved}/{self.STATE_FILE_NAME}.pkl", filesystem)
            self._restarts.check(own.get("restarts", {"num_copies": 1}))
            check_networks(self.learner_group, resolved, filesystem)
        self._sampling.forget()
        takes_rows = is_whole and self.config.store_buffer_in_checkpoints
        with on_this_machine(resolved, filesystem, without=() if takes_rows else (REPLAY_FOLDER,)) as folder:
            super().restore_from_path(folder, *args, **kwargs)
            raise_failures(self.learner_group)
            if is_whole:
                self._restarts.put_back(self.learner_group)
            self._play_newest_student()
            if self._teachers.are_loaded:
                self._go_on()
            has_rows = takes_rows and refill_replays(self.learner_group, folder, pyarrow.fs.LocalFileSystem())
        if is_whole:
            self._sampling.replays_are(restored=has_rows)
            if not has_rows:
                self._replay_ratio.replay_is_empty()

    def _play_newest_student(self) -> None:
        """Give the EnvRunners the restored student: RLlib ignores those of fewer updates than they have."""
        self._sampling.take_newest_student(self.num_env_steps, self.eval_env_runner_group)

    def _go_on(self) -> None:
        """Continue sampling after a restore, with the restored teachers."""
        check_fit(self.config, self._teachers, self._students, self.spaces)
        self._sampling.meet(self._teachers)
        self._sampling.resume(self.num_env_steps)
