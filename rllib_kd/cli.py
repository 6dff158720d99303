"""The `rllib` command: thin over experiment.py and evaluation.py, which the Python API uses too.

Ray is imported when a command runs, not for its help. Exit codes: 0 done, 1 failed, 2 bad usage.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

#: Flags of the command that Ray shipped until 2.40, and what does their work now.
_GONE = {
    "--framework": "RLlib's new API stack is PyTorch only; leave it out",
    "--local-mode": "Ray has no local mode any more; use --config '{\"num_env_runners\": 0}'",
    "--resources-per-trial": "set num_env_runners, num_learners and their CPUs and GPUs in --config",
    "--trace": "there is no TensorFlow eager mode any more; leave it out",
    "--upload-dir": "use --storage-path, which takes a URI too",
    "--type": "the file's ending, .py or .yaml, says its type; leave it out",
    "--steps": "use --episodes",
    "--track-progress": "progress is shown on a terminal; leave it out",
    "--save-info": "use --out, which writes all returns as JSON",
    "--use-shelve": "use --out, which writes all returns as JSON",
}

Config = Annotated[str, typer.Option("--config", "-c", help="Settings as JSON, or @FILE.")]
Stop = Annotated[str, typer.Option("--stop", "-s", help='Criteria as JSON: {"training_iteration": 10}.')]
Name = Annotated[str | None, typer.Option("--experiment-name", "-n", help="Folder of the results.")]
NumSamples = Annotated[int, typer.Option(help="Trials of each setting.")]
CheckpointFreq = Annotated[int, typer.Option(help="Iterations between checkpoints; 0: none.")]
CheckpointAtEnd = Annotated[bool, typer.Option(help="Save one at the end.")]
Keep = Annotated[int | None, typer.Option("--keep-checkpoints-num", help="Checkpoints kept; default: all.")]
ScoreAttr = Annotated[str | None, typer.Option("--checkpoint-score-attr", help="Metric by which the best are kept.")]
Storage = Annotated[str | None, typer.Option(help="Path or URI of all results; default: ~/ray_results.")]
Restore = Annotated[str | None, typer.Option(help="Start from this checkpoint.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the experiment of this name.")]
Scheduler = Annotated[str | None, typer.Option(help="Tune's: asha, pbt, ...")]
SchedulerConfig = Annotated[str, typer.Option(help="Its arguments as JSON.")]
RayAddress = Annotated[str | None, typer.Option(help="Cluster to join.")]
RayNumCpus = Annotated[int | None, typer.Option(help="CPUs of a local Ray.")]
RayNumGpus = Annotated[int | None, typer.Option(help="GPUs of a local Ray.")]
RayObjectStore = Annotated[int | None, typer.Option("--ray-object-store-memory", help="Bytes.")]
RayUi = Annotated[bool, typer.Option("--ray-ui", help="Start the dashboard.")]
Verbose = Annotated[int, typer.Option("-v", count=True, show_default=False, help="Log more: -v INFO, -vv DEBUG.")]


@app.command()
def train(
    words: Annotated[list[str] | None, typer.Argument(metavar="[file FILE]", help="A .py or .yaml experiment.")] = None,
    algo: Annotated[str | None, typer.Option("--algo", "--run", "-a", "-r", help="DistillDQN, DQN, PPO, ...")] = None,
    env: Annotated[str | None, typer.Option("--env", "-e", help="A gymnasium id, or a registered name.")] = None,
    teacher: Annotated[str | None, typer.Option(help="DistillDQN: checkpoint, or 'cartpole'.")] = None,
    compression: Annotated[float | None, typer.Option(help="DistillDQN: student / teacher size.")] = None,
    loss: Annotated[str | None, typer.Option(help="DistillDQN: kl, nll, mse or huber.")] = None,
    config: Config = "{}",
    stop: Stop = "{}",
    experiment_name: Name = None,
    num_samples: NumSamples = 1,
    checkpoint_freq: CheckpointFreq = 0,
    checkpoint_at_end: CheckpointAtEnd = True,
    keep_checkpoints_num: Keep = None,
    checkpoint_score_attr: ScoreAttr = None,
    storage_path: Storage = None,
    restore: Restore = None,
    resume: Resume = False,
    scheduler: Scheduler = None,
    scheduler_config: SchedulerConfig = "{}",
    ray_address: RayAddress = None,
    ray_num_cpus: RayNumCpus = None,
    ray_num_gpus: RayNumGpus = None,
    ray_object_store_memory: RayObjectStore = None,
    ray_ui: RayUi = False,
    verbose: Verbose = 0,
) -> None:
    """Train an algorithm, from flags or from an experiment file.

    Examples: rllib train --algo DistillDQN --env CartPole-v1 --teacher cartpole --stop '{"training_iteration": 20}'
    and: rllib train file tuning/cartpole.py
    """
    from rllib_kd import experiment as experiments
    from rllib_kd.callbacks import ProgressLine

    _set_log_level(verbose)
    shortcuts = {"env": env, "teacher": teacher, "compression": compression, "loss": loss}
    settings = {name: value for name, value in shortcuts.items() if value is not None}
    settings |= experiments.parse_json(config, "--config")
    criteria = experiments.parse_json(stop, "--stop")
    if words:
        path = _experiment_file(words)
        if settings or algo:
            raise ValueError("An experiment file says what is trained: leave out --algo, --env, --config and the like.")
        experiment = experiments.read_experiment(path, stop=criteria)
    elif algo is None:
        raise ValueError("Name what to train: --algo DistillDQN, say, or file FILE. `rllib train --help` shows more.")
    else:
        experiment = experiments.Experiment("default", algo, settings, criteria)
    if experiment_name is not None:
        experiment.name = experiment_name
    experiment = experiment.checked()
    options = experiments.RunOptions(
        num_samples=num_samples,
        checkpoint_freq=checkpoint_freq,
        checkpoint_at_end=checkpoint_at_end,
        keep_checkpoints_num=keep_checkpoints_num,
        checkpoint_score_attr=checkpoint_score_attr,
        storage_path=storage_path,
        restore=restore,
        resume=resume,
        scheduler=scheduler,
        scheduler_config=experiments.parse_json(scheduler_config, "--scheduler-config"),
        callbacks=(ProgressLine(experiment.stop),),
    )
    experiments.connect(
        address=ray_address,
        num_cpus=ray_num_cpus,
        num_gpus=ray_num_gpus,
        object_store_memory=ray_object_store_memory,
        include_dashboard=ray_ui if ray_address is None else None,
    )
    results, interrupted = experiments.run(experiment, options)
    for result in results:
        typer.echo(_summary(result))
    if interrupted:
        typer.echo("interrupted: go on with the same command and --restore CHECKPOINT, the path above", err=True)
    if interrupted or results.errors:
        raise typer.Exit(1)


Policy = Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Or folder of a run, or 'cartpole'.")]
Env = Annotated[str | None, typer.Option("--env", "-e", help="Default: where it was trained, if the checkpoint says.")]
EnvConfig = Annotated[str, typer.Option(help="Of the environment, as JSON, or @FILE.")]
Seed = Annotated[int, typer.Option(help="Of the first episode.")]
Trust = Annotated[bool, typer.Option("--trust-checkpoint", help="Execute what it holds: classes of your own.")]


@app.command()
def compare(
    students: Annotated[list[str], typer.Argument(metavar="STUDENT...", help="Checkpoints, or folders of runs.")],
    teacher: Annotated[str, typer.Option(help="Checkpoint, or 'cartpole'.")],
    env: Env = None,
    env_config: EnvConfig = "{}",
    episodes: Annotated[int, typer.Option(help="That each policy plays.")] = 100,
    seed: Seed = 1_000_000,
    out: Annotated[Path | None, typer.Option(help="Folder for a report: index.html, figures.json.")] = None,
    trust_checkpoint: Trust = False,
) -> None:
    """Let a teacher and its students play the same episodes.

    Example: rllib compare --teacher cartpole ~/ray_results/cartpole --out report
    """
    from rllib_kd.evaluation import compare_all
    from rllib_kd.experiment import parse_json
    from rllib_kd.report import summary_table, write_report
    from rllib_kd.runs import find_students

    _set_log_level(0)
    found = find_students(students)
    comparisons = compare_all(
        teacher,
        {name: student.checkpoint for name, student in found.items()},
        env,
        num_episodes=episodes,
        seed=seed,
        env_config=parse_json(env_config, "--env-config"),
        trust_checkpoint=trust_checkpoint,
        progress=True,
    )
    typer.echo(str(comparisons[0]) if len(comparisons) == 1 else summary_table(comparisons))
    if out is not None:
        curves = {name: student.curve for name, student in found.items() if student.curve}
        typer.echo(write_report(comparisons, out, curves=curves))


@app.command()
def evaluate(
    checkpoint: Policy,
    env: Env = None,
    env_config: EnvConfig = "{}",
    episodes: Annotated[int, typer.Option(help="To play.")] = 100,
    seed: Seed = 1_000_000,
    out: Annotated[Path | None, typer.Option(help="Where to write all returns as JSON.")] = None,
    video: Annotated[Path | None, typer.Option(help="Folder for films of the first episodes.")] = None,
    num_videos: Annotated[int, typer.Option(min=1, help="How many.")] = 3,
    render: Annotated[bool, typer.Option("--render", help="Show the episodes on the screen.")] = False,
    algo: Annotated[str | None, typer.Option("--algo", "--run", help="The checkpoint knows it: checked.")] = None,
    trust_checkpoint: Trust = False,
) -> None:
    """Play a policy of any algorithm without exploration, and report its return.

    Example: rllib evaluate ~/ray_results/cartpole/.../checkpoint_000000 --video videos
    """
    from rllib_kd.evaluation import evaluate as evaluate_policy
    from rllib_kd.evaluation import resolve_environment
    from rllib_kd.experiment import parse_json
    from rllib_kd.policies import algorithm_of
    from rllib_kd.runs import find_student

    _set_log_level(0)
    checkpoint = find_student(checkpoint)
    if algo is not None and algo != (trained_by := algorithm_of(checkpoint) or algo):
        raise ValueError(f"The checkpoint is one of {trained_by}, not of {algo}. Leave out --algo.")
    where, config = resolve_environment([checkpoint], env, parse_json(env_config, "--env-config"))
    report = evaluate_policy(
        checkpoint,
        where,
        num_episodes=episodes,
        seed=seed,
        env_config=config,
        trust_checkpoint=trust_checkpoint,
        video_dir=video,
        num_videos=num_videos,
        render=render,
        progress=True,
    )
    typer.echo(f"return {report.return_mean:.1f} ± {report.return_ci95:.1f} (95 % CI, {episodes} episodes of {where})")
    if video is not None:
        typer.echo(video)
    if out is not None:
        out.write_text(json.dumps({"env": where, "seed": seed, "returns": report.returns}, indent=1) + "\n")


@app.command()
def export(
    checkpoint: Policy,
    out: Annotated[Path, typer.Option(help="File to write.")],
    env: Env = None,
    env_config: EnvConfig = "{}",
    format: Annotated[str, typer.Option(help="onnx, safetensors or torchscript.")] = "onnx",
    int8: Annotated[bool, typer.Option("--int8", help="ONNX with weights of 8 bits.")] = False,
    teacher: Annotated[str | None, typer.Option(help="To show what the student saves.")] = None,
    episodes: Annotated[int, typer.Option(help="That the artifact plays.")] = 20,
    trust_checkpoint: Trust = False,
) -> None:
    """Write a Q-network as a file that runs without Ray and without this package.

    Its environment's observations check the file. Example:
    rllib export CHECKPOINT --format onnx --out student.onnx --teacher cartpole
    """
    from rllib_kd.deployment import deploy, deployment_table
    from rllib_kd.evaluation import resolve_environment
    from rllib_kd.experiment import parse_json
    from rllib_kd.progress import bar
    from rllib_kd.runs import find_student

    _set_log_level(0)
    checkpoint = find_student(checkpoint)
    where, config = resolve_environment([checkpoint], env, parse_json(env_config, "--env-config"))
    written = [(checkpoint, out)] + ([] if teacher is None else [(teacher, None)])
    deployments = []
    with bar("artifacts", total=len(written)) as advance:
        for source, path in written:
            deployments.append(
                deploy(
                    source,
                    path,
                    where,
                    format=format,
                    int8=int8,
                    num_episodes=episodes,
                    env_config=config,
                    trust_checkpoint=trust_checkpoint,
                )
            )
            advance(1)
    typer.echo(deployment_table(deployments))


def main() -> None:
    """Run the command line."""
    for word in sys.argv[1:]:
        flag = word.split("=")[0]
        if flag in _GONE:
            _fail(f"{flag} no longer exists: {_GONE[flag]}.", code=2)
    try:
        app(prog_name="rllib")
    except ValueError as error:
        _fail(str(error), code=2)


def _experiment_file(words: list[str]) -> str:
    match words:
        case ["file", path] | [path] if path != "file":
            return path
    raise ValueError(f"Expected `rllib train file FILE`, got `rllib train {' '.join(words)}`.")


def _summary(result: Any) -> str:
    from rllib_kd.callbacks import describe

    if result.error is not None:
        return f"{Path(result.path).name} failed: {str(result.error).strip().splitlines()[-1]}"
    where = result.checkpoint.path if result.checkpoint is not None else result.path
    return f"{describe(result.metrics, {}, 0.0)}\n{where}"


def _set_log_level(verbose: int) -> None:
    # Unasked, only what this command says itself: errors of trials are in its summary.
    level = {0: logging.CRITICAL, 1: logging.INFO}.get(verbose, logging.DEBUG)
    for name in ("ray", "ray.tune", "ray.rllib", "ray._common.deprecation"):
        logging.getLogger(name).setLevel(level)


def _fail(message: str, *, code: int) -> None:
    typer.echo(f"error: {message}", err=True)
    raise SystemExit(code)
