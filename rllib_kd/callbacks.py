"""One line on the terminal that says how far training is."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ray import tune
from rich.console import Console
from rich.live import Live
from rich.text import Text


class ProgressLine(tune.Callback):
    """Shows env steps, gradient steps per second, return, return ratio and time left of the trial that reported last.

    Only on a terminal: in a file or pipe nothing is printed.

    Args:
        stop: metric → value at which training stops, for the time left.
    """

    def __init__(self, stop: Mapping[str, float]):
        self._stop = dict(stop)
        self._start = time.monotonic()
        self._live: Live | None = None

    def setup(self, stop: Any = None, num_samples: int | None = None, **info: Any) -> None:
        """Tune's hook before the first trial."""
        console = Console(stderr=True)
        if console.is_terminal:
            self._live = Live(Text("starting"), console=console, transient=True)
            self._live.start()

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Mapping[str, Any], **info: Any) -> None:
        """Tune's hook at every result."""
        if self._live is not None:
            running = sum(other.status == "RUNNING" for other in trials)
            prefix = f"{running} of {len(trials)} trials · " if len(trials) > 1 else ""
            self._live.update(Text(prefix + describe(result, self._stop, time.monotonic() - self._start)))

    def on_experiment_end(self, trials: Any, **info: Any) -> None:
        """Tune's hook at the end."""
        if self._live is not None:
            self._live.stop()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_live": None}  # Tune pickles callbacks with the experiment


def describe(result: Mapping[str, Any], stop: Mapping[str, float], seconds: float) -> str:
    """The line for one result.

    Args:
        result: of `algo.train()`.
        stop: metric → value at which training stops.
        seconds: since training started.
    """
    steps = result.get("num_env_steps_sampled_lifetime", 0)
    parts = [f"{steps:,.0f} env steps"]
    own = result.get("distillation", {})
    if (gradient_steps := own.get("num_gradient_steps_lifetime")) and result.get("time_total_s"):
        parts.append(f"{gradient_steps / result['time_total_s']:,.0f} gradient steps/s")
    returns = [result.get("evaluation", {}), result]
    mean = next((r["env_runners"].get("episode_return_mean") for r in returns if "env_runners" in r), None)
    if mean is not None and mean == mean:
        parts.append(f"return {mean:.1f}")
    if (ratio := own.get("return_ratio")) is not None and ratio == ratio:
        parts.append(f"ratio {ratio:.3f}")
    goal = stop.get("num_env_steps_sampled_lifetime")
    if goal and steps:
        left = max(0.0, seconds * (goal - steps) / steps)
        parts.append(f"{left:.0f} s left" if left < 120 else f"{left / 60:.0f} min left")
    return " · ".join(parts)
