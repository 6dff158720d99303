"""The entry `distillation` of a training result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ray.rllib.core import DEFAULT_MODULE_ID

from rllib_kd.algorithm.returns import StudentReturns, mean_of
from rllib_kd.algorithm.students import Students, StudentSize
from rllib_kd.schedules import value_at
from rllib_kd.teachers.base import Teacher

if TYPE_CHECKING:
    from rllib_kd.algorithm.config import DistillationConfig


def distillation_results(
    config: DistillationConfig,
    *,
    teachers: Mapping[str, Teacher],
    students: Students,
    returns: StudentReturns,
    env_steps: int,
    num_gradient_steps: int,
    num_regrowths: int,
    staleness: Sequence[int],
    learner_results: Mapping[str, Any],
    held_out: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """Return the entry.

    Args:
        config: config of the run.
        teachers: teachers by group; empty for a run without a teacher.
        students: students of the run.
        returns: returns of the students, their teachers and random policies.
        env_steps: env steps sampled so far, including those before a restore.
        num_gradient_steps: gradient steps so far, including those before a restore.
        num_regrowths: regrowths of trees so far, likewise.
        staleness: policy lag of each sample of this iteration, in updates of the student.
        learner_results: results of the Learners, by student.
        held_out: agreement on held-out rows, by student; empty without any.

    Returns:
        The run's figures and its student's; with several students, theirs are in a dict of their own, by name.
    """
    run = {
        "td_coeff": value_at(config.td_coeff, env_steps),
        "num_gradient_steps_lifetime": num_gradient_steps,
        "staleness_mean": mean_of(staleness),
        "staleness_max": max(staleness, default=0),
    }
    if config.trees:
        run["num_regrowths_lifetime"] = num_regrowths
    if teachers:
        run |= {
            "kd_coeff": config.kd_coeff_at(env_steps, returns.ratio),
            **({} if config.is_offline else {"teacher_fraction": config.teacher_fraction_at(env_steps)}),
            "return_ratio": returns.ratio,
        }
    by_student = {
        name: _student_results(size, teachers.get(group_id), returns, name, learner_results.get(name, {}))
        | dict(held_out.get(name, {}))
        for group_id, name, size in students
    }
    is_alone = not config.students and not config.is_multi_agent
    return run | (by_student[DEFAULT_MODULE_ID] if is_alone else {"students": by_student})


def _student_results(
    size: StudentSize, teacher: Teacher | None, returns: StudentReturns, name: str, learner_results: Mapping[str, Any]
) -> dict[str, float]:
    if teacher is None:
        return {"student_params": size.num_parameters}
    tree = {} if size.num_leaves is None or size.depth is None else {"num_leaves": size.num_leaves, "depth": size.depth}
    return {
        "student_params": size.num_parameters,
        **tree,
        "teacher_params": teacher.num_parameters,
        "compression": size.num_parameters / teacher.num_parameters,
        "teacher_return": returns[name].teacher,
        "random_return": returns[name].random,
        "return_ratio": returns[name].ratio,
        "temperature": float(learner_results.get("temperature", math.nan)),
    }


def without_nans(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested results without numbers that are NaN, which RLlib puts where nothing was logged in an iteration.

    Examples: a loss whose coefficient has fallen to 0, and the agreement in an iteration without new states.
    """
    return {
        name: without_nans(value) if isinstance(value, Mapping) else value
        for name, value in results.items()
        if not (isinstance(value, float) and math.isnan(value))
    }
