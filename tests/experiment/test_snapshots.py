"""Tune's state in one file."""

import os
import zipfile
from types import SimpleNamespace

import pyarrow.fs
import pytest

from rllib_kd.experiment import snapshots as snapshots_module
from rllib_kd.experiment.snapshots import SNAPSHOT, Snapshots, forget, has_snapshot, put_back, snapshot_often

FIRST, SECOND = "2026-01-01_00-00-01", "2026-01-01_00-00-02"


@pytest.fixture
def folders(tmp_path):
    """Where Tune writes, and where results are stored."""
    for folder in (folders := (tmp_path / "staged", tmp_path / "stored")):
        folder.mkdir()
    return folders


class Flaky:
    """A filesystem that takes files only at times."""

    def __init__(self, type_name):
        self.type_name, self.takes = type_name, False

    def open_output_stream(self, path):
        if not self.takes:
            raise OSError("SlowDown: please reduce your request rate")
        return pyarrow.fs.LocalFileSystem().open_output_stream(path)

    def move(self, source, target):
        pyarrow.fs.LocalFileSystem().move(source, target)


def trials_of(staged, stored, filesystem):
    storage = SimpleNamespace(
        experiment_driver_staging_path=str(staged), experiment_fs_path=str(stored), storage_filesystem=filesystem
    )
    return [SimpleNamespace(storage=storage)]


def pack(snapshots, staged, stored):
    snapshots.on_step_end(iteration=1, trials=trials_of(staged, stored, pyarrow.fs.LocalFileSystem()))


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


def test_the_state_that_was_written_last_is_packed_whatever_the_clock_of_its_process(folders):
    staged, stored = folders
    write(staged, SECOND, "of an earlier process")
    write(staged, FIRST, "of one that began when the clock had been set back")
    for path in staged.iterdir():
        os.utime(path, (2e9, 2e9 if FIRST in path.name else 1e9))
    pack(Snapshots(), staged, stored)
    put_back(str(stored))
    assert state_files(stored).keys() == {name for name in state_files(staged) if FIRST in name}


def test_of_an_earlier_experiment_only_what_it_is_resumed_by_is_deleted(folders):
    staged, stored = folders
    forget(str(stored / "new"))
    (stored / "trial").mkdir()
    for name in ("flags.json", "trial/result.json"):
        (stored / name).write_text("{}")
    write(staged, FIRST, "whole")
    write(stored, FIRST, "whole")
    (stored / "tuner.pkl").touch()
    pack(Snapshots(), staged, stored)
    forget(str(stored))
    assert not has_snapshot(str(stored))
    assert {path.name for path in stored.iterdir()} == {"flags.json", "trial"}
    assert (stored / "trial" / "result.json").is_file()


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


def test_remote_storage_that_fails_for_a_moment_gets_the_snapshot_later(folders, caplog, monkeypatch):
    monkeypatch.setattr(snapshots_module, "_PAUSE", 0.0)
    staged, stored = folders
    write(staged, FIRST, "1")
    snapshots, remote = Snapshots(), Flaky("s3")
    trials = trials_of(staged, stored, remote)
    for step in range(3):
        snapshots.on_step_end(iteration=step, trials=trials)
    assert not has_snapshot(str(stored))
    (record,) = caplog.records
    assert "snapshot.zip could not be written" in record.getMessage()
    assert "SlowDown" in record.getMessage()
    snapshots.on_experiment_end(trials=trials)  # all else has been written
    assert not has_snapshot(str(stored))
    remote.takes = True
    snapshots.on_step_end(iteration=3, trials=trials)
    assert has_snapshot(str(stored))


def test_a_disk_that_takes_no_snapshot_ends_the_experiment(folders):
    write(folders[0], FIRST, "1")
    with pytest.raises(OSError, match="SlowDown"):
        Snapshots().on_step_end(iteration=0, trials=trials_of(*folders, Flaky("local")))


@pytest.mark.parametrize(
    "name",
    [
        "../../x",
        f"../experiment_state-{FIRST}.json",
        f"/tmp/experiment_state-{FIRST}.json",
        f"..\\experiment_state-{FIRST}.json",
        f"folder/experiment_state-{FIRST}.json",
        f"a\nb-{FIRST}.json",
        "tuner.pkl",
        "folder/",
    ],
)
def test_what_is_no_state_file_is_refused_before_anything_changes(folders, name):
    _, stored = folders
    write(stored, SECOND, "older")
    with zipfile.ZipFile(stored / SNAPSHOT, "w") as archive:
        archive.writestr(f"experiment_state-{FIRST}.json", "fine")
        archive.writestr(name, "not fine")
    before = {path: path.read_bytes() for path in stored.parent.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"was refused: it contains '"):
        put_back(str(stored))
    assert {path: path.read_bytes() for path in stored.parent.rglob("*") if path.is_file()} == before


def test_a_snapshot_that_unpacks_to_too_much_or_is_broken_is_refused_in_a_line(folders, monkeypatch):
    _, stored = folders
    name = f"experiment_state-{FIRST}.json"
    monkeypatch.setattr(snapshots_module, "_MAX_BYTES", 100_000)
    with zipfile.ZipFile(stored / SNAPSHOT, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, bytes(100_001))
    assert (stored / SNAPSHOT).stat().st_size < 1_000
    with pytest.raises(ValueError, match=r"unpacks to more than 100,000 bytes\.$"):
        put_back(str(stored))
    packed = (stored / SNAPSHOT).read_bytes()
    (stored / SNAPSHOT).write_bytes(packed[:20])
    with pytest.raises(ValueError, match=r"is broken \(File is not a zip file\)"):
        put_back(str(stored))
    with zipfile.ZipFile(stored / SNAPSHOT, "w"):
        pass
    with pytest.raises(ValueError, match=r"is broken \(it is empty\)"):
        put_back(str(stored))
    (stored / SNAPSHOT).write_bytes(bytes(100_001))
    with pytest.raises(ValueError, match="has more than 100,000 bytes"):
        put_back(str(stored))
    assert not (stored / name).exists()


@pytest.mark.parametrize(("given", "num_trials", "period"), [(None, 1, "1"), (None, 500, "5"), ("30", 1, "30")])
def test_tune_writes_its_state_every_second_unless_told_otherwise(monkeypatch, given, num_trials, period):
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", given or "")  # also undone at the end
    if given is None:
        monkeypatch.delenv("TUNE_GLOBAL_CHECKPOINT_S")
    snapshot_often(num_trials, seconds=1.0)
    assert os.environ["TUNE_GLOBAL_CHECKPOINT_S"] == period
