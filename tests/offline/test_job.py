"""Jobs that label files: what is written, skipped and refused."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rllib_kd.offline.job import LabelFiles, LabelJob
from rllib_kd.offline.labelling import Labeller
from rllib_kd.offline.schema import DataError, to_table
from rllib_kd.teachers.base import Teacher
from rllib_kd.wire import LOG_PROBS
from tests.conftest import states
from tests.offline.recorded import label_here, lists, read, rows, teacher, write_parquet


def q_of(policy: Teacher, obs: np.ndarray) -> np.ndarray:
    return policy.q_values(torch.as_tensor(obs)).numpy()


def written(path: Path) -> tuple[int, int]:
    """Which file it is, and when it was written."""
    return path.stat().st_ino, path.stat().st_mtime_ns


def make_old(path: Path) -> None:
    """Nothing was written to it for an hour."""
    os.utime(path, (time.time() - 3_600,) * 2)


def test_a_labelled_file_for_each_recorded_one(tmp_path):
    policy = teacher()
    first = write_parquet(tmp_path / "in" / "a.parquet", rows(), infos=["left out"] * 10)
    write_parquet(tmp_path / "in" / "deep" / "b.parquet", rows(7, seed=1), infos=["left out"] * 7)
    (tmp_path / "in" / "_SUCCESS").write_text("")

    job = LabelJob(policy, str(tmp_path / "in"), str(tmp_path / "out"), batch_size=3, env="CartPole-v1")
    assert label_here(job) == [10, 7]

    labelled = read(tmp_path / "out" / "a.parquet")
    assert list(labelled) == ["obs", "actions", "rewards", "terminateds", "eps_id", "t", "teacher_q"]
    for name, values in rows().items():
        np.testing.assert_array_equal(labelled[name], values)
    np.testing.assert_allclose(labelled["teacher_q"], q_of(policy, rows()["obs"]), rtol=1e-5)
    assert len(read(tmp_path / "out" / "deep" / "b.parquet")["obs"]) == 7
    assert job.plan.schema.env == "CartPole-v1"
    assert job.plan.schema.teacher == "the teacher"
    assert first.exists()


def test_finished_files_are_skipped_and_unfinished_ones_removed(tmp_path):
    for name in ("a", "b"):
        write_parquet(tmp_path / "in" / f"{name}.parquet", rows())
    where = str(tmp_path / "in"), str(tmp_path / "out")
    label_here(LabelJob(teacher(), *where))
    before = written(tmp_path / "out" / "a.parquet")
    killed = tmp_path / "out" / f".b.parquet.{'0' * 32}.part"  # before it was renamed
    (tmp_path / "out" / "b.parquet").rename(killed)
    make_old(killed)

    job = LabelJob(teacher(), *where)
    assert [file.name for file in job.remaining] == ["b.parquet"]
    label_here(job)
    assert LabelJob(teacher(), *where).run().num_skipped == 2  # without Ray

    assert sorted(os.listdir(tmp_path / "out")) == ["a.parquet", "b.parquet"]
    assert written(tmp_path / "out" / "a.parquet") == before


def test_unfinished_files_of_other_jobs_stay(tmp_path):
    write_parquet(tmp_path / "in" / "deep" / "a.parquet", rows())
    where = str(tmp_path / "in"), str(tmp_path / "out")
    label_here(LabelJob(teacher(), *where))
    old, new, other = (
        tmp_path / "out" / "deep" / f".{name}.parquet.{digit * 32}.part"
        for name, digit in (("a", "0"), ("a", "1"), ("b", "2"))
    )
    for part in (old, new, other):
        part.write_text("")
    for part in (old, other):
        make_old(part)
    LabelJob(teacher(), *where).run()
    assert [part.exists() for part in (old, new, other)] == [False, True, True]


def test_a_file_that_was_finished_by_a_lost_actor_is_not_written_twice(tmp_path):
    write_parquet(tmp_path / "in" / "a.parquet", rows())
    job = LabelJob(teacher(), str(tmp_path / "in"), str(tmp_path / "out"))
    label_here(job)
    before = written(tmp_path / "out" / "a.parquet")

    assert label_here(job) == [10]
    assert written(tmp_path / "out" / "a.parquet") == before


def test_a_file_that_fails_leaves_nothing_and_names_the_row(tmp_path):
    obs = rows(5_000)["obs"]
    obs[4_321, 2] = np.nan
    write_parquet(tmp_path / "in" / "a.parquet", rows(5_000), obs=obs)
    job = LabelJob(teacher(), str(tmp_path / "in"), str(tmp_path / "out"), batch_size=1_000)

    done = LabelFiles(job.plan)({"path": [job.remaining[0].path], "name": ["a.parquet"]})
    assert done["is_data"] == [True]
    assert "a.parquet', column 'obs': row 4321: has the number nan" in done["error"][0]
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"obs": states(10)[:, :3]},
            r"column 'obs': list\[3\]<float> of 3 numbers; in the files before it: list\[4\]<f",
        ),
        ({"obs": states(10).astype(np.float64)}, r"column 'obs': list\[4\]<double>"),
        ({"rewards": None}, "column 'rewards': is missing; in the files before it: double"),
        ({"truncateds": np.zeros(10, bool)}, "column 'truncateds': bool.*; in the files before it: is missing"),
        ({"actions": np.arange(10)}, "column 'actions': has actions from 0 to 9, but the teacher's are 0 to 1"),
        ({"obs": None}, "column 'obs': is missing; the file has 'actions', 'rewards'"),
        ({"eps_id": np.arange(10)}, "column 'eps_id': int64"),
        ({"obs": pa.array([[0.0] * 4] * 9 + [[0.0] * 3])}, "column 'obs': has 39 numbers in 10 rows"),
    ],
)
def test_a_file_unlike_the_others_is_refused_before_any_is_labelled(tmp_path, changes, message):
    for name in "abc":
        write_parquet(tmp_path / "in" / f"{name}.parquet", rows(), **(changes if name == "c" else {}))

    with pytest.raises(DataError, match=message) as error:
        LabelJob(teacher(), str(tmp_path / "in"), str(tmp_path / "out"))
    assert "c.parquet'" in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"obs": states(10)[:, :3]}, r"column 'obs': has observations of the shape \[3\]; the teacher takes Box\(4,\)"),
        ({"obs": np.full((10, 4), np.inf, np.float32)}, "column 'obs': row 0: has the number inf"),
        ({"obs": pa.array(["text"] * 10)}, "column 'obs': has object; the teacher takes"),
        ({"obs": pa.array([b"\x80\x05."] * 10)}, "column 'obs': has the type binary.*pickles"),
        ({"obs": pa.array([[0.0] * 4] * 9 + [None])}, "column 'obs': has 37 numbers in 10 rows"),
        ({"rewards": np.full(10, np.nan)}, "column 'rewards': row 0: has the number nan"),
        ({"rewards": pa.array([1.0, None] * 5)}, "column 'rewards': has no value in row 1"),
        ({"actions": np.linspace(0, 1, 10)}, "column 'actions': row 1: has 0.11.*; expected integers"),
        ({"actions": states(10)[:, :2]}, r"column 'actions': has the shape \[10, 2\]; expected \[10\]"),
        ({"terminateds": np.arange(10)}, "column 'terminateds': row 2: has 2; expected zeros and ones"),
        ({"action_mask": np.ones((10, 3), bool)}, "column 'action_mask': is of 3 actions, but the teacher has 2"),
        ({"action_mask": np.zeros((10, 2), bool)}, "column 'action_mask': row 0: allows no action"),
    ],
)
def test_data_of_another_kind_than_the_teachers_are_refused(tmp_path, changes, message):
    write_parquet(tmp_path / "in" / "a.parquet", rows(), **changes)

    with pytest.raises(DataError, match=message) as error:
        LabelJob(teacher(), str(tmp_path / "in"), str(tmp_path / "out"))
    assert "a.parquet'" in str(error.value)


def test_labels_of_another_teacher_and_changed_files_are_refused(tmp_path):
    recorded = write_parquet(tmp_path / "in" / "a.parquet", rows())
    write_parquet(tmp_path / "in" / "b.parquet", rows())
    where = str(tmp_path / "in"), str(tmp_path / "out")
    label_here(LabelJob(teacher(), *where))

    with pytest.raises(DataError, match=r"out/a.parquet', column 'teacher_q': .*fingerprint.*Name another --output"):
        LabelJob(teacher(seed=1), *where)
    write_parquet(recorded, rows(11))
    with pytest.raises(DataError, match=r"out/a.parquet': has 10 rows, but its recorded file 11"):
        LabelJob(teacher(), *where)
    (tmp_path / "out" / "b.parquet").write_bytes(b"PAR1 cut off")
    write_parquet(recorded, rows())
    with pytest.raises(DataError, match=r"out/b.parquet': cannot be read as Parquet"):
        LabelJob(teacher(), *where)


def test_labels_of_other_recorded_files_are_refused(tmp_path):
    for day, seed in (("day1", 0), ("day2", 1)):
        (tmp_path / day).mkdir()
        for name in "ab":
            np.savez(tmp_path / day / f"{name}.npz", obs=states(10, seed=seed), other=states(10))
    output = tmp_path / "out"
    label_here(LabelJob(teacher(), tmp_path / "day1", output))
    (output / "b.npz.parquet").unlink()
    message = r"out/a.npz.parquet': has labels of another recorded file .*Name another --output, or remove this file"
    with pytest.raises(DataError, match=message):
        LabelJob(teacher(), tmp_path / "day2", output)
    with pytest.raises(DataError, match=r"another --obs-column"):
        LabelJob(teacher(), tmp_path / "day1", output, obs_column="other")

    (tmp_path / "day1").rename(tmp_path / "moved")  # and copied: other times
    for file in (tmp_path / "moved").iterdir():
        make_old(file)
    job = LabelJob(teacher(), tmp_path / "moved", output)
    assert [file.name for file in job.remaining] == ["b.npz.parquet"]

    label_here(LabelJob(teacher(), tmp_path / "day2", tmp_path / "out2"))
    (tmp_path / "out2" / "b.npz.parquet").rename(output / "b.npz.parquet")  # by another job, while this one runs
    done = LabelFiles(job.plan)({"path": [job.remaining[0].path], "name": ["b.npz.parquet"]})
    assert "out/b.npz.parquet': has labels of another recorded file" in done["error"][0]


def test_labelled_files_of_earlier_versions_count_as_those_of_this_input(tmp_path):
    write_parquet(tmp_path / "in" / "a.parquet", rows())
    job = LabelJob(teacher(), tmp_path / "in", tmp_path / "out")
    assert job.plan.schema.input_digest == ""
    (tmp_path / "out").mkdir()
    pq.write_table(to_table(Labeller(teacher())(rows()), job.plan.schema), tmp_path / "out" / "a.parquet")
    assert LabelJob(teacher(), tmp_path / "in", tmp_path / "out").remaining == []


def test_places_that_cannot_be(monkeypatch, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.csv").write_text("1")
    write_parquet(tmp_path / "in" / "a.parquet", rows())
    write_parquet(tmp_path / "none" / "a.parquet", rows(1))
    pq.write_table(pq.read_table(tmp_path / "none" / "a.parquet").slice(0, 0), tmp_path / "none" / "a.parquet")
    np.save(tmp_path / "in" / "a.npy", states(3))
    for given, message in (
        ("gone", "There is nothing at"),
        ("empty", "has no files. Expected .parquet"),
        ("texts", "has other files, like 'a.csv'"),
        ("in", "files of several kinds"),
        ("none", "have no rows"),
        ("in/a.parquet", "one is in the other"),
    ):
        output = tmp_path / "in" if given.endswith(".parquet") else tmp_path / "out"
        with pytest.raises(DataError, match=message):
            LabelJob(teacher(), str(tmp_path / given), str(output))
    with pytest.raises(DataError, match="is a file"):
        LabelJob(teacher(), str(tmp_path / "in" / "a.npy"), str(tmp_path / "texts" / "a.csv"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as if it was not installed
    with pytest.raises(DataError, match="Install huggingface_hub"):
        LabelJob(teacher(), "hf://datasets/x", str(tmp_path / "out"))
    for uri in ("s3://", "ftp://host/x", "hf://datasets/x", ""):
        with pytest.raises(ValueError, match=r"URI|empty"):
            LabelJob(teacher(), uri, str(tmp_path / "out"))


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 0},
        {"batch_size": True},
        {"concurrency": 0},
        {"concurrency": (3, 2)},
        {"num_cpus": -1.0},
        {"also": ["teacher"]},
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path, changes):
    with pytest.raises(ValueError, match=f"`{next(iter(changes))}`|label 'teacher'"):
        LabelJob(teacher(), "gone", str(tmp_path / "out"), **changes)


def test_integers_of_numpy_are_integers(tmp_path):
    sizes = {"batch_size": np.int64(5), "concurrency": np.int64(1)}
    with pytest.raises(DataError, match="gone"):  # nothing else is wrong
        LabelJob(teacher(), str(tmp_path / "gone"), str(tmp_path / "out"), **sizes)


def test_columns_of_other_names_and_types(tmp_path):
    obs = states(6)
    nested = pa.array(obs.astype(np.float64).tolist())
    write_parquet(
        tmp_path / "in" / "a.parquet", {"state": nested, "obs": np.zeros(6)}, terminateds=np.array([0, 1] * 3)
    )

    label_here(LabelJob(teacher(), str(tmp_path / "in"), str(tmp_path / "out"), obs_column="state"))
    labelled = read(tmp_path / "out" / "a.parquet")
    assert labelled["obs"].dtype == np.float64
    np.testing.assert_array_equal(labelled["obs"], obs.astype(np.float64))
    assert labelled["terminateds"].tolist() == [False, True] * 3


def test_illegal_actions_get_no_value_and_policies_are_of_legal_ones(tmp_path):
    mask = np.array([[1, 0], [1, 1]] * 5)
    write_parquet(tmp_path / "in" / "a.parquet", rows(), action_mask=mask)
    policy = teacher()
    policy.outputs = LOG_PROBS
    label_here(LabelJob(policy, str(tmp_path / "in"), str(tmp_path / "out")))

    labelled = read(tmp_path / "out" / "a.parquet")
    assert labelled["action_mask"].dtype == bool
    assert labelled["teacher_log_probs"][0].tolist() == [0.0, -np.inf]
    np.testing.assert_allclose(np.exp(labelled["teacher_log_probs"]).sum(1), 1, rtol=1e-5)


def test_distributions_and_features(tmp_path):
    write_parquet(tmp_path / "in" / "a.parquet", rows())
    also = ["teacher_features", "teacher_probs"]
    label_here(LabelJob(teacher(num_atoms=5), str(tmp_path / "in"), str(tmp_path / "out"), also=also))

    labelled = read(tmp_path / "out" / "a.parquet")
    assert labelled["teacher_probs"].shape == (10, 2, 5)
    assert labelled["teacher_features"].shape == (10, 32)
    q = (labelled["teacher_probs"] * np.linspace(-10, 10, 5)).sum(-1)
    np.testing.assert_allclose(labelled["teacher_q"], q, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="'teacher_probs' needs a C51"):
        LabelJob(teacher(), str(tmp_path / "in"), str(tmp_path / "other"), also=also)


def test_a_dictionary_and_tensors_of_arrow(tmp_path):
    tensors = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), [4]), lists(states(3)))
    write_parquet(tmp_path / "in" / "a.parquet", {"obs": tensors, "eps_id": pa.array(["x"] * 3).dictionary_encode()})

    label_here(LabelJob(teacher(), str(tmp_path / "in"), str(tmp_path / "out")))
    assert read(tmp_path / "out" / "a.parquet")["eps_id"].tolist() == ["x"] * 3


def test_empty_files_among_others_and_labelled_files_of_none(tmp_path, capsys):
    for name in "ab":
        write_parquet(tmp_path / "in" / f"{name}.parquet", rows())
    pq.write_table(pq.read_table(tmp_path / "in" / "a.parquet").slice(0, 0), tmp_path / "in" / "a.parquet")
    (tmp_path / "in" / "notes.txt").write_text("")
    where = tmp_path / "in", tmp_path / "out"

    assert label_here(LabelJob(teacher(), *where)) == [0, 10]
    assert read(tmp_path / "out" / "a.parquet")["teacher_q"].shape == (0, 2)
    (tmp_path / "in" / "b.parquet").rename(tmp_path / "in" / "c.parquet")
    assert [file.name for file in LabelJob(teacher(), *where).remaining] == ["c.parquet"]
    assert "1 files in" in (noted := capsys.readouterr().err)
    assert "1 other files in" in noted


def test_names_in_another_encoding_are_an_error(tmp_path):
    folder = os.fsencode(write_parquet(tmp_path / "in" / "a.parquet", rows()).parent)
    with open(os.path.join(folder, b"\xff.parquet"), "w"):
        pass
    with pytest.raises(DataError, match="not in UTF-8"):
        LabelJob(teacher(), tmp_path / "in", tmp_path / "out")


def test_the_input_by_another_name_is_no_output(tmp_path):
    write_parquet(tmp_path / "in" / "a.parquet", rows())
    (tmp_path / "link").symlink_to(tmp_path / "in")
    others = (f"file://{tmp_path}/in/", tmp_path / "x" / ".." / "in", tmp_path / "link" / "out")
    for output in (tmp_path, tmp_path / "in" / "out", *others):
        with pytest.raises(DataError, match="one is in the other"):
            LabelJob(teacher(), tmp_path / "in", output)
    LabelJob(teacher(), tmp_path / "in", f"file://{tmp_path}/in2")


def test_links_that_lead_back_are_an_error(tmp_path):
    for folder in ("in", "other"):
        write_parquet(tmp_path / folder / "a.parquet", rows())
    (tmp_path / "in" / "link").symlink_to(tmp_path / "other")
    assert label_here(LabelJob(teacher(), tmp_path / "in", tmp_path / "out")) == [10, 10]
    (tmp_path / "other" / "back").symlink_to(tmp_path / "in")
    with pytest.raises(DataError, match=r"in/link/back' is a link to a folder that it is in"):
        LabelJob(teacher(), tmp_path / "in", tmp_path / "out")


def test_a_row_group_as_large_as_its_file_is_read_in_parts(tmp_path):
    pq.write_table(pa.table({"obs": lists(states(20_000))}), tmp_path / "a.parquet", row_group_size=2**20)
    job = LabelJob(teacher(), tmp_path / "a.parquet", tmp_path / "out", batch_size=512)
    sizes = [len(batch["obs"]) for batch in LabelFiles(job.plan)._batches(job.remaining[0].path)]
    assert max(sizes) == 512
    assert sum(sizes) == 20_000


def test_files_of_several_writers_are_alike(tmp_path):
    obs, ids = states(4), pa.array(["a"] * 4)
    kinds = [pa.list_(pa.field(name, pa.float32())) for name in ("item", "element")] + [pa.large_list(pa.float32())]
    for i, (kind, own) in enumerate(
        zip(kinds, (ids, ids.dictionary_encode(), ids.cast(pa.large_string())), strict=True)
    ):
        write_parquet(tmp_path / "in" / f"{i}.parquet", {"obs": pa.array(obs.tolist(), kind), "eps_id": own})
    assert label_here(LabelJob(teacher(), tmp_path / "in", tmp_path / "out")) == [4, 4, 4]
