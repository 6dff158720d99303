"""The `rllib` command: thin over experiment.py and evaluation.py, which the Python API uses too.

Ray is imported when a command runs, not for its help. Exit codes: 0 done, 1 failed, 2 bad usage.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from rllib_kd.env_failures import EnvFailedError
from rllib_kd.relay import printed_warnings
from rllib_kd.text import mean_and_interval, one_line, printable

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

_MAX_ERROR = 2_000  # characters: messages may hold what is in a file

#: Commands and flags that Ray shipped until 2.40 and before, and what does their work now.
_GONE_COMMANDS = {
    "rollout": "use `rllib evaluate`",
    "example": "use `rllib train file FILE` with a file of your own, or one of this package's folder tuning/",
}
_GONE = {
    "-f": "use `rllib train file FILE`",
    "--config-file": "use `rllib train file FILE`",
    "--eager": "RLlib's new API stack is PyTorch only; leave it out",
    "--framework": "RLlib's new API stack is PyTorch only; leave it out",
    "--local-dir": "use --storage-path",
    "--local-mode": "Ray has no local mode any more; leave it out, or set num_env_runners to 0 in --config",
    "--log-debug": "use -vv",
    "--log-info": "use -v",
    "--monitor": "use --video",
    "--no-ray-ui": "the dashboard is off, unless --ray-ui asks for it",
    "--no-render": "leave it out",
    "--queue-trials": "trials always wait for resources; leave it out",
    "--resources-per-trial": "set num_env_runners, num_learners and their CPUs and GPUs in --config",
    "--save-info": "use --out, which writes all returns as JSON",
    "--steps": "use --episodes",
    "--torch": "RLlib's new API stack is PyTorch only; leave it out",
    "--trace": "there is no TensorFlow eager mode any more; leave it out",
    "--track-progress": "progress is shown on a terminal; leave it out",
    "--type": "the file's ending, .py or .yaml, says its type; leave it out",
    "--upload-dir": "use --storage-path, which takes a URI too",
    "--use-shelve": "use --out, which writes all returns as JSON",
    "--video-dir": "use --video",
}
#: The same of evaluate alone.
_GONE_FROM_EVALUATE = {"--config": "use --env-config", "-c": "use --env-config"}


def _option(help: str, *flags: str, metavar: str | None = None) -> Any:
    """An option that takes one line of the help."""
    return typer.Option(*flags, help=help, metavar=metavar, show_default=False)


def _writable_option(help: str, *, metavar: str, replaces: bool = False) -> Any:
    """An option for what a command writes; `replaces` where an older file is replaced by rename."""

    def parse(text: str) -> Path:
        return _writable(text, is_folder=metavar == "FOLDER", replaces=replaces)

    return typer.Option(parser=parse, help=help, metavar=metavar, show_default=False)


def _writable(text: str, *, is_folder: bool, replaces: bool) -> Path:
    """The path, to which a long command will be able to write at its end."""
    kind = "folder" if is_folder else "file"
    if not text or "\0" in text or "://" in text:
        got = "a URI" if "://" in text else "a null character in it" if text else "nothing"
        raise typer.BadParameter(f"expected the path of a {kind} on this machine, got {got}.")
    if replaces and text.encode(errors="replace").decode() != text:
        raise typer.BadParameter("expected a name in UTF-8, which every format can be loaded from.")
    path = Path(text)
    if path.exists() and path.is_dir() != is_folder:
        raise typer.BadParameter(f"'{path}' is a folder: name a file." if path.is_dir() else f"'{path}' is no folder.")
    if replaces and path.exists() and not path.is_file():
        raise typer.BadParameter(f"'{path}' is a device or a pipe, which cannot be replaced: name a file.")
    if path.is_fifo() and path.resolve().exists():  # it has a name: pipes that a shell has opened have none
        raise typer.BadParameter(f"'{path}' is a pipe, which waits for a reader: name a file.")
    whole = path.absolute()
    written = whole.parent if replaces else whole
    there = next(place for place in (written, *written.parents) if place.exists())
    if not os.access(there, os.W_OK) or not (there.is_dir() or there == whole):
        raise typer.BadParameter(f"'{path}' cannot be written: '{there}' is no folder that one may write to.")
    return path


Words = Annotated[list[str] | None, typer.Argument(metavar="file FILE", help="A .py or .yaml experiment.")]
Algo = Annotated[str | None, _option("DistillDQN, DQN, PPO …", "--algo", "--run", "-a", "-r", metavar="NAME")]
TrainEnv = Annotated[str | None, _option("Of gymnasium, or a registered name.", "--env", "-e", metavar="ID")]
Teacher = Annotated[list[str] | None, _option("Checkpoint, or 'cartpole'; several: as one.", metavar="PATH")]
Compression = Annotated[float | None, _option("DistillDQN: student / teacher size.", metavar="X")]
Loss = Annotated[str | None, _option("DistillDQN: kl, nll, mse …", metavar="NAME")]
Config = Annotated[str, _option("Settings, as text or as @FILE.", "--config", "-c", metavar="JSON")]
Stop = Annotated[str, _option('{"training_iteration": 10}, or @FILE.', "--stop", "-s", metavar="JSON")]
NumSamples = Annotated[int | None, _option("Trials of each setting; default 1.", metavar="N")]
CompareEpisodes = Annotated[int | None, _option("Played by student and teacher at last.", metavar="N")]
Name = Annotated[str | None, _option("Folder of the results.", "--experiment-name", "-n", metavar="NAME")]
Storage = Annotated[str, _option("Above it, or a URI; default ~/ray_results.", metavar="PATH")]
CheckpointFreq = Annotated[int, _option("Iterations between checkpoints.", metavar="N")]
CheckpointAtEnd = Annotated[bool, _option("Default: save one.")]
Keep = Annotated[int | None, _option("Default: all.", "--keep-checkpoints-num", metavar="N")]
ScoreAttr = Annotated[str | None, _option("Metric of the best.", "--checkpoint-score-attr", metavar="X")]
MaxFailures = Annotated[int, _option("Restarts at the last checkpoint; default 0.", metavar="N")]
Restore = Annotated[str | None, _option("Start from this checkpoint.", metavar="PATH")]
Resume = Annotated[bool, _option("Go on with an interrupted experiment.", "--resume")]
Scheduler = Annotated[str | None, _option("Of Tune: async_hyperband, pbt …", metavar="NAME")]
SchedulerConfig = Annotated[str, _option("Its arguments: metric, mode …", metavar="JSON")]
RayAddress = Annotated[str | None, _option("Of a cluster to join.", metavar="ADDRESS")]
RayNumCpus = Annotated[int | None, _option("Of a local Ray, or of each node.", metavar="N")]
RayNumGpus = Annotated[int | None, _option("The same.", metavar="N")]
RayNumNodes = Annotated[int | None, _option("Emulate a cluster of N nodes.", metavar="N")]
RayObjectStore = Annotated[int | None, _option("Bytes.", "--ray-object-store-memory", metavar="N")]
RayUi = Annotated[bool, _option("Start the dashboard.", "--ray-ui")]
WandbKey = Annotated[str | None, _option("Log to Weights & Biases.", metavar="KEY")]
WandbProject = Annotated[str | None, _option("Default: algorithm and environment.", metavar="NAME")]
WandbRunName = Annotated[str | None, _option("Default: the trial's.", metavar="NAME")]
Verbose = Annotated[int, typer.Option("-v", count=True, show_default=False, help="Log more: -v INFO, -vv DEBUG.")]


@app.callback(invoke_without_command=True)
def rllib(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Show it and exit.")] = False
) -> None:
    """Train, distil, compare and export policies with Ray RLlib."""
    if version:
        from importlib.metadata import version as version_of

        typer.echo(f"rllib-kd {version_of('rllib-kd')}, ray {version_of('ray')}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


@app.command()
def train(
    words: Words = None,
    algo: Algo = None,
    env: TrainEnv = None,
    teacher: Teacher = None,
    compression: Compression = None,
    loss: Loss = None,
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
    """Train an algorithm, from flags, or from a file and flags.

    \b
    rllib train --algo DQN --env CartPole-v1 --stop '{"training_iteration": 20}'
    rllib train file tuning/cartpole.py
    """  # noqa: D301 (a real backspace, which keeps the lines apart)
    from rllib_kd import callbacks
    from rllib_kd import experiment as experiments
    from rllib_kd.connection import LocalRay, connection

    _set_log_level(verbose)
    if words:
        experiment = experiments.read_experiment(_experiment_file(words))
        if algo is not None:
            raise ValueError("An experiment file names its algorithm: leave out --algo.")
    elif algo is not None:
        experiment = experiments.Experiment("default", algo)
    else:
        raise ValueError("Name what to train: --algo DistillDQN, say, or file FILE. `rllib train --help` shows more.")
    shortcuts = {"env": env, "teacher": _one_or_all(teacher), "compression": compression, "loss": loss}
    experiment.settings |= {name: value for name, value in shortcuts.items() if value is not None}
    experiment.settings |= experiments.parse_json(config, "--config")
    experiment.stop |= experiments.parse_json(stop, "--stop")
    fields = {"name": experiment_name, "num_samples": num_samples, "compare_episodes": compare_episodes}
    for name, value in fields.items():
        if value is not None:
            setattr(experiment, name, value)
    checked = experiment.checked()
    loggers = []
    if not all(value is None for value in (wandb_key, wandb_project, wandb_run_name)):
        project = checked.title if wandb_project is None else wandb_project
        loggers.append(callbacks.wandb_callback(project=project, key=wandb_key, run_name=wandb_run_name))
    options = experiments.RunOptions(
        checkpoint_freq=checkpoint_freq,
        checkpoint_at_end=checkpoint_at_end,
        keep_checkpoints_num=keep_checkpoints_num,
        checkpoint_score_attr=checkpoint_score_attr,
        max_failures=max_failures,
        storage_path=storage_path,
        restore=restore,
        resume=resume,
        scheduler=scheduler,
        scheduler_config=experiments.parse_json(scheduler_config, "--scheduler-config"),
        callbacks=(callbacks.ProgressLine(checked.stop), *loggers),
    )
    experiments.check_options(checked, options)
    local = LocalRay(ray_num_cpus, ray_num_gpus, ray_num_nodes, ray_object_store_memory, dashboard=ray_ui)
    with (
        experiments.alone(checked, options),
        connection(checked.trial_resources, address=ray_address, local=local, verbose=verbose > 0),
    ):
        results, interrupted = experiments.run(checked, options)
    if (refusal := experiments.refusal(results)) is not None:
        raise ValueError(refusal)
    for result in results:
        _echo(experiments.summary(result))
    if interrupted:
        _echo(f"interrupted; go on by: {_resuming_command()}", err=True)
    else:
        if remedy := experiments.remedy(results, _resuming_command()):
            _echo(remedy, err=True)
        if table := experiments.comparison(checked, results):
            _echo(table)
    if interrupted or results.errors:
        raise typer.Exit(1)


Policy = Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Or the folder of a run, or 'cartpole'.")]
Students = Annotated[list[str], typer.Argument(metavar="STUDENT", help="Checkpoints, or folders of runs.")]
OwnEnv = Annotated[str | None, _option("Default: as the checkpoint says.", "--env", "-e", metavar="ID")]
EnvConfig = Annotated[str, _option("Keys to set, or @FILE; the others stay.", metavar="JSON")]
Episodes = Annotated[int, _option("That each policy plays; default 100.", metavar="N")]
Seed = Annotated[int, _option("Of the first episode; default 1000000.", metavar="N")]
Epsilon = Annotated[float, _option("Share of random actions; default 0.", metavar="X")]
Report = Annotated[Path | None, _writable_option("For index.html and figures.json.", metavar="FOLDER")]
Returns = Annotated[Path | None, _writable_option("Write all returns as JSON.", metavar="FILE")]
Video = Annotated[Path | None, _writable_option("Films of the first episodes.", metavar="FOLDER")]
NumVideos = Annotated[int, typer.Option(min=1, help="Default: 3.", metavar="N", show_default=False)]
Render = Annotated[bool, _option("Show the episodes on the screen.", "--render")]
CheckedAlgo = Annotated[
    str | None, _option("Checked: the checkpoint says.", "--algo", "--run", "-a", "-r", metavar="NAME")
]
Artifact = Annotated[Path, _writable_option("The file to write.", metavar="FILE", replaces=True)]
Format = Annotated[str | None, _option("onnx, safetensors, torchscript; default: by FILE.", metavar="NAME")]
Int8 = Annotated[bool, _option("ONNX with weights of 8 bits.", "--int8")]
OtherTeacher = Annotated[str | None, _option("To show what the student saves.", metavar="PATH")]
FewEpisodes = Annotated[int, _option("That the file plays; default 20.", metavar="N")]
Trust = Annotated[bool, _option("Execute what it holds: your own classes.", "--trust-checkpoint")]


@app.command()
def compare(
    students: Students,
    teacher: Annotated[list[str], _option("Checkpoint, or 'cartpole'; several: as one.", metavar="PATH")],
    env: OwnEnv = None,
    env_config: EnvConfig = "{}",
    episodes: Episodes = 100,
    seed: Seed = 1_000_000,
    epsilon: Epsilon = 0.0,
    out: Report = None,
    trust_checkpoint: Trust = False,
) -> None:
    """Let a teacher and its students play the same episodes.

    \b
    rllib compare --teacher cartpole ~/ray_results/cartpole --out report
    """  # noqa: D301
    from rllib_kd.evaluation import compare_all
    from rllib_kd.experiment import parse_json
    from rllib_kd.report import summary_table, write_report
    from rllib_kd.runs import find_students

    _set_log_level(0)
    found = find_students(students)
    if len(found) == 1:
        found = {"student": next(iter(found.values()))}
    comparisons = compare_all(
        _one_or_all(teacher),
        {name: student.checkpoint for name, student in found.items()},
        env,
        num_episodes=episodes,
        seed=seed,
        epsilon=epsilon,
        env_config=parse_json(env_config, "--env-config"),
        trust_checkpoint=trust_checkpoint,
        progress=True,
    )
    _echo(str(comparisons[0]) if len(comparisons) == 1 else summary_table(comparisons))
    if out is not None:
        curves = {name: student.curve for name, student in found.items() if student.curve}
        _echo(write_report(comparisons, out, curves=curves))


@app.command()
def evaluate(
    checkpoint: Policy,
    env: OwnEnv = None,
    env_config: EnvConfig = "{}",
    episodes: Episodes = 100,
    seed: Seed = 1_000_000,
    epsilon: Epsilon = 0.0,
    out: Returns = None,
    video: Video = None,
    num_videos: NumVideos = 3,
    render: Render = False,
    algo: CheckedAlgo = None,
    trust_checkpoint: Trust = False,
) -> None:
    """Play a policy of any algorithm, and report its return.

    \b
    rllib evaluate ~/ray_results/cartpole --video videos
    """  # noqa: D301
    from rllib_kd.evaluation import evaluate as evaluate_policy
    from rllib_kd.experiment import parse_json
    from rllib_kd.played_environment import resolve_environment
    from rllib_kd.policies import algorithm_of
    from rllib_kd.runs import find_student

    _set_log_level(0)
    checkpoint = find_student(checkpoint)
    if algo is not None and algo != (trained_by := algorithm_of(checkpoint) or algo):
        raise ValueError(f"The checkpoint is one of {trained_by}, not of {algo}. Leave out --algo.")
    asked = parse_json(env_config, "--env-config")
    where = resolve_environment({"the policy": checkpoint}, env, asked, trust_checkpoint=trust_checkpoint)
    report = evaluate_policy(
        checkpoint,
        where,
        num_episodes=episodes,
        seed=seed,
        epsilon=epsilon,
        trust_checkpoint=trust_checkpoint,
        video_dir=video,
        num_videos=num_videos,
        render=render,
        progress=True,
    )
    played = where.name if epsilon == 0.0 else f"{where.name}, ε = {epsilon:g}"
    conditions = f"95 % CI, {episodes} episodes of {played}" if episodes > 1 else f"1 episode of {played}"
    _echo(f"return {mean_and_interval(report.return_mean, report.return_ci95)} ({conditions})")
    if where.env_config:
        _echo(f"played in {where}")
    if video is not None:
        _echo(video)
    if out is not None:
        content = {"env": where.name, "env_config": where.config_as_json(), "seed": seed, "epsilon": epsilon}
        out.write_text(json.dumps(content | {"returns": report.returns}, indent=1) + "\n")


@app.command()
def export(
    checkpoint: Policy,
    out: Artifact,
    env: OwnEnv = None,
    env_config: EnvConfig = "{}",
    format: Format = None,
    int8: Int8 = False,
    teacher: OtherTeacher = None,
    episodes: FewEpisodes = 20,
    trust_checkpoint: Trust = False,
) -> None:
    """Write a Q-network as a file that runs without Ray and without this package.

    It is checked against PyTorch on what its environment shows.

    \b
    rllib export ~/ray_results/cartpole --out student.onnx --teacher cartpole
    """  # noqa: D301
    from rllib_kd.deployment import deploy, deployment_table
    from rllib_kd.experiment import parse_json
    from rllib_kd.export import check_exportable, format_of_ending
    from rllib_kd.played_environment import resolve_environment
    from rllib_kd.policies import as_q_network
    from rllib_kd.progress import bar
    from rllib_kd.runs import find_student

    _set_log_level(0)
    checkpoint = find_student(checkpoint)
    asked = parse_json(env_config, "--env-config")
    where = resolve_environment(
        {"the student": checkpoint}, env, asked, teacher=teacher, trust_checkpoint=trust_checkpoint
    )
    format = format_of_ending(out) if format is None else format
    written = [
        (as_q_network(source, trust_checkpoint=trust_checkpoint), path)
        for source, path in ((checkpoint, out), (teacher, None))
        if source is not None
    ]
    for network, _ in written:  # all of them, before the first one plays
        check_exportable(network, format=format, int8=int8)
    with bar("episodes", total=2 * episodes * len(written)) as advance:
        deployments = [
            deploy(
                network,
                path,
                where,
                format=format,
                int8=int8,
                num_episodes=episodes,
                advance=advance,
            )
            for network, path in written
        ]
    _echo(deployment_table(deployments))


def _one_or_all(teachers: list[str] | None) -> str | list[str] | None:
    """What was given several times is an ensemble."""
    return teachers[0] if teachers and len(teachers) == 1 else teachers or None


def main() -> None:
    """Run the command line."""
    with _ending_on_signals(), printed_warnings(), _clean_warnings_of_others():
        _refuse_what_is_gone(sys.argv[1:])
        try:
            code = app(prog_name="rllib", standalone_mode=False)
        except _UsageError as error:
            command = error.ctx.command_path if error.ctx is not None else "rllib"
            _fail(f"{error.format_message()} `{command} --help` shows more.", code=2)
        except ValueError as error:
            _fail(str(error), code=2)
        except (OSError, EnvFailedError) as error:
            _fail(str(error), code=1)
        except Exception:  # nobody foresaw it; its message may be of a file, as any
            _echo(traceback.format_exc().rstrip("\n"), err=True)
            raise SystemExit(1) from None
    raise SystemExit(code)


#: Of typer, which in some versions comes with its own copy of click.
_UsageError: Any = typer.BadParameter.__mro__[1]


@contextmanager
def _ending_on_signals() -> Iterator[None]:
    """Ctrl-C and SIGTERM end with one line, and run what must be run at the end. Training has handlers of its own."""

    def end(signum: int, frame: FrameType | None) -> None:
        typer.echo("error: interrupted", err=True)
        while frame is not None:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                os._exit(1)  # an import may swallow an exception, or print it; and nothing runs yet
            frame = frame.f_back
        raise SystemExit(1)

    previous = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _clean_warnings_of_others() -> Iterator[None]:
    """What other packages warn of: without their colours, and without the escape sequences of names in it."""
    original = warnings.formatwarning

    def clean(*args: Any, **kwargs: Any) -> str:
        return printable(re.sub(r"\x1b\[[\d;]*m", "", original(*args, **kwargs)), lines=True)

    warnings.formatwarning = clean
    try:
        yield
    finally:
        warnings.formatwarning = original


def _refuse_what_is_gone(arguments: list[str]) -> None:
    if arguments and arguments[0] in _GONE_COMMANDS:
        _fail(f"`rllib {arguments[0]}` no longer exists: {_GONE_COMMANDS[arguments[0]]}.", code=2)
    gone = _GONE | (_GONE_FROM_EVALUATE if arguments[:1] == ["evaluate"] else {})
    for flag in (argument.split("=")[0] for argument in arguments):
        if flag in gone:
            _fail(f"{flag} no longer exists: {gone[flag]}.", code=2)


def _experiment_file(words: list[str]) -> str:
    match words:
        case ["file", path] | [path] if path != "file":
            return path
    raise ValueError(f"Expected `rllib train file FILE`, got `rllib train {' '.join(words)}`.")


def _resuming_command() -> str:
    arguments = [argument for argument in sys.argv[1:] if argument != "--resume"]
    return shlex.join(["rllib", *arguments, "--resume"])


def _set_log_level(verbose: int) -> None:
    # Unasked, only what this command says itself: errors of trials are in its summary.
    level = {0: logging.CRITICAL, 1: logging.INFO}.get(verbose, logging.DEBUG)
    for name in ("ray", "ray.tune", "ray.rllib", "ray._common.deprecation"):
        logging.getLogger(name).setLevel(level)


def _echo(text: object, *, err: bool = False) -> None:
    """Print what may hold names from files."""
    typer.echo(printable(text, lines=True), err=err)


def _fail(message: str, *, code: int) -> NoReturn:
    typer.echo(f"error: {one_line(message, limit=_MAX_ERROR)}", err=True)
    raise SystemExit(code)
