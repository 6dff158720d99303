"""Checks of settings that differ between policies: `rl_module(algorithm_config_overrides_per_module=...)`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rllib_kd.algorithm.config import DistillationConfig

#: Settings that the Learner reads for each policy by itself (tests/learner/test_policies.py). Others count for all: the
#: columns that EnvRunners send, gradient steps for an env step, weights of the losses, ...
OF_A_POLICY = frozenset(
    {
        *("lr", "adam_epsilon", "grad_clip", "grad_clip_by", "weight_averaging"),
        *("loss", "temperature", "student_temperature", "regret_coeff", "huber_delta", "jsd_beta", "margin"),
        *("gamma", "tau"),
    }
)


def check_overrides(config: DistillationConfig) -> None:
    """Check that overrides are of policies that learn, that each may differ, and that its value is valid.

    Raises:
        ValueError: one is not.
    """
    name = "algorithm_config_overrides_per_module"
    for policy, overrides in config.algorithm_config_overrides_per_module.items():
        if not config.is_multi_agent or policy not in config.teachers:
            learning = f"policies that learn, {sorted(config.teachers)}" if config.is_multi_agent else "several agents"
            raise ValueError(f"`{name}` is for {learning}, got {policy!r}. Set its settings for all.")
        if not isinstance(overrides, Mapping):
            raise ValueError(f"`{name}[{policy!r}]` must be an object with settings by name, got {overrides!r}.")
        for setting in overrides:
            if setting not in OF_A_POLICY:
                raise ValueError(
                    f"`{name}[{policy!r}]` has the setting '{setting}', which cannot differ between policies. Set it "
                    f"for all, or train the policies in runs of their own. What may differ: "
                    f"{', '.join(sorted(OF_A_POLICY))}."
                )
        own = config.of_module(policy)
        try:
            own.validate()
        except ValueError as error:
            raise ValueError(f"`{name}[{policy!r}]`: {error}") from error
        if own.label_columns != config.label_columns:
            raise ValueError(
                f"`{name}[{policy!r}]` has loss={own.loss!r}, which needs other labels than loss={config.loss!r} of "
                "other policies. Set it for all, or train the policies in runs of their own."
            )
