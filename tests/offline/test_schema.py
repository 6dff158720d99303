"""The schema of labelled files, without Ray."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import LocalFileSystem

from rllib_kd.networks.dqn_module import Support
from rllib_kd.offline.schema import METADATA, RECORDED, DataError, LabelledSchema, open_parquet, to_columns, to_table

SCHEMA = LabelledSchema((2, 3), "uint8", 2, recorded=tuple(RECORDED), teacher="t", fingerprint="ab" * 32, env="E-v1")


def columns_of(schema: LabelledSchema, num_rows: int = 5) -> dict[str, np.ndarray]:
    """Return rows of any numbers."""
    rng = np.random.default_rng(0)
    columns = {}
    for name in schema.columns:
        shape, dtype = (num_rows, *schema.shape_of(name)), schema.dtype_of(name)
        columns[name] = (rng.integers(0, 2, shape) if not dtype.hasobject else np.full(shape, "e")).astype(dtype)
    return columns


def with_metadata(**changes: object) -> pa.Schema:
    """Return the schema of a file whose metadata lie."""
    schema = SCHEMA.to_arrow()
    content = json.loads(schema.metadata[METADATA]) | changes
    return schema.with_metadata({METADATA: json.dumps({k: v for k, v in content.items() if v != "gone"}).encode()})


@pytest.mark.parametrize(
    "schema",
    [
        SCHEMA,
        LabelledSchema((4,), "float32", 3, labels=("teacher_log_probs",)),
        LabelledSchema(
            (4,),
            "float64",
            2,
            labels=("teacher_q", "teacher_probs", "teacher_features"),
            support=Support(-1.0, 1.0, 5),
            num_features=7,
        ),
    ],
)
def test_a_file_has_what_was_written(tmp_path, schema):
    columns = columns_of(schema)
    pq.write_table(to_table(columns, schema), path := str(tmp_path / "a.parquet"))

    assert LabelledSchema.from_arrow(pq.read_schema(path)) == schema
    read = to_columns(pq.read_table(path))
    assert list(read) == list(schema.columns) == list(columns)
    for name, values in columns.items():
        assert read[name].dtype == values.dtype
        np.testing.assert_array_equal(read[name], values)


def test_numbers_are_not_copied():
    columns = columns_of(SCHEMA)
    table = to_table(columns, SCHEMA)

    assert np.shares_memory(to_columns(table)["obs"], columns["obs"])
    part = to_columns(table.to_batches()[0].slice(2, 2))
    assert np.shares_memory(part["teacher_q"], columns["teacher_q"])
    np.testing.assert_array_equal(part["obs"], columns["obs"][2:4])


def test_some_columns_of_several_chunks_and_of_none():
    columns = columns_of(SCHEMA)
    table = to_table(columns, SCHEMA)
    twice = pa.concat_tables([table, table]).select(["teacher_q", "eps_id"])

    read = to_columns(twice, SCHEMA)
    assert list(read) == ["eps_id", "teacher_q"]
    np.testing.assert_array_equal(read["teacher_q"], np.concatenate([columns["teacher_q"]] * 2))
    assert to_columns(table.slice(0, 0))["obs"].shape == (0, 2, 3)
    assert to_columns(SCHEMA.to_arrow().empty_table())["obs"].shape == (0, 2, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"obs_shape": [2**40, 2**40]}, "'obs_shape'"),
        ({"obs_shape": [-2, -3]}, "'obs_shape'"),
        ({"obs_shape": "12"}, "'obs_shape'"),
        ({"obs_shape": [True]}, "'obs_shape'"),
        ({"obs_dtype": "object"}, "'obs_dtype'"),
        ({"obs_dtype": ["uint8"]}, "'obs_dtype'"),
        ({"num_actions": 0}, "'num_actions'"),
        ({"num_actions": 2**60}, "'num_actions'"),
        ({"labels": []}, "'labels'"),
        ({"labels": ["teacher_q", "teacher_log_probs"]}, "'labels'"),
        ({"labels": ["teacher_probs"]}, "'labels'"),
        ({"labels": [["teacher_q"]]}, "'labels'"),
        ({"labels": ["teacher_q", "teacher_probs"]}, "'support'"),
        ({"labels": ["teacher_q", "teacher_probs"], "support": [0.0, 1.0, 2**40]}, "'support'"),
        ({"labels": ["teacher_q", "teacher_features"]}, "'num_features'"),
        ({"recorded": ["password"]}, "'recorded'"),
        ({"fingerprint": "x" * 64}, "'fingerprint'"),
        ({"env": {"cls": "os.system"}}, "'env'"),
        ({"format_version": 2}, "format version 2"),
        ({"num_actions": "gone"}, "lack 'num_actions'"),
        ({"num_actions": 3}, r"column 'action_mask': has the type .*\[2\]; expected .*\[3\]"),
        ({"obs_dtype": "int8"}, "column 'obs': has the type"),
    ],
)
def test_metadata_that_lie_are_refused(changes, message):
    with pytest.raises(DataError, match=message) as error:
        LabelledSchema.from_arrow(with_metadata(**changes), "s3://b/a.parquet")
    assert "'s3://b/a.parquet'" in str(error.value)


def test_fields_of_later_versions_and_other_columns_are_no_harm():
    schema = with_metadata(new="field").append(pa.field("other", pa.int8()))

    assert LabelledSchema.from_arrow(schema) == SCHEMA


@pytest.mark.parametrize("text", [b"", b"[1]", b"[" * 100_000, b"\xff", b"{" + b" " * 2**23 + b"}"])
def test_metadata_that_are_no_json_are_refused(text):
    with pytest.raises(DataError, match="JSON"):
        LabelledSchema.from_arrow(SCHEMA.to_arrow().with_metadata({METADATA: text}))


def test_files_that_are_not_labelled_are_refused(tmp_path):
    pq.write_table(pa.table({"obs": [1.0]}), bare := str(tmp_path / "bare.parquet"))
    (tmp_path / "text.parquet").write_text("PAR1 no Parquet PAR1")

    for path, message in (
        (bare, "rllib label"),
        ("text.parquet", "Parquet"),
        ("gone.parquet", "missing"),
        ("", "plain"),
    ):
        path = str(tmp_path / path) if path else str(tmp_path)
        with pytest.raises(DataError, match=message) as error, open_parquet(LocalFileSystem(), path) as file:
            LabelledSchema.from_arrow(file.schema_arrow, path)
        assert path in str(error.value)


@pytest.mark.parametrize(
    ("changes", "column", "message"),
    [
        ({"obs_shape": (3, 2)}, "obs", "[3, 2]"),
        ({"obs_dtype": "int8"}, "obs", "int8"),
        ({"num_actions": 3}, "teacher_q", "3"),
        ({"labels": ("teacher_log_probs",)}, "teacher_q", "is missing"),
        ({"recorded": ("actions",)}, "rewards", "is missing"),
        ({"fingerprint": "cd" * 32, "teacher": "other"}, "teacher_q", "cdcdcdcdcdcd ('other')"),
    ],
)
def test_files_that_differ_are_refused(changes, column, message):
    SCHEMA.check_same(replace(SCHEMA, teacher="elsewhere", env=None), "b.parquet")
    with pytest.raises(DataError) as error:
        SCHEMA.check_same(replace(SCHEMA, **changes), "b.parquet")
    assert str(error.value).startswith(f"'b.parquet', column '{column}': ")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"obs": None}, "column 'obs': is missing"),
        ({"rewards": None}, "column 'rewards': is missing"),
        ({"obs": np.zeros((5, 6), np.uint8)}, r"column 'obs': has the shape \[5, 6\]; expected \[5, 2, 3\]"),
        ({"teacher_q": np.zeros((4, 2), np.float32)}, "column 'teacher_q': has the shape"),
        ({"actions": np.zeros(5)}, "column 'actions': has numbers of the type float64"),
    ],
)
def test_columns_of_another_kind_are_not_written(changes, message):
    columns = {name: values for name, values in (columns_of(SCHEMA) | changes).items() if values is not None}
    with pytest.raises(DataError, match=message):
        to_table(columns, SCHEMA)


def test_missing_values_are_refused():
    table = to_table(columns_of(SCHEMA), SCHEMA)
    for name, values in (
        ("rewards", pa.array([1, None, 3, 4, 5], pa.float32())),
        ("teacher_q", pa.array([[1, 2], None, [1, 2], [1, 2], [1, 2]], pa.list_(pa.float32(), 2))),
        ("teacher_q", pa.array([[1, 2], [1, None], [1, 2], [1, 2], [1, 2]], pa.list_(pa.float32(), 2))),
    ):
        index = table.schema.get_field_index(name)
        with pytest.raises(DataError, match=f"'f', column '{name}': has 1 rows"):
            to_columns(table.set_column(index, name, values), SCHEMA, file="f")


def test_a_message_that_quotes_a_file_is_one_short_line():
    error = DataError("a\n\x1b[31m" + "x" * 10_000, file="f\nile", column="c")
    assert "\n" not in str(error)
    assert "\x1b" not in str(error)
    assert len(str(error)) < 2_000


def test_bytes_are_stored_as_bytes_in_parts_too(tmp_path):
    schema = LabelledSchema((2, 3), "uint8", 2)
    columns = columns_of(schema, 6)
    table = to_table(columns, schema)
    assert table.schema.field("obs").type == pa.binary(6)
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=4)
    batches = list(pq.ParquetFile(tmp_path / "a.parquet").iter_batches(3))
    parts = [to_columns(batch, schema)["obs"] for batch in (*batches, table.slice(1, 2).to_batches()[0])]
    np.testing.assert_array_equal(np.concatenate(parts), columns["obs"][[*range(6), 1, 2]])
    nothing = table.set_column(0, "obs", pa.array([b"123456"] * 5 + [None], pa.binary(6)))
    with pytest.raises(DataError, match="column 'obs': has 1 rows"):
        to_columns(nothing, schema)
