"""Stacks of frames, recorded frame by frame."""

import dataclasses

import gymnasium as gym
import numpy as np
import pyarrow.parquet as pq
import pytest

from rllib_kd.algorithm.recorded import settle_recorded
from rllib_kd.learner.replay import ColumnarReplay
from rllib_kd.offline.data import LabelledData, open_files
from rllib_kd.offline.labelled_files import LabelledFiles
from rllib_kd.offline.recording import Recorder
from rllib_kd.offline.schema import DataError, LabelledSchema, to_columns, to_table
from rllib_kd.offline.stacks import join, saved_share, split
from rllib_kd.teachers.base import Teacher
from tests.conftest import make_q_module
from tests.offline.labelled import recorded_config, write

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


# --- Stacks in replays ------------------------------------------------------------------------------------------------

BYTES = gym.spaces.Box(0, 255, (SIZE, SIZE, FRAMES), np.uint8)


def opened(folder, capacity=None) -> LabelledData:
    """The data of stacks with zeros as labels, or without labels, for one Learner."""
    spaces = BYTES, gym.spaces.Discrete(2)
    teacher = Teacher.from_callable(
        lambda obs: np.zeros((len(obs), 2), np.float32), observation_space=spaces[0], action_space=spaces[1]
    )
    config = recorded_config(str(folder), teacher, held_out=0.0).training(replay_buffer_config={"capacity": capacity})
    files = open_files(config)
    settle_recorded(config, files, spaces)
    data = LabelledData(config)
    data.open(files, config.replay_columns)
    data.meet(teacher)
    return data


def added(pieces, replay) -> set[bytes]:
    """The stacks that a replay holds after some pieces have been added."""
    for (shard,) in pieces:
        replay.add(shard)
    rows = replay.spread(10_000)
    return {stack.tobytes() for stack in replay.gather(rows, ("obs",))["obs"].numpy()}


@pytest.mark.parametrize("length", [8, 12, 20, 100])
def test_rows_of_short_episodes_pass_in_epochs_if_their_context_leaves_no_room(tmp_path, length):
    stacks = stacks_of([length] * (600 // length))
    write(tmp_path, {"obs": stacks, "teacher_q": np.zeros((len(stacks), 2), np.float32)}, num_frames=FRAMES)
    data = opened(tmp_path)
    replay = ColumnarReplay(data.config.replay_buffer_config["capacity"])
    every = {stack.tobytes() for stack in stacks}
    held = added(data.fill(), replay)
    assert data.fits == (held == every) == (length == 100)
    assert data.stores_rows != data.fits
    resumed = opened(tmp_path)
    resumed.set_state(data.get_state())
    resumed.replays_are(restored=data.stores_rows)
    assert resumed.fits == data.fits
    passed = data.sample(len(stacks))
    if not data.fits:
        assert list(resumed.fill()) == []
        for (one,), (other,) in zip(passed, resumed.sample(len(stacks)), strict=True):
            np.testing.assert_array_equal(one["obs"], other["obs"])
    assert held | added(passed, replay) == every


@pytest.mark.parametrize("capacity", [600, 1_000, 4 * 600])
@pytest.mark.parametrize("shuffled", [0, 1])
def test_whether_pieces_fit_of_which_some_are_no_sequences_is_counted(tmp_path, capacity, shuffled):
    stacks = stacks_of([300, 300])
    half = slice(300 * shuffled, 300 * (shuffled + 1))
    stacks[half] = np.random.default_rng(0).permutation(stacks[half])
    write(tmp_path, {"obs": stacks, "teacher_q": np.zeros((600, 2), np.float32)})
    data = opened(tmp_path, capacity)
    pieces = list(data.fill())
    held = added(pieces, ColumnarReplay(capacity))
    assert data.fits == (len(held) == 600) == (capacity == 4 * 600 or "context" not in pieces[0][0])


def test_stacks_without_labels_have_room_for_the_frames_before_them(tmp_path):
    np.savez(tmp_path / "0.npz", obs=stacks_of([50, 50]))
    data = opened(tmp_path)
    list(data.fill())
    assert data.fits
