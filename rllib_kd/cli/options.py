"""The flags of all commands, each in a line."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from rllib_kd.evaluation.seeds import FRESH_SEED
from rllib_kd.paths import check_path


def option(help: str, *flags: str, metavar: str | None = None) -> Any:
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
    try:
        check_path(path)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if path.exists() and path.is_dir() != is_folder:
        raise typer.BadParameter(f"'{path}' is a folder: name a file." if path.is_dir() else f"'{path}' is no folder.")
    if replaces and path.exists() and not path.is_file():
        raise typer.BadParameter(f"'{path}' is a device or a pipe, which cannot be replaced: name a file.")
    if path.is_fifo() and path.resolve().exists():  # it has a name: pipes that a shell has opened have none
        raise typer.BadParameter(f"'{path}' is a pipe, which waits for a reader: name a file.")
    whole = path.absolute()
    written = whole.parent if replaces else whole
    there = next(place for place in (written, *written.parents) if place.exists())
    if not (_takes_files(there) if there.is_dir() else there == whole and os.access(there, os.W_OK)):
        raise typer.BadParameter(f"'{path}' cannot be written: '{there}' is no folder that one may write to.")
    return path


def _takes_files(folder: Path) -> bool:
    """Whether a file can be made in a folder: the permissions of some, such as those in /proc, promise what is not."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


Words = Annotated[list[str] | None, typer.Argument(metavar="file FILE", help="A .py or .yaml experiment.")]


Algo = Annotated[str | None, option("DistillDQN, DQN, PPO …", "--algo", "--run", "-a", "-r", metavar="NAME")]


TrainEnv = Annotated[str | None, option("Of gymnasium, or a registered name.", "--env", "-e", metavar="ID")]


Teacher = Annotated[list[str] | None, option("Checkpoint, or 'cartpole'; several: as one.", metavar="PATH")]


Compression = Annotated[float | None, option("DistillDQN: student / teacher size.", metavar="X")]


Loss = Annotated[str | None, option("DistillDQN: kl, nll, mse …", metavar="NAME")]


Config = Annotated[str, option("Settings, as text or as @FILE.", "--config", "-c", metavar="JSON")]


Stop = Annotated[str, option('{"training_iteration": 10}, or @FILE.', "--stop", "-s", metavar="JSON")]


NumSamples = Annotated[int | None, option("Trials of each setting; default 1.", metavar="N")]


CompareEpisodes = Annotated[int | None, option("Played by student and teacher at last.", metavar="N")]


Name = Annotated[str | None, option("Folder of the results.", "--experiment-name", "-n", metavar="NAME")]


Storage = Annotated[str, option("Above it, or a URI; default ~/ray_results.", metavar="PATH")]


CheckpointFreq = Annotated[int, option("Iterations between checkpoints.", metavar="N")]


CheckpointAtEnd = Annotated[bool, option("Default: save one.")]


Keep = Annotated[int | None, option("Default: all.", "--keep-checkpoints-num", metavar="N")]


ScoreAttr = Annotated[str | None, option("Metric of the best.", "--checkpoint-score-attr", metavar="X")]


MaxFailures = Annotated[int, option("Restarts at the last checkpoint; default 0.", metavar="N")]


Restore = Annotated[str | None, option("Start from this checkpoint or run.", metavar="PATH")]


Resume = Annotated[bool, option("Go on with an interrupted experiment.", "--resume")]


Scheduler = Annotated[str | None, option("Of Tune: async_hyperband, pbt …", metavar="NAME")]


SchedulerConfig = Annotated[str, option("Its arguments: metric, mode …", metavar="JSON")]


RayAddress = Annotated[str | None, option("Of a cluster to join.", metavar="ADDRESS")]


RayNumCpus = Annotated[int | None, option("Of a local Ray, or of each node.", metavar="N")]


RayNumGpus = Annotated[int | None, option("The same.", metavar="N")]


RayNumNodes = Annotated[int | None, option("Emulate a cluster of N nodes.", metavar="N")]


RayObjectStore = Annotated[int | None, option("Bytes.", "--ray-object-store-memory", metavar="N")]


RayUi = Annotated[bool, option("Start the dashboard.", "--ray-ui")]


WandbKey = Annotated[str | None, option("Log to Weights & Biases.", metavar="KEY")]


WandbProject = Annotated[str | None, option("Default: algorithm and environment.", metavar="NAME")]


WandbRunName = Annotated[str | None, option("Default: the trial's.", metavar="NAME")]


Verbose = Annotated[int, typer.Option("-v", count=True, show_default=False, help="Log more: -v INFO, -vv DEBUG.")]


Policy = Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Or a run folder, RUN@newest, 'cartpole'.")]


Students = Annotated[list[str], typer.Argument(metavar="STUDENT", help="Checkpoints, or run folders.")]


OwnEnv = Annotated[str | None, option("Default: as the checkpoint says.", "--env", "-e", metavar="ID")]


EnvConfig = Annotated[str, option("Keys to set, or @FILE; the others stay.", metavar="JSON")]


Episodes = Annotated[int, option("That each policy plays; default 100.", metavar="N")]


Seed = Annotated[int, option(f"Of the first episode; default {FRESH_SEED}.", metavar="N")]


Epsilon = Annotated[float, option("Share of random actions; default 0.", metavar="X")]


Report = Annotated[Path | None, _writable_option("For index.html and figures.json.", metavar="FOLDER")]


Returns = Annotated[Path | None, _writable_option("Write all returns as JSON.", metavar="FILE")]


Video = Annotated[Path | None, _writable_option("Films of the first episodes.", metavar="FOLDER")]


NumVideos = Annotated[int, typer.Option(min=1, help="Default: 3.", metavar="N", show_default=False)]


Render = Annotated[bool, option("Show the episodes on the screen.", "--render")]


CheckedAlgo = Annotated[
    str | None, option("Checked: the checkpoint says.", "--algo", "--run", "-a", "-r", metavar="NAME")
]


Artifact = Annotated[Path, _writable_option("The file to write.", metavar="FILE", replaces=True)]


Format = Annotated[str | None, option("onnx, safetensors, torchscript; default: by FILE.", metavar="NAME")]


Int8 = Annotated[bool, option("ONNX with weights of 8 bits.", "--int8")]


OtherTeacher = Annotated[str | None, option("To show what the student saves.", metavar="PATH")]


FewEpisodes = Annotated[int, option("That the file plays; default 20.", metavar="N")]


Trust = Annotated[bool, option("Execute what it holds: your own classes.", "--trust-checkpoint")]
