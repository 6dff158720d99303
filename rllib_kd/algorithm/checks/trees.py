"""Refuse settings that make no sense for students that are trees, before anything starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gymnasium as gym

from rllib_kd.algorithm.checks.refused import refuse, refuse_priorities
from rllib_kd.networks.trees.shape import TREE, TreeShape
from rllib_kd.students.sizes import WIDTH_KEYS

if TYPE_CHECKING:
    from rllib_kd.algorithm.config import DistillationConfig


def check_trees(config: DistillationConfig) -> None:
    """Check the settings of trees, and what they exclude."""
    for name, settings in config.trees.items():
        TreeShape.of(settings, f"students['{name}']" if config.students else "student")
    if not config.trees:
        return
    own = config.given_model_config
    others = {
        **{name: own.get(name) for name in sorted(WIDTH_KEYS)},
        "student": config.student,
        "compression": config.compression,
    }
    for name, value in others.items() if TREE in own else ():
        if value is not None:
            raise ValueError(
                f"rl_module(model_config=...) has a tree, but `{name}`={value!r} shapes the student, too. Set one."
            )
    if config.teacher is None:
        raise ValueError("A tree learns from a teacher's labels alone, but `teacher` is None. Name a teacher.")
    refused = (
        ("td_coeff", config.uses_td, "TD needs gradients of the student. Leave td_coeff at 0"),
        ("init", config.starts_from_teacher, "A tree takes no units from its teacher. Set init='random'"),
        ("feature_coeff", config.feature_coeff != 0, "A tree has no hidden features to match. Set it to 0"),
        ("loss", config.loss == "categorical", "A tree has no return distributions. Use another loss"),
        ("num_atoms", config.num_atoms > 1, "A tree has no return distributions. Set num_atoms=1"),
        ("num_learners", config.num_learners > 1, "Each Learner would grow its own tree. Set num_learners to 0 or 1"),
        (
            "min_train_timesteps_per_iteration",
            config.are_all_trees and bool(config.min_train_timesteps_per_iteration),
            "Trees make no gradient steps, so that an iteration would not end. Set min_sample_timesteps_per_iteration",
        ),
        (
            "gap_weighting",
            config.gap_weighting and config.are_all_trees,
            "It weighs the rows of gradient steps. Set the tree's own weighting: {'tree': {'weighting': 'gap'}}",
        ),
    )
    refuse(config, refused, lambda setting, reason: f"{setting} is not supported for trees. {reason}.")
    if config.are_all_trees:
        refuse_priorities(config, "trees", "states")
    if config.is_multi_agent:
        raise ValueError("Trees are supported in single-agent settings only. Use networks for several policies.")


def check_tree_inputs(config: DistillationConfig, space: gym.Space) -> None:
    """Check that trees suit what they see.

    Args:
        config: config of the run.
        space: space of the student's inputs.

    Raises:
        ValueError: they do not.
    """
    for settings in config.trees.values():
        TreeShape.of(settings).check_fits(space)
