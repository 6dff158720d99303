"""Loggers of a sweep: lines on the terminal, Weights & Biases, MLflow."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

from ray import tune

from rllib_kd.certificates.agreement import AGREEMENT
from rllib_kd.experiment.locations import place_of
from rllib_kd.experiment.loggers import wandb_callback
from rllib_kd.public import public
from rllib_kd.sweeps.trial import NUM_REPORTS, RETURN
from rllib_kd.text import printable, ratio


@public
def sweep_loggers(*, wandb_project: str | None = None, mlflow_uri: str | None = None) -> list[tune.Callback]:
    """Return callbacks that print the progress of a sweep, and Ray's loggers for other services.

    Args:
        wandb_project: project of Weights & Biases; None: not logged there.
        mlflow_uri: MLflow's tracking URI, a server (`http://...`) or a database (`sqlite:///FILE`); None: not logged
            there.

    Raises:
        ValueError: a package is not installed, no user is logged in, or MLflow rejects the URI.
    """
    callbacks: list[tune.Callback] = [SettingLines(), MinuteLines()]
    if wandb_project is not None:
        callbacks.append(wandb_callback(project=wandb_project))
    if mlflow_uri is not None:
        if find_spec("mlflow") is None:
            raise ValueError("Logging to MLflow needs its package: pip install mlflow")
        from mlflow.exceptions import MlflowException
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        callbacks.append(MLflowLoggerCallback(tracking_uri=mlflow_uri, experiment_name="rllib_kd"))
        try:
            callbacks[-1].setup()  # as Tune does, in the middle of things
        except MlflowException as error:
            raise ValueError(f"MLflow rejects the URI '{mlflow_uri}': {error}") from error
    return callbacks


class SettingLines(tune.Callback):
    """A callback that prints one line for each setting that ends."""

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Print a line for the setting: Tune calls this at the end of a trial."""
        result = trial.last_result
        metric = _metric(result)
        size, mean, lower = map(result.get, ("student_params", metric, f"{metric}_lower"))
        bound = "" if lower is None else f" (at least {ratio(lower)})"
        self._print(trials, trial, f"{size:>9,} parameters  {metric.replace('_', ' ')} {ratio(mean):>6}{bound}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Print that the setting failed: Tune calls this at a failure, also if the trial is retried."""
        place = place_of(trial.path, trial.storage.storage_filesystem)
        self._print(trials, trial, f"failed: see error.txt in {place}")

    def _print(self, trials: list[Any], trial: Any, line: str) -> None:
        ended = sum(other is trial or _has_ended(other) for other in trials)
        print(f"{ended:>4} setting{'s' if ended > 1 else ' '}  {printable(line)}", flush=True)


class MinuteLines(tune.Callback):
    """A callback that prints one line a minute if stdout is a file or a pipe, where a silent sweep looks dead.

    Args:
        seconds: between two lines.
        clock: returns a time, s.
    """

    def __init__(self, seconds: float = 60.0, clock: Callable[[], float] = time.monotonic):
        self._seconds, self._clock = seconds, clock
        self._total = 1  # settings
        self._began = self._printed = clock()

    def setup(self, stop: Any = None, num_samples: int | None = None, total_num_samples: int = 1, **info: Any) -> None:
        """Start the clock: Tune calls this before the first trial."""
        self._total = total_num_samples
        self._began = self._printed = self._clock()

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Print a line if it is time for one: Tune calls this several times a second."""
        now = self._clock()
        if now - self._printed < self._seconds or sys.stdout.isatty():
            return
        self._printed = now
        total = max(self._total, len(trials))
        ended = [_has_ended(trial) for trial in trials]
        done = sum(is_over or _reports(trial) / NUM_REPORTS for trial, is_over in zip(trials, ended, strict=True))
        running = sum(trial.status == "RUNNING" for trial in trials)
        words = [f"{sum(ended)} of {total} settings have ended", f"{running} running"]
        last = [trial.last_result for trial in trials if _metric(trial.last_result or {}) in (trial.last_result or {})]
        if last:
            metric = _metric(last[0])
            best = max(result[metric] for result in last)
            words.append(f"best {metric.replace('_', ' ')} so far {ratio(best)}")
        minutes = round((now - self._began) / 60)
        print(f"{min(done / total, 1.0):>5.0%} of training after {minutes} min: {', '.join(words)}", flush=True)


def _metric(result: Mapping[str, Any]) -> str:
    """Return the name of what the students of a sweep are judged by."""
    return AGREEMENT.name if AGREEMENT.name in result else RETURN


def _has_ended(trial: Any) -> bool:
    return trial.status in ("TERMINATED", "ERROR")


def _reports(trial: Any) -> int:
    return (trial.last_result or {}).get("training_iteration", 0)
