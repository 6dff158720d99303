"""Checkpoints of which a full disk has kept a half: they are skipped where there are others."""

import json
import os
import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pyarrow.fs
import pytest

from rllib_kd.checkpoints.manifest import MANIFEST, parse_manifest, write_manifest
from rllib_kd.checkpoints.tune import resolve
from rllib_kd.checkpoints.whole import lacking
from tests.conftest import make_q_module

LOCAL = pyarrow.fs.LocalFileSystem()
FILES = (
    "algorithm_state.pkl",
    "class_and_ctor_args.pkl",
    "learner_group/class_and_ctor_args.pkl",
    "learner_group/metadata.json",
    "learner_group/state.pkl",
    "learner_group/learner/rl_module/default_policy/module_state.pkl",
    "replay/0.npz",
    "rllib_checkpoint.json",
)


def write(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        np.savez(path, obs=np.zeros(10))
    else:
        path.write_bytes(
            json.dumps({"a": 1}).encode() if path.suffix == ".json" else pickle.dumps({"weights": [0.5] * 99})
        )


@pytest.fixture
def trial(tmp_path):
    """A trial with three checkpoints; the last one is the best, and the newest."""
    folder = tmp_path / "experiment" / "trial"
    rows = []
    for number in range(3):
        for name in FILES:
            write(folder / f"checkpoint_{number:06}" / name)
        returns = {"env_runners": {"episode_return_mean": float(number)}}
        name = f"checkpoint_{number:06}"
        rows.append({"training_iteration": number + 1, "checkpoint_dir_name": name, "evaluation": returns})
    (folder / "result.json").write_text("\n".join(map(json.dumps, rows)))
    return folder


def best(trial):
    return resolve(trial.parent).path.rpartition("/")[2]


def newest(trial):
    return resolve(f"{trial}@newest").path.rpartition("/")[2]


@pytest.mark.parametrize("choose", [best, newest])
def test_a_whole_one_is_chosen_without_a_word(trial, caplog, choose):
    assert choose(trial) == "checkpoint_000002"
    assert not caplog.text


@pytest.mark.parametrize("choose", [best, newest])
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["half", "empty"])
def test_one_with_half_a_file_is_skipped_with_a_warning(trial, caplog, choose, name, how):
    file = trial / "checkpoint_000002" / name
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] if how == "half" else b"")
    assert choose(trial) == "checkpoint_000001"
    (record,) = caplog.records
    assert str(trial / "checkpoint_000002") in record.getMessage()
    assert f"its {name} ends in the middle" in record.getMessage()


@pytest.mark.parametrize("choose", [best, newest])
@pytest.mark.parametrize(
    ("removed", "said"),
    [
        (("rllib_checkpoint.json",), "it has no rllib_checkpoint.json"),
        (("learner_group/learner/rl_module/default_policy/module_state.pkl",), "it has no networks"),
        (("algorithm_state.pkl",), "the state in its folder is missing"),
        (("class_and_ctor_args.pkl",), "its class_and_ctor_args.pkl is missing"),
        (("learner_group/state.pkl",), "the state in its learner_group is missing"),
        (("learner_group/class_and_ctor_args.pkl",), "its learner_group/class_and_ctor_args.pkl is missing"),
        (FILES, "it has no rllib_checkpoint.json"),
    ],
)
def test_one_that_lacks_files_is_skipped_too(trial, caplog, choose, removed, said):
    for name in removed:
        (trial / "checkpoint_000002" / name).unlink()
    assert choose(trial) == "checkpoint_000001"
    assert said in caplog.text


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["removed", "cut", "empty"])
def test_a_manifest_names_whatever_is_cut_off(trial, caplog, name, how):
    write_manifest(trial / "checkpoint_000002")
    assert best(trial) == "checkpoint_000002"
    file = trial / "checkpoint_000002" / name
    if how == "removed":
        file.unlink()
    else:
        file.write_bytes(b"" if how == "empty" else file.read_bytes()[:-1])
    if how == "removed" and name == "replay/0.npz":  # to save space: it fills again
        assert best(trial) == "checkpoint_000002"
        return
    assert best(trial) == "checkpoint_000001"
    assert re.search(f"its {name} (ends in the middle|is missing)|it has no {name}", caplog.text)


@pytest.mark.parametrize("has_manifest", [True, False])
def test_files_of_the_user_make_no_checkpoint_half(trial, caplog, has_manifest):
    folder = trial / "checkpoint_000002"
    if has_manifest:
        write_manifest(folder)
    mine = ("notes.json", "plots/metadata.json", "learner_group/list.json", "empty.pkl", "learner_group/mine/x.npz")
    for name in mine:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("")
    (folder / "link").symlink_to("nowhere")
    if sys.platform == "linux":  # others take only names in UTF-8
        for place in (folder, folder / "learner_group", trial, trial.parent):
            os.mkdir(os.fsencode(place) + b"/\xff")
            os.mknod(os.fsencode(place) + b"/\xff.pkl")
    assert best(trial) == "checkpoint_000002"
    assert not caplog.text
    (folder / "algorithm_state.pkl").write_bytes(b"")
    assert best(trial) == "checkpoint_000001"


@pytest.mark.parametrize("manifest", ["", "[]", '{"files": 1}', '{"files": {"x": "1"}}', '{"files": {}}', "[" * 9_999])
def test_a_broken_manifest_counts_as_none(trial, manifest):
    (trial / "checkpoint_000002" / MANIFEST).write_text(manifest)
    assert best(trial) == "checkpoint_000002"
    (trial / "checkpoint_000002" / "algorithm_state.pkl").write_bytes(b"")
    assert best(trial) == "checkpoint_000001"


def test_sizes_in_a_manifest_are_integers():
    assert parse_manifest(b'{"files": {"a": 1}}', present=()) == {"a": 1}
    for size in (b"true", b"1.0", b"-1", b"null", b'"1"'):
        assert parse_manifest(b'{"files": {"a": %s}}' % size, present=()) is None


def test_links_that_lead_in_circles_take_no_time(trial):
    folder = trial / "checkpoint_000002" / "learner_group" / "circles"
    folder.mkdir()
    for number in range(30):  # 30^5 folders
        (folder / str(number)).symlink_to(".")
    assert best(trial) == "checkpoint_000002"


def test_the_checkpoint_of_a_module_counts_as_whole_until_it_is_cut_off(tmp_path):
    make_q_module(fcnet_hiddens=[8]).save_to_path(str(tmp_path / "module"))
    assert lacking(LOCAL, str(tmp_path / "module")) is None
    (tmp_path / "module" / "module_state.pkl").unlink()
    assert lacking(LOCAL, str(tmp_path / "module")) == "the state in its folder is missing"


@pytest.mark.parametrize("name", ["student", "family", "td"])
def test_checkpoints_of_earlier_versions_count_as_whole(name):
    assert lacking(LOCAL, str(Path(__file__).parent / "rllib_kd-0.2" / name)) is None


def test_several_are_skipped_and_each_is_named(trial, caplog):
    for number in (1, 2):
        (trial / f"checkpoint_{number:06}" / "algorithm_state.pkl").write_bytes(b"")
    assert newest(trial) == "checkpoint_000000"
    assert "checkpoint_000001" in caplog.text
    assert "checkpoint_000002" in caplog.text


@pytest.mark.parametrize("choose", [best, newest])
def test_if_none_is_whole_it_is_left_to_the_reader_to_say_why(trial, caplog, choose):
    for number in range(3):
        (trial / f"checkpoint_{number:06}" / "algorithm_state.pkl").write_bytes(b"")
    assert choose(trial) == "checkpoint_000002"
    assert not caplog.text


def test_what_is_none_of_an_algorithms_counts_as_whole(tmp_path):
    assert lacking(LOCAL, str(tmp_path)) == "it is empty"
    (tmp_path / "model.pt").write_bytes(b"")
    assert lacking(LOCAL, str(tmp_path)) is None
    assert lacking(LOCAL, str(tmp_path / "missing")) is None


def test_names_in_a_manifest_neither_steer_a_terminal_nor_fill_it(trial, caplog):
    newest_one = trial / "checkpoint_000002"
    names = ["a\nFAKE LINE\x1b[31mred", "\ud800" + "x" * 300_000]
    for name in names:
        written = {"rllib_checkpoint.json": 1, "class_and_ctor_args.pkl": 1, name: 5}
        (newest_one / MANIFEST).write_text(json.dumps({"files": written}))
        assert newest(trial) == "checkpoint_000001"
    for record in caplog.records:
        assert record.getMessage().isprintable()
        assert len(record.getMessage()) < 1_500
    assert len(caplog.records) == 2
