"""The teachers of a run: loaded, sent to EnvRunners, saved and restored as components of the Algorithm."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import ray
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from rllib_kd.algorithm.answers import call_all
from rllib_kd.checkpoints.tune import checkpoints_of
from rllib_kd.teachers.base import Teacher
from rllib_kd.teachers.ensemble import as_configured
from rllib_kd.teachers.loading import load_members
from rllib_kd.text import one_line

if TYPE_CHECKING:
    from rllib_kd.algorithm.config import DistillationConfig

COMPONENT_TEACHER = "teacher"
#: In the config of a checkpoint: the teacher is a folder of the checkpoint, whatever its original source.
TEACHER_IN_CHECKPOINT = "checkpoint:teacher"


class Teachers(Mapping[str, Teacher]):
    """The teachers of a run, by group; none if the run has no teacher.

    Args:
        teachers: teachers by group.
        by_module: whether EnvRunners take a dict of teachers, as in multi-agent settings.
    """

    #: Attributes that are not checkpointed. The teachers themselves are, each as a component.
    NOT_SAVED: ClassVar = frozenset({"_by_module", "_reference"})

    def __init__(self, teachers: Mapping[str, Teacher], *, by_module: bool):
        self._teachers = dict(teachers)
        self._by_module = by_module
        self._reference: ray.ObjectRef | None = None  # of those that were sent; for EnvRunners that are restarted

    @classmethod
    def load(cls, config: DistillationConfig, storage: Any) -> Teachers:
        """Load the teachers that a config names. Those of a checkpoint's config stay empty until it is restored.

        Args:
            config: config of the run.
            storage: Tune's storage of the trial; None outside of Tune. A trial that is rebuilt finds its teacher in
                its newest checkpoint if the teacher's own path no longer exists.

        Raises:
            ValueError: a teacher cannot be loaded.
        """
        return cls(
            {group_id: _load(config, group_id, storage) for group_id in config.teachers},
            by_module=config.is_multi_agent,
        )

    def __getitem__(self, group_id: str) -> Teacher:
        return self._teachers[group_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._teachers)

    def __len__(self) -> int:
        return len(self._teachers)

    @property
    def are_loaded(self) -> bool:
        """Return whether all teachers are loaded: none is restored from a checkpoint later."""
        return all(teacher.is_loaded for teacher in self.values())

    def send(self, group: EnvRunnerGroup) -> None:
        """Send the teachers to all EnvRunners, through the object store: nodes share no disk, and store them once.

        Raises:
            ValueError: a teacher cannot be pickled.
        """
        if not self:
            return
        teachers: Any = dict(self) if self._by_module else self[DEFAULT_MODULE_ID]
        if group.local_env_runner is not None:
            group.local_env_runner.set_teacher(teachers)
        try:
            self._reference = ray.put(teachers)
        except TypeError as error:  # whose text lists what Ray has tried to pickle
            names = ", ".join(f"'{one_line(teacher.source)}'" for teacher in self.values())
            raise ValueError(
                f"The teacher {names} cannot be pickled, which EnvRunners and checkpoints need: "
                f"{error.__cause__ or error}. Let its function make locks, files, sessions and the like at its first "
                "call, or leave them out of __getstate__()."
            ) from error
        self._send_reference(group, None)

    def send_again(self, group: EnvRunnerGroup, worker_ids: list[int]) -> None:
        """Send the teachers to EnvRunners that were restarted."""
        if self._reference is not None:
            self._send_reference(group, worker_ids)

    def _send_reference(self, group: EnvRunnerGroup, worker_ids: list[int] | None) -> None:
        reference = self._reference
        call_all(
            group,
            lambda env_runner: env_runner.set_teacher(ray.get(reference)),
            remote_worker_ids=worker_ids,
            local_env_runner=False,
        )

    def components(self) -> list[tuple[str, Teacher]]:
        """Return the teachers as components of the Algorithm, each with the name of its folder in a checkpoint."""
        return [(_component(group_id), teacher) for group_id, teacher in self.items()]

    def get_state(self, is_wanted: Callable[[str], bool]) -> dict[str, Any]:
        """Return the state of each component whose name is wanted, by name."""
        return {name: teacher.get_state() for name, teacher in self.components() if is_wanted(name)}

    def set_state(self, state: Mapping[str, Any]) -> bool:
        """Restore the teachers that are in a state of the Algorithm; return whether there were any."""
        restored = [(teacher, state[name]) for name, teacher in self.components() if name in state]
        for teacher, own in restored:
            teacher.set_state(own)
        return bool(restored)


def has_networks(teacher: Any) -> bool:
    """Return whether a config's teacher, or a member of it, was loaded in Python."""
    if isinstance(teacher, list | tuple):
        return any(map(has_networks, teacher))
    return isinstance(teacher, Teacher)


def without_networks(teacher: Any) -> Any:
    """Return a config's teacher, in which loaded teachers are replaced by their sources.

    Actors and checkpoints get loaded teachers separately from the config.
    """
    if isinstance(teacher, list | tuple):
        return [without_networks(member) for member in teacher]
    return teacher.source if isinstance(teacher, Teacher) else teacher


def _load(config: DistillationConfig, group_id: str, storage: Any) -> Teacher:
    given = config.teachers[group_id]
    if isinstance(given, str) and given == TEACHER_IN_CHECKPOINT:
        return Teacher()
    try:
        if config.is_teacher_lost(group_id):
            raise ValueError(
                f"This config is that of an algorithm whose teacher '{one_line(str(given))}' was loaded in Python, and "
                "has only its source. Set the teacher again: .distillation(teacher=...)."
            )
        members = load_members(given, trust_checkpoint=config.trust_checkpoint)
        loaded = as_configured(members, config.ensemble, config.of_module(group_id).temperature)
        return copy.deepcopy(loaded) if loaded is given else loaded  # a restored state replaces its network
    except ValueError:
        # Tune rebuilds a trial from its config before it restores it, perhaps on another machine.
        if storage is not None and (teacher := _load_from_trial(storage, _component(group_id))):
            return teacher
        raise


def _load_from_trial(storage: Any, component: str) -> Teacher | None:
    """Load the teacher from the newest checkpoint of a Tune trial; None if it has none."""
    filesystem, trial = storage.storage_filesystem, storage.trial_fs_path
    for checkpoint in checkpoints_of(filesystem, trial):
        teacher = Teacher()
        try:
            teacher.restore_from_path(f"{checkpoint}/{component}", filesystem=filesystem)
        except (OSError, EOFError, pickle.UnpicklingError):
            continue  # half written
        return teacher
    return None


def _component(group_id: str) -> str:
    """Return the name of a teacher's folder in a checkpoint."""
    return COMPONENT_TEACHER if group_id == DEFAULT_MODULE_ID else f"{COMPONENT_TEACHER}_{group_id}"
