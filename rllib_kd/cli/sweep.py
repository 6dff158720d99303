"""`rllib sweep`."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from rllib_kd.cli.app import app, echo, one_or_all, set_log_level
from rllib_kd.cli.options import TEACHER_HELP, Address, EnvConfig, Imports, Input, TrainEnv, Trust, option


# Longer than other functions: typer reads the flags from its signature.
@app.command()
def sweep(
    teacher: Annotated[list[str], option(TEACHER_HELP, metavar="PATH")],
    env: TrainEnv = None,
    env_config: EnvConfig = "{}",
    imports: Imports = None,
    input: Input = None,
    num_samples: Annotated[int, option("Settings to try (default: 16).", metavar="N")] = 16,
    num_seeds: Annotated[int, option("Students of each setting (default: 3).", metavar="N")] = 3,
    env_steps: Annotated[int, option("Env steps of each student (default: 20,000).", metavar="N")] = 20_000,
    search: Annotated[str | None, option("optuna (default) or random.", metavar="NAME")] = None,
    scheduler: Annotated[str, option("asha, pbt or none (default).", metavar="NAME")] = "none",
    config: Annotated[str, option("Settings of all students, or @FILE.", "--config", "-c", metavar="JSON")] = "{}",
    space: Annotated[str | None, option("Python file with a search_space().", metavar="FILE")] = None,
    storage_path: Annotated[str | None, option("Folder or URI (default: ~/ray_results).", metavar="PATH")] = None,
    name: Annotated[
        str | None,
        option("Results folder (default: sweep-ENV).", "--name", "--experiment-name", "-n", metavar="NAME"),
    ] = None,
    resume: Annotated[bool, option("Continue the sweep of this name.", "--resume")] = False,
    keep: Annotated[float | None, option("Share of return to certify (default: none).", "--keep", metavar="X")] = None,
    confidence: Annotated[float, option("Certificate's confidence (default: 0.95).", metavar="X")] = 0.95,
    minimize: Annotated[str, option("parameters (default), bytes, int8_bytes, ...", metavar="NAME")] = "parameters",
    seed: Annotated[int, option("Seed of search and students (default: 0).", metavar="N")] = 0,
    trust_checkpoint: Trust = False,
    address: Address = None,
    wandb_project: Annotated[str | None, option("Log to Weights & Biases, too.", metavar="NAME")] = None,
    mlflow_uri: Annotated[str | None, option("Log to MLflow, too.", metavar="URI")] = None,
) -> None:
    """Search settings for the smallest student as good as its teacher.

    Without --env, students are compared with the teacher on recorded rows: --input.

    \b
    rllib sweep --teacher cartpole --env CartPole-v1
    """  # noqa: D301 (a real backspace, which keeps the lines apart)
    from rllib_kd.workers.forking import begin

    begin(address=address)
    from rllib_kd.checkpoints.uris import expanded
    from rllib_kd.environments.own import defined_in, given_environment
    from rllib_kd.experiment.files import parse_settings, with_env_config
    from rllib_kd.experiment.names import check_not_empty
    from rllib_kd.sweeps.loggers import sweep_loggers
    from rllib_kd.sweeps.space import read_space, search_space
    from rllib_kd.sweeps.sweep import Sweep

    set_log_level(0)
    texts = {"search": search, "space": space, "storage_path": storage_path, "name": name, "address": address}
    check_not_empty(**texts, wandb_project=wandb_project, mlflow_uri=mlflow_uri)
    began = time.perf_counter()
    settings = with_env_config(parse_settings(config, "--config"), parse_settings(env_config, "--env-config"))
    if input:
        settings["input_"] = input
    if trust_checkpoint:
        settings["trust_checkpoint"] = True
    chosen_space = search_space if space is None else read_space(space)
    env = None if env is None else str(given_environment(env, imports or ()))
    swept = Sweep(
        teacher=one_or_all(teacher),
        env=env if space is None or env is None else defined_in(expanded(space).absolute(), env, imports or ()),
        num_samples=num_samples,
        search=search,
        scheduler=scheduler,
        num_seeds=num_seeds,
        env_steps=env_steps,
        config=settings,
        space=chosen_space,
        storage_path=storage_path,
        name=name,
        seed=seed,
        keep=keep,
        confidence=confidence,
        minimize=minimize,
        callbacks=sweep_loggers(wandb_project=wandb_project, mlflow_uri=mlflow_uri),
    )
    result = swept.run(resume=resume, address=address)
    echo(result)
    files = "index.html, pareto.png, sweep.csv, sweep.json" + (", certificate.json" if result.certified else "")
    echo(f"\n{swept.path}/report/{files} ({time.perf_counter() - began:.0f} s)")
    if not result.is_complete:
        raise typer.Exit(1)
