"""Paths in messages are as short as they can be, and mean the same place."""

import os

import pytest

from rllib_kd.checkpoints.uris import absolute_uri
from rllib_kd.environments.imports import absolute
from rllib_kd.paths import replace_file, tidied


@pytest.mark.parametrize(
    ("path", "short"),
    [
        ("x/../y", "y"),
        ("./runs//a/./b/", "runs/a/b"),
        ("//runs/a", "/runs/a"),
        ("../y", "../y"),
        (".", "."),
        ("s3://bucket//x/../y", "s3://bucket//x/../y"),  # the names of objects
    ],
)
def test_a_path_is_shown_in_its_shortest_form(path, short):
    assert tidied(path) == short


def test_behind_a_link_the_folder_above_is_another(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b")
    monkeypatch.chdir(tmp_path)
    assert tidied("link/../y") == "link/../y"
    assert tidied("a/../link/y") == "link/y"


@pytest.mark.parametrize("make", [absolute_uri, absolute])
def test_an_absolute_path_is_short(tmp_path, monkeypatch, make):
    monkeypatch.chdir(tmp_path)
    assert make("x/..//./y/env.py") == f"{tmp_path}/y/env.py"


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    replace_file(path, b"old")
    monkeypatch.setattr(os, "replace", lambda *args: pytest.fail("too soon"))
    with pytest.raises(TypeError):
        replace_file(path, "no bytes")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_the_older_file_and_is_named_with_it(tmp_path, fill_disk):
    path = tmp_path / "file"
    replace_file(path, b"old")
    fill_disk("file")
    with pytest.raises(OSError, match=rf"No space left on device: '{path}'$"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_file_that_cannot_be_made_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"'{tmp_path}/none/file'$"):
        replace_file(tmp_path / "none" / "file", b"new")


def test_links_stay_links_and_devices_stay_devices(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    replace_file(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"new"
    replace_file(os.devnull, b"new")
    assert not os.path.isfile(os.devnull)


def test_a_pipe_is_written_to():
    reader, writer = os.pipe()
    replace_file(f"/dev/fd/{writer}", b"new")
    os.close(writer)
    with open(reader, "rb") as pipe:
        assert pipe.read() == b"new"


def test_a_replaced_file_keeps_its_mode(tmp_path):
    path = tmp_path / "file"
    path.touch()
    path.chmod(0o640)
    replace_file(path, b"new")
    assert path.stat().st_mode & 0o777 == 0o640
