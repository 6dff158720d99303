"""Ensembles: several teachers as one, whose labels are means over its members."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from rllib_kd.observations.pipeline import ObservationPipeline, SideBySide
from rllib_kd.observations.spaces import brief, same_space
from rllib_kd.teachers.base import Teacher
from rllib_kd.teachers.function import Members, QNetwork
from rllib_kd.text import one_line
from rllib_kd.wire import LOG_PROBS, Q_VALUES, Outputs


def ensemble_of(teachers: Sequence[Teacher], *, policy_temperature: float | None = None) -> Teacher:
    """Combine several teachers into one; each keeps its own observation pipeline. One teacher alone remains itself.

    The labels of actor-critics are the log-probabilities of their mean policy, whatever the temperature.

    Args:
        teachers: the members, which are copied.
        policy_temperature: None (default): the labels are mean Q-values. A number > 0, return units: their softmax at
            this temperature is the mean of the members' policies, among which actor-critics may be.

    Raises:
        ValueError: there are no members, or their spaces differ, the message names the spaces of two; or Q-networks and
            actor-critics are mixed without a temperature.
    """
    if not teachers:
        raise ValueError("An ensemble needs at least one teacher, got an empty list.")
    if len(teachers) == 1:
        return copy.deepcopy(teachers[0])
    if recurrent := [teacher.source for teacher in teachers if teacher.is_recurrent]:
        raise ValueError(
            f"An ensemble is of teachers without memory, but '{one_line(recurrent[0])}' is recurrent. Leave it out, or "
            "name it alone."
        )
    for one, other in itertools.combinations(teachers, 2):
        _check_pair(one, other)
    outputs: Outputs = LOG_PROBS if all(teacher.outputs == LOG_PROBS for teacher in teachers) else Q_VALUES
    if outputs == LOG_PROBS:
        policy_temperature = 1.0
    elif policy_temperature is None:
        _check_have_q_values(teachers)
    shown = next((member for member in teachers if all(t.takes(member.observation_space) for t in teachers)), None)
    if shown is None:
        raise ValueError(
            f"The observations of these teachers exclude each other: {one_line(_names(teachers))}. Choose teachers of "
            "the same environment."
        )
    pipelines = tuple(teacher.known_pipeline for teacher in teachers)
    conversions = {pipeline.images for pipeline in pipelines}  # of bytes to [0, 1], also without a stage
    sees_alike = len(conversions) == 1 and not any(pipeline.stages for pipeline in pipelines)
    sees_alike = sees_alike and all(pipeline.parts == pipelines[0].parts for pipeline in pipelines)
    if sees_alike:
        pipeline, input_space = shown.pipeline, shown.input_space
    else:
        pipeline = ObservationPipeline(shown.observation_space, (SideBySide(pipelines),))
        size = sum(math.prod(teacher.input_space.shape or ()) for teacher in teachers)
        input_space = gym.spaces.Box(-np.inf, np.inf, (size,), np.float32)
    members = Members(copy.deepcopy(list(teachers)), policy_temperature=policy_temperature, splits=not sees_alike)
    num_parameters = sum(teacher.num_parameters for teacher in teachers)
    network = QNetwork(
        members, input_space, teachers[0].action_space, None if math.isnan(num_parameters) else num_parameters
    )
    return Teacher(network, pipeline=pipeline, outputs=outputs, source=_names(teachers)).checked()


def as_configured(teachers: Sequence[Teacher], ensemble: str, temperature: Any) -> Teacher:
    """Return the one teacher, or an ensemble, combined as a config requests: by "q" or "policy" (at its temperature).

    Raises:
        ValueError: as `ensemble_of()`, or "policy" has no temperature for Q-values.
    """
    members = [member for teacher in teachers for member in teacher.members]
    if len(members) == 1:
        return teachers[0]
    if ensemble == "policy" and temperature == "auto" and any(member.outputs == Q_VALUES for member in members):
        raise ValueError(
            "ensemble='policy' is the mean of the teachers' policies at `temperature`, but 'auto' is measured on "
            "that mean. Set a number, in return units: about a tenth of the usual gap between the best two "
            "Q-values. Or use ensemble='q'; only actor-critics, which have policies, need neither."
        )
    by_policy = ensemble == "policy" and temperature != "auto"
    return ensemble_of(members, policy_temperature=float(temperature) if by_policy else None)


def _check_have_q_values(teachers: Sequence[Teacher]) -> None:
    """Check that there are mean Q-values: that no member has a policy instead."""
    if without := [teacher.source for teacher in teachers if teacher.outputs == LOG_PROBS]:
        raise ValueError(
            f"An ensemble by its mean Q-values needs teachers with Q-values, but '{one_line(without[0])}' is an "
            "actor-critic, which has log-probabilities. Combine them by their policies: ensemble='policy', with a "
            "number as `temperature`, at which the Q-values become policies; or leave one kind out."
        )


def _check_pair(one: Teacher, other: Teacher) -> None:
    sees = one.takes(other.observation_space) or other.takes(one.observation_space)
    for what, fits, spaces in (
        ("action", same_space(one.action_space, other.action_space), (one.action_space, other.action_space)),
        ("observation", sees, (one.observation_space, other.observation_space)),
    ):
        if not fits:
            raise ValueError(
                f"An ensemble is for one environment, but the {what} space of '{one_line(one.source)}' is "
                f"{brief(spaces[0])}, and that of '{one_line(other.source)}' {brief(spaces[1])}. If a teacher takes a "
                "part of the environment's observations, load it with load_teacher(..., pipeline=...)."
            )


def _names(teachers: Sequence[Teacher]) -> str:
    return ", ".join(teacher.source for teacher in teachers)
