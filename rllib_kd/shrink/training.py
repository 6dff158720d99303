"""Training: one run of DistillDQN feeds all sizes and copies from one stream of labelled states."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, EPISODE_RETURN_MAX, EPISODE_RETURN_MIN

from rllib_kd import _rllib
from rllib_kd.algorithm.algorithm import DistillDQN, DistillDQNConfig
from rllib_kd.algorithm.first_weights import set_first_weights
from rllib_kd.algorithm.fit import check_shapes
from rllib_kd.algorithm.recorded import check_before
from rllib_kd.algorithm.student_config import refuse_recurrent, student_config
from rllib_kd.algorithm.students import shape_students
from rllib_kd.checkpoints.connectors import pipeline_of
from rllib_kd.networks.dqn_module import count_parameters, student_module_spec
from rllib_kd.observations.masks import features_space
from rllib_kd.observations.pipeline import ObservationPipeline
from rllib_kd.observations.spaces import input_space
from rllib_kd.shrink.candidates import Size
from rllib_kd.teachers.base import Teacher

#: An iteration, after which the clock is read: env steps, or seconds if time is the limit, but at least one fragment.
_ENV_STEPS_PER_ITERATION, _SECONDS_PER_ITERATION = 2_000, 2.0

#: Settings that the command makes itself, and `patience`: students are compared after the same number of env steps.
OWN_SETTINGS = (
    *("teacher", "env", "seed", "student", "students", "restarts", "compression"),
    *("num_baseline_episodes", "num_validation_episodes", "store_buffer_in_checkpoints", "patience"),
)


def training_config(
    teacher: Teacher,
    env: Any,
    settings: Mapping[str, Any],
    sizes: Sequence[Size],
    *,
    restarts: int,
    seed: int,
    is_by_time: bool = False,
) -> DistillDQNConfig:
    """Return the config of the run that trains all sizes.

    Args:
        teacher: the teacher.
        env: environment, as in `config.environment()`.
        settings: further settings by name.
        sizes: sizes to train.
        restarts: copies of each size.
        seed: seed of the run.
        is_by_time: whether iterations end by time, and not by env steps.

    Raises:
        ValueError: a setting is unknown or out of range, or one that the command makes itself.
    """
    if own := [name for name in settings if name in OWN_SETTINGS]:
        raise ValueError(f"The setting '{own[0]}' cannot be in the config: the command decides on it. Leave it out.")
    config = student_config(env, teacher, settings, seed=seed)
    if config.own_connectors:
        raise ValueError(
            "Connectors of your own are not supported here: their statistics would be missing in the student's "
            "checkpoint. Leave them out."
        )
    refuse_recurrent(config)
    check_before(config, {DEFAULT_MODULE_ID: teacher}, None)  # recorded rows, if there are any
    # Copies are compared by the tournament alone, and not at each save.
    config.distillation(
        students={size.name: size.shape for size in sizes}, restarts=restarts, num_validation_episodes=0
    )
    check_shapes(config, {DEFAULT_MODULE_ID: teacher}, (teacher.observation_space, teacher.action_space))
    if is_by_time:
        return config.reporting(min_sample_timesteps_per_iteration=0, min_time_s_per_iteration=_SECONDS_PER_ITERATION)
    return config.reporting(min_sample_timesteps_per_iteration=_ENV_STEPS_PER_ITERATION)


def reachable(
    teacher: Teacher, env: Any, settings: Mapping[str, Any], sizes: Sequence[Size], *, seed: int
) -> list[Size]:
    """Return those sizes that are possible: shares of a teacher's parameters may be too small, and presets too large.

    Args:
        teacher: as in `training_config()`.
        env: as in `training_config()`.
        settings: as in `training_config()`.
        sizes: sizes to try.
        seed: as in `training_config()`.

    Raises:
        ValueError: none is possible; the message has the reason of the last one.
    """
    left, reason = [], ""
    for size in sizes:
        config = student_config(env, teacher, settings, seed=seed).distillation(students={size.name: size.shape})
        try:
            shape_students(config, {DEFAULT_MODULE_ID: teacher})
            if isinstance(size.shape, str):
                _check_preset(size.shape, config, teacher)
            left.append(size)
        except ValueError as error:
            reason = str(error)
    if not left:
        raise ValueError(f"No default size suits the teacher '{teacher.source}'. {reason} In Python, set sizes.")
    return left


def _check_preset(name: str, config: DistillDQNConfig, teacher: Teacher) -> None:
    """Check that a preset takes the teacher's images, and is smaller than the teacher."""
    space = input_space(features_space(teacher.observation_space))
    spec = student_module_spec({**config.model_config, **config.students[name]}, space, teacher.action_space)
    spec.inference_only = True
    with torch.device("meta"):  # shapes without memory
        module = spec.build()
    if (count := count_parameters(module)) >= teacher.num_parameters:
        raise ValueError(f"The network '{name}' has {count:,} parameters, the teacher {teacher.num_parameters:,}.")


class Trainer:
    """The run that trains all copies.

    Args:
        config: as from `training_config()`.
    """

    def __init__(self, config: DistillDQNConfig):
        self._algo: DistillDQN = config.build_algo()
        self._lowest, self._highest = math.inf, -math.inf

    @property
    def env_steps(self) -> int:
        """Return the env steps of training so far."""
        return self._algo.num_env_steps

    @property
    def seen_returns(self) -> np.ndarray:
        """Return the lowest and the highest return of a training episode, `[2]`; `[0]` before the first one."""
        return np.array([value for value in (self._lowest, self._highest) if math.isfinite(value)])

    def train(self, is_over: Callable[[], bool], report: Callable[[], None]) -> None:
        """Train until `is_over()`, asked before each iteration; `report` is called after each."""
        while not is_over():
            result = self._algo.train().get(ENV_RUNNER_RESULTS, {})
            self._lowest = np.fmin(self._lowest, result.get(EPISODE_RETURN_MIN, math.inf))
            self._highest = np.fmax(self._highest, result.get(EPISODE_RETURN_MAX, -math.inf))
            report()

    def save(self, folder: Path) -> None:
        """Save a checkpoint, which does not contain `seen_returns`."""
        self._algo.save_to_path(folder)

    def restore(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint, as if there had been no break; see docs/pages/guarantees.md.

        Args:
            folder: as in `save()`.
            state: `seen_returns` at that time, as "returns".
        """
        self._algo.restore_from_path(folder)
        if state["returns"]:
            self._lowest, self._highest = state["returns"]

    def copies(self) -> dict[str, Any]:
        """Return the modules of all copies by ID, as they are now; training does not change them."""
        return {name: copy.deepcopy(module) for name, module in self._algo.get_copies().items()}

    def prefer(self, sizes: Sequence[str], *, resting: Sequence[str]) -> None:
        """Let these sizes act more often than the others from now on, and some copies neither act nor learn."""
        self._algo.prefer_students(sizes)
        self._algo.rest_copies(resting)

    def pipeline(self) -> ObservationPipeline:
        """Return the pipeline from the environment's observations to the modules' inputs."""
        module = next(iter(self._algo.get_copies().values()))
        return pipeline_of(_rllib.env_to_module(self._algo.env_runner), module)

    def shapes(self) -> dict[str, dict[str, Any]]:
        """Return the model config of each size, with layer widths."""
        return {name: dict(shape) for name, shape in self._algo.config.students.items()}

    def stop(self) -> None:
        """Stop the run."""
        self._algo.stop()


@contextmanager
def running(config: DistillDQNConfig) -> Iterator[Trainer]:
    """Build the run, and stop it at the end."""
    trainer = Trainer(config)
    try:
        yield trainer
    finally:
        trainer.stop()


def save_student(
    folder: Path,
    module: Any,
    shape: Mapping[str, Any],
    *,
    teacher: Teacher,
    env: Any,
    settings: Mapping[str, Any],
    seed: int,
) -> None:
    """Save a student as a checkpoint of DistillDQN with this student alone, which every command takes.

    Args:
        folder: folder of the checkpoint.
        module: the student.
        shape: its model config.
        teacher: as in `training_config()`.
        env: as in `training_config()`.
        settings: as in `training_config()`.
        seed: as in `training_config()`.
    """
    config = student_config(env, teacher, settings, seed=seed)
    config.rl_module(model_config=config.given_model_config | dict(shape)).distillation(restarts=1)
    algo: DistillDQN = config.build_algo()
    try:
        set_first_weights(algo.learner_group, {DEFAULT_MODULE_ID: module.get_state()}, is_whole=True)
        algo.save_to_path(folder)
    finally:
        algo.stop()
