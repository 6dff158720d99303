"""The progress line of training."""

from __future__ import annotations

import atexit
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray import tune
from rich.console import Console
from rich.live import Live
from rich.text import Text

from rllib_kd.checkpoints.runs import teacher_fraction
from rllib_kd.experiment.metrics import metric_at
from rllib_kd.experiment.resuming import criteria
from rllib_kd.terminal import watched
from rllib_kd.text import number, ratio


class ProgressLine(tune.Callback):
    """Shows env steps, gradient steps per second, return, return ratio and time left.

    With several trials, it shows the best return and ratio. It is printed on a terminal only, in one line that fits.

    Args:
        stop: metric → value at which a trial stops, for the time left.
    """

    def __init__(self, stop: Mapping[str, float]):
        self._stop = dict(stop)
        self._results: dict[str, Mapping[str, Any]] = {}  # the last one of each trial
        self._num_trials = 1
        self._first: tuple[float, float] | None = None  # when the first result came, and how far it was
        self._live: Live | None = None

    def setup(self, stop: Any = None, num_samples: int | None = None, total_num_samples: int = 1, **info: Any) -> None:
        """Begin the line: Tune calls this before the first trial."""
        self._num_trials = total_num_samples
        if watched():
            self._live = Live(Text("starting"), console=Console(stderr=True), transient=True)
            self._live.start()
            atexit.register(self._live.stop)  # which shows the cursor again, however training ends

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Mapping[str, Any], **info: Any) -> None:
        """Update the line: Tune calls this at every result."""
        if self._live is None:
            return
        before = self._results.get(trial.trial_id, {})
        self._results[trial.trial_id] = with_last_returns(result, before)
        total = max(self._num_trials, len(trials))
        left = self._seconds_left(total)
        line = progress_words(
            list(self._results.values()), num_trials=total, seconds_left=left, width=self._live.console.width
        )
        self._live.update(Text(line, no_wrap=True, overflow="ellipsis"))

    def on_experiment_end(self, trials: Any, **info: Any) -> None:
        """Remove the line: Tune calls this at the end."""
        if self._live is not None:
            self._live.stop()

    def __getstate__(self) -> dict[str, Any]:
        return {"_stop": self._stop, "_results": {}, "_num_trials": 1, "_first": None, "_live": None}

    def _seconds_left(self, num_trials: int) -> float:
        """Estimate from the pace since the first result: neither the start nor steps before a resume count."""
        shares = [share_done(result, criteria(self._stop)) for result in self._results.values()]
        now, done = time.monotonic(), sum(shares) / num_trials
        if self._first is None:
            self._first = now, done
        start, done_before = self._first
        return (now - start) * (1.0 - done) / (done - done_before) if done > done_before else math.nan


def progress_words(
    results: Sequence[Mapping[str, Any]],
    *,
    num_trials: int = 1,
    seconds_left: float = math.nan,
    width: int | None = None,
) -> str:
    """Describe the progress of training in one line.

    Args:
        results: the last result of each trial that has one.
        num_trials: number of trials, including those that have not begun.
        seconds_left: estimated time, s; NaN if unknown.
        width: characters; the less important parts are left out until the line fits. None: no limit.
    """
    done = sum(bool(result.get("done")) for result in results)
    rates = [r for r in map(_gradient_steps_per_second, results) if r]
    parts = {  # what matters least comes first
        "gradient steps": f"{sum(rates):,.0f} gradient steps/s" if rates else "",
        "ratio": _best("ratio", [value for result in results for value in _return_ratios(result)], ratio),
        "left": _duration(seconds_left),
        "return": _return(results),
        "agreement": _best("agreement", [value for result in results for value in _agreements(result)], _percent),
        # This number grows as long as training runs.
        "env steps": _progress(results),
        "trials": f"{done} of {num_trials} trials done" if num_trials > 1 else "",
    }
    shown = ("trials", "env steps", "gradient steps", "agreement", "return", "ratio", "left")
    for dropped in range(len(parts)):
        kept = list(parts)[dropped:]
        line = " · ".join(parts[name] for name in shown if name in kept and parts[name])
        if width is None or len(line) <= width:
            break
    return line


def share_done(result: Mapping[str, Any], stop: Mapping[str, float]) -> float:
    """Return the share of a trial that is done, in [0, 1], by its criteria that count up: steps, iterations, time."""
    if result.get("done"):
        return 1.0
    counters = {path: value for path, value in stop.items() if value > 0 and _counts_up(path.rsplit("/")[-1])}
    return min(1.0, max((max(0.0, metric_at(result, path)) / value for path, value in counters.items()), default=0.0))


def _counts_up(name: str) -> bool:
    return name.startswith("num_") or name in ("training_iteration", "time_total_s")


def _gradient_steps_per_second(result: Mapping[str, Any]) -> float:
    """Return the mean rate; 0 in a new run that began with the steps of another (--restore), where it is not known."""
    num_iterations = result.get("training_iteration", 0)
    if (
        result.get("iterations_since_restore", num_iterations) < num_iterations
        and result["time_since_restore"] == result["time_total_s"]  # a resumed run has the time of its beginning, too
    ):
        return 0.0
    steps = result.get("distillation", {}).get("num_gradient_steps_lifetime", 0)
    return steps / result["time_total_s"] if result.get("time_total_s") else 0.0


def with_last_returns(result: Mapping[str, Any], before: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a result in which missing returns are those of an earlier one.

    Not every iteration evaluates, and in some no episode ends: a return is shown until the next is known.

    Args:
        result: the newest result of a trial.
        before: an earlier result of the trial, or its returns in the same layout.
    """
    last = {}
    if not result.get("evaluation") and before.get("evaluation"):
        last["evaluation"] = before["evaluation"]
    if _known(_mean_return(result)) is None and (mean := _known(_mean_return(before))) is not None:
        last["env_runners"] = {**(result.get("env_runners") or {}), "episode_return_mean": mean}
    return {**result, **last}


def _return(results: Sequence[Mapping[str, Any]]) -> str:
    """Show the greedy student's return by its last evaluation; without one, the acting policy's, under its name."""
    evaluations = [evaluation for result in results for evaluation in _of_each_student(result.get("evaluation", {}))]
    if evaluated := _best("return", list(map(_mean_return, evaluations)), number):
        return evaluated
    has_teacher = any(teacher_fraction(result) is not None for result in results)
    return _best("behaviour return" if has_teacher else "exploring return", list(map(_mean_return, results)), number)


def _progress(results: Sequence[Mapping[str, Any]]) -> str:
    """Show the env steps of all trials; of recorded rows, the epochs of the one that is furthest."""
    epochs = [result.get("distillation", {}).get("num_epochs") for result in results]
    if epochs and None not in epochs:
        return f"{max(epochs):,.1f} epochs"
    return f"{sum(result.get('num_env_steps_sampled_lifetime', 0) for result in results):,.0f} env steps"


def _agreements(result: Mapping[str, Any]) -> list[float | None]:
    """Return the agreement of each student with its teacher on held-out rows."""
    return [own.get("teacher_agreement") for own in _of_each_student(result.get("distillation", {}))]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _return_ratios(result: Mapping[str, Any]) -> list[float | None]:
    return [own.get("return_ratio") for own in _of_each_student(result.get("distillation", {}))]


def _of_each_student(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the entries of a family's students, or the one entry of a single student."""
    return list(entry.get("students", {}).values()) or [entry]


def _mean_return(result: Mapping[str, Any]) -> float | None:
    return (result.get("env_runners") or {}).get("episode_return_mean")


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def _best(what: str, values: Sequence[float | None], show: Callable[[float], str]) -> str:
    known = [value for value in map(_known, values) if value is not None]
    return f"{'best ' if len(values) > 1 else ''}{what} {show(max(known))}" if known else ""


def _duration(seconds: float) -> str:
    if math.isnan(seconds):
        return ""
    return next(
        f"{seconds / unit:.0f}{name} left"
        for unit, name, limit in ((1, "s", 100), (60, "m", 6_000), (3600, "h", math.inf))
        if seconds < limit
    )
