"""Loggers of a sweep: lines on the terminal, Weights & Biases, MLflow."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from ray import tune

from rllib_kd.experiment.loggers import wandb_callback
from rllib_kd.text import printable, ratio


def sweep_loggers(*, wandb_project: str | None = None, mlflow_uri: str | None = None) -> list[tune.Callback]:
    """Return callbacks that print one line for each setting, and Ray's loggers of other services.

    Args:
        wandb_project: project of Weights & Biases; None: not logged there.
        mlflow_uri: MLflow's tracking URI, a server (`http://...`) or a database (`sqlite:///FILE`); None: not logged
            there.

    Raises:
        ValueError: a package is not installed, no user is logged in, or MLflow rejects the URI.
    """
    callbacks: list[tune.Callback] = [SettingLines()]
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
        """Tune's hook at the end of a trial."""
        result = trial.last_result
        size, mean, lower = map(result.get, ("student_params", "return_ratio", "return_ratio_lower"))
        bound = "" if lower is None else f" (at least {ratio(lower)})"
        self._print(trials, trial, f"{size:>9,} parameters  return ratio {ratio(mean):>6}{bound}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tune's hook at a failure, also if the trial is retried."""
        self._print(trials, trial, f"failed: see error.txt in {trial.path}")

    def _print(self, trials: list[Any], trial: Any, line: str) -> None:
        ended = sum(other is trial or other.status in ("TERMINATED", "ERROR") for other in trials)
        print(f"{ended:>4} settings  {printable(line)}", flush=True)
