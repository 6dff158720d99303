"""Files, folders and archives that would take much are refused: in 2 s of processor time, and 300 MB."""

import io
import os
import struct
import zipfile

import gymnasium as gym
import pytest
import safetensors.torch
import torch

from rllib_kd import limits, load_teacher
from rllib_kd.checkpoints.pickles import CheckpointError
from rllib_kd.checkpoints.tune import resolve
from rllib_kd.observations.pipeline import ObservationPipeline
from rllib_kd.teachers.base import Teacher
from rllib_kd.teachers.ensemble import ensemble_of
from rllib_kd.teachers.recognition import find
from tests.checkpoints.hostile import MODULE, refused, write_rllib
from tests.conftest import CARTPOLE_OBS, make_q_module
from tests.formats import mlp, sb3_weights, sb3_zip
from tests.fuzzing.workers import measure_apart


@pytest.mark.parametrize("head", [b"", b"PK\3\4", b"\x08\x09", b"\x80\x04", struct.pack("<Q", 100) + b"{"])
def test_files_of_gigabytes_of_nothing(tmp_path, head):
    for size in (2**31, 2**38):
        with open(tmp_path / "a", "wb") as file:
            file.write(head)
            file.truncate(size)
        refused(lambda: load_teacher(tmp_path / "a"))


def test_a_file_of_zeros_is_known_by_its_first_bytes(tmp_path):
    with open(tmp_path / "a", "wb") as file:
        file.truncate(limits.MAX_FILE - 1)
    outcome = measure_apart(lambda: load_teacher(tmp_path / "a"))
    assert outcome.verdict == "refused"
    assert outcome.megabytes < 50


def test_pickles_of_zeros_are_known_by_their_first_bytes(tmp_path):
    write_rllib(tmp_path)
    with open(tmp_path / MODULE / "module_state.pkl", "wb") as file:
        file.truncate(limits.MAX_FILE - 1)
    outcome = measure_apart(lambda: load_teacher(tmp_path))
    assert outcome.verdict == "refused"
    assert outcome.megabytes < 100


@pytest.mark.parametrize("kind", ["a pipe", "a device", "a loop"])
def test_what_is_no_file(tmp_path, kind):
    path = tmp_path / "a"
    if kind == "a pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "a device" else "a")
    refused(lambda: load_teacher(path))


def test_a_folder_with_too_much_in_it(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "MAX_ENTRIES", 100)
    for i in range(101):
        (tmp_path / f"{i}").mkdir()
    with pytest.raises(CheckpointError, match="contains more than 100 files and folders"):
        load_teacher(tmp_path)


def test_names_as_long_as_can_be(tmp_path):
    """The name of a file beside it would be too long: it is not there."""
    path = sb3_zip(tmp_path / ("a" * 250 + ".zip"), sb3_weights(mlp(4, 8, 2)), CARTPOLE_OBS, 2)
    assert load_teacher(path).action_space.n == 2
    (tmp_path / ("b" * 254)).write_bytes(safetensors.torch.save({"w": torch.zeros(2, 4)}))
    with pytest.raises(CheckpointError):
        load_teacher(tmp_path / ("b" * 254))


ESCAPE = "a\x1b[31m\nb"  # would colour a terminal


def test_warnings_of_statistics(tmp_path, caplog, monkeypatch):
    path = sb3_zip(tmp_path / f"{ESCAPE}.zip", sb3_weights(mlp(4, 8, 2)), CARTPOLE_OBS, 2)
    (tmp_path / f"{ESCAPE}_normalize.pkl").write_bytes(b"")
    (tmp_path / f"{ESCAPE}_vecnormalize.pkl").write_bytes(b"")
    found = find(resolve(path))
    found.vec_normalize()
    (message,) = caplog.messages
    assert message.isprintable()
    assert "To use another file for this zip, replace 'a" in message
    caplog.clear()
    monkeypatch.setattr(limits, "MAX_ENTRIES", 2)
    found.vec_normalize()
    assert not caplog.messages


def test_messages_about_teachers_are_one_line():
    teacher = Teacher(make_q_module(fcnet_hiddens=[8]), source=ESCAPE)
    pipeline = ObservationPipeline(gym.spaces.Box(-1, 1, (3,)), ())
    three = Teacher(make_q_module(fcnet_hiddens=[8]), pipeline=pipeline, source=ESCAPE)
    for check in (three.checked, lambda: ensemble_of([teacher, three])):
        with pytest.raises(ValueError, match=r"The connectors of|An ensemble is for one") as error:
            check()
        assert str(error.value).isprintable()


def test_a_folder_of_links_to_itself(tmp_path):
    for i in range(20):
        (tmp_path / f"{i}").symlink_to(tmp_path)
    (tmp_path / "x").symlink_to("x")
    refused(lambda: load_teacher(tmp_path))


def test_archives_of_many_files(tmp_path):
    with zipfile.ZipFile(tmp_path / "a", "w") as archive:
        for i in range(limits.MAX_ARCHIVE_ENTRIES + 1):
            archive.writestr(f"{i}", b"")
    refused(lambda: load_teacher(tmp_path / "a"))


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_uncommonly_packed_archives(tmp_path, method):
    path = sb3_zip(tmp_path / "a.zip", sb3_weights(mlp(4, 8, 2)), CARTPOLE_OBS, 2)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "b", "w", method) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(CheckpointError, match="packed in an uncommon way"):
        load_teacher(tmp_path / "b")


def test_files_that_lie_over_each_other(tmp_path):
    """One packed file under many names: the directory of an archive may point to it as often as it likes."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(2**20))
    data = content.getvalue()
    directory = data.index(b"PK\1\2")
    entry, end = data[directory : data.index(b"PK\5\6")], data.index(b"PK\5\6")
    entries = b"".join(entry.replace(b"a/data.pkl", b"a/data/%03d" % i) for i in range(900)) + entry
    tail = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 901, 901, len(entries), directory, 0)
    assert end
    (tmp_path / "a").write_bytes(data[:directory] + entries + tail)
    refused(lambda: load_teacher(tmp_path / "a"))
