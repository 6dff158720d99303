"""Stacks of frames, recorded frame by frame."""

import dataclasses

import numpy as np
import pyarrow.parquet as pq
import pytest

from rllib_kd.offline.labelled_files import LabelledFiles
from rllib_kd.offline.recording import Recorder
from rllib_kd.offline.schema import DataError, LabelledSchema, to_columns, to_table
from rllib_kd.offline.stacks import join, saved_share, split
from rllib_kd.teachers.base import Teacher
from tests.conftest import make_q_module

SIZE, FRAMES = 6, 4
SCHEMA = LabelledSchema((SIZE, SIZE, FRAMES), "uint8", 2, num_frames=FRAMES)


def stacks_of(lengths, *, seed=0):
    """Stacks `[R, H, W, k]` of episodes of these lengths; the first ones repeat their first frame."""
    rng, rows = np.random.default_rng(seed), []
    for length in lengths:
        frames = rng.integers(256, size=(length, SIZE, SIZE), dtype=np.uint8)
        frames = np.concatenate([np.repeat(frames[:1], FRAMES - 1, 0), frames])
        rows += [np.moveaxis(frames[i : i + FRAMES], 0, -1) for i in range(length)]
    return np.stack(rows)


@pytest.mark.parametrize("lengths", [[9], [1], [3, 7, 1, 20]])
def test_joined_frames_are_the_stacks(lengths):
    stacks = stacks_of(lengths)
    frames, before = split(stacks)
    np.testing.assert_array_equal(join(frames, before, FRAMES), stacks)
    assert sum(map(bool, before)) == len(lengths)
    assert frames.nbytes + sum(map(len, before)) == SIZE * SIZE * (len(stacks) + (FRAMES - 1) * len(lengths))


def test_stacks_save_frames_and_colours_do_not():
    assert saved_share(stacks_of([50])) == pytest.approx(0.75, abs=0.02)
    assert saved_share(np.random.default_rng(0).integers(256, size=(50, SIZE, SIZE, 3), dtype=np.uint8)) == 0.0


def test_a_table_gives_back_the_stacks_from_a_row_where_a_sequence_begins_on():
    stacks = stacks_of([5, 6])
    table = to_table({"obs": stacks, "teacher_q": np.zeros((11, 2), np.float32)}, SCHEMA)
    np.testing.assert_array_equal(to_columns(table)["obs"], stacks)
    np.testing.assert_array_equal(to_columns(table.slice(5))["obs"], stacks[5:])
    with pytest.raises(DataError, match="column 'frames_before': begins in the middle"):
        to_columns(table.slice(2))


def test_frames_of_another_size_are_refused():
    frames, before = split(stacks_of([5]))
    with pytest.raises(ValueError, match="frames of other sizes"):
        join(frames, [before[0][:-1], *before[1:]], FRAMES)


@pytest.mark.parametrize(
    "change",
    [
        {"num_frames": 3},
        {"num_frames": 0},
        {"num_frames": 4, "obs_dtype": "float32"},
        {"num_frames": 10**6, "obs_shape": (1, 1, 10**6)},  # which would take a million times the memory of a row
    ],
)
def test_a_number_of_frames_is_the_last_length_of_images_of_bytes(change):
    with pytest.raises(DataError, match="num_frames"):
        dataclasses.replace(SCHEMA, **change)


@pytest.mark.parametrize("first", [True, False])
def test_a_recorder_writes_frames_and_readers_see_stacks(tmp_path, monkeypatch, first):
    monkeypatch.setattr("rllib_kd.offline.writing._BYTES", 400)  # row groups of few rows
    obs = np.stack([stacks_of([8, 12], seed=seed) for seed in (0, 1)])  # of two environments
    given = np.moveaxis(obs, -1, 2) if first else obs
    shape = obs.shape[:2]
    columns = {
        "obs": given,
        "teacher_q": np.zeros((*shape, 2), np.float32),
        "actions": np.zeros(shape, np.int64),
        "rewards": np.zeros(shape, np.float32),
        "terminateds": np.zeros(shape, bool),
        "truncateds": np.zeros(shape, bool),
        "valid": np.ones(shape, bool),
    }
    recorder = Recorder(str(tmp_path), Teacher(make_q_module()), num_envs=2)
    recorder.add(columns, np.zeros(2, bool), begins=True)
    recorder.write()
    files = LabelledFiles(str(tmp_path))
    assert files.schema.num_frames == FRAMES
    assert len(files.chunks) > 4
    read = [piece["obs"] for chunk in files.chunks for piece in files.read(chunk, ("obs",))]
    np.testing.assert_array_equal(np.concatenate(read), obs.reshape(-1, *obs.shape[2:]))
    (path,) = tmp_path.iterdir()
    assert pq.read_schema(path).field("obs").type.byte_width == SIZE * SIZE
