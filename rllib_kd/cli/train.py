"""`rllib train`."""

from __future__ import annotations

import os
import shlex
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import typer

from rllib_kd.cli.app import app, echo, given_options, log_level, one_or_all, set_log_level, without_key
from rllib_kd.cli.options import (
    Algo,
    CheckpointAtEnd,
    CheckpointFreq,
    CompareEpisodes,
    Compression,
    Config,
    EnvConfig,
    Imports,
    Input,
    Keep,
    Loss,
    MaxFailures,
    Name,
    NoTeacher,
    NumSamples,
    Output,
    RayAddress,
    RayNumCpus,
    RayNumGpus,
    RayNumNodes,
    RayObjectStore,
    RayUi,
    Restore,
    Resume,
    Scheduler,
    SchedulerConfig,
    ScoreAttr,
    Stop,
    Storage,
    Teacher,
    TrainEnv,
    Trust,
    Verbose,
    WandbKey,
    WandbProject,
    WandbRunName,
    Words,
)

if TYPE_CHECKING:
    from ray import tune

    from rllib_kd.experiment.experiment import CheckedExperiment, Experiment


# Longer than other functions: typer reads the flags from its signature.
@app.command()
def train(
    context: typer.Context,
    words: Words = None,
    algo: Algo = None,
    env: TrainEnv = None,
    env_config: EnvConfig = "{}",
    imports: Imports = None,
    teacher: Teacher = None,
    no_teacher: NoTeacher = False,
    trust_checkpoint: Trust = False,
    compression: Compression = None,
    loss: Loss = None,
    input: Input = None,
    output: Output = None,
    config: Config = "{}",
    stop: Stop = "{}",
    num_samples: NumSamples = None,
    compare_episodes: CompareEpisodes = None,
    experiment_name: Name = None,
    storage_path: Storage = "~/ray_results",
    checkpoint_freq: CheckpointFreq = 0,
    checkpoint_at_end: CheckpointAtEnd = True,
    keep_checkpoints_num: Keep = None,
    checkpoint_score_attr: ScoreAttr = None,
    max_failures: MaxFailures = 0,
    restore: Restore = None,
    resume: Resume = False,
    scheduler: Scheduler = None,
    scheduler_config: SchedulerConfig = "{}",
    ray_address: RayAddress = None,
    ray_num_cpus: RayNumCpus = None,
    ray_num_gpus: RayNumGpus = None,
    ray_num_nodes: RayNumNodes = None,
    ray_object_store_memory: RayObjectStore = None,
    ray_ui: RayUi = False,
    wandb_key: WandbKey = None,
    wandb_project: WandbProject = None,
    wandb_run_name: WandbRunName = None,
    verbose: Verbose = 0,
) -> None:
    """Train any RLlib algorithm, from flags or from a file.

    \b
    rllib train --algo DQN --env CartPole-v1 --stop '{"training_iteration": 20}'
    rllib train file tuning/cartpole.py
    """  # noqa: D301 (a real backspace, which keeps the lines apart)
    from rllib_kd.workers.forking import begin

    begin(address=ray_address)
    from rllib_kd.environments.own import given_environment
    from rllib_kd.experiment.connection import LocalRay, connection
    from rllib_kd.experiment.files import parse_settings, with_env_config
    from rllib_kd.experiment.outcome import refusal
    from rllib_kd.experiment.progress_line import ProgressLine
    from rllib_kd.experiment.running import (
        RunOptions,
        alone,
        check_options,
        folder_of,
        named,
        note_of_earlier_runs,
        run,
    )
    from rllib_kd.experiment.worker_logs import env_runner_failure
    from rllib_kd.terminal import say

    set_log_level(verbose)
    experiment = _experiment(words, algo, imports or [])
    env = given_environment(env, imports or ())
    shortcuts = {"env": env, "teacher": one_or_all(teacher), "compression": compression, "loss": loss}
    shortcuts |= {"input_": one_or_all(input), "output": output, "trust_checkpoint": trust_checkpoint or None}
    experiment.settings |= {name: value for name, value in shortcuts.items() if value is not None}
    if no_teacher:
        experiment.settings |= _without_teacher(teacher)
        if not words:  # a file sets its own
            experiment.settings.setdefault("epsilon", _EXPLORATION)
    experiment.settings |= parse_settings(config, "--config")
    experiment.settings = with_env_config(experiment.settings, parse_settings(env_config, "--env-config"))
    if (level := log_level(verbose)) is not None:
        experiment.settings.setdefault("log_level", level)
    experiment.stop |= parse_settings(stop, "--stop")
    fields = {"name": experiment_name, "num_samples": num_samples, "compare_episodes": compare_episodes}
    for name, value in fields.items():
        if value is not None:
            setattr(experiment, name, value)
    checked = experiment.checked()
    options = RunOptions(
        checkpoint_freq=checkpoint_freq,
        checkpoint_at_end=checkpoint_at_end,
        keep_checkpoints_num=keep_checkpoints_num,
        checkpoint_score_attr=checkpoint_score_attr,
        max_failures=max_failures,
        storage_path=storage_path,
        restore=restore,
        resume=resume,
        scheduler=scheduler,
        scheduler_config=parse_settings(scheduler_config, "--scheduler-config"),
        callbacks=(ProgressLine(checked.stop), *_loggers(checked, wandb_key, wandb_project, wandb_run_name)),
    )
    if experiment.name is not None or not resume:
        check_options(checked, options, given_options(context))
    local = LocalRay(ray_num_cpus, ray_num_gpus, ray_num_nodes, ray_object_store_memory, dashboard=ray_ui)
    with (
        nullcontext(checked) if experiment.name is not None else named(checked, options) as checked,
        alone(checked, options),
        connection(checked.trial_resources, bundles=checked.bundles, address=ray_address, local=local, log_level=level),
    ):
        if experiment.name is None:
            say(f"note: results go to '{folder_of(checked, options)}'.")
        elif note := note_of_earlier_runs(checked, options):
            say(f"note: {note}")
        began = time.time()
        results, interrupted = run(checked, options)
        failure = env_runner_failure(since=began)
    if (reason := refusal(results)) is not None:
        raise ValueError(reason)
    own_name = ["--experiment-name", checked.name] if experiment.name is None else []
    _print_results(checked, results, failure, interrupted, continuing=_resuming_command([*context.obj, *own_name]))
    if interrupted or results.errors:
        raise typer.Exit(1)


#: Without a teacher, the student must explore: like RLlib's DQN, by random actions in the first 10,000 env steps.
_EXPLORATION = [[0, 1.0], [10_000, 0.05]]


def _without_teacher(teacher: list[str] | None) -> dict[str, Any]:
    """Return the settings of a student that learns from rewards alone."""
    if teacher:
        raise ValueError("--no-teacher and --teacher exclude each other. Leave one of them out.")
    return {"teacher": None, "td_coeff": 1.0}


def _experiment(words: list[str] | None, algo: str | None, imports: list[str]) -> Experiment:
    """Return the experiment of a file or of --algo, without the other flags."""
    from rllib_kd.experiment.experiment import Experiment
    from rllib_kd.experiment.files import read_experiment

    if words:
        experiment = read_experiment(_experiment_file(words), imports=imports)
        if algo is not None:
            raise ValueError("An experiment file names its algorithm. Leave out --algo.")
        return experiment
    if algo is None:
        raise ValueError(
            "No algorithm was given. Name one, such as --algo DistillDQN, or a file: `rllib train file FILE`. See "
            "`rllib train --help`."
        )
    return Experiment(None, algo)


def _loggers(
    checked: CheckedExperiment, key: str | None, project: str | None, run_name: str | None
) -> list[tune.Callback]:
    """Return the logger for Weights & Biases if one of its flags was given."""
    from rllib_kd.experiment.loggers import wandb_callback

    if all(value is None for value in (key, project, run_name)):
        return []
    return [wandb_callback(project=checked.title if project is None else project, key=key, run_name=run_name)]


def _print_results(
    checked: CheckedExperiment, results: tune.ResultGrid, failure: str | None, interrupted: bool, *, continuing: str
) -> None:
    """Print each trial's result, then how to continue, or how the students compare with their teacher.

    Args:
        checked: the experiment.
        results: results of its trials.
        failure: as `hidden_reason()` takes it.
        interrupted: whether training was interrupted.
        continuing: the command that continues.
    """
    from rllib_kd.experiment.outcome import comparison, hidden_reason, remedy, summary

    for result in results:
        echo(summary(result))
    if reason := hidden_reason(results, failure):
        echo(reason, err=True)
    if interrupted:
        echo(f"interrupted; continue with: {continuing}", err=True)
        return
    if advice := remedy(results, continuing):
        echo(advice, err=True)
    if table := comparison(checked, results):
        echo(table)


def _experiment_file(words: list[str]) -> str:
    match words:
        case ["file", path] | [path] if path != "file":
            return path
    raise ValueError(f"Expected `rllib train file FILE`, got `rllib train {' '.join(words)}`.")


def _resuming_command(arguments: list[str]) -> str:
    """Return the command that continues, from any folder: paths in flags and files may be relative to this one."""
    shown = [argument for argument in without_key(arguments) if argument != "--resume"]
    return f"cd {shlex.quote(os.getcwd())} && {shlex.join(['rllib', *shown, '--resume'])}"
