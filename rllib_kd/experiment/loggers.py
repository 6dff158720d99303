"""Logging to Weights & Biases."""

from __future__ import annotations

import os
from importlib.util import find_spec

from ray import tune

from rllib_kd.experiment.names import check_not_empty


def wandb_callback(*, project: str, key: str | None = None, run_name: str | None = None) -> tune.Callback:
    """Return Ray's logger for Weights & Biases.

    Args:
        project: project in which the runs appear.
        key: API key; None: WANDB_API_KEY, or the user who is logged in. It is not passed to the callback, which is
            saved among the results.
        run_name: name of the runs; None: each trial's name.

    Raises:
        ValueError: wandb is not installed, no user is logged in, or a text is empty.
    """
    from ray.air.integrations.wandb import WandbLoggerCallback

    if find_spec("wandb") is None:
        raise ValueError("Logging to Weights & Biases needs its package: pip install wandb")
    check_not_empty(wandb_project=project, wandb_key=key, wandb_run_name=run_name)
    if key is not None:
        os.environ["WANDB_API_KEY"] = key
    callback = WandbLoggerCallback(project=project, **({} if run_name is None else {"name": run_name}))
    callback.setup()  # as Tune does, which reports a missing login too late
    return callback
