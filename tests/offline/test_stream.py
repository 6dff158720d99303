"""Files of labelled rows, the stream of their rows, and what Learners get, without Ray."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ray.rllib.core.columns import Columns

from rllib_kd import load_teacher
from rllib_kd.learner.replay import ColumnarReplay
from rllib_kd.offline.data import LabelledData, capacity_for, open_files
from rllib_kd.offline.job import LabelJob
from rllib_kd.offline.labelled_files import LabelledFiles
from rllib_kd.offline.rows import LearnerColumns, as_column, has_successor
from rllib_kd.offline.schema import DataError, LabelledSchema, to_table
from rllib_kd.offline.stream import HeldOutRows, Piece, Stream
from rllib_kd.offline.subset import Subset, place_of
from rllib_kd.offline.unlabelled_files import UnlabelledFiles
from tests.conftest import states
from tests.offline.labelled import RECORDED, recorded_config, write
from tests.offline.recorded import label_here, write_parquet

NUMBERED = 2_000
TD = ("obs", "teacher_q", "actions", "rewards", "terminateds", "truncateds", "valid")


def numbered(folder, *, rows=NUMBERED, **kwargs) -> LabelledFiles:
    """Files whose rows are numbered by their observation."""
    obs = np.arange(rows, dtype=np.float32)[:, None]
    return LabelledFiles(write(folder, {"obs": obs, "teacher_q": np.zeros((rows, 2), np.float32)}, **kwargs))


def numbers(piece: Piece) -> list[int]:
    return piece.columns["obs"][:, 0].astype(int).tolist()


def stream_of(files, held_out=0.0, seed=0) -> Stream:
    return Stream(files, ("obs",), HeldOutRows(files, held_out, 10_000), seed)


def epoch(stream: Stream) -> list[int]:
    """The numbers of as many rows as an epoch has."""
    found: list[int] = []
    while len(found) < stream.num_rows:
        found += numbers(next(stream))
    return found


# --- The stream -------------------------------------------------------------------------------------------------------


def opened(config, teacher):
    data = LabelledData(config)
    data.open(open_files(config), config.replay_columns)
    data.meet(teacher)
    return data


def test_each_epoch_has_every_row_once_in_an_order_of_its_own(tmp_path):
    stream = stream_of(numbered(tmp_path))
    first, second = epoch(stream), epoch(stream)
    assert sorted(first) == sorted(second) == list(range(NUMBERED))
    assert first != second != list(range(NUMBERED))


def test_held_out_rows_never_pass_and_are_the_last_of_some_row_groups(tmp_path):
    files = numbered(tmp_path)
    stream, held_out = stream_of(files, 0.1), HeldOutRows(files, 0.1, 10_000)
    apart = [number for piece in held_out.read(("obs",)) for number in numbers(piece)]
    assert len(apart) == held_out.num_rows == 200
    assert sorted(epoch(stream) + apart) == list(range(NUMBERED))
    assert set(apart) >= {499, 999, 1_499, 1_999}


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.5])
def test_any_share_can_be_held_out(tmp_path, share):
    files = numbered(tmp_path, rows=21, row_group_size=2)
    held_out = HeldOutRows(files, share, 10_000)
    assert held_out.num_rows <= share * 21
    assert sorted(epoch(stream_of(files, share))) == sorted(
        set(range(21)) - {number for piece in held_out.read(("obs",)) for number in numbers(piece)}
    )


def test_a_stream_continues_where_it_was_saved(tmp_path, monkeypatch):
    monkeypatch.setattr("rllib_kd.offline.labelled_files.PIECE_ROWS", 64)  # several pieces a row group
    files = numbered(tmp_path)
    stream = stream_of(files, 0.1)
    for _ in range(19):
        next(stream)
    resumed = stream_of(files, 0.1, seed=1)
    resumed.set_state(stream.get_state())
    assert [numbers(next(stream)) for _ in range(60)] == [numbers(next(resumed)) for _ in range(60)]
    assert stream.get_state() == resumed.get_state()


def test_a_saved_position_has_every_attribute_or_names_it(tmp_path):
    stream = stream_of(numbered(tmp_path))
    assert {name.lstrip("_") for name in vars(stream).keys() - stream.NOT_SAVED} == stream.get_state().keys()


def test_what_is_set_aside_never_passes_whatever_the_files_are(tmp_path):
    obs = np.arange(NUMBERED, dtype=np.float32)[:, None]
    rows = {"obs": obs, "teacher_q": np.zeros((NUMBERED, 2), np.float32)}
    rows["eps_id"] = (np.arange(NUMBERED) % 400).astype(str)  # of environments that take turns
    files = LabelledFiles(write(tmp_path / "a", rows))
    parts = [Subset(files, low, high) for low, high in ((0.0, 0.1), (0.1, 0.3), (0.3, 1.0))]
    found = [epoch(stream_of(part)) for part in parts]
    assert sorted(number for numbers in found for number in numbers) == list(range(NUMBERED))
    assert [len(numbers) for numbers in found] == [part.num_rows for part in parts]
    episodes = [{number % 400 for number in numbers} for numbers in found]
    assert sum(map(len, episodes)) == 400  # each is whole, in one part
    assert 20 < len(episodes[0]) < 65
    other = Subset(LabelledFiles(write(tmp_path / "b", rows, num_files=3, row_group_size=77)), 0.1, 0.3)
    assert sorted(epoch(stream_of(other))) == sorted(found[1])
    assert {part.fingerprint() for part in parts} > {parts[0].fingerprint()}
    assert set(epoch(stream_of(parts[2], 0.2))) < set(found[2])  # held-out rows are others


def test_without_episodes_blocks_of_consecutive_rows_are_set_aside(tmp_path, monkeypatch):
    monkeypatch.setattr("rllib_kd.offline.labelled_files.PIECE_ROWS", 100)  # a block lies in two pieces
    files = numbered(tmp_path, row_group_size=10_000)
    parts = [Subset(files, 0.0, 0.3), Subset(files, 0.3, 1.0)]
    found = [sorted(epoch(stream_of(part))) for part in parts]
    assert sorted(found[0] + found[1]) == list(range(NUMBERED))
    blocks = [{(number // 1_000, number % 1_000 // 64) for number in numbers} for numbers in found]
    assert not blocks[0] & blocks[1]
    with pytest.raises(DataError, match=r"has no block of 64 rows in the share from 0 to 1e-09"):
        Subset(files, 0.0, 1e-9).num_rows  # noqa: B018


# --- Rows for Learners ------------------------------------------------------------------------------------------------


def test_the_next_row_is_the_successor_unless_an_episode_or_the_piece_ends():
    columns = {
        "eps_id": np.array(["a", "a", "a", "b", "b", "c", "c", "c"]),
        "t": np.array([0, 1, 2, 0, 1, 0, 1, 3]),
        "terminateds": np.array([False, False, True, False, False, False, False, False]),
        "truncateds": np.array([False, False, False, False, True, False, False, False]),
    }
    # c lacks its third step, and the last row's successor is in another piece.
    assert has_successor(columns).tolist() == [True, True, True, True, False, True, False, False]


def test_td_columns_have_every_transition_of_the_files(tmp_path, teacher, rows):
    files = LabelledFiles(write(tmp_path, rows, num_files=1, row_group_size=10_000))
    labeller = LearnerColumns(TD, teacher, files.schema)
    columns = labeller(next(Stream(files, labeller.in_files(TD), HeldOutRows(files, 0.0, 1), 0)))
    valid = columns["valid"]
    assert valid[rows["terminateds"]].all()
    assert not valid[rows["truncateds"]].any()
    assert valid.sum() == len(valid) - rows["truncateds"].sum() - (not rows["terminateds"][-1])
    assert set(columns) == set(TD)


def test_labels_that_files_lack_are_computed(tmp_path, teacher, rows):
    files = LabelledFiles(write(tmp_path, rows))
    names = ("obs", "teacher_q", "teacher_features")
    labeller = LearnerColumns(names, teacher, files.schema)
    columns = labeller(next(Stream(files, labeller.in_files(names), HeldOutRows(files, 0.0, 1), 0)))
    assert columns["teacher_features"].shape == (500, 256)
    assert columns["teacher_q"].shape == (500, 2)


@pytest.mark.parametrize(
    ("obs", "of_images", "shape", "dtype"),
    [
        (np.zeros((2, 8, 8, 1), np.uint8), True, (2, 8, 8, 1), np.uint8),
        (np.zeros((2, 8, 8, 1), np.float64), True, (2, 8, 8, 1), np.float32),
        (np.zeros((2, 3), np.uint8), False, (2, 3), np.float32),
        (np.zeros((2, 3), np.float64), False, (2, 3), np.float32),
        (np.zeros((2, 5, 5), np.int64), False, (2, 25), np.float32),
        (np.zeros((2, 6, 7, 2), np.int8), False, (2, 84), np.float32),
        (np.zeros((0, 5, 5), np.float32), False, (0, 25), np.float32),
        (np.zeros(2, np.float32), False, (2, 1), np.float32),
    ],
)
def test_observations_have_the_types_of_the_replay(obs, of_images, shape, dtype):
    column = as_column(obs, of_images=of_images)
    assert (column.shape, column.dtype) == (shape, dtype)


def test_shards_share_the_rows_and_no_transition_crosses_them(tmp_path, teacher, rows, monkeypatch):
    put: list = []
    monkeypatch.setattr("rllib_kd.offline.data.ray.put", lambda shard: put.append(shard) or shard)
    config = recorded_config(write(tmp_path, rows), teacher, td_coeff=1.0, held_out=0.0).learners(num_learners=2)
    config.training(replay_buffer_config={"capacity": 10_000})
    data = opened(config, teacher)
    shards = list(data.fill())
    assert len(shards) == 6
    assert sum(len(shard["obs"]) for shard in put) == len(rows["obs"])
    assert all(len(shard) == 2 for shard in shards)
    for shard in put:
        assert not (shard["valid"] & ~shard["terminateds"])[-1]
    assert list(data.fill()) == []
    assert data.sample(10_000) == []  # the replays have all


@pytest.fixture
def four_learners(tmp_path, teacher, rows, monkeypatch):
    """Makes the data of four Learners from the first rows, in files of a few."""
    monkeypatch.setattr("rllib_kd.offline.data.ray.put", lambda shard: shard)

    def make(num_rows, num_files, capacity, **distillation):
        folder = write(tmp_path, {name: column[:num_rows] for name, column in rows.items()}, num_files=num_files)
        config = recorded_config(folder, teacher, held_out=0.0, **distillation).learners(num_learners=4)
        return opened(config.training(replay_buffer_config={"capacity": capacity}), teacher)

    return make


def sizes(pieces) -> list[int]:
    """The rows that each Learner gets from some pieces."""
    return np.sum([[len(shard["obs"]) for shard in shards] for shards in pieces], axis=0).tolist()


def test_learners_get_equally_many_rows_of_pieces_that_are_smaller_than_their_number(four_learners):
    data = four_learners(60, num_files=20, capacity=15)
    assert sizes(data.fill()) == [15] * 4
    assert data.fits


def test_a_resumed_stream_gives_each_learner_the_rows_that_it_would_have_got(four_learners):
    data = four_learners(60, num_files=20, capacity=5)
    list(data.fill())
    assert not data.fits
    data.sample(4)
    resumed = four_learners(60, num_files=20, capacity=5)
    resumed.set_state(data.get_state())
    for _ in range(8):
        for one, other in zip(data.sample(3), resumed.sample(3), strict=True):
            assert [shard["obs"].tolist() for shard in one] == [shard["obs"].tolist() for shard in other]


def test_fewer_rows_than_learners_are_an_error(four_learners):
    with pytest.raises(DataError, match=r"The Learners get \[1, 1, 1, 0\] rows of '.*' to learn from"):
        list(four_learners(3, num_files=1, capacity=10).fill())
    with pytest.raises(DataError, match=r"\[0, 0, 0, 0\] rows .*with `td_coeff` also"):  # which split each transition
        list(four_learners(12, num_files=3, capacity=10, td_coeff=1.0).fill())


def test_rows_that_do_not_fit_pass_at_the_pace_that_is_asked_for(tmp_path, teacher, rows):
    config = recorded_config(write(tmp_path, rows), teacher, held_out=0.0)
    config.training(replay_buffer_config={"capacity": 1_000})
    data = opened(config, teacher)
    assert sum(len(shards[0]["obs"]) for shards in data.fill()) == 1_000
    asked, passed = 0, 0
    for _ in range(40):
        asked += 300
        passed += sum(len(shards[0]["obs"]) for shards in data.sample(300))
        assert asked <= passed < asked + 500
    assert {name.lstrip("_") for name in vars(data).keys() - data.NOT_SAVED} == data.get_state().keys() - {"files"}


@pytest.mark.parametrize(("num_learners", "n_step"), [(0, 1), (0, 3), (2, 3)])
def test_the_replay_finds_the_state_some_steps_later_in_the_same_episode(
    tmp_path, teacher, rows, monkeypatch, num_learners, n_step
):
    monkeypatch.setattr("rllib_kd.offline.data.ray.put", lambda shard: shard)
    monkeypatch.setattr("rllib_kd.offline.labelled_files.PIECE_ROWS", 170)
    config = recorded_config(write(tmp_path, rows), teacher, td_coeff=1.0).learners(num_learners=num_learners)
    config.training(replay_buffer_config={"capacity": 4_000})
    data = opened(config, teacher)
    replays = [ColumnarReplay(4_000) for _ in range(max(1, num_learners))]
    for shards in data.fill():
        for replay, shard in zip(replays, shards, strict=True):
            replay.add(shard)
    assert sum(map(len, replays)) > 0.8 * len(rows["obs"])
    place = {obs.tobytes(): index for index, obs in enumerate(rows["obs"])}
    for replay in replays:
        drawn = replay.spread(4_000)
        found = replay.gather_transitions(drawn, n_step=n_step, gamma=0.9)
        obs = replay.gather(drawn, ("obs",))["obs"].numpy()
        for i in range(0, len(drawn), 3):
            first, steps = place[obs[i].tobytes()], int(found["n_step"][i])
            last = first + steps - 1
            assert len(set(rows["eps_id"][first : last + 1])) == 1
            assert found["rewards"][i] == pytest.approx(sum(0.9**k for k in range(steps)))
            assert bool(found["terminateds"][i]) == rows["terminateds"][last]
            if not rows["terminateds"][last]:
                np.testing.assert_array_equal(found["new_obs"][i].numpy(), rows["obs"][last + 1])
                assert rows["eps_id"][last + 1] == rows["eps_id"][first]


def test_the_replay_holds_all_rows_up_to_a_limit(tmp_path, monkeypatch):
    files = numbered(tmp_path)
    assert capacity_for(files, ("obs", "teacher_q"), num_actions=2) == NUMBERED
    assert capacity_for(files, ("obs", "teacher_q"), num_actions=2, num_learners=2) == NUMBERED / 2
    monkeypatch.setattr("rllib_kd.offline.data._MOST_BYTES", 100 * 13)
    assert capacity_for(files, ("obs", "teacher_q"), num_actions=2) == 100


def test_a_folder_that_has_changed_begins_anew(tmp_path, teacher, rows, caplog):
    config = recorded_config(write(tmp_path, rows), teacher)
    config.training(replay_buffer_config={"capacity": 10_000})
    states = []
    for num_rows in (3_000, 3_000, 2_000):
        write(tmp_path, {name: column[:num_rows] for name, column in rows.items()})
        data = opened(config, teacher)
        if states:
            data.set_state(states[0])
        states.append(data.get_state() if states else list(data.fill()) and data.get_state())
    assert states[1] == states[0]
    assert not states[2]["is_in_replay"]
    assert "are not those of the checkpoint" in caplog.text


@pytest.mark.parametrize("is_labelled", [True, False])
def test_a_file_that_shrinks_while_it_is_used_is_an_error(tmp_path, rows, is_labelled):
    files = LabelledFiles(write(tmp_path, rows)) if is_labelled else UnlabelledFiles([write(tmp_path, rows)])
    write(tmp_path, {name: column[:2_900] for name, column in rows.items()}, row_group_size=400)
    with pytest.raises(DataError, match=r"0.parquet': ends at row [\d,]+, but at row [\d,]+ when it was opened"):
        list(files.read(files.chunks[0], ("obs",)))


def test_episodes_are_the_same_with_labels_and_without(tmp_path, teacher):
    columns = {"obs": states(100), "eps_id": (np.arange(100) // 5 / 10).astype(np.float32)}
    write_parquet(tmp_path / "in" / "a.parquet", columns)
    label_here(LabelJob(teacher, tmp_path / "in", tmp_path / "out"))
    shares = [
        np.concatenate([part["obs"] for part in subset.read(subset.chunks[0], ("obs",))])
        for files in (UnlabelledFiles([str(tmp_path / "in")]), LabelledFiles(str(tmp_path / "out")))
        for subset in (Subset(files, 0.0, 0.5),)
    ]
    assert 0 < len(shares[0]) < 100
    np.testing.assert_array_equal(*shares)


# --- Data that cannot be used -----------------------------------------------------------------------------------------


def begin(folder, teacher, **distillation):
    return opened(recorded_config(str(folder), teacher, **distillation), teacher)


def test_an_empty_folder_and_a_missing_one_are_named(tmp_path):
    with pytest.raises(DataError, match=r"The folder '.*' has no Parquet file"):
        LabelledFiles(str(tmp_path))
    with pytest.raises(DataError, match="There is nothing at"):
        LabelledFiles(str(tmp_path / "missing"))


def test_files_being_written_and_hidden_ones_are_left_out(tmp_path):
    files = numbered(tmp_path / "data")
    for name in (".0.parquet", "_temporary/0.parquet", "0.parquet.new", "notes.txt"):
        path = tmp_path / "data" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("no Parquet")
    assert LabelledFiles(str(tmp_path / "data")).num_rows == files.num_rows


def test_files_that_are_named_twice_are_read_once(tmp_path):
    folder = Path(write(tmp_path / "labelled", {"obs": states(6), "teacher_q": np.zeros((6, 2), np.float32)}))
    names = [str(folder), str(folder / "1.parquet"), str(folder)]
    assert LabelledFiles(names).num_rows == LabelledFiles(names[::-1]).num_rows == 6
    assert LabelledFiles(names[1:]).first_path == names[1]
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", states(3))
    files = UnlabelledFiles([str(tmp_path / "b.npy"), *(str(tmp_path / f"{name}.npy") for name in "ab")])
    assert files.num_rows == 6
    assert files.first_path == str(tmp_path / "b.npy")


def test_a_schema_that_changes_between_files_names_file_and_column(tmp_path, rows):
    folder = write(tmp_path, rows)
    other = LabelledSchema((4,), "float32", 2)
    pq.write_table(to_table({name: rows[name] for name in ("obs", "teacher_q")}, other), tmp_path / "7.parquet")
    with pytest.raises(DataError, match=r"'.*7\.parquet', column 'actions': is missing"):
        LabelledFiles(folder)


@pytest.mark.parametrize("column", ["obs", "teacher_q"])
@pytest.mark.parametrize("set_aside", [0.0, 0.3])
def test_a_number_that_is_not_finite_names_file_column_and_row(tmp_path, teacher, rows, column, set_aside):
    wrong = rows[column].copy()
    place = next(row for row in range(2_400, 3_000) if place_of(rows["eps_id"][row]) >= set_aside)
    wrong[place, 1] = np.nan
    data = begin(write(tmp_path, {**rows, column: wrong}), teacher, held_out=0.0, set_aside=set_aside)
    data.config.training(replay_buffer_config={"capacity": 10_000})
    row = place - 1_500  # in its file
    with pytest.raises(DataError, match=rf"'.*1\.parquet', column '{column}': row {row}: has the number nan"):
        list(data.fill())


def test_illegal_actions_are_no_error(tmp_path, teacher, rows):
    labels = rows["teacher_q"].copy()
    labels[::3, 0] = -np.inf
    data = begin(write(tmp_path, {**rows, "teacher_q": labels}), teacher)
    assert np.isneginf(data.held_out["teacher_q"]).any()


@pytest.mark.parametrize("held_out", [0.0, 0.1])
def test_labels_of_another_teacher_are_found_by_what_they_are(tmp_path, teacher, rows, held_out):
    folder = write(tmp_path, {**rows, "teacher_q": rows["teacher_q"] + 5.0})
    with pytest.raises(DataError, match=r"parquet', column 'teacher_q': has labels that differ by 5"):
        begin(folder, teacher, held_out=held_out)


def test_labels_of_another_teacher_are_found_in_any_unit_of_rewards(tmp_path, rows):
    teacher = load_teacher("cartpole")
    labels, q_values = rows["teacher_q"], teacher.q_values
    teacher.q_values = lambda *args: q_values(*args) * 1e-12
    begin(write(tmp_path / "own", {**rows, "teacher_q": labels * 1e-12}), teacher)
    with pytest.raises(DataError, match=r"column 'teacher_q': has labels that differ by"):
        begin(write(tmp_path / "other", {**rows, "teacher_q": labels * 1.5e-12}), teacher)


def test_labels_of_another_number_of_actions_name_file_and_column(tmp_path, teacher, rows):
    labels = np.zeros((len(rows["obs"]), 3), np.float32)
    folder = write(tmp_path, {**rows, "teacher_q": labels}, num_actions=3)
    with pytest.raises(DataError, match=r"0\.parquet', column 'teacher_q': has labels of 3 actions, but .* has 2"):
        begin(folder, teacher)


def test_log_probabilities_are_no_q_values(tmp_path, teacher, rows):
    columns = {**rows, "teacher_log_probs": rows["teacher_q"]}
    folder = write(tmp_path, columns, labels=("teacher_log_probs",))
    with pytest.raises(DataError, match=r"column 'teacher_log_probs': is there, but the labels of .* 'teacher_q'"):
        begin(folder, teacher)


def test_labels_of_an_actor_critic_pass_as_those_of_its_kind(tmp_path, teacher, rows):
    actor_critic = load_teacher("cartpole")
    actor_critic.outputs = "log_probs"
    labels = actor_critic.q_values(torch.tensor(rows["obs"])).numpy()
    columns = {name: column for name, column in rows.items() if name != "teacher_q"} | {"teacher_log_probs": labels}
    data = begin(write(tmp_path, columns, labels=("teacher_log_probs",)), actor_critic)
    np.testing.assert_allclose(np.exp(data.held_out["teacher_q"]).sum(1), 1.0, atol=1e-5)
    with pytest.raises(DataError, match=r"labels of .* are 'teacher_q'"):
        data.meet(teacher)


def test_masks_come_with_the_columns_of_td_alone(tmp_path, teacher, rows):
    mask = np.ones((len(rows["obs"]), 2), bool)
    folder = write(tmp_path, rows | {"action_mask": mask}, recorded=(*RECORDED, "action_mask"))
    files = LabelledFiles(folder)
    for names in (TD, TD[:2]):
        make = LearnerColumns(names, teacher, files.schema)
        columns = make(next(Stream(files, make.in_files(names), HeldOutRows(files, 0.0, 1), 0)))
        assert ("action_mask" in columns) == ("valid" in names)


def test_an_action_that_the_teacher_lacks_is_named(tmp_path, teacher, rows):
    files = LabelledFiles(write(tmp_path, {**rows, "actions": np.full_like(rows["actions"], 7)}))
    labeller = LearnerColumns(TD, teacher, files.schema)
    with pytest.raises(DataError, match="column 'actions': row 500: has the action 7, but the teacher's are 0 to 1"):
        labeller(next(Stream(files, labeller.in_files(TD), HeldOutRows(files, 0.0, 1), 0)))


def test_a_file_that_is_cut_short_is_named(tmp_path, rows):
    folder = write(tmp_path, rows, num_files=1, row_group_size=10_000)
    files = LabelledFiles(folder)
    content = bytearray((tmp_path / "0.parquet").read_bytes())
    content[4:40_000] = bytes(39_996)
    (tmp_path / "0.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"0\.parquet': cannot be read to its end"):
        next(Stream(files, ("obs",), HeldOutRows(files, 0.0, 1), 0))


def test_files_without_rows_are_refused(tmp_path):
    schema = LabelledSchema((4,), "float32", 2)
    empty = {Columns.OBS: np.zeros((0, 4), np.float32), "teacher_q": np.zeros((0, 2), np.float32)}
    pq.write_table(to_table(empty, schema), tmp_path / "0.parquet")
    with pytest.raises(DataError, match="have no rows"):
        LabelledFiles(str(tmp_path))


def test_the_memory_of_a_row_is_known_from_the_first_file_that_has_rows(tmp_path):
    kind = pa.binary(80_000)
    for number, rows in enumerate(([], [], [bytes(80_000)] * 3)):
        pq.write_table(pa.table({"obs": pa.array(rows, kind)}), tmp_path / f"{number}.parquet")
    files = UnlabelledFiles([str(tmp_path)])
    assert (files.num_rows, files.obs_numbers) == (3, 80_000)
    assert files.piece_rows == UnlabelledFiles([str(tmp_path / "2.parquet")]).piece_rows


def test_pickled_columns_are_never_unpickled(tmp_path):
    path = tmp_path / "0.parquet"
    pq.write_table(pa.table({"obs": pa.array([b"\x80\x04\x95"])}), path)
    with pytest.raises(DataError, match="has no labels"):
        LabelledFiles(str(tmp_path))


def test_the_fingerprint_of_files_ignores_where_they_are(tmp_path):
    one, other = numbered(tmp_path / "a"), numbered(tmp_path / "b")
    assert one.fingerprint() == other.fingerprint() != numbered(tmp_path / "c", rows=10).fingerprint()
    assert dataclasses.asdict(one.schema) == dataclasses.asdict(other.schema)
    obs = np.arange(NUMBERED, dtype=np.float32)[::-1, None]
    again = LabelledFiles(write(tmp_path / "d", {"obs": obs, "teacher_q": np.zeros((NUMBERED, 2), np.float32)}))
    assert again.chunks == one.chunks
    assert again.fingerprint() != one.fingerprint()  # recorded once more, as many rows under the same name
