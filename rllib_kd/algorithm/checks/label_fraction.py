"""Refuse `label_fraction` where each state needs its label, or the teacher is asked in each state anyway."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rllib_kd.algorithm.checks.refused import refuse
from rllib_kd.numeric import is_finite
from rllib_kd.schedules import values_of

if TYPE_CHECKING:
    from rllib_kd.algorithm.config import DistillationConfig


def check_label_fraction(config: DistillationConfig) -> None:
    """Check the share of steps whose states are labelled, and what it excludes."""
    share = config.label_fraction
    if not is_finite(share, 0.0, 1.0) or share == 0:
        raise ValueError(f"`label_fraction` must be in (0, 1], a share of steps, got {share!r}.")
    if share == 1:
        return
    settings = (
        ("teacher", config.teacher is None, "there are no labels"),
        ("rollout_policy", config.rollout_policy == "teacher", "the teacher acts in each state"),
        ("teacher_fraction", min(values_of(config.acting_teacher_fraction)) > 0, "the teacher acts at all times"),
        ("output", config.output is not None, "each visited state is recorded with its label"),
        ("td_coeff", config.uses_td, "TD learns from successive states"),
        ("max_regret", math.isfinite(config.max_regret_in_gaps), "each action of the student is judged by its label"),
        ("is_multi_agent", config.is_multi_agent, "it is supported in single-agent settings only"),
        ("is_recurrent", config.is_recurrent, "recurrent students learn from successive states"),
    )
    refuse(
        config,
        settings,
        lambda setting, reason: f"`label_fraction`={share} is not supported with {setting}: {reason}. Leave it at 1.",
    )
    if config.in_evaluation:  # its fragments are RLlib's own, of one step, and nothing is labelled
        return
    if share * (num_steps := config.get_rollout_fragment_length()) < 1:
        raise ValueError(
            f"`label_fraction`={share} labels no whole step of a fragment of {num_steps}. Set rollout_fragment_length "
            f"to at least {math.ceil(1 / share)}."
        )
