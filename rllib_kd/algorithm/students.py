"""The students of a run: their shapes, set before actors start, and their sizes, measured afterwards."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium as gym
import numpy as np
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.env import INPUT_ENV_SINGLE_SPACES

from rllib_kd.algorithm.checks.recurrent import check_recurrent_inputs
from rllib_kd.algorithm.dead_learners import ask_learner
from rllib_kd.environments.failures import users_errors
from rllib_kd.learner.learner import NUM_GRADIENT_STEPS, NUM_REGROWTHS
from rllib_kd.networks.dqn_module import Support, count_parameters, student_module_spec, support_of
from rllib_kd.networks.trees.module import TreeRLModule
from rllib_kd.networks.trees.shape import TREE, TreeShape
from rllib_kd.observations.masks import features_space
from rllib_kd.observations.pipeline import begins_at_inputs
from rllib_kd.observations.spaces import check_spaces, input_space, is_box_of_floats
from rllib_kd.students.sizes import DENSE_ACTIVATIONS, PRESETS, WIDTH_KEYS, compress
from rllib_kd.teachers.base import Teacher

if TYPE_CHECKING:
    from rllib_kd.algorithm.config import DistillationConfig

logger = logging.getLogger(__name__)

#: Those that set the student's shape, so that no compression does.
_SHAPE_KEYS = WIDTH_KEYS | {TREE}
#: Student parameters / teacher parameters, unless `compression` or a model config sets the shape.
DEFAULT_COMPRESSION = 0.04


class StudentSize(NamedTuple):
    """The size of a student's network.

    Args:
        num_parameters: parameters that act, without target networks; of a tree that has not grown yet, the most that it
            may have.
        support: support of its return distributions; None without them.
        num_leaves: leaves of a tree; None for a network.
        depth: the most comparisons of a tree; None for a network.
    """

    num_parameters: int
    support: Support | None
    num_leaves: int | None = None
    depth: int | None = None


class Students:
    """The students of a run by group and name, as they were built.

    Args:
        sizes: size of each student, by group and then by name.
    """

    def __init__(self, sizes: Mapping[str, Mapping[str, StudentSize]]):
        self._sizes = {group_id: dict(students) for group_id, students in sizes.items()}

    @classmethod
    def of(cls, learner_group: LearnerGroup) -> Students:
        """Measure the students of the Learners, which are the same on all of them."""

        def measure(learner: Any) -> dict[str, dict[str, StudentSize]]:
            return {
                group_id: {
                    name: StudentSize(most_parameters(module := group.students[name].module), support_of(module))
                    for name in group.named
                }
                for group_id, group in learner.groups.items()
            }

        return cls(ask_learner(learner_group, 0, measure))

    @property
    def names(self) -> list[str]:
        """Return the names of all students, which are those of their modules."""
        return [name for _, name, _ in self]

    def __iter__(self) -> Iterator[tuple[str, str, StudentSize]]:
        """Iterate over the group, the name and the size of each student."""
        for group_id, students in self._sizes.items():
            for name, size in students.items():
                yield group_id, name, size

    def take_results(self, results: Mapping[str, Any]) -> tuple[int, int]:
        """Take the sizes of trees from the results of a Learner's update.

        Args:
            results: RLlib's metrics by student.

        Returns:
            The gradient steps of the update, and the regrowths of trees.
        """
        num_steps = num_regrowths = 0
        for students in self._sizes.values():
            for name, size in students.items():
                own = results[name]
                num_steps = max(num_steps, int(own[NUM_GRADIENT_STEPS].peek()))
                if NUM_REGROWTHS in own:
                    num_regrowths = max(num_regrowths, int(own[NUM_REGROWTHS].peek()))
                    count, leaves, depth = (int(own[key].peek()) for key in ("num_parameters", "num_leaves", "depth"))
                    students[name] = size._replace(num_parameters=count, num_leaves=leaves, depth=depth)
        return num_steps, num_regrowths

    def of_group(self, group_id: str) -> dict[str, StudentSize]:
        """Return the size of each student of a group, by name."""
        return self._sizes[group_id]


def most_parameters(module: Any) -> int:
    """Return the parameters of a student; of a tree, which has not grown yet, the most that it may have."""
    return module.max_parameters if isinstance(module, TreeRLModule) else count_parameters(module)


def shape_students(
    config: DistillationConfig, teachers: Mapping[str, Teacher], spaces: tuple[Any, Any] | None = None
) -> None:
    """Replace presets and compressions in a config by layer widths.

    EnvRunners and Learners build the students on their nodes from the config, so it must have widths before they
    start.

    Args:
        config: config, which is changed.
        teachers: teachers by group; their architectures are made narrower.
        spaces: spaces of the environment, for connectors of the user's; None if unknown.

    Raises:
        ValueError: the compression cannot be reached, or the teacher has no architecture that can be made narrower.
    """
    own = _python_numbers(config.given_model_config)
    config.rl_module(model_config=own)
    if config.students:
        config.students = {
            name: _shape(config, shape, teachers, DEFAULT_MODULE_ID, spaces)
            for name, shape in _python_numbers(config.students).items()
        }
    elif config.student is not None:
        shape = _python_numbers(config.student)
        config.rl_module(model_config=own | _shape(config, shape, teachers, DEFAULT_MODULE_ID, spaces))
    elif teachers and config.own_rl_module_spec is None and not _SHAPE_KEYS & set(own):
        size = {"compression": config.compression or DEFAULT_COMPRESSION}
        shapes = {group_id: own | _shape(config, size, teachers, group_id, spaces) for group_id in teachers}
        if config.is_multi_agent:
            specs = {group_id: student_module_spec(shape) for group_id, shape in shapes.items()}
            config.rl_module(rl_module_spec=MultiRLModuleSpec(rl_module_specs=specs))
        else:
            config.rl_module(model_config=shapes[DEFAULT_MODULE_ID])
    config.student = config.compression = None


def new_student(config: DistillationConfig, spaces: Mapping[str, Any], name: str) -> RLModule:
    """Build a student with new weights.

    Args:
        config: config with the student's shape.
        spaces: spaces of observations and actions, by module, as the Algorithm has them.
        name: name of the student's module.
    """
    spec = config.get_multi_rl_module_spec(spaces=spaces, inference_only=True)
    return spec.rl_module_specs[name].build()


def warn_of_large_students(students: Students, teachers: Mapping[str, Teacher]) -> None:
    """Log a warning for each student that is nearly as large as its teacher, or larger."""
    for group_id, teacher in teachers.items():
        for name, student in students.of_group(group_id).items():
            if student.num_parameters >= 0.9 * teacher.num_parameters:
                logger.warning(
                    "The student '%s' has %d parameters, nearly as many as its teacher (%d) or more. If the model "
                    "config has no widths, RLlib's defaults apply. Set fcnet_hiddens, conv_filters or `compression`.",
                    name,
                    student.num_parameters,
                    teacher.num_parameters,
                )


def _shape(
    config: DistillationConfig,
    shape: str | Mapping[str, Any],
    teachers: Mapping[str, Teacher],
    group_id: str,
    spaces: tuple[Any, Any] | None,
) -> dict[str, Any]:
    """Return the model config of a preset, or of a student that is described by its compression."""
    if isinstance(shape, str):
        return dict(PRESETS[shape])
    if TREE in shape:
        return {**shape, TREE: TreeShape.of(shape[TREE]).to_dict()}
    if "compression" not in shape:
        return dict(shape)
    teacher = teachers[group_id].members[0]
    observation_space = _inputs(config, teacher, spaces)
    if teacher.model_config is None:
        widths = "'head_fcnet_hiddens': [64]" if len(observation_space.shape or ()) == 3 else "'fcnet_hiddens': [32]"
        raise ValueError(
            f"The teacher '{teacher.source}' is a tree or has a custom network, which cannot be scaled by "
            f"`compression`={shape['compression']:g} ({DEFAULT_COMPRESSION:g} where no student is set). Shape the "
            f"student: student={{{widths}}}."
        )
    check_spaces(observation_space, teacher.action_space)
    check_recurrent_inputs(config, observation_space)
    given = {name: value for name, value in shape.items() if name != "compression"}
    return given | compress(
        {**teacher.model_config, **config.given_model_config, **given},
        head_config={**config.model_config, **given},
        compression=shape["compression"],
        teacher_parameters=teachers[group_id].num_parameters,
        observation_space=observation_space,
        action_space=teacher.action_space,
        # A student that begins as a part of its teacher has that part's activation.
        keeps=DENSE_ACTIVATIONS if config.init == "teacher" else {*config.given_model_config, *given},
    )


def _python_numbers(setting: Any) -> Any:
    """Return a setting with Python's numbers in place of numpy's: widths are written to many files, as JSON."""
    if isinstance(setting, np.generic | np.ndarray):
        return setting.tolist()
    if isinstance(setting, Mapping):
        return {name: _python_numbers(value) for name, value in setting.items()}
    if type(setting) in (list, tuple):
        return type(setting)(map(_python_numbers, setting))
    return setting


def _inputs(config: DistillationConfig, teacher: Teacher, spaces: tuple[Any, Any] | None) -> gym.Space:
    """Return the space of a student's inputs.

    If it is not known what connectors of the user's return, or for images of any layout, these inputs are assumed to be
    those of the teacher's network.
    """
    # There is no environment yet.
    if "env_to_module" not in config.own_connectors:
        sees_inputs = teacher.takes(teacher.input_space)
        return teacher.input_space if sees_inputs else input_space(features_space(teacher.observation_space))
    if spaces is None and not begins_at_inputs(teacher.pipeline):  # but at what the environment shows
        spaces = teacher.observation_space, teacher.action_space
    if spaces is None:
        return teacher.input_space
    try:
        seen = config.build_env_to_module_connector(spaces={INPUT_ENV_SINGLE_SPACES: spaces}).observation_space
    except users_errors():  # the connectors need the environment itself, or EnvRunners will name the reason
        return teacher.input_space
    return seen if is_box_of_floats(seen) else teacher.input_space
