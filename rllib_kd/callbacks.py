"""What Tune calls while it trains: a line that says how far it is, checkpoints on Ctrl-C, a word about odd criteria."""

from __future__ import annotations

import atexit
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from types import FrameType
from typing import Any

from ray import tune
from ray.tune.result import SHOULD_CHECKPOINT
from ray.tune.utils import flatten_dict
from rich.console import Console
from rich.live import Live
from rich.text import Text

from rllib_kd.progress import say, watched
from rllib_kd.runs import teacher_fraction
from rllib_kd.text import did_you_mean, number, ratio

_PATIENCE = 3  # results in which a metric may be missing: evaluations, say, come later than the first

_SIGHUP = getattr(signal, "SIGHUP", None)  # of a closed terminal or a lost ssh; Windows has none
#: Seconds in which another SIGTERM is the same request: `timeout` signals its child, and then the child's group.
_ECHO = 2.0

_interrupt = threading.Event()  # of this process, as signals are: Tune pickles callbacks, and restores copies of them


class ProgressLine(tune.Callback):
    """Shows env steps, gradient steps per second, return, return ratio and time left; of several trials the best.

    Only on a terminal, and never wider: in a file or pipe nothing is printed.

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
        """Tune's hook before the first trial."""
        self._num_trials = total_num_samples
        if watched():
            self._live = Live(Text("starting"), console=Console(stderr=True), transient=True)
            self._live.start()
            atexit.register(self._live.stop)  # which shows the cursor again, however training ends

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Mapping[str, Any], **info: Any) -> None:
        """Tune's hook at every result."""
        if self._live is None:
            return
        before = self._results.get(trial.trial_id, {})
        self._results[trial.trial_id] = result if result.get("evaluation") else {**result, **_evaluation(before)}
        total = max(self._num_trials, len(trials))
        left = self._seconds_left(total)
        line = describe(
            list(self._results.values()), num_trials=total, seconds_left=left, width=self._live.console.width
        )
        self._live.update(Text(line, no_wrap=True, overflow="ellipsis"))

    def on_experiment_end(self, trials: Any, **info: Any) -> None:
        """Tune's hook at the end."""
        if self._live is not None:
            self._live.stop()

    def __getstate__(self) -> dict[str, Any]:
        return {"_stop": self._stop, "_results": {}, "_num_trials": 1, "_first": None, "_live": None}

    def _seconds_left(self, num_trials: int) -> float:
        """By the pace since the first result, so that neither the start nor what was done before a resume counts."""
        now, done = time.monotonic(), sum(share_done(r, self._stop) for r in self._results.values()) / num_trials
        if self._first is None:
            self._first = now, done
        start, done_before = self._first
        return (now - start) * (1.0 - done) / (done - done_before) if done > done_before else math.nan


class SaveOnInterrupt(tune.Callback):
    """After Ctrl-C, saves a checkpoint of every trial at its next result, and ends; the experiment can be resumed."""

    def __init__(self) -> None:
        self._told = False
        self._reported: set[str] = set()
        self._saved: set[str] = set()

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        """Tune's hook at every result."""
        self._reported.add(trial.trial_id)
        if _interrupt.is_set():
            result[SHOULD_CHECKPOINT] = True

    def on_trial_save(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Tune's hook after every checkpoint."""
        if _interrupt.is_set():
            self._saved.add(trial.trial_id)

    def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
        """Tune's hook, several times a second."""
        if not _interrupt.is_set():
            return
        running = {trial.trial_id for trial in trials if trial.status == "RUNNING"}
        waiting = (running & self._reported) - self._saved  # what has not reported yet has nothing to lose
        if not waiting:
            os.kill(os.getpid(), signal.SIGUSR1)  # Tune then writes the experiment's state, and returns
        elif not self._told:
            self._told = True
            say("stopping: a checkpoint will be saved after this iteration. Ctrl-C again ends at once.")

    def __getstate__(self) -> dict[str, Any]:
        return dict(vars(SaveOnInterrupt()))


class MissingMetrics(tune.Callback):
    """Says so when results do not hold a metric by which training is to stop or to be scheduled.

    Args:
        metrics: their paths, `a/b/c`.
    """

    def __init__(self, metrics: Sequence[str]):
        self._missing = set(metrics)

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Mapping[str, Any], **info: Any) -> None:
        """Tune's hook at every result."""
        if not self._missing:
            return
        known = flatten_dict(dict(result))
        self._missing -= set(known)
        if result.get("training_iteration", 0) >= _PATIENCE:
            for metric in sorted(self._missing):
                say(f"warning: no result has held the metric '{metric}' so far.{did_you_mean(metric, known)}")
            self._missing.clear()


@contextmanager
def saving_on_interrupt() -> Iterator[threading.Event]:
    """Ctrl-C, SIGTERM and SIGHUP have `SaveOnInterrupt` save and end.

    A second Ctrl-C or SIGTERM raises SystemExit at once. Under `nohup`, SIGHUP stays ignored.

    Yields:
        An event that is set after the first one.
    """
    first_at = -math.inf

    def interrupt(signum: int, frame: FrameType | None) -> None:
        nonlocal first_at
        if signum == _SIGHUP:
            _leave_closed_terminals(terminals)
        if not _interrupt.is_set():
            first_at = time.monotonic()
            _interrupt.set()
        elif signum == signal.SIGINT or (signum == signal.SIGTERM and time.monotonic() - first_at > _ECHO):
            say("interrupted")
            raise SystemExit(1)

    _interrupt.clear()
    if threading.current_thread() is not threading.main_thread():  # which alone may have handlers
        yield _interrupt
        return
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
    handled = [signal.SIGINT, signal.SIGTERM]
    if _SIGHUP is not None and signal.getsignal(_SIGHUP) != signal.SIG_IGN:
        handled.append(_SIGHUP)
    previous = {number: signal.signal(number, interrupt) for number in handled}
    try:
        yield _interrupt
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _leave_closed_terminals(descriptors: Sequence[int]) -> None:
    """Write to nowhere instead of to terminals that are gone: an error of output must not keep from saving."""
    for descriptor in descriptors:
        if not os.isatty(descriptor):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)


def wandb_callback(*, project: str, key: str | None = None, run_name: str | None = None) -> tune.Callback:
    """Ray's logger for Weights & Biases.

    Args:
        project: where the runs appear.
        key: None: who is logged in, or WANDB_API_KEY. Not given to the callback, which lies among the results.
        run_name: None: each trial's.

    Raises:
        ValueError: wandb is not installed, nobody is logged in, or a text is empty.
    """
    from ray.air.integrations.wandb import WandbLoggerCallback

    if find_spec("wandb") is None:
        raise ValueError("Logging to Weights & Biases needs its package: pip install wandb")
    for name, text in {"project": project, "key": key, "run-name": run_name}.items():
        if text is not None and not text.strip():
            raise ValueError(f"--wandb-{name} is empty. Give it a value, or leave it out.")
    if key is not None:
        os.environ["WANDB_API_KEY"] = key
    callback = WandbLoggerCallback(project=project, **({} if run_name is None else {"name": run_name}))
    callback.setup()  # as Tune does, which says too late that nobody is logged in
    return callback


def describe(
    results: Sequence[Mapping[str, Any]],
    *,
    num_trials: int = 1,
    seconds_left: float = math.nan,
    width: int | None = None,
) -> str:
    """How far training is, in one line.

    Args:
        results: the last one of each trial that has one.
        num_trials: that there are, and will be.
        seconds_left: NaN: nobody knows.
        width: in characters; what matters less is left out until the line fits.
    """
    done = sum(bool(result.get("done")) for result in results)
    rates = [r for r in map(_gradient_steps_per_second, results) if r]
    parts = {  # what matters least comes first
        "gradient steps": f"{sum(rates):,.0f} gradient steps/s" if rates else "",
        "env steps": f"{sum(result.get('num_env_steps_sampled_lifetime', 0) for result in results):,.0f} env steps",
        "ratio": _best("ratio", [value for result in results for value in _return_ratios(result)], ratio),
        "left": _duration(seconds_left),
        "return": _return(results),
        "trials": f"{done} of {num_trials} trials done" if num_trials > 1 else "",
    }
    shown = ("trials", "env steps", "gradient steps", "return", "ratio", "left")
    for dropped in range(len(parts)):
        kept = list(parts)[dropped:]
        line = " · ".join(parts[name] for name in shown if name in kept and parts[name])
        if width is None or len(line) <= width:
            break
    return line


def share_done(result: Mapping[str, Any], stop: Mapping[str, float]) -> float:
    """How far a trial is, in [0, 1], by the criteria that count up: steps, iterations, seconds."""
    if result.get("done"):
        return 1.0
    counters = {path: value for path, value in stop.items() if value > 0 and _counts_up(path.rsplit("/")[-1])}
    return min(1.0, max((max(0.0, metric_at(result, path)) / value for path, value in counters.items()), default=0.0))


def metric_at(result: Mapping[str, Any], path: str) -> float:
    """The metric at `a/b/c`; −inf where the result does not hold it (yet)."""
    value: Any = result
    for key in path.split("/"):
        value = value.get(key) if isinstance(value, Mapping) else None
    return -math.inf if value is None else float(value)


def _counts_up(name: str) -> bool:
    return name.startswith("num_") or name in ("training_iteration", "time_total_s")


def _gradient_steps_per_second(result: Mapping[str, Any]) -> float:
    steps = result.get("distillation", {}).get("num_gradient_steps_lifetime", 0)
    return steps / result["time_total_s"] if result.get("time_total_s") else 0.0


def _evaluation(result: Mapping[str, Any]) -> dict[str, Any]:
    """The evaluation in a result: not each iteration has one, and the last one holds until the next."""
    return {"evaluation": result["evaluation"]} if result.get("evaluation") else {}


def _return(results: Sequence[Mapping[str, Any]]) -> str:
    """Of greedy students by their last evaluations; where there is none, of who acts in training, under its name."""
    evaluations = [evaluation for result in results for evaluation in _of_each_student(result.get("evaluation", {}))]
    if evaluated := _best("return", list(map(_mean_return, evaluations)), number):
        return evaluated
    has_teacher = any(teacher_fraction(result) is not None for result in results)
    return _best("behaviour return" if has_teacher else "return", list(map(_mean_return, results)), number)


def _return_ratios(result: Mapping[str, Any]) -> list[float | None]:
    return [own.get("return_ratio") for own in _of_each_student(result.get("distillation", {}))]


def _of_each_student(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The entries of a family's students, or of a result's only one."""
    return list(entry.get("students", {}).values()) or [entry]


def _mean_return(result: Mapping[str, Any]) -> float | None:
    return result.get("env_runners", {}).get("episode_return_mean")


def _best(what: str, values: Sequence[float | None], show: Callable[[float], str]) -> str:
    known = [value for value in values if value is not None and not math.isnan(value)]
    return f"{'best ' if len(values) > 1 else ''}{what} {show(max(known))}" if known else ""


def _duration(seconds: float) -> str:
    if math.isnan(seconds):
        return ""
    return next(
        f"{seconds / unit:.0f}{name} left"
        for unit, name, limit in ((1, "s", 100), (60, "m", 6_000), (3600, "h", math.inf))
        if seconds < limit
    )
