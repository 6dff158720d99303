"""Texts and paths that make no sense, in every argument and flag: one line, an exit code, and nothing is written."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, get_args, get_origin, get_type_hints

import pytest
import typer

from rllib_kd.cli import label as labelling
from rllib_kd.cli import play, shrink, sweep
from rllib_kd.cli import serve as serving
from rllib_kd.cli import train as training
from rllib_kd.cli.app import app
from tests.conftest import exit_code

COMMANDS = {
    "train": training.train,
    "sweep": sweep.sweep,
    "shrink": shrink.shrink,
    "label": labelling.label,
    "compare": play.compare,
    "evaluate": play.evaluate,
    "export": play.export,
    "serve": serving.serve,
}
#: A line that would work, but for what is put into it.
WORKING = {
    "train": ["train", "--algo", "DistillDQN", "--env", "CartPole-v1", "--teacher", "cartpole"],
    "sweep": ["sweep", "--env", "CartPole-v1", "--teacher", "cartpole", "--num-samples", "1"],
    "shrink": ["shrink", "--env", "CartPole-v1", "--teacher", "cartpole", "--minutes", "1"],
    "label": ["label", "--teacher", "cartpole", "--input", "rows", "--output", "labelled"],
    "compare": ["compare", "cartpole", "--teacher", "cartpole", "--episodes", "1"],
    "evaluate": ["evaluate", "cartpole", "--episodes", "1"],
    "export": ["export", "cartpole", "--out", "out.onnx", "--episodes", "1"],
    "serve": ["serve", "cartpole", "--host", "127.0.0.1"],
}
#: Files and folders to be made, which may have any name that the disk takes.
NEW = ("--out", "--video")
NO_PATHS = ["~nosuchuser/x", "no\0thing", "no\nthing", "no/thing", "a" * 5000, "\udcff"]
OLD = ("--teacher", "--restore", "--storage-path", "checkpoint", "students", "words")


def texts() -> Iterator[tuple[str, str]]:
    """Every argument and flag that takes a text, with its command."""
    for command in WORKING:
        for name, hint in get_type_hints(COMMANDS[command], include_extras=True).items():
            kind, *extras = get_args(hint) if get_origin(hint) is Annotated else (hint,)
            if extras and any(part in (str, Path, list[str]) for part in (kind, *get_args(kind))):
                is_flag = isinstance(extras[0], typer.models.OptionInfo)
                yield command, (extras[0].param_decls or [f"--{name.replace('_', '-')}"])[0] if is_flag else name


TEXTS = {f"{command} {name}": (command, name) for command, name in texts()}


def with_value(command: str, name: str, value: str) -> list[str]:
    """The working line with this value in place of its own, or beside it."""
    line = list(WORKING[command])
    if not name.startswith("-"):
        return ["train", "file", value] if command == "train" else [line[0], value, *line[2:]]
    if name in line:
        at = line.index(name)
        del line[at : at + 2]
    return [*line, name, value]


@pytest.fixture
def refused(tmp_path, monkeypatch, capfd):
    """Runs a line in an empty folder, and returns its one line of error."""

    def start(*args, **kwargs):
        pytest.fail("Ray is started for what cannot work")

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("ray.init", start)
    monkeypatch.setattr("ray.is_initialized", lambda: False)

    def run(line: list[str]) -> str:
        assert exit_code(*line) in (1, 2)
        error = capfd.readouterr().err
        assert re.fullmatch(r"error: .*\n", error), error
        assert not re.search(r"Errno|embedded null", error)
        assert os.listdir() == []
        return error

    return run


def test_all_commands_are_tried():
    assert {info.name or info.callback.__name__ for info in app.registered_commands} == set(WORKING)
    assert len(TEXTS) >= 30
    assert {name for _, name in TEXTS.values()} >= {*NEW, *OLD}


@pytest.mark.parametrize("where", TEXTS)
def test_an_empty_text(refused, where):
    refused(with_value(*TEXTS[where], ""))


#: Only what no file could have is refused before Ray runs.
LATE, POSSIBLE = ("train --storage-path", "sweep --storage-path", "train --restore"), ("no\nthing", "no/thing")


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (where, value)
        for where, (_, name) in TEXTS.items()
        for value in NO_PATHS
        if name in OLD and not (where in LATE and value in POSSIBLE)
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_a_path_that_is_none(refused, where, value):
    refused(with_value(*TEXTS[where], value))


@pytest.mark.parametrize("value", ["no\0thing", "a" * 5000, "a/" * 2500], ids=lambda value: ascii(value)[:20])
@pytest.mark.parametrize("where", [where for where, (_, name) in TEXTS.items() if name in NEW])
def test_a_path_that_nothing_can_be_written_to(refused, where, value):
    refused(with_value(*TEXTS[where], value))


@pytest.mark.parametrize(
    "name", ["no\0thing", "a" * 5000, "a/" * 2500, "\udcff", "a" * 252], ids=lambda name: ascii(name)[:9]
)
@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_name_of_an_experiment_that_no_folder_can_have(refused, tmp_path, name, resume):
    """A lock beside the folder has a longer name."""
    message = refused([*WORKING["train"], "--experiment-name", name, "--storage-path", str(tmp_path / "new"), *resume])
    assert re.search("experiment.name|no experiment to resume|File name too long. Name another folder", message)


CHECKPOINTS = (
    "evaluate checkpoint",
    "compare students",
    "compare --teacher",
    "export checkpoint",
    "export --teacher",
    "serve checkpoint",
)


@pytest.mark.parametrize("where", CHECKPOINTS)
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "this folder", "text"])
def test_what_is_no_checkpoint(refused, tmp_path, where, kind):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder\nof two lines").mkdir()
    (tmp_path / "text").write_text("no checkpoint")
    values = {"device": "/dev/zero", "folder": str(tmp_path / "folder\nof two lines"), "this folder": "."}
    refused(with_value(*TEXTS[where], values.get(kind, str(tmp_path / kind))))


@pytest.mark.parametrize("where", ["export --out", "evaluate --out", "evaluate --video", "compare --out"])
def test_places_that_cannot_be_written_to(refused, tmp_path, where):
    os.mkfifo(tmp_path / "pipe")
    for place in (str(tmp_path / "pipe"), str(tmp_path / "pipe" / "x"), "s3://bucket/x"):
        refused(with_value(*TEXTS[where], place))
    assert (tmp_path / "pipe").is_fifo()


def test_an_artifact_takes_the_place_of_plain_files_only(refused, tmp_path):
    """As the administrator: a rename would replace the device itself."""
    (tmp_path / "device").symlink_to("/dev/null")
    message = refused(["export", "cartpole", "--out", str(tmp_path / "device")])
    assert "is a device or a pipe, which cannot be replaced" in message
    assert (tmp_path / "device").is_char_device()


@pytest.mark.parametrize("flag", ["--config", "--stop", "--scheduler-config", "--env-config"])
def test_what_is_no_json(refused, tmp_path, flag):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "bytes.json").write_bytes(bytes(range(256)))
    (tmp_path / "bytes.yaml").write_bytes(bytes(range(256)))
    (tmp_path / "deep.yaml").write_text(700 * "[")
    files = [f"@{tmp_path / name}" for name in ("pipe", "bytes.json", "bytes.yaml", "deep.yaml", "missing", "")]
    files += ["@", "@/dev/zero", "@~nosuchuser/x", "@no\0thing", "@" + "a" * 5000, "@\udcff"]
    values = ["null", "[]", "1", "{", '"', "1" * 5000, 100_000 * "[", 100_000 * '{"a":']
    takes = {"--env-config": tuple(WORKING), "--config": ("train", "sweep", "shrink")}
    for command in takes.get(flag, ("train",)):
        for value in (*files, *values):
            message = refused([*WORKING[command], f"{flag}={value}"])
            assert flag in message


@pytest.mark.parametrize("name", ["pipe.py", "bytes.py", "bytes.yaml", "deep.yaml", "folder.py", "folder.yaml"])
def test_what_is_no_experiment(refused, tmp_path, name):
    if name.startswith("pipe"):
        os.mkfifo(tmp_path / name)
    elif name.startswith("folder"):
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_bytes(bytes(range(256)) if name.startswith("bytes") else 700 * b"[")
    assert name in refused(["train", "file", str(tmp_path / name)])


def test_a_file_is_replaced_only_in_a_folder_that_takes_files(tmp_path, monkeypatch, capsys):
    def fails(dir):
        assert dir == tmp_path
        raise FileNotFoundError(2, "No such file or directory")

    (tmp_path / "returns.json").write_text("old")
    monkeypatch.setattr("tempfile.TemporaryFile", fails)
    assert exit_code("evaluate", "cartpole", "--out", tmp_path / "returns.json") == 2
    assert f"'{tmp_path}' is not a folder that you may write to" in capsys.readouterr().err


def test_a_full_disk_leaves_the_older_returns_and_is_named(tmp_path, capsys, fill_disk):
    out = tmp_path / "returns.json"
    out.write_text("old")
    fill_disk(out.name)
    assert exit_code("evaluate", "cartpole", "--env", "CartPole-v1", "--episodes", "1", "--out", out) == 1
    assert capsys.readouterr().err == f"error: [Errno 28] No space left on device: '{out}'\n"
    assert out.read_text() == "old"
