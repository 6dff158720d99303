"""Check that the settings suit what the labels are: Q-values, or log-probabilities of an actor-critic's policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rllib_kd.algorithm.checks.refused import refuse
from rllib_kd.learner.losses import POLICY_LOSSES
from rllib_kd.teachers.base import Teacher
from rllib_kd.text import one_line
from rllib_kd.wire import LOG_PROBS

if TYPE_CHECKING:
    from rllib_kd.algorithm.config import DistillationConfig


def check_labels(config: DistillationConfig, teachers: Mapping[str, Teacher]) -> None:
    """Check the settings that depend on what the labels are. Teachers that are not loaded yet are not checked.

    Args:
        config: config of the run, which has been validated.
        teachers: teachers by group.

    Raises:
        ValueError: a setting needs Q-values, but a teacher is an actor-critic; or the other way round.
    """
    for group_id, teacher in teachers.items():
        if not teacher.is_loaded:
            continue
        if teacher.is_recurrent:
            _check_needs_no_single_states(config, teacher)
        if teacher.outputs == LOG_PROBS:
            _check_needs_no_q_values(config.of_module(group_id), teacher)
        elif config.teacher_explores:
            raise ValueError(
                f"`teacher_explores` lets a teacher draw its actions from its policy, but '{_name(teacher)}' has "
                "Q-values and no policy. Leave teacher_explores at False, and set `epsilon` for random actions."
            )


def note_outputs(config: DistillationConfig, teachers: Mapping[str, Teacher]) -> None:
    """Record in a config which groups learn from log-probabilities. Teachers not loaded yet leave it as it is."""
    if all(teacher.is_loaded for teacher in teachers.values()):
        config.set_outputs({group_id: teacher.outputs for group_id, teacher in teachers.items()})


def _check_needs_no_q_values(config: DistillationConfig, teacher: Teacher) -> None:
    """Refuse settings that compare or weigh Q-values, which log-probabilities are not."""
    losses = ", ".join(f"'{loss}'" for loss in POLICY_LOSSES)
    settings = (
        ("loss", config.loss not in POLICY_LOSSES, f"Set one of the losses {losses}."),
        ("td_coeff", config.uses_td, "Leave it at 0: one output cannot be a Q-value and a log-probability."),
        ("gap_weighting", bool(config.gap_weighting), "Leave it out."),
        ("value_gate", bool(config.value_gate), "Leave it out."),
    )
    because = f"but '{_name(teacher)}' is an actor-critic, whose labels are log-probabilities of actions"
    refuse(config, settings, lambda setting, remedy: f"{setting} needs a teacher with Q-values, {because}. {remedy}")


def _check_needs_no_single_states(config: DistillationConfig, teacher: Teacher) -> None:
    """Refuse settings that ask a teacher about a state without those before it."""
    name = _name(teacher)
    if config.is_multi_agent:
        raise ValueError(f"'{name}' is recurrent, and recurrent teachers teach in single-agent settings only.")
    settings = (
        ("loss", config.loss == "categorical", "Use another loss"),
        ("feature_coeff", bool(config.feature_coeff), "Set it to 0"),
        ("init", config.starts_from_teacher, "Set init='random'"),
        ("label_fraction", config.label_fraction < 1.0, "Leave it at 1: the teacher has to see each state"),
    )
    because = f"is not supported with a recurrent teacher, and '{name}' is one"
    refuse(config, settings, lambda setting, remedy: f"{setting} {because}. {remedy}.")


def _name(teacher: Teacher) -> str:
    return one_line(teacher.source)
