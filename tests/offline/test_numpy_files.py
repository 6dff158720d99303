"""Recorded rows in numpy's files."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from pyarrow.fs import LocalFileSystem

from rllib_kd.offline.job import LabelJob
from rllib_kd.offline.numpy_files import NumpyReader
from rllib_kd.offline.schema import DataError
from tests.conftest import states
from tests.offline.recorded import label_here, read, rows, teacher
from tests.payloads import payloads


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_archives(tmp_path, save):
    columns = rows() | {"eps_id": rows()["eps_id"].astype(str), "new_obs": states(10)}
    (tmp_path / "in").mkdir()
    save(tmp_path / "in" / "a.npz", **columns)

    label_here(LabelJob(teacher(), str(tmp_path / "in"), str(tmp_path / "out"), batch_size=4))
    labelled = read(tmp_path / "out" / "a.npz.parquet")
    for name, values in rows().items():
        np.testing.assert_array_equal(labelled[name], values)
    assert "new_obs" not in labelled


def test_arrays_of_observations_alone_and_in_another_byte_order(tmp_path):
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "a.npy", states(5).astype(">f4"))

    label_here(LabelJob(teacher(), str(tmp_path / "in" / "a.npy"), str(tmp_path / "out")))
    np.testing.assert_array_equal(read(tmp_path / "out" / "a.npy.parquet")["obs"], states(5))


def test_rows_are_read_in_parts(tmp_path):
    np.savez(tmp_path / "a.npz", obs=states(10))
    batches = list(NumpyReader().batches(LocalFileSystem(), str(tmp_path / "a.npz"), 4))

    assert [len(batch["obs"]) for batch in batches] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate([batch["obs"] for batch in batches]), states(10))


def header(shape: str, descr: str = "'<f4'", fortran: bool = False) -> bytes:
    stream = io.BytesIO()
    text = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}"
    stream.write(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode())
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header("(10, 4)", "'|O'"), "column 'obs': has objects: pickles"),
        (header("(10, 4)", "[('a', '|O')]"), "column 'obs': has objects: pickles"),
        (header("(10, 4)", "'|S5'"), "column 'obs': has the type"),
        (header("(10, 4)", fortran=True), "Fortran"),
        (header("(10, 99999999999)"), "column 'obs': has rows of the shape"),
        (header("(10, 4)", "'<U99999999'"), "column 'obs': has rows"),
        (header("()"), "column 'obs': has the shape"),
        (header("(-1, 4)"), "column 'obs': has the shape"),
        (header("(10, 4)") + b"\0" * 100, "ends before its last row"),
        (header("(__import__('os').abort(), 4)"), "numpy's file"),
        (b"\x93NUMPY\x09\x00", "version"),
        (b"", "numpy's file"),
    ],
)
def test_arrays_that_lie_are_refused(tmp_path, content, message):
    (tmp_path / "a.npy").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("obs.npy", content)

    for name in ("a.npy", "b.npz"):
        with pytest.raises(DataError, match=message) as error:
            LabelJob(teacher(), str(tmp_path / name), str(tmp_path / "out"))
        assert name in str(error.value)


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_arrays_whose_unpacking_may_take_any_memory_are_refused(tmp_path, compression):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", compression) as archive:
        archive.writestr("obs.npy", header("(10, 4)") + states(10).tobytes())
    with pytest.raises(DataError, match=r"a.npz', column 'obs': is packed in an uncommon way"):
        LabelJob(teacher(), str(tmp_path / "a.npz"), str(tmp_path / "out"))


def test_pickles_are_not_loaded(tmp_path):
    for index, (what, payload) in enumerate(payloads(tmp_path / "mark").items()):
        if what == "in metadata":
            continue
        array = np.empty(3, dtype=object)
        array[:] = [payload] * 3
        np.savez(tmp_path / f"{index}.npz", obs=array)
        with pytest.raises(DataError, match="column 'obs': has objects"):
            LabelJob(teacher(), str(tmp_path / f"{index}.npz"), str(tmp_path / "out"))
    assert not (tmp_path / "mark").exists()


def test_columns_of_different_lengths_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", obs=states(10), rewards=np.ones(9))
    with pytest.raises(DataError, match="column 'rewards': has 9 rows, but 'obs' 10"):
        LabelJob(teacher(), str(tmp_path / "a.npz"), str(tmp_path / "out"))
    (tmp_path / "b.npz").write_bytes(b"PK no zip")
    with pytest.raises(DataError, match=r"b.npz': cannot be read"):
        LabelJob(teacher(), str(tmp_path / "b.npz"), str(tmp_path / "out"))


@pytest.mark.parametrize("code", [0xD800, 0x110000])  # half of a surrogate pair; no character
def test_texts_that_are_not_unicode_are_refused(tmp_path, code):
    names = np.frombuffer(np.array([97, 97, code], np.uint32).tobytes(), "<U1")
    np.savez(tmp_path / "a.npz", obs=states(3), eps_id=names)
    with pytest.raises(DataError, match=r"a.npz', column 'eps_id': row 2: has a text that is not Unicode"):
        LabelJob(teacher(), str(tmp_path / "a.npz"), str(tmp_path / "out"))
