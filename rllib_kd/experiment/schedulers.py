"""Schedulers of Tune by name, which bear results without the metric: a return is missing until an episode has ended."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

from ray.tune.schedulers import SCHEDULER_IMPORT, HyperBandForBOHB, HyperBandScheduler, TrialScheduler

from rllib_kd.experiment.metrics import checked_metric
from rllib_kd.text import did_you_mean


def scheduler_named(name: str, arguments: Mapping[str, Any]) -> TrialScheduler:
    """Return Tune's scheduler of this name.

    Args:
        name: the scheduler's name.
        arguments: arguments of its class.

    Raises:
        ValueError: the name or an argument is unknown, the scheduler does not take a value, or it has no metric.
    """
    cls = SCHEDULER_IMPORT.get(name.lower())
    if cls is None:
        hint = did_you_mean(name, SCHEDULER_IMPORT)
        raise ValueError(f"Unknown scheduler '{name}'.{hint} Known are: {', '.join(SCHEDULER_IMPORT)}.")
    if cls is HyperBandForBOHB:  # it fails when it pauses a trial
        raise ValueError(f"The scheduler '{name}' needs Tune's searcher BOHB, which cannot be set. Set hyperband.")
    cls = cls() if inspect.isfunction(cls) else cls
    known = inspect.signature(cls).parameters
    for key in arguments:
        if key not in known:
            raise ValueError(f"The scheduler '{name}' has no argument '{key}'.{did_you_mean(key, known)}")
    arguments = dict(arguments)
    if "metric" in arguments:
        arguments["metric"] = checked_metric(arguments["metric"])
        arguments.setdefault("mode", "max")
    elif "metric" in known:
        raise ValueError(
            f"The scheduler '{name}' needs a metric: --scheduler-config "
            '\'{"metric": "env_runners/episode_return_mean", "mode": "max"}\'.'
        )
    if "require_attrs" in known:  # of PBT and PB2, which then decide when a result has the metric
        arguments.setdefault("require_attrs", False)
    try:
        return (_taking_worst(cls, arguments["mode"]) if issubclass(cls, HyperBandScheduler) else cls)(**arguments)
    except Exception as error:  # TuneError, TypeError, AssertionError, ...
        raise ValueError(f"The scheduler '{name}' does not take {arguments}: {error}") from error


def _taking_worst(cls: type[HyperBandScheduler], mode: str) -> type[HyperBandScheduler]:
    """Return a HyperBand that takes the worst value in place of a missing metric: Tune's sorts results by it."""
    worst = math.inf if mode == "min" else -math.inf

    class TakingWorst(cls):
        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            result.setdefault(self.metric, worst)
            return super().on_trial_result(tune_controller, trial, result)

    TakingWorst.__name__ = cls.__name__
    return TakingWorst
