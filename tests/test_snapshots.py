"""Tune's state in one file."""

import os
from types import SimpleNamespace

import pyarrow.fs
import pytest

from rllib_kd.snapshots import SNAPSHOT, Snapshots, has_snapshot, put_back, snapshot_often

FIRST, SECOND = "2026-01-01_00-00-01", "2026-01-01_00-00-02"


@pytest.fixture
def folders(tmp_path):
    """Where Tune writes, and where results are stored."""
    for folder in (folders := (tmp_path / "staged", tmp_path / "stored")):
        folder.mkdir()
    return folders


def pack(snapshots, staged, stored):
    storage = SimpleNamespace(
        experiment_driver_staging_path=str(staged),
        experiment_fs_path=str(stored),
        storage_filesystem=pyarrow.fs.LocalFileSystem(),
    )
    snapshots.on_step_end(iteration=1, trials=[SimpleNamespace(storage=storage)])


def write(folder, session, text):
    for name in ("experiment_state-{}.json", "searcher-state-{}.pkl"):
        (folder / name.format(session)).write_text(f"{name} {text}")


def state_files(folder):
    return {path.name: path.read_text() for path in folder.glob("*state-*")}


def test_what_was_packed_last_comes_back_whole_and_alone(folders):
    staged, stored = folders
    write(staged, FIRST, "of an earlier process")
    write(staged, SECOND, "whole")
    (staged / "tuner.pkl").write_text("no state")
    assert not has_snapshot(str(stored))
    pack(Snapshots(), staged, stored)
    assert has_snapshot(str(stored))
    write(stored, SECOND, "whole"[:2])  # what Tune had stored of it when it was killed
    write(stored, "2026-01-01_00-00-03", "")  # by one that was killed when it had hardly begun
    (stored / "tuner.pkl").write_text("stays")
    put_back(str(stored))
    assert state_files(stored) == {name: text for name, text in state_files(staged).items() if SECOND in name}
    assert (stored / "tuner.pkl").read_text() == "stays"


def test_it_is_packed_when_it_has_changed(folders):
    staged, stored = folders
    snapshots = Snapshots()
    snapshots.on_step_end(iteration=0, trials=[])
    pack(snapshots, staged, stored)
    assert not has_snapshot(str(stored))  # Tune has written nothing yet
    write(staged, FIRST, "1")
    pack(snapshots, staged, stored)
    packed = (stored / SNAPSHOT).stat().st_ino
    pack(snapshots, staged, stored)
    assert (stored / SNAPSHOT).stat().st_ino == packed
    write(staged, FIRST, "2")
    pack(snapshots, staged, stored)
    put_back(str(stored))
    assert all(text.endswith("2") for text in state_files(stored).values())


def test_a_snapshot_that_could_not_be_written_leaves_the_last_one(folders, monkeypatch):
    staged, stored = folders
    snapshots = Snapshots()
    write(staged, FIRST, "1")
    pack(snapshots, staged, stored)

    def dies(self, *args):
        raise KeyboardInterrupt

    write(staged, FIRST, "2")
    monkeypatch.setattr("zipfile.ZipFile.write", dies)
    with pytest.raises(KeyboardInterrupt):
        pack(snapshots, staged, stored)
    put_back(str(stored))
    assert all(text.endswith("1") for text in state_files(stored).values())


@pytest.mark.parametrize(("given", "num_trials", "period"), [(None, 1, "1"), (None, 500, "5"), ("30", 1, "30")])
def test_tune_writes_its_state_every_second_unless_told_otherwise(monkeypatch, given, num_trials, period):
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", given or "")  # also undone at the end
    if given is None:
        monkeypatch.delenv("TUNE_GLOBAL_CHECKPOINT_S")
    snapshot_often(num_trials, seconds=1.0)
    assert os.environ["TUNE_GLOBAL_CHECKPOINT_S"] == period
