"""Rows of Ray and RLlib in Parquet: what is read, and what is refused by its name."""

from __future__ import annotations

import contextlib
import io
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import LocalFileSystem
from ray.data.extensions import ArrowPythonObjectArray, ArrowTensorArray

from rllib_kd.offline.arrays import check_type, to_array
from rllib_kd.offline.job import LabelJob
from rllib_kd.offline.parquet import ParquetReader
from rllib_kd.offline.schema import METADATA, DataError
from tests.conftest import states
from tests.offline.recorded import label_here, lists, read, rows, teacher, write_parquet
from tests.payloads import payloads

OF_RLLIB = {"agent_id": pa.nulls(10), "module_id": pa.nulls(10), "new_obs": states(10), "action_logp": np.zeros(10)}


def test_rows_of_rllib_with_tensors_of_ray_data(tmp_path):
    obs = ArrowTensorArray.from_numpy(states(10))
    write_parquet(tmp_path / "in" / "run-000001-00001" / "1_000000.parquet", rows() | OF_RLLIB, obs=obs, t=None)

    label_here(LabelJob(teacher(), str(tmp_path / "in"), str(tmp_path / "out")))
    labelled = read(tmp_path / "out" / "run-000001-00001" / "1_000000.parquet")
    np.testing.assert_array_equal(labelled["obs"], states(10))
    assert list(labelled) == ["obs", "actions", "rewards", "terminateds", "eps_id", "teacher_q"]


def test_tensors_keep_their_shape(tmp_path):
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    ours = ArrowTensorArray.from_numpy(values)
    permuted = pa.fixed_shape_tensor(pa.float32(), [3, 4], permutation=[1, 0])
    arrows = pa.ExtensionArray.from_storage(permuted, lists(values.reshape(2, 12)))
    for array, expected in ((ours, values), (arrows, values.transpose(0, 2, 1))):
        check_type(array.type, file="f", column="c")
        np.testing.assert_array_equal(to_array(array, file="f", column="c"), expected)
        np.testing.assert_array_equal(to_array(array.slice(1), file="f", column="c"), expected[1:])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"item": pa.array([b"\x81"] * 10)},
            r"column 'item': has whole episodes in msgpack.*output_write_episodes=False",
        ),
        (rows() | OF_RLLIB | {"obs": pa.array(["BCJNGGRAp"] * 10)}, "column 'obs': has observations that RLlib packed"),
        (rows() | OF_RLLIB | {"agent_id": pa.array(["a"] * 10)}, "column 'agent_id': has rows of several agents"),
    ],
)
def test_what_rllib_records_unsoundly_is_refused_by_name(tmp_path, columns, message):
    write_parquet(tmp_path / "in" / "a.parquet", columns)
    with pytest.raises(DataError, match=message):
        LabelJob(teacher(), str(tmp_path / "in"), str(tmp_path / "out"))


def test_rows_that_rllib_has_written_again_are_refused(tmp_path):
    def write(run: str, seed: int) -> None:
        columns = rows(seed=seed) | {name: values for name, values in OF_RLLIB.items() if name != "new_obs"}
        write_parquet(tmp_path / "in" / run / f"{seed}ab_000000_000000-0.parquet", columns)

    write("run-000001-00001", 1)
    write("run-000001-00002", 2)
    write("run-000002-00001", 1)  # of another EnvRunner: the same seed, perhaps
    LabelJob(teacher(), str(tmp_path / "in"), str(tmp_path / "out"))
    write("run-000001-00010", 2)
    with pytest.raises(DataError, match=r"run-000001-00010.*begins with the same row as .*run-000001-00002"):
        LabelJob(teacher(), str(tmp_path / "in"), str(tmp_path / "out"))


def test_pickled_columns_are_refused_and_do_not_run(tmp_path):
    for name in ("obs", "actions", "eps_id"):
        for index, payload in enumerate(payloads(tmp_path / "mark").values()):
            objects = np.empty(10, dtype=object)
            objects[:] = [payload] * 10
            file = write_parquet(tmp_path / f"{name}{index}" / "a.parquet", rows(), **{name: pickled(objects)})
            with pytest.raises(DataError, match=f"column '{name}': has pickled objects"):
                LabelJob(teacher(), str(file), str(tmp_path / "out"))
    nested = pa.StructArray.from_arrays([pickled(objects)], ["a"])
    file = write_parquet(tmp_path / "nested" / "a.parquet", rows(), obs=nested)
    with pytest.raises(DataError, match=r"column 'obs.a': has pickled objects"):
        LabelJob(teacher(), str(file), str(tmp_path / "out"))
    assert not (tmp_path / "mark").exists()


def pickled(objects: np.ndarray) -> pa.Array:
    return ArrowPythonObjectArray.from_objects(objects)


def test_columns_that_are_not_read_may_be_pickles(tmp_path):
    objects = np.empty(10, dtype=object)
    objects[:] = [payloads(tmp_path / "mark")["os.system"]] * 10
    write_parquet(tmp_path / "in" / "a.parquet", rows(), infos=pickled(objects))

    label_here(LabelJob(teacher(), str(tmp_path / "in"), str(tmp_path / "out")))
    assert "infos" not in read(tmp_path / "out" / "a.parquet")
    assert not (tmp_path / "mark").exists()


def test_pickles_in_the_metadata_of_types_do_not_run(tmp_path):
    """Ray 2.49 to 2.54 pickled the shape of a tensor into the file's schema."""
    bad = pickle.dumps(payloads(tmp_path / "mark")["os.system"])
    for name in ("ray.data.arrow_tensor", "ray.data.arrow_tensor_v2", "arrow.py_extension_type"):
        metadata = {"ARROW:extension:name": name, "ARROW:extension:metadata": bad}
        offsets = pa.large_list(pa.float32()) if name.endswith("v2") else pa.list_(pa.float32())
        field = pa.field("obs", offsets, metadata=metadata)
        table = pa.table([pa.array(states(3).tolist(), offsets)], schema=pa.schema([field]))
        pq.write_table(table, tmp_path / "a.parquet")
        with contextlib.suppress(DataError):
            label_here(LabelJob(teacher(), str(tmp_path / "a.parquet"), str(tmp_path / name)))
    assert not (tmp_path / "mark").exists()


def test_metadata_of_a_labelled_file_are_no_pickles(tmp_path):
    bad = pickle.dumps(payloads(tmp_path / "mark")["os.system"])
    table = pa.table({"obs": lists(states(3))}).replace_schema_metadata({METADATA: bad, b"pandas": bad})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="the metadata 'rllib_kd' are not a JSON object"):
        LabelJob(teacher(), str(tmp_path / "a.parquet"), str(tmp_path / "out"))
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("at", [10, 200, -20, -3])
def test_broken_files_are_named(tmp_path, at):
    stream = io.BytesIO()
    pq.write_table(pa.table({"obs": lists(states(1_000))}), stream)
    content = bytearray(stream.getvalue())
    content[at : at + 8 if at > 0 else None] = b"\xff" * len(content[at : at + 8 if at > 0 else None])
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"a.parquet'"):
        LabelJob(teacher(), str(tmp_path / "a.parquet"), str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (pa.list_(pa.float32(), 2**22), "lists of 4194304"),
        (pa.list_(pa.float32(), 0), "lists of 0"),
        (pa.fixed_shape_tensor(pa.float32(), [2**12, 2**12]), "rows of the shape"),
        (pa.timestamp("s"), "the type timestamp"),
        (pa.binary(), "the type binary. They may be pickles or packed images"),
        (pa.decimal128(5), "the type decimal"),
        (pa.map_(pa.string(), pa.int8()), "the type map"),
        (pa.uuid(), "the extension type 'arrow.uuid'"),
    ],
)
def test_types_that_no_observation_has_are_refused_before_they_are_read(kind, message):
    with pytest.raises(DataError, match=f"'f', column 'c': has {message}"):
        check_type(kind, file="f", column="c")


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("action_mask", [[True, True]] * 8 + [[True, None], [True, False]], "has no value in row 8. Leave out"),
        ("obs", [[0.0] * 4] * 8 + [[0.0] * 3, [0.0] * 5], "has a list of 3 in row 8, but one of 4 in row 6. Expected"),
    ],
)
def test_wrong_rows_in_the_middle_of_a_file_are_named(tmp_path, name, values, message):
    file = write_parquet(tmp_path / "a.parquet", rows(), **{name: pa.array(values)})
    with pytest.raises(DataError, match=f"a.parquet', column '{name}': {message}"):
        list(ParquetReader().batches(LocalFileSystem(), str(file), 3))


def test_a_column_whose_name_begins_like_that_of_the_observations_is_none_of_them(tmp_path):
    write_parquet(tmp_path / "in" / "a.parquet", rows(), **{"obs.mean": pa.array([[0.0]] * 9 + [[0.0] * 2])})
    label_here(LabelJob(teacher(), tmp_path / "in", tmp_path / "out"))
    np.testing.assert_array_equal(read(tmp_path / "out" / "a.parquet")["obs"], rows()["obs"])


def test_lists_in_lists_end():
    kind = pa.float32()
    for _ in range(20):
        kind = pa.list_(kind)
    with pytest.raises(DataError, match="more than 16 lists in lists"):
        check_type(kind, file="f", column="c")


@pytest.mark.slow
def test_memory_does_not_grow_with_a_file(tmp_path):
    values = np.random.default_rng(0).normal(size=(1_000, 256)).astype(np.float32)  # a megabyte
    table = pa.table({"obs": lists(values)})
    with pq.ParquetWriter(tmp_path / "a.parquet", table.schema) as writer:
        for _ in range(30):
            writer.write_table(table)
    before, held = pa.total_allocated_bytes(), []
    for batch in ParquetReader().batches(LocalFileSystem(), str(tmp_path / "a.parquet"), 100):
        held.append(pa.total_allocated_bytes() - before + batch["obs"].nbytes)
    assert len(held) == 300
    assert max(held) < 10e6


def test_texts_that_are_not_utf_8_are_refused_with_their_column(tmp_path):
    texts = pa.Array.from_buffers(pa.string(), 10, pa.array([b"\xff"] * 10).buffers())
    file = write_parquet(tmp_path / "a.parquet", rows(), eps_id=texts)
    with pytest.raises(DataError, match=r"a.parquet', column 'eps_id': has a text that cannot be read as UTF-8"):
        LabelJob(teacher(), str(file), str(tmp_path / "out"))
