"""Small results of trials that would take much are refused: in 2 s of processor time, and 300 MB."""

import json
import pickle

import pytest

from rllib_kd import limits, load_teacher
from rllib_kd.checkpoints.pickles import CheckpointError
from rllib_kd.checkpoints.runs import read_curves
from rllib_kd.checkpoints.tune import find_students, resolve
from tests.checkpoints.hostile import refused
from tests.conftest import make_q_module


def write_trial(path, lines):
    for i in range(2):
        make_q_module(seed=i, fcnet_hiddens=[8]).save_to_path(str(path / f"checkpoint_00000{i}"))
        state = pickle.dumps({"training_iteration": i + 1})
        (path / f"checkpoint_00000{i}" / "algorithm_state.pkl").write_bytes(state)
    (path / "result.json").write_text("\n".join(lines))


def result(iteration, value):
    return json.dumps({"training_iteration": iteration, "env_runners": {"episode_return_mean": value}})


BROKEN = [
    "[" * 2_000_000,
    '{"a": ' + "9" * 10**6,
    result(10**400, 1e9)[:-1],
    '{"training_iteration": ' + "1" * 400 + "}",
]
LARGE_LINES = [
    '{"a": [' + "[]," * 1_000_000 + "[]]}",
    "x" * 2**23,
    json.dumps(dict.fromkeys(map(str, range(60_000)), 0)),
]


def test_results_that_are_broken_are_none(tmp_path):
    write_trial(tmp_path, [result(1, 5.0), *BROKEN, result(2, 3.0), *BROKEN])
    assert load_teacher(f"{tmp_path}@best").trained_return == 5.0


@pytest.mark.parametrize("line", LARGE_LINES)
def test_results_that_take_much(tmp_path, line):
    write_trial(tmp_path, [result(1, 5.0), *[line] * 10, result(2, 3.0)])
    refused(lambda: load_teacher(tmp_path))


def test_returns_of_hundreds_of_digits_are_none(tmp_path):
    write_trial(tmp_path, [result(1, 5.0), result(2, 10**400)])
    assert load_teacher(tmp_path).trained_return == 5.0


def test_states_of_many_checkpoints_share_a_limit(tmp_path, monkeypatch):
    write_trial(tmp_path, [result(1, 5.0), result(2, 3.0)])
    monkeypatch.setattr("rllib_kd.checkpoints.tune._MAX_OPCODES", 3)
    with pytest.raises(CheckpointError, match="these states are too many or too large"):
        load_teacher(f"{tmp_path}@best")


@pytest.mark.parametrize("line", ["", pytest.param("{}", marks=pytest.mark.slow), "x"])
def test_millions_of_short_results(tmp_path, line):
    write_trial(tmp_path, [result(1, 5.0), *[line] * 5_000_000])
    refused(lambda: load_teacher(tmp_path))


def test_folders_of_all_trials_share_a_limit(tmp_path, monkeypatch):
    for name in ("a", "b"):
        write_trial(tmp_path / name, [result(1, 5.0), result(2, 3.0)])
    assert load_teacher(f"{tmp_path}@best").trained_return == 5.0
    monkeypatch.setattr(limits, "MAX_ENTRIES", 5)
    with pytest.raises(CheckpointError, match="together with the trials before it, it contains more than 5 files"):
        load_teacher(f"{tmp_path}@best")


def test_states_of_many_checkpoints_share_their_bytes(tmp_path, monkeypatch):
    write_trial(tmp_path, [result(1, 5.0), result(2, 3.0)])
    monkeypatch.setattr(limits, "MAX_FILE", 30)  # the first one has 38 bytes
    with pytest.raises(CheckpointError, match="these states are too many or too large"):
        load_teacher(f"{tmp_path}@best")


def test_students_on_the_command_line_share_a_limit(tmp_path, monkeypatch):
    """`rllib compare` reads what somebody else may have written, as `load_teacher()` does."""
    for name in ("a", "b"):
        write_trial(tmp_path / name, [result(1, 5.0)] * 1_000)
    assert list(find_students([tmp_path])) == ["a", "b"]
    monkeypatch.setattr(limits, "MAX_RESULTS_VALUES", 900_000)  # a line counts as 600 of them
    with pytest.raises(CheckpointError, match=r"'.*/b/result.json' was refused: it has more values than any results"):
        find_students([tmp_path])
    assert resolve(tmp_path / "a").uri.endswith("a/checkpoint_000001")
    assert set(read_curves(tmp_path)) == set()  # one's own results have no limits; these have no steps
    monkeypatch.undo()
    monkeypatch.setattr(limits, "MAX_ENTRIES", 5)
    with pytest.raises(CheckpointError, match="together with the trials before it, it contains more than 5 files"):
        find_students([tmp_path])


@pytest.mark.parametrize("kind", ["sparse", "one line", "many values"])
def test_results_of_students_that_take_much(tmp_path, kind):
    write_trial(tmp_path, [])
    with open(tmp_path / "result.json", "wb") as file:
        if kind == "sparse":
            file.truncate(8 * 10**9)
        else:
            file.write(b'{"a": [' + (b"1" * 10**8 if kind == "one line" else b"1," * 100_000 + b"1") + b"]}\n")
    refused(lambda: find_students([tmp_path]))


def test_links_to_trials_are_not_followed(tmp_path):
    write_trial(tmp_path / "a", [result(1, 5.0)])
    write_trial(tmp_path / "elsewhere" / "b", [result(1, 9.0)])
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "b")
    assert load_teacher(tmp_path).trained_return == 5.0
