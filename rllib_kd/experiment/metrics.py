"""Metrics by name, in stop criteria and in results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ray import tune
from ray.tune.utils import flatten_dict

from rllib_kd.checkpoints.results import value_at
from rllib_kd.numeric import is_finite
from rllib_kd.terminal import say
from rllib_kd.text import did_you_mean

#: Metrics of the old API stack, with their paths in results now.
RENAMED_METRICS = {
    "timesteps_total": "num_env_steps_sampled_lifetime",
    "episode_reward_mean": "env_runners/episode_return_mean",
    "episode_reward_min": "env_runners/episode_return_min",
    "episode_reward_max": "env_runners/episode_return_max",
    "episode_len_mean": "env_runners/episode_len_mean",
    "sampler_results/episode_reward_mean": "env_runners/episode_return_mean",
    "env_runners/episode_reward_mean": "env_runners/episode_return_mean",
    "evaluation/episode_reward_mean": "evaluation/env_runners/episode_return_mean",
    "evaluation/env_runners/episode_reward_mean": "evaluation/env_runners/episode_return_mean",
    "evaluation/sampler_results/episode_reward_mean": "evaluation/env_runners/episode_return_mean",
    "episodes_total": "env_runners/num_episodes_lifetime",
}

#: Top-level names of results. Callbacks may add others, so another name is an error only if it resembles one of these.
_METRICS = (
    "distillation",
    "env_runners",
    "evaluation",
    "iterations_since_restore",
    "learners",
    "num_env_steps_sampled_lifetime",
    "num_training_step_calls_per_iteration",
    "time_since_restore",
    "time_this_iter_s",
    "time_total_s",
    "training_iteration",
)


def checked_stop(stop: Mapping[str, Any]) -> dict[str, float]:
    """Return stop criteria under the names that results use; raise a ValueError for one that cannot be met."""
    for metric, value in stop.items():
        if not is_finite(value):
            raise ValueError(
                f"Training stops when a metric reaches a number, got {value!r} for '{metric}'. Give a finite number."
            )
    return {checked_metric(metric): value for metric, value in stop.items()}


def checked_metric(metric: Any) -> str:
    """Return the metric's name in results; raise a ValueError for an unknown name that resembles a known one."""
    if not isinstance(metric, str) or not metric.strip():
        raise ValueError(f"A metric must be a name, like 'training_iteration'. Got {metric!r}.")
    metric = RENAMED_METRICS.get(metric, metric)
    for path in RENAMED_METRICS.values():
        if "/" not in metric and path.endswith(f"/{metric}"):
            raise ValueError(f"Results hold no metric '{metric}'. Did you mean '{path}'?")
    top = metric.split("/")[0]
    if top not in _METRICS and (hint := did_you_mean(top, _METRICS, cutoff=0.8)):
        raise ValueError(f"Results hold no metric '{metric}'.{hint}")
    return metric


_PATIENCE = 3  # results in which a metric may be missing: evaluations, for example, come later than the first


class MissingMetrics(tune.Callback):
    """A callback that warns if results lack a metric by which training is stopped or scheduled.

    Args:
        metrics: paths of the metrics, `a/b/c`.
    """

    def __init__(self, metrics: Sequence[str]):
        self._missing = set(metrics)

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Mapping[str, Any], **info: Any) -> None:
        """Look for the metrics in a result: Tune calls this at every result."""
        if not self._missing:
            return
        known = flatten_dict(dict(result))
        self._missing = {metric for metric in self._missing if metric_at(result, metric) == -math.inf}
        if result.get("training_iteration", 0) >= _PATIENCE:
            for metric in sorted(self._missing):
                say(
                    f"warning: no result has had the metric '{metric}' as a number so far.{did_you_mean(metric, known)}"
                )
            self._missing.clear()


def metric_at(result: Mapping[str, Any], path: str) -> float:
    """Return the metric at `a/b/c`; −inf if the result does not have it (yet), or has no number there."""
    value = value_at(result, path.split("/"))
    try:
        return -math.inf if value is None else float(value)
    except (TypeError, ValueError):  # other metrics, or a text
        return -math.inf
