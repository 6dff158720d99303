"""The error for a setting that an algorithm does not have."""

from __future__ import annotations

import typing
from collections.abc import Iterable

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from rllib_kd.text import did_you_mean


def unknown_setting(cls: type[AlgorithmConfig], name: str, known: Iterable[str]) -> ValueError:
    """Return the error, with the setting that has a key of this name, or the nearest known name.

    Args:
        cls: class of the config.
        name: the unknown name.
        known: names of its settings.
    """
    hint = _as_a_key(cls, name) or did_you_mean(name, known)
    return ValueError(f"{cls.__name__} has no setting '{name}'.{hint}")


def _as_a_key(cls: type[AlgorithmConfig], name: str) -> str:
    keys = {
        "replay_buffer_config": getattr(cls(), "replay_buffer_config", None) or {},
        "model_config": typing.get_type_hints(DefaultModelConfig),
    }
    setting = next((setting for setting, known in keys.items() if name in known), None)
    return "" if setting is None else f' It is a key of another setting: {{"{setting}": {{"{name}": ...}}}}.'
