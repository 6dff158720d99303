"""A checkpoint that takes the place of an older one, whole. Savers are killed for real, at every step."""

import itertools
import json
import os
import shutil
import sys
import threading
from pathlib import Path

import pytest

from rllib_kd.checkpoints import replacing as module
from rllib_kd.checkpoints.manifest import MANIFEST
from rllib_kd.checkpoints.replacing import replacing
from tests.checkpoints.savers import FILES, full, killed_at, put, save, save_on_a_full_disk, version_of, write


@pytest.fixture
def folder(tmp_path):
    """An older checkpoint, and what the user has put into its folder."""
    folder = tmp_path / "student"
    with replacing(folder, left_out=("replay",)) as new:
        write(new, "older")
        (new / "replay/1.npz").write_text("older")  # of a second Learner
    (folder / "notes").mkdir()
    (folder / "notes/today.txt").write_text("mine")
    (folder / "link").symlink_to("notes/today.txt")
    return folder


@pytest.fixture(params=[True, False], ids=["at-one-stroke", "in-two-renames"])
def at_one_stroke(request, monkeypatch):
    if request.param and sys.platform != "linux":
        pytest.skip("only Linux exchanges folders at one stroke")
    if not request.param:
        monkeypatch.setattr(module, "_exchange", lambda first, second: False)
    return request.param


def assert_saved(folder, version="newer"):
    assert version_of(folder) == version
    assert (folder / "notes/today.txt").read_text() == (folder / "link").read_text() == "mine"
    assert (folder / "link").is_symlink()
    assert not (folder / "replay/1.npz").exists()
    assert os.listdir(folder.parent) == [folder.name]


def test_what_is_replaced_keeps_the_rest(folder, at_one_stroke):
    mode = folder.stat().st_mode
    with replacing(folder, left_out=("replay",)) as new:
        write(new, "newer")
        assert version_of(folder) == "older"
    assert_saved(folder)
    assert folder.stat().st_mode == mode


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux exchanges folders at one stroke")
def test_there_is_a_checkpoint_at_every_moment(folder):
    """Before and after each call that a save makes."""
    moments = []

    def look(frame, event, argument):
        moments.append(all(os.path.exists(folder / name) for name in (FILES[0], "notes/today.txt")))

    sys.setprofile(look)
    try:
        save(folder, "newer")
    finally:
        sys.setprofile(None)
    assert len(moments) > 1_000
    assert all(moments)
    assert_saved(folder)


@pytest.mark.slow
def test_a_kill_at_any_step_leaves_one_whole_checkpoint_and_the_next_save_clears_up(folder, at_one_stroke):
    seen = []
    for step in itertools.count(1):
        save(folder, "older")
        assert_saved(folder, "older")
        if not killed_at(step, folder, *([] if at_one_stroke else ["one stroke"])):
            break
        if folder.exists():
            seen.append(version_of(folder))
            assert (folder / "notes/today.txt").read_text() == "mine"
        else:  # between the two renames
            assert not at_one_stroke
            (older,) = folder.parent.glob(".student.saving-*/older")
            assert version_of(older) == "older"
    assert step > 30
    assert seen[0] == "older"
    assert seen[-1] == "newer"
    assert_saved(folder)


@pytest.mark.slow
def test_a_saver_that_is_killed_while_it_clears_up_after_a_killed_one_loses_nothing(folder, tmp_path):
    """The first is killed between the two renames, where the older checkpoint has no place of its own."""
    (folder / "replay/mine.npz").write_text("mine")
    shutil.copytree(folder, tmp_path / "copy", symlinks=True)
    for step in itertools.count(1):
        assert killed_at(10**6, folder, "one stroke", "the second rename")
        assert not folder.exists()
        if not killed_at(step, folder, "one stroke"):
            break
        place = next(each for each in (folder, *folder.parent.glob(".student.saving-*/older")) if each.exists())
        assert version_of(place) in ("older", "newer")
        assert (place / "notes/today.txt").read_text() == (place / "replay/mine.npz").read_text() == "mine"
        for left in (*folder.parent.glob(".student.*"), folder):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
        shutil.copytree(tmp_path / "copy", folder, symlinks=True)
    assert step > 40
    assert version_of(folder) == "newer"
    shutil.rmtree(tmp_path / "copy")
    assert os.listdir(folder.parent) == ["student"]


@pytest.mark.slow
def test_a_first_save_that_is_killed_leaves_nothing_or_all(tmp_path):
    for step in itertools.count(1):
        was_killed = killed_at(step, tmp_path / str(step))
        if (tmp_path / str(step)).exists():
            assert version_of(tmp_path / str(step)) == "newer"
        if not was_killed:
            break
        save(tmp_path / str(step), "first")
        assert version_of(tmp_path / str(step)) == "first"
        shutil.rmtree(tmp_path / str(step))
        assert os.listdir(tmp_path) == []
    assert step > 20


def test_an_error_in_the_middle_leaves_the_older_one(folder, at_one_stroke, monkeypatch):
    with pytest.raises(OSError, match="No space"):
        save_on_a_full_disk(folder)
    assert version_of(folder) == "older"
    for name in ("_keep_the_rest", "_exchange"):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, full)
            with pytest.raises(OSError, match="No space"):
                save(folder, "newer")
        assert version_of(folder) == "older"
        assert os.listdir(folder.parent) == ["student"]


def test_a_rename_that_fails_puts_the_older_one_back(folder, monkeypatch):
    monkeypatch.setattr(module, "_exchange", lambda first, second: False)
    rename = Path.rename

    def fails(self, target):
        if self.name == "new":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="Input/output"):
        save(folder, "newer")
    assert version_of(folder) == "older"
    assert os.listdir(folder.parent) == ["student"]


def test_files_of_the_user_within_the_folders_of_a_checkpoint_stay(folder, at_one_stroke):
    """Whatever their names: a copied module has those of RLlib's files."""
    theirs = ["learner/old/module_state.pkl", "learner/gone/state.pkl", "eval_env_runner/state.pkl", "state.msgpack"]
    with replacing(folder, left_out=("replay",)) as new:
        write(new, "older")
        put(new, *theirs, "replay/2.npz", content="older")
    mine = ["learner/best/module_state.pkl", "learner/best/metadata.json", "learner/mine.txt", "learner/deep/er/0.npz"]
    mine += ["replay/mine.npz", "learner/old/class_and_ctor_args.pkl", "eval_env_runner/mine.txt", "metadata.json"]
    mine += ["env_runner", "rllib_checkpoint.json.d/state.pkl", "learner/best_checkpoint/rllib_kd_manifest.json"]
    put(folder, *mine)
    empty = ["learner/empty", "learner/old/empty", "class_and_ctor_args.pkl", "replay/3.npz"]
    for name in empty:
        (folder / name).mkdir()
    (folder / "learner/link").symlink_to("../state.pkl")
    (folder / "learner/link_to_folder").symlink_to("best")
    for version in ("newer", "newest"):
        save(folder, version)
        assert_saved(folder, version)
        assert {name: (folder / name).read_text() for name in mine} == dict.fromkeys(mine, "mine")
        assert all(os.listdir(folder / name) == [] for name in empty)
        assert (folder / "learner/link").is_symlink()
        assert (folder / "learner/link_to_folder").is_symlink()
        assert not any((folder / name).exists() for name in (*theirs, "replay/2.npz", "learner/gone"))


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("replay", "replay/0.npz"),  # a file of the user in the place of a folder
        ("replay/0.npz", "replay/0.npz"),
        ("replay/0.npz/mine.txt", "replay/0.npz"),  # a folder in the place of a file
        ("learner/rl_module", "learner/rl_module/s/state.pkl"),
    ],
)
def test_what_is_the_users_in_the_place_of_what_a_save_writes_is_not_replaced(tmp_path, name, written):
    folder = tmp_path / "student"
    with replacing(folder) as new:
        put(new, "rllib_checkpoint.json", content="older")
    put(folder, name)
    with (
        pytest.raises(
            ValueError, match=r"would replace '(replay|learner).*' in .* Move it .*, or save into a new folder"
        ),
        replacing(folder, left_out=("replay",)) as new,
    ):
        put(new, "rllib_checkpoint.json", written, content="newer")
    assert (folder / name).read_text() == "mine"
    assert (folder / "rllib_checkpoint.json").read_text() == "older"
    assert os.listdir(tmp_path) == ["student"]


@pytest.mark.parametrize(
    "manifest",
    [
        *(None, "", "[]", '{"files": 1}', '{"files": {"notes/today.txt": -1}}', "[" * 9_999),
        '{"files": {"rllib_checkpoint.json": true, "notes/today.txt": 1}}',
        '{"files": {}}',  # without what makes it a checkpoint
        '{"files": {"notes/today.txt": 1, "state.pkl": 1}}',
    ],
    ids=lambda text: str(text)[:50],
)
def test_of_a_checkpoint_without_a_manifest_only_what_the_new_one_has_is_replaced(folder, manifest):
    """As RLlib's own checkpoints, and those of earlier versions, are."""
    if manifest is None:
        (folder / MANIFEST).unlink()
    else:
        (folder / MANIFEST).write_text(manifest)
    kept = ["learner/best/module_state.pkl", "env_runner", "replay/mine.npz", "replay/deep/0.npz", "notes.pkl"]
    put(folder, *kept)
    put(folder, "state.msgpack", "learner/weights.pkl", content="older")
    save(folder, "newer")
    assert_saved(folder)
    assert {name: (folder / name).read_text() for name in kept} == dict.fromkeys(kept, "mine")
    assert not (folder / "state.msgpack").exists()  # RLlib would read this one instead of the new one


@pytest.mark.parametrize("listed", [[], ["mine.txt"], ["rllib_checkpoint.json.d"]])
def test_a_manifest_without_what_makes_a_checkpoint_refuses_no_later_save(tmp_path, listed):
    marks = ("rllib_checkpoint.json", "class_and_ctor_args.pkl")
    put(tmp_path, *marks, content="older")
    put(tmp_path, "mine.txt")
    (tmp_path / MANIFEST).write_text(json.dumps({"files": dict.fromkeys(listed, 1)}))
    for version in ("newer", "newest"):
        with replacing(tmp_path) as new:
            put(new, *marks, content=version)
        assert {(tmp_path / name).read_text() for name in marks} == {version}
        assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_manifest_of_others_cannot_reach_outside(folder):
    put(folder.parent, "mine.txt")
    names = ["../mine.txt", str(folder.parent / "mine.txt"), "", ".", "..", "/", "notes", "learner/../notes/today.txt"]
    (folder / MANIFEST).write_text(json.dumps({"files": dict.fromkeys([*names, *FILES, "replay/1.npz"], 1)}))
    save(folder, "newer")
    assert (folder.parent / "mine.txt").read_text() == "mine"
    (folder.parent / "mine.txt").unlink()
    assert_saved(folder)


def test_folders_of_the_user_beside_it_stay(folder):
    names = ["student.previous", "student.saving", ".student.saving-mine", ".student.saving-abcdefgh", "student2"]
    for name in names:
        (folder.parent / name).mkdir()
        (folder.parent / name / "data").write_text("mine")
    save(folder, "newer")
    assert version_of(folder) == "newer"
    assert sorted(os.listdir(folder.parent)) == sorted(["student", *names])
    assert all((folder.parent / name / "data").read_text() == "mine" for name in names)


def test_a_link_stays_a_link_to_the_new_checkpoint(folder):
    latest = folder.parent / "latest"
    latest.symlink_to("student")
    save(latest, "newer")
    assert os.readlink(latest) == "student"
    latest.unlink()
    assert_saved(folder)


def test_several_savers_of_one_path_leave_one_whole_checkpoint(folder, at_one_stroke):
    threads = [threading.Thread(target=lambda i=i: [save(folder, f"{i}") for _ in range(10)]) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
    assert_saved(folder, version_of(folder))


def test_a_working_folder_that_somebody_may_hold_is_left_alone(folder, monkeypatch):
    assert killed_at(20, folder)
    (left,) = folder.parent.glob(".student.saving-*")
    with monkeypatch.context() as patch:
        patch.setattr("rllib_kd.locks.fcntl", None)  # no locks: nobody knows whether its saver lives
        save(folder, "newer")
        assert left.exists()
    save(folder, "newest")
    assert_saved(folder, "newest")


def test_without_hard_links_the_rest_is_copied(folder, monkeypatch):
    def link(*args, **kwargs):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    save(folder, "newer")
    assert_saved(folder)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux exchanges folders at one stroke")
def test_here_folders_change_places_at_one_stroke(tmp_path):
    """The other tests would pass without it."""
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert module._exchange(tmp_path / "a", tmp_path / "b")
    assert os.listdir(tmp_path / "a") == ["b"]
    assert not module._exchange(tmp_path / "a", tmp_path / "nowhere")
