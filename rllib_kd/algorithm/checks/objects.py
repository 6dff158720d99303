"""Check that settings with keys are objects, and classes are classes: other checks and RLlib look into them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from rllib_kd import _rllib

if TYPE_CHECKING:
    from rllib_kd.algorithm.config import DistillationConfig


def check_objects(config: DistillationConfig) -> None:
    """Check that settings with keys are objects, that keys can be names, and that classes of recorded rows are classes.

    Raises:
        ValueError: one is not.
    """
    model = _rllib.raw_model_config(config)
    is_model = dataclasses.is_dataclass(model) and not isinstance(model, type)
    evaluation = config.evaluation_config
    for name, value, is_right in (
        ("model_config", model, is_model or isinstance(model, Mapping)),
        ("students", config.students, isinstance(config.students, Mapping | None)),
        ("evaluation_config", evaluation, isinstance(evaluation, Mapping | AlgorithmConfig | None)),
    ):
        if not is_right:
            raise ValueError(f"`{name}` must be an object with keys, like {{'name': ...}}, got {value!r}.")
    if isinstance(evaluation, Mapping) and not all(isinstance(key, str) for key in evaluation):
        raise ValueError(f"The keys of `evaluation_config` must be names of settings, got {evaluation!r}.")
    for name in ("offline_data_class", "prelearner_class", "prelearner_buffer_class"):
        if not isinstance(value := getattr(config, name), type | None):
            raise ValueError(f"`{name}` must be a class, got {value!r}. Leave it out.")
