"""`rllib label`: its errors, and what it does when nothing is left to do, both without Ray."""

from __future__ import annotations

import pytest
import ray

from rllib_kd import load_teacher
from rllib_kd.cli.main import main
from rllib_kd.offline.job import LabelJob
from tests.cli.commands import ESCAPES, assert_harmless
from tests.offline.recorded import label_here, read, rows, write_parquet


@pytest.fixture
def without_ray(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", refuse)


def label(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["label", "--teacher", "cartpole", *arguments])
    return ended.value.code or 0


def test_a_job_that_is_done_says_so_without_ray(tmp_path, capsys, without_ray):
    write_parquet(tmp_path / "in" / "a.parquet", rows())
    job = LabelJob(load_teacher("cartpole"), tmp_path / "in", tmp_path / "out", env="CartPole-v1")
    label_here(job)

    assert label("--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n0 rows labelled; files: 1, of which 1 were there already\n"
    assert read(tmp_path / "out" / "a.parquet")["teacher_q"].shape == (10, 2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--input", "gone"], "There is nothing at"),
        (["--input", "in", "--obs-column", "state"], "in/a.parquet', column 'state': is missing; the file has 'obs'"),
        (["--input", "in", "--also", "teacher_prob"], "There is no label 'teacher_prob'"),
        (["--input", "in", "--batch-size", "0"], "`batch_size` must be an integer"),
        (["--input", "in", "--concurrency", "0"], "`concurrency` must be"),
        (["--input", "in", "--output", "in/out"], "one is in the other"),
        (["--input", f"bad{ESCAPES}"], "There is nothing at"),
        ([], "Missing option '--input'"),
    ],
)
def test_an_error_is_one_line(tmp_path, monkeypatch, capsys, without_ray, flags, message):
    monkeypatch.chdir(tmp_path)
    write_parquet(tmp_path / "in" / "a.parquet", rows())
    output = [] if "--output" in flags else ["--output", "out"]

    assert label(*flags, *output) == 2
    error = capsys.readouterr().err
    (line,) = [line for line in error.splitlines() if line.startswith("error:")]
    assert message in line
    assert_harmless(error)
    assert not (tmp_path / "out").exists()
