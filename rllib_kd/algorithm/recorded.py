"""Recorded rows instead of sampling: they replace EnvRunners' samples; held-out ones measure agreement."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import ray
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from rllib_kd.algorithm.dead_learners import ask_learner
from rllib_kd.algorithm.sampling import Sampling
from rllib_kd.observations.masks import features_space
from rllib_kd.observations.spaces import brief, flat_size, has_undivided_pixels, is_flattened
from rllib_kd.offline.data import LabelledData, capacity_for, check_teacher_of, open_files
from rllib_kd.offline.reading import note_left_out
from rllib_kd.offline.rows import TD_IN_FILES
from rllib_kd.offline.schema import DataError
from rllib_kd.offline.stream import RecordedFiles
from rllib_kd.random_state import capture_random_state, put_back_random_state
from rllib_kd.teachers.base import Teacher
from rllib_kd.wire import Sample

if TYPE_CHECKING:
    from rllib_kd.algorithm.config import DistillationConfig
    from rllib_kd.algorithm.teachers import Teachers


_MOST_ACTIONS = 18  # if it is unknown, for the memory of a row


def recorded_spaces(config: DistillationConfig, teachers: Mapping[str, Teacher]) -> tuple[gym.Space, gym.Space] | None:
    """Return the spaces of recorded rows without an environment: the teacher's; None if it is not loaded."""
    if not config.is_offline or config.env is not None:
        return None
    teacher = next(iter(teachers.values()), None)
    if teacher is None or not teacher.is_loaded:
        return None
    return teacher.observation_space, teacher.action_space


def check_recorded(
    config: DistillationConfig,
    files: RecordedFiles | None,
    teachers: Mapping[str, Teacher],
    spaces: tuple[gym.Space, gym.Space] | None,
) -> None:
    """Check that recorded rows suit a config, its teacher, and the spaces that its student sees.

    Args:
        config: config of the run, which has been validated.
        files: the files of its input; None: it has none, and nothing is checked.
        teachers: teachers by group. Those that are not loaded yet are not checked.
        spaces: spaces of the environment, or of the teacher without one; None if unknown.

    Raises:
        DataError: they do not; the message has the file and the column.
    """
    if files is None:
        return
    schema = files.schema
    if spaces is not None and schema is not None:
        shown = features_space(spaces[0])
        expected = (flat_size(shown),) if is_flattened(shown) else shown.shape
        as_shown = shown.shape if isinstance(shown, gym.spaces.Box) else None  # which becomes a vector as it is read
        if schema.obs_shape not in (expected, as_shown) and not _is_same_image(schema.obs_shape, expected or ()):
            raise DataError(
                f"has observations of the shape {list(schema.obs_shape)}, but the "
                f"{'teacher takes' if config.env is None else 'environment shows'} {list(expected or ())}. Name the "
                f"{'teacher that fits' if config.env is None else 'environment in which they were recorded'}",
                file=files.first_path,
                column="obs",
            )
        if schema.obs_dtype == "uint8" and len(schema.obs_shape) == 3 and has_undivided_pixels(shown):
            raise DataError(
                "has images of bytes, which students take divided by 255, but the environment shows "
                f"{brief(shown)} of {shown.dtype}. Label the recorded rows again",
                file=files.first_path,
                column="obs",
            )
        if schema.num_actions != spaces[1].n:
            raise DataError(
                f"has labels of {schema.num_actions} actions, but the environment has {spaces[1].n}. Name the "
                "environment in which they were recorded",
                file=files.first_path,
                column=schema.ranking,
            )
    for teacher in teachers.values():
        if teacher.is_loaded:
            check_teacher_of(files, teacher)
    missing = [name for name in TD_IN_FILES if name not in files.columns]
    if config.uses_td and missing:
        raise DataError(
            f"is missing, but `td_coeff`={config.td_coeff!r} needs whole episodes: the columns "
            f"{', '.join(TD_IN_FILES)}. Set td_coeff=0, or label rows that have them",
            file=files.first_path,
            column=missing[0],
        )


def _is_same_image(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Return whether images have equal shapes but for the place of their channels, first or last."""
    if len(shape) != 3 or len(expected) != 3:
        return False
    return shape in ((*expected[1:], expected[0]), (expected[2], *expected[:2]))


def check_can_play(config: DistillationConfig) -> None:
    """Check that there is an environment to play in.

    Raises:
        ValueError: there is none, but recorded rows.
    """
    if config.env is None:
        raise ValueError(
            "An evaluation plays episodes, but this run learns from recorded rows without an environment. Set "
            ".environment(...); or read `teacher_agreement` in the results, which is measured on held-out rows."
        )


def check_before(
    config: DistillationConfig, teachers: Mapping[str, Teacher], spaces: tuple[gym.Space, gym.Space] | None
) -> None:
    """Check recorded rows by the footers of their files, before any process starts: as `check_recorded()`.

    A note names the columns that are not read, once for the same files.
    """
    files = open_files(config)
    check_recorded(config, files, teachers, spaces or recorded_spaces(config, teachers))
    if files is not None:
        _note_columns(files.first_path, files.left_out)


@lru_cache(maxsize=100)
def _note_columns(_path: str, names: tuple[str, ...]) -> None:
    note_left_out(names)


def settle_recorded(
    config: DistillationConfig, files: RecordedFiles, spaces: tuple[gym.Space, gym.Space] | None
) -> None:
    """Set what follows from recorded rows in a config: the spaces without an environment, and the replay's capacity."""
    if config.env is None and spaces is not None:
        config.environment(observation_space=spaces[0], action_space=spaces[1])
    if config.replay_buffer_config.get("capacity") is None:
        capacity = capacity_for(
            files,
            config.replay_columns,
            num_actions=_MOST_ACTIONS if spaces is None else int(spaces[1].n),
            num_learners=config.num_learners,
            num_atoms=config.num_atoms,
            space=None if spaces is None else spaces[0],
        )
        config.replay_buffer_config = {**config.replay_buffer_config, "capacity": capacity}


class RecordedSampling(Sampling):
    """Rows of files instead of samples. They pass by at the pace of an online run with as many env steps.

    Args:
        config: config of the run.
        group: one local EnvRunner, with or without environments, in which the student acts in this process.
        learner_group: the Learners.
        data: the rows.
    """

    NOT_SAVED = Sampling.NOT_SAVED | {"_held_out"}

    def __init__(
        self, config: DistillationConfig, group: EnvRunnerGroup, learner_group: LearnerGroup, data: LabelledData
    ):
        super().__init__(config, group, learner_group)
        self._data = data
        self._held_out: Any = None  # a reference, or the columns in this process

    def before_learning(self) -> Iterator[list[Sample]]:
        """Yield the rows that fill the replays before anything is learned from them."""
        for shards in self._data.fill():
            yield [self._sample_of(shards, num_rows=0)]

    @property
    def stores_rows(self) -> bool:
        """Return whether checkpoints need the rows of the replays, or the files can bring them back."""
        return self._data.stores_rows

    @property
    def is_again(self) -> bool:
        """Return whether the rows before learning were counted before a restore."""
        return self._data.fills_again

    def sample(self, env_steps: int) -> list[Sample]:
        """Let the rows of one training step pass: as many as all environments would sample.

        `dataset_num_iters_per_learner` sets the gradient steps instead, and so the rows.
        """
        config = self._config
        num_rows = config.num_envs_per_env_runner * config.get_rollout_fragment_length()
        if config.dataset_num_iters_per_learner is not None:
            rows = config.dataset_num_iters_per_learner * config.total_train_batch_size
            num_rows = math.ceil(rows / config.training_intensity)
        pieces = self._data.sample(num_rows)
        return [self._sample_of([], num_rows), *(self._sample_of(shards, 0) for shards in pieces)]

    def _sample_of(self, shards: list[Any], num_rows: int) -> Sample:
        env_runner = self._group.local_env_runner
        env_runner.count_rows(num_rows)
        return Sample(0, shards, env_runner.get_metrics(), self._seq_no, {})

    def take_student(self, learner_state: Mapping[str, Any] | None, env_steps: int) -> None:
        """Do nothing: the student acts when it is asked for, and not while it learns."""

    def show_newest_student(self) -> None:
        """Set the newest student in this process, where get_module() and evaluations take it from."""
        student = dataclasses.replace(self._ask_for_student(0), seq_no=0)  # 0: RLlib takes it, whatever it had
        self._group.local_env_runner.set_state(student.for_env_runners())

    def held_out_results(self) -> dict[str, dict[str, float]]:
        """Return how each student agrees with its teacher on the held-out rows; empty if there are none."""
        if not self._data.held_out:
            return {}
        if self._held_out is None:
            is_here = self._config.num_learners == 0
            self._held_out = self._data.held_out if is_here else ray.put(self._data.held_out)
        rows = self._held_out
        return ask_learner(self._learner_group, 0, lambda learner: learner.agreement(rows))

    def progress(self, num_gradient_steps: int, num_env_steps: int) -> dict[str, float]:
        """Return how often the rows were learned from: entries of the result `distillation`.

        Trees make no gradient steps: of trees alone, rows count that have passed by.
        """
        num_rows, held_out = self._data.num_rows, len(self._data.held_out.get(Columns.OBS, ()))
        of_gradient_steps = num_gradient_steps * self._config.total_train_batch_size
        learned = num_env_steps if self._config.are_all_trees else of_gradient_steps
        return {"num_epochs": learned / num_rows, "num_rows": num_rows, "num_rows_held_out": held_out}

    def replays_are(self, *, restored: bool) -> None:
        """Note whether a restored checkpoint has brought the rows; otherwise the files fill the replays again."""
        self._data.replays_are(restored=restored)

    def meet(self, teachers: Teachers) -> None:
        """Check the rows by their teacher, which labels those without labels."""
        super().meet(teachers)  # of baselines, if there is an environment
        for teacher in teachers.values():
            self._data.meet(teacher)
        self._held_out = None

    def get_state(self) -> dict[str, Any]:
        """Return the position in the rows, and with a seed the global random generators."""
        return {
            "data": self._data.get_state(),
            "resting": self.resting,
            "random_state": None if self._config.seed is None else capture_random_state(),
        }

    def resume(self, env_steps: int) -> None:
        """Continue at the position of a restored state."""
        state, self._to_put_back = self._to_put_back, {}
        self.rest(self.resting)
        if "data" in state:
            self._data.set_state(state["data"])
        if state.get("random_state") is not None:
            put_back_random_state(state["random_state"])


def make_sampling(algorithm: Any, files: RecordedFiles | None) -> Sampling:
    """Return what brings rows to the Learners of an Algorithm: its EnvRunners, or files.

    Args:
        algorithm: an Algorithm whose EnvRunners and Learners have been built.
        files: files of recorded rows; None if environments are sampled.
    """
    config, parts = algorithm.config, (algorithm.env_runner_group, algorithm.learner_group)
    if files is None:
        return Sampling(config, *parts)
    algorithm.offline_data.open(files, config.replay_columns)
    return RecordedSampling(config, *parts, algorithm.offline_data)
