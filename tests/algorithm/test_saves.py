"""A save that fails, or is killed, leaves the checkpoint that was there; a path may be spelled as one likes."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pyarrow.fs
import pytest

from rllib_kd import DistillDQN
from rllib_kd.checkpoints.whole import lacking
from tests.algorithm.resumable import differ, resumable_config, weights
from tests.algorithm.weights import assert_equal_weights
from tests.fuzzing.workers import forget_garbage


@pytest.fixture
def saved_once(build, tmp_path):
    algo = build(resumable_config())
    algo.train()
    folder = tmp_path / "checkpoint"
    algo.save_to_path(str(folder))
    (folder / "notes.txt").write_text("mine")
    before = weights(algo)
    algo.train()
    algo.train()
    assert differ(before, weights(algo))
    return algo, folder, before


def test_a_full_disk_leaves_the_checkpoint_that_was_there(saved_once, monkeypatch):
    algo, folder, before = saved_once
    write = np.lib.format.write_array

    def fill_up(file, array, **kwargs):
        write(file, array, **kwargs)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", fill_up)
    with pytest.raises(OSError, match="No space left"):
        algo.save_to_path(str(folder))
    monkeypatch.undo()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    resumed = DistillDQN.from_checkpoint(str(folder))
    assert_equal_weights(weights(resumed), before)
    resumed.stop()
    algo.train()  # which goes on


def test_a_new_checkpoint_takes_the_place_of_an_old_one(saved_once):
    algo, folder, _ = saved_once
    algo.save_to_path(f"file://{folder}")
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert (folder / "notes.txt").read_text() == "mine"
    resumed = DistillDQN.from_checkpoint(str(folder))
    assert_equal_weights(weights(resumed), weights(algo))
    resumed.stop()


@pytest.mark.parametrize(
    "spelled",
    [
        "student",
        pytest.param("~/a folder #1/student/", marks=pytest.mark.slow),
        "file://{home}/a%20folder/student",
    ],
)
def test_a_path_may_be_spelled_as_one_likes(build, tmp_path, monkeypatch, spelled):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = spelled.format(home=tmp_path)
    algo = build(resumable_config())
    for _ in range(2):  # a first one, and one in its place
        algo.train()
        saved = algo.save_to_path(path)
    assert Path(saved).is_absolute()
    assert json.loads((Path(saved) / "rllib_checkpoint.json").read_text())["training_iteration"] == 2
    assert lacking(pyarrow.fs.LocalFileSystem(), saved) is None
    assert str(tmp_path) in saved
    assert (tmp_path / "~").exists() is False
    resumed = DistillDQN.from_checkpoint(path)
    assert_equal_weights(weights(resumed), weights(algo))
    resumed.restore_from_path(path)
    resumed.stop()


def test_what_cannot_hold_a_checkpoint_is_an_error_before_anything_is_written(build, tmp_path):
    algo = build(resumable_config())
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file"):
        algo.save_to_path(tmp_path / "file")
    with pytest.raises(ValueError, match="%23"):
        algo.save_to_path(f"file://{tmp_path}/a#b")
    assert os.listdir(tmp_path) == ["file"]


def fails(*args, **kwargs):
    raise OSError(28, "No space left on device")


@pytest.mark.slow
def test_a_remote_learner_that_cannot_save_is_an_error_and_the_older_checkpoint_stays(build, tmp_path):
    algo = build(resumable_config().learners(num_learners=1))
    algo.train()
    path = algo.save_to_path(tmp_path / "student")
    before = weights(algo)
    algo.train()
    algo.learner_group.foreach_learner(lambda own: setattr(own, "save_to_path", fails))
    with pytest.raises(OSError, match="The Learner could not write its part"):
        algo.save_to_path(path)
    assert os.listdir(tmp_path) == ["student"]
    resumed = DistillDQN.from_checkpoint(path)
    assert_equal_weights(weights(resumed), before)
    resumed.stop()


def die_at(call, save):
    """How many function calls a save makes, in a process of its own, which is killed at one of them."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        forget_garbage()
        signal.alarm(120)
        calls = 0

        def count(frame, event, argument):
            nonlocal calls
            calls += 1
            if calls == call:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(count)
        save()
        sys.setprofile(None)
        os.write(writer, str(calls).encode())
        os._exit(0)
    os.close(writer)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with os.fdopen(reader) as stream:
        made = stream.read()
    assert code == (0 if made else -signal.SIGKILL)
    return int(made) if made else call


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux exchanges folders at one stroke")
def test_a_kill_at_any_moment_of_a_save_leaves_a_checkpoint_that_restores(saved_once, tmp_path):
    algo, folder, before = saved_once
    newer = weights(algo)
    older = tmp_path / "older"
    shutil.copytree(folder, older)
    seen = []
    for share in (0.1, 0.7, 0.95, 0.999):
        die_at(None, lambda: algo.save_to_path(folder))  # clears up, which takes calls
        total = die_at(None, lambda: algo.save_to_path(folder))
        assert sorted(os.listdir(tmp_path)) == ["checkpoint", "older"]
        shutil.rmtree(folder)
        shutil.copytree(older, folder)
        die_at(round(share * total), lambda: algo.save_to_path(folder))
        resumed = DistillDQN.from_checkpoint(str(folder))
        seen.append("newer" if not differ(weights(resumed), newer) else "older")
        assert_equal_weights(weights(resumed), newer if seen[-1] == "newer" else before)
        assert (folder / "notes.txt").read_text() == "mine"
        resumed.stop()
    assert seen[0] == "older"
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] == "newer"
