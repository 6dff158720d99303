"""Checkpoints on filesystems that are not local."""

import pyarrow.fs
import pytest

from rllib_kd.checkpoints.copies import copied_to, on_this_machine
from rllib_kd.checkpoints.manifest import MANIFEST, write_manifest
from rllib_kd.checkpoints.whole import lacking

MODULES = "learner_group/learner/rl_module"
#: What two checkpoints write: one of two Learners and students, and one of one each.
OLDER = [f"{MODULES}/{name}/module_state.pkl" for name in "ab"] + ["replay/0.npz", "replay/1.npz", "state.msgpack"]
NEWER = [f"{MODULES}/a/module_state.pkl", "replay/0.npz", "algorithm_state.pkl"]
OF_THE_USER = ["notes.txt", "0.npz", "mine/module_state.pkl", f"{MODULES}/notes.txt"]
MARKS = ["class_and_ctor_args.pkl", "rllib_checkpoint.json"]


def write(folder, names, content=b"{}."):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def bucket(tmp_path):
    return pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())


@pytest.mark.parametrize("has_manifest", [True, False])
def test_a_checkpoint_takes_the_place_of_an_older_one_and_the_users_files_stay(tmp_path, bucket, has_manifest):
    folder = tmp_path / "checkpoint"
    write(folder, [*OLDER, *MARKS])
    if has_manifest:
        write_manifest(folder)
    write(folder, OF_THE_USER)
    with copied_to("checkpoint", bucket) as new:
        write(new, [*NEWER, *MARKS], b"newer {}.")
        assert (folder / "replay/1.npz").exists()
    assert files(folder) == sorted([*NEWER, *MARKS, *OF_THE_USER, MANIFEST])
    assert (folder / NEWER[0]).read_bytes() == b"newer {}."
    assert not (folder / MODULES / "b").exists()
    assert lacking(bucket, "checkpoint") is None


def test_a_save_that_fails_leaves_the_older_one(tmp_path, bucket):
    write(tmp_path / "checkpoint", [*OLDER, *MARKS])
    with pytest.raises(IsADirectoryError), copied_to("checkpoint", bucket) as new:
        write(new, ["a/b", "a"])
    assert files(tmp_path / "checkpoint") == sorted([*OLDER, *MARKS])


def test_in_a_folder_that_is_no_checkpoint_nothing_is_deleted(tmp_path, bucket):
    write(tmp_path / "checkpoint", OLDER)
    with copied_to("checkpoint", bucket) as new:
        write(new, MARKS)
    assert files(tmp_path / "checkpoint") == sorted([*OLDER, *MARKS, MANIFEST])


def test_a_copy_is_there_while_it_is_read(tmp_path, bucket):
    write(tmp_path / "checkpoint", OLDER)
    with on_this_machine("checkpoint", bucket) as folder:
        assert files(tmp_path / "checkpoint") == files(type(tmp_path)(folder))
    assert not type(tmp_path)(folder).exists()
    with on_this_machine("checkpoint", bucket, without=["replay"]) as folder:
        assert files(type(tmp_path)(folder)) == sorted(name for name in OLDER if not name.startswith("replay/"))
    with on_this_machine(str(tmp_path), pyarrow.fs.LocalFileSystem()) as folder:
        assert folder == str(tmp_path)
    with pytest.raises(FileNotFoundError), on_this_machine("missing", bucket):
        pass
