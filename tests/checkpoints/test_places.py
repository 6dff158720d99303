"""Where a checkpoint may be saved: first ones, volumes, and places that are refused."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rllib_kd.checkpoints import replacing as module
from rllib_kd.checkpoints.manifest import MANIFEST
from rllib_kd.checkpoints.replacing import replacing
from rllib_kd.checkpoints.replay_files import local_folder
from tests.checkpoints.savers import FILES, killed_at, put, save, save_on_a_full_disk, version_of
from tests.conftest import make_q_module


def test_the_folder_of_a_module_is_no_checkpoint(tmp_path):
    """It has one of an Algorithm's files."""
    make_q_module(fcnet_hiddens=[8]).save_to_path(str(tmp_path / "module"))
    content = (tmp_path / "module/class_and_ctor_args.pkl").read_bytes()
    with pytest.raises(ValueError, match="holds no checkpoint, but other files"), replacing(tmp_path / "module") as new:
        put(new, "class_and_ctor_args.pkl", "rllib_checkpoint.json")
    assert (tmp_path / "module/class_and_ctor_args.pkl").read_bytes() == content


@pytest.mark.parametrize("made", ["rllib_checkpoint.json", "class_and_ctor_args.pkl"])
def test_a_folder_with_the_name_of_a_mark_makes_no_checkpoint(tmp_path, made):
    put(tmp_path / "student", f"{made}/mine.txt", "replay/mine.npz", "state.pkl")
    with pytest.raises(ValueError, match="holds no checkpoint, but other files"):
        save(tmp_path / "student", "first")
    assert (tmp_path / "student/replay/mine.npz").exists()
    assert (tmp_path / f"student/{made}/mine.txt").exists()


@pytest.mark.parametrize("place", ["file/x", "file/deep/x"])
def test_nothing_is_saved_below_a_file(tmp_path, place):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"but '.*/file' above '.*/x' is a file. Name another path"):
        save(tmp_path / place, "first")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("~nosuchuser/x", "begins with a home folder that is not known here"),
        ("", "A path is empty"),
        ("a\0b", "A path cannot contain a null character, got 'a\N{REPLACEMENT CHARACTER}b'. Name another path."),
        ("file:///a%00b", "A path cannot contain a null character"),
        (
            "b/" + "a" * 256,
            "is too long: it has 258 bytes, and its longest name 256. Expected at most 4095, and 255",
        ),
        ("é" * 128, "its longest name 256"),
        ("a/" * 2500, "is too long: it has 5000 bytes, and its longest name 1"),
        ("file:///" + "a" * 5000, "is too long: it has 5001 bytes"),
        ("\ud800", r"A path must be in UTF-8, got '\ud800'"),
        ("\udcff", r"A path must be in UTF-8, got '\udcff'"),
    ],
    ids=lambda text: ascii(text)[:20],
)
def test_a_path_that_means_nothing_is_an_error_of_one_line(path, message):
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        local_folder(path, None)
    assert len(str(raised.value)) < 500
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["a\0b", "a" * 5000, "a" * 250, "a/" * 2500], ids=lambda name: ascii(name)[:9])
def test_a_place_that_cannot_be_is_an_error_of_one_line(tmp_path, name):
    with pytest.raises(
        (ValueError, OSError), match=r"null character|is too long|can be saved to '.*': File name too long"
    ):
        save(tmp_path / name, "first")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("function", ["locked", "tempfile.mkdtemp"])
def test_where_nothing_can_be_made_is_an_error_that_names_the_place(tmp_path, monkeypatch, function):
    """As in /proc, where even root may make nothing."""

    def fails(*args, **kwargs):
        raise FileNotFoundError(2, "No such file or directory", "/proc/.x.lock")

    monkeypatch.setattr(f"rllib_kd.checkpoints.replacing.{function}", fails)
    message = (
        f"No checkpoint can be saved to '{tmp_path}/x': No such file or directory. Name a folder that can be written"
    )
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        save(tmp_path / "x", "first")


def test_a_link_to_nowhere_gets_its_folder(tmp_path):
    (tmp_path / "latest").symlink_to("models/student")
    save(tmp_path / "latest", "first")
    assert version_of(tmp_path / "models/student") == "first"
    assert (tmp_path / "latest").is_symlink()


@pytest.mark.parametrize("there", ["nothing", "an empty folder"])
def test_a_first_checkpoint_comes_whole_or_not_at_all(tmp_path, there):
    folder = tmp_path / "deep" / "student"
    if there != "nothing":
        folder.mkdir(parents=True)
    with pytest.raises(OSError, match="No space"):
        save_on_a_full_disk(folder)
    assert folder.exists() == (there != "nothing")
    save(folder, "first")
    assert version_of(folder) == "first"
    assert os.listdir(folder.parent) == ["student"]
    umask = os.umask(0)
    os.umask(umask)
    assert folder.stat().st_mode & 0o777 == 0o777 & ~umask


def test_a_file_is_not_replaced(tmp_path):
    (tmp_path / "student").write_text("mine")
    with pytest.raises(ValueError, match=r"A checkpoint is a folder, but '.*student' is a file. Name another path"):
        save(tmp_path / "student", "newer")
    assert (tmp_path / "student").read_text() == "mine"
    assert os.listdir(tmp_path) == ["student"]


def test_files_of_the_user_where_no_checkpoint_is_stay(tmp_path):
    folder = tmp_path / "student"
    folder.mkdir()
    (folder / "readme.md").write_text("mine")
    save(folder, "first")
    assert version_of(folder) == "first"
    assert (folder / "readme.md").read_text() == "mine"


@pytest.mark.parametrize("name", ["state.pkl", "replay", "learner"])
def test_files_of_the_user_with_the_names_of_a_checkpoints_are_not_replaced(tmp_path, name):
    folder = tmp_path / "student"
    (folder / name).mkdir(parents=True)
    (folder / name / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=f"no checkpoint, but other files, .*'{name}'. Save into a new folder"):
        save(folder, "first")
    assert [str(path.relative_to(folder)) for path in folder.rglob("*")] == [name, f"{name}/mine.txt"]
    assert os.listdir(tmp_path) == ["student"]


AS_NOBODY = """
import os, sys
from tests.checkpoints.savers import save
os.setgid(65534); os.setuid(65534)
try:
    save(sys.argv[1], "newer")
except OSError as error:
    print(f"{type(error).__name__}: {error}")
"""


@pytest.fixture
def read_only(tmp_path_factory):
    """A folder to which only root may write, with one below it to which all may."""
    if os.name != "posix" or os.getuid() != 0:
        pytest.skip("only root can become somebody who may not write")
    parent = tmp_path_factory.mktemp("read_only")
    for folder in (parent, *list(parent.parents)[:-2]):
        folder.chmod(folder.stat().st_mode | 0o055)
    (parent / "volume").mkdir()
    (parent / "volume").chmod(0o777)
    return parent


def save_as_nobody(path):
    command = [sys.executable, "-c", AS_NOBODY, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_folder_that_is_read_only_is_an_error_of_one_line(read_only):
    assert save_as_nobody(read_only / "student").startswith("PermissionError: ")
    assert os.listdir(read_only) == ["volume"]


@pytest.fixture
def volume(tmp_path, monkeypatch):
    """A folder beside which nothing can be written."""
    monkeypatch.setattr(module, "_can_be_replaced", lambda folder: False)
    (tmp_path / "volume").mkdir()
    put(tmp_path, "volume/mine.txt")
    return tmp_path / "volume"


def test_a_first_checkpoint_in_a_volume_replaces_no_file_of_the_user(volume):
    save(volume / "deep", "first")  # there is no such folder yet
    put(volume, "replay/mine.npz")
    with pytest.raises(ValueError, match=r"holds no checkpoint, but other files, .*'replay'"):
        save(volume, "first")
    assert sorted(os.listdir(volume)) == ["deep", "mine.txt", "replay"]
    assert os.listdir(volume / "replay") == ["mine.npz"]


def test_a_first_checkpoint_in_a_volume_is_not_left_half_written(volume):
    with pytest.raises(OSError, match="No space"):
        save_on_a_full_disk(volume)
    assert os.listdir(volume) == ["mine.txt"]
    for step in range(1, 18, 2):
        assert killed_at(step, volume)  # before it moves what it has written
        assert not (volume / "rllib_checkpoint.json").exists()
    save(volume, "first")
    assert version_of(volume) == "first"
    assert sorted(os.listdir(volume)) == sorted([MANIFEST, "learner", "mine.txt", "replay", *FILES[:2]])


def test_a_volume_takes_a_first_checkpoint_and_keeps_it(read_only):
    volume = read_only / "volume"
    assert save_as_nobody(volume) == ""
    assert version_of(volume) == "newer"
    assert "Save into a new folder within it." in save_as_nobody(volume)
    assert os.listdir(read_only) == ["volume"]


@pytest.mark.parametrize("inner", ["", "deeper"])
def test_the_folder_in_which_the_process_works_is_not_pulled_away(tmp_path, monkeypatch, inner):
    (tmp_path / "deeper").mkdir()
    (tmp_path / "mine.txt").write_text("mine")
    monkeypatch.chdir(tmp_path / inner)
    with pytest.raises(ValueError, match="is the folder in which this process works, or above it"), replacing(tmp_path):
        pass
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("root", ["/", "//", "/.."])
def test_the_root_of_the_filesystem_is_no_place(root):
    message = "'/' is the folder in which this process works, or above it"
    with pytest.raises(ValueError, match=re.escape(message)), replacing(root):
        pytest.fail("something would have been written")


@pytest.mark.parametrize("place", ["one", "two", "one/deep/x"])
def test_links_in_a_circle_are_no_place(tmp_path, place):
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    message = f"is a link that leads back to itself, so '{tmp_path / place}' is not a folder. Name another path."
    with pytest.raises(ValueError, match=re.escape(message)) as raised, replacing(tmp_path / place):
        pytest.fail("something would have been written")
    assert "\n" not in str(raised.value)
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]
