"""Search spaces in settings, and their variants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.tune.search.variant_generator import generate_variants

from rllib_kd import _rllib
from rllib_kd.algorithm.settings import RENAMED


def variants(settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the settings with each combination of values of their search spaces.

    Raises:
        ValueError: a `grid_search` without a list of values.
    """
    _check_grids(settings)
    for _, variant in generate_variants(dict(settings)):
        yield variant


def has_space(value: Any) -> bool:
    """Return whether a value is one of Tune's search spaces, or contains one."""
    if isinstance(value, Mapping):
        return "grid_search" in value or any(map(has_space, value.values()))
    return hasattr(value, "sample") and hasattr(value, "get_sampler")


def param_space(config: AlgorithmConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return Tune's `param_space`: a config with one variant of the settings applied, and their search spaces in it."""
    space = config.to_dict()
    for given, value in settings.items():
        if has_space(value):
            renamed = RENAMED.get(given, given)
            name = _rllib.CONFIG_ATTRIBUTES.get(renamed, renamed)
            space[name] = _overlay(space.get(name), value)
    return space


def _check_grids(settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        if not isinstance(name, str):
            raise ValueError(f"The name of a setting must be text, like 'lr'. Got {name!r}: {value!r}.")
        if not isinstance(value, Mapping):
            continue
        values = value.get("grid_search")
        if "grid_search" in value and not (len(value) == 1 and isinstance(values, list) and values):
            raise ValueError(
                f"The grid of '{name}' must be a list of values: {{\"grid_search\": [...]}}. Got {dict(value)}."
            )
        _check_grids(value)


def _overlay(applied: Any, given: Any) -> Any:
    if isinstance(given, Mapping) and isinstance(applied, Mapping) and "grid_search" not in given:
        return {**applied, **{key: _overlay(applied.get(key), value) for key, value in given.items()}}
    return given
