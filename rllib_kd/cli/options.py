"""The flags of all commands, one line of help each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from rllib_kd.evaluation.seeds import FRESH_SEED
from rllib_kd.paths import expanded

#: Help of `--teacher`, where it may be given several times.
TEACHER_HELP = "Checkpoint or 'cartpole'; several: ensemble."


def option(help: str, *flags: str, metavar: str | None = None) -> Any:
    """Return an option whose help fits one line of 80 columns."""
    return typer.Option(*flags, help=help, metavar=metavar, show_default=False)


def _writable_option(help: str, *, metavar: str, replaces: bool = False) -> Any:
    """Return an option for a path that a command writes; with `replaces`, an older file is replaced by a rename."""

    def parse(text: str) -> Path:
        return _writable(text, is_folder=metavar == "FOLDER", replaces=replaces)

    return typer.Option(parser=parse, help=help, metavar=metavar, show_default=False)


def _writable(text: str, *, is_folder: bool, replaces: bool) -> Path:
    """Return the path, after checking that a long command can write there at its end."""
    kind = "folder" if is_folder else "file"
    if not text or "\0" in text or "://" in text:
        got = "a URI" if "://" in text else "a path with a null character" if text else "an empty text"
        raise typer.BadParameter(f"expected the path of a {kind} on this machine, got {got}.")
    if replaces and text.encode(errors="replace").decode() != text:
        raise typer.BadParameter("the name is not valid UTF-8, and some formats cannot be loaded from such a name.")
    try:
        path = expanded(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if path.exists() and path.is_dir() != is_folder:
        raise typer.BadParameter(
            f"'{path}' is a folder. Name a file." if path.is_dir() else f"'{path}' is not a folder. Name a folder."
        )
    if replaces and path.exists() and not path.is_file():
        raise typer.BadParameter(f"'{path}' is a device or a pipe, which cannot be replaced. Name a file.")
    if path.is_fifo() and path.resolve().exists():  # a pipe with a name: those that a shell has opened have none
        raise typer.BadParameter(f"'{path}' is a pipe, which waits for a reader. Name a file.")
    whole = path.absolute()
    written = whole.parent if replaces else whole.resolve().parent if path.is_file() else whole
    there = next(place for place in (written, *written.parents) if place.exists())
    if not (_takes_files(there) if there.is_dir() else there == whole and os.access(there, os.W_OK)):
        raise typer.BadParameter(f"'{path}' cannot be written: '{there}' is not a folder that you may write to.")
    return path


def _takes_files(folder: Path) -> bool:
    """Return whether a file can be created in a folder: some permissions, such as those in /proc, are misleading."""
    import tempfile  # imported here: `rllib --help` does not need it

    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


Words = Annotated[list[str] | None, typer.Argument(metavar="file FILE", help="Experiment file, .py or .yaml.")]

Algo = Annotated[
    str | None, option("Algorithm: DistillDQN, DQN, PPO, ...", "--algo", "--run", "-a", "-r", metavar="NAME")
]

_ENV = option("Gymnasium id, FILE.py:Class or name.", "--env", "-e", metavar="ID")
TrainEnv = Annotated[str | None, _ENV]
Imports = Annotated[list[str] | None, option("File to import first (repeatable).", "--import", metavar="FILE")]
Teacher = Annotated[list[str] | None, option(TEACHER_HELP, metavar="PATH")]
NoTeacher = Annotated[bool, option("Learn from rewards alone, as DQN.", "--no-teacher")]
Compression = Annotated[float | None, option("Student size / teacher size, in (0, 1].", metavar="X")]
Loss = Annotated[str | None, option("Distillation loss: kl, nll, mse, ...", metavar="NAME")]

Rows = Annotated[
    list[str] | None,
    option("Recorded rows to compare on, without an environment (repeatable).", "--input", metavar="URI"),
]

Input = Annotated[list[str] | None, option("Recorded rows to learn from (repeatable).", metavar="URI")]
Output = Annotated[str | None, option("Folder for visited states and labels.", metavar="URI")]
Config = Annotated[str, option("Settings: a JSON object, or @FILE.", "--config", "-c", metavar="JSON")]
Stop = Annotated[str, option('Stop at {"training_iteration": 9} or @FILE.', "--stop", "-s", metavar="JSON")]
NumSamples = Annotated[int | None, option("Trials of each setting (default: 1).", metavar="N")]
CompareEpisodes = Annotated[int | None, option("Episodes of a final comparison (default: 0).", metavar="N")]

Name = Annotated[
    str | None, option("Results folder (default: algo_env_time).", "--experiment-name", "-n", metavar="NAME")
]

Storage = Annotated[str, option("Folder or URI (default: ~/ray_results).", metavar="PATH")]
CheckpointFreq = Annotated[int, option("Iterations between checkpoints (0: none).", metavar="N")]
CheckpointAtEnd = Annotated[bool, option("Save a checkpoint at the end (default: yes).")]
Keep = Annotated[int | None, option("Checkpoints to keep (default: all).", "--keep-checkpoints-num", metavar="N")]

ScoreAttr = Annotated[
    str | None, option("Metric that ranks checkpoints to keep.", "--checkpoint-score-attr", metavar="X")
]

MaxFailures = Annotated[int, option("Retries from checkpoints (default: 0).", metavar="N")]
Restore = Annotated[str | None, option("Checkpoint or run to start a new run from.", metavar="PATH")]
Resume = Annotated[bool, option("Continue an interrupted experiment.", "--resume")]
Scheduler = Annotated[str | None, option("Tune scheduler: async_hyperband, pbt, ...", metavar="NAME")]
SchedulerConfig = Annotated[str, option("Scheduler arguments: metric, mode, ...", metavar="JSON")]
RayAddress = Annotated[str | None, option("Address of a Ray cluster to join.", metavar="ADDRESS")]

Address = Annotated[
    str | None, option("Ray cluster to join: auto, or HOST:PORT.", "--address", "--ray-address", metavar="ADDRESS")
]

RayNumCpus = Annotated[int | None, option("CPUs of the local Ray, or of each node.", metavar="N")]
RayNumGpus = Annotated[int | None, option("GPUs of the local Ray, or of each node.", metavar="N")]
RayNumNodes = Annotated[int | None, option("Emulate a cluster of N nodes locally.", metavar="N")]
RayObjectStore = Annotated[int | None, option("Bytes of Ray's object store.", "--ray-object-store-memory", metavar="N")]
RayUi = Annotated[bool, option("Start Ray's dashboard.", "--ray-ui")]
WandbKey = Annotated[str | None, option("API key of Weights & Biases; turns it on.", metavar="KEY")]
WandbProject = Annotated[str | None, option("W&B project (default: by algorithm and env).", metavar="NAME")]
WandbRunName = Annotated[str | None, option("W&B run name (default: the trial's name).", metavar="NAME")]

Verbose = Annotated[
    int, typer.Option("-v", count=True, show_default=False, help="Log INFO (-v, -v INFO) or DEBUG (-vv).")
]

Policy = Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Checkpoint, run, RUN@newest or 'cartpole'.")]
Students = Annotated[list[str], typer.Argument(metavar="[NAME=]PATH", help="Checkpoints or run folders.")]
OwnEnv = Annotated[str | None, option("Id or FILE.py:Class (default: recorded).", "--env", "-e", metavar="ID")]
EnvConfig = Annotated[str, option("Environment settings to change, or @FILE.", metavar="JSON")]
Episodes = Annotated[int, option("Episodes of each policy (default: 100).", metavar="N")]
Seed = Annotated[int, option(f"Seed of the first episode (default: {FRESH_SEED}).", metavar="N")]
Epsilon = Annotated[float, option("Share of random actions (default: 0).", metavar="X")]
Report = Annotated[Path | None, _writable_option("Folder for index.html and figures.json.", metavar="FOLDER")]
NewFolder = Annotated[Path | None, _writable_option("New folder (default: in ~/ray_results).", metavar="FOLDER")]
Returns = Annotated[Path | None, _writable_option("JSON file for all returns.", metavar="FILE")]
Video = Annotated[Path | None, _writable_option("Folder for videos of the first episodes.", metavar="FOLDER")]
NumVideos = Annotated[int, typer.Option(min=1, help="Episodes to film (default: 3).", metavar="N", show_default=False)]
Render = Annotated[bool, option("Show the episodes on the screen.", "--render")]

CheckedAlgo = Annotated[
    str | None, option("Required algorithm of the checkpoint.", "--algo", "--run", "-a", "-r", metavar="NAME")
]

Artifact = Annotated[Path, _writable_option("File to write.", metavar="FILE", replaces=True)]
Format = Annotated[
    str | None,
    option("c, onnx, pt2, python, safetensors, torchscript, web (default: by FILE's ending).", metavar="NAME"),
]

Prefix = Annotated[str | None, option("Prefix of all names in C (default: student).", metavar="NAME")]
Int8 = Annotated[bool, option("Quantize weights to 8 bits (ONNX or C).", "--int8")]
OtherTeacher = Annotated[str | None, option("Teacher to compare size and latency with.", metavar="PATH")]
FewEpisodes = Annotated[int, option("Episodes that the file plays (default: 20).", metavar="N")]
Trust = Annotated[bool, option("Load custom classes, which runs their code.", "--trust-checkpoint")]
