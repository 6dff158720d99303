"""The ring against a plain list, the n-step look-ahead against a walk along episodes, the draw against its law."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_kd.replay import ColumnarReplay


def rows(first: int, count: int) -> dict[str, np.ndarray]:
    """Rows that carry their own number in every column: a half-written one would show."""
    numbers = np.arange(first, first + count)
    return {"obs": np.stack([numbers, -numbers], 1).astype(np.float32), "action": numbers}


def contents(replay: ColumnarReplay) -> dict[str, np.ndarray]:
    return replay.get_state()["columns"]


@given(capacity=st.integers(1, 20), counts=st.lists(st.integers(0, 30), min_size=1, max_size=12))
def test_keeps_the_newest_rows_in_order(capacity, counts):
    replay, written = ColumnarReplay(capacity, seed=0), 0
    for count in counts:
        replay.add(rows(written, count))
        written += count
        expected = np.arange(max(0, written - capacity), written)
        assert len(replay) == len(expected)
        if len(expected):
            assert contents(replay)["action"].tolist() == expected.tolist()
            assert contents(replay)["obs"].tolist() == [[n, -n] for n in expected]


def test_gathers_whole_rows():
    replay = ColumnarReplay(10, seed=0)
    replay.add(rows(0, 25))
    batch = replay.gather(replay.sample_indices(1, 64)[0], ("obs", "action"))
    assert (batch["obs"][:, 0] == batch["action"]).all()
    assert (batch["obs"][:, 1] == -batch["action"]).all()
    assert set(batch["action"].tolist()) <= set(range(15, 25))


def test_draws_uniformly_among_valid_rows_only():
    replay = ColumnarReplay(8, seed=0)
    valid = np.array([True, False, True, True, False, True])
    replay.add(rows(0, 6) | {"valid": valid})
    draws = replay.gather(replay.sample_indices(100, 200).flatten(), ("action",))["action"]
    counts = Counter(draws.tolist())
    assert set(counts) == {0, 2, 3, 5}
    # 20,000 draws among 4 rows: 5,000 each with a standard deviation of 61.
    assert all(abs(count - 5_000) < 5 * 61 for count in counts.values())


def test_the_same_seed_draws_the_same_rows():
    replays = [ColumnarReplay(100, seed=seed) for seed in (7, 7, 8)]
    for replay in replays:
        replay.add(rows(0, 100))
    first, same, other = (replay.sample_indices(5, 20) for replay in replays)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_state_restores_contents_and_order_of_drawing():
    replay, copy = ColumnarReplay(16, seed=3), ColumnarReplay(16, seed=4)
    replay.add(rows(0, 21))
    replay.sample_indices(2, 5)
    copy.set_state(replay.get_state())
    for column in ("obs", "action"):
        drawn = [r.gather(r.sample_indices(1, 50)[0], (column,))[column] for r in (replay, copy)]
        assert len(drawn[0]) == 50
    assert contents(copy)["action"].tolist() == contents(replay)["action"].tolist()


def test_keeps_the_type_of_a_column():
    replay = ColumnarReplay(4)
    replay.add({"obs": np.full((2, 3), 255, dtype=np.uint8)})
    assert replay.gather(torch.tensor([0]), ("obs",))["obs"].dtype == torch.uint8


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"obs": np.zeros((2, 2), np.float32), "action": np.zeros(3)}, "one length"),
        ({"obs": np.zeros((2, 2), np.float32)}, "has the columns"),
        ({"obs": np.zeros((2, 5), np.float32), "action": np.zeros(2)}, r"shape \(2,\).*\(5,\)"),
    ],
)
def test_fragments_that_do_not_fit_are_refused(second, message):
    replay = ColumnarReplay(10)
    replay.add(rows(0, 3))
    with pytest.raises(ValueError, match=message):
        replay.add(second)


def test_a_capacity_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        ColumnarReplay(0)


# --- Transitions ------------------------------------------------------------------------------------------------------


def trajectory(first: int, ends: list[str]) -> tuple[dict[str, np.ndarray], list[dict]]:
    """Columns of one fragment of one environment, and the transitions in it as plain dicts.

    `ends`: for each step "" (goes on), "terminated" or "truncated"; after an end comes a row for the last state.
    """
    columns = {name: [] for name in ("obs", "rewards", "terminateds", "truncateds", "valid")}
    steps: list[dict] = []
    number = first

    def put(reward, end, valid):
        nonlocal number
        row = (float(number), reward, end == "terminated", end == "truncated", valid)
        for column, value in zip(columns.values(), row, strict=True):
            column.append(value)
        number += 1

    for end in ends:
        steps.append({"obs": number, "reward": float(number % 7), "end": end})
        put(steps[-1]["reward"], end, True)
        if end:
            put(0.0, "", False)
    put(0.0, "", False)  # the state in which the next fragment goes on
    arrays = {name: np.array(column) for name, column in columns.items()}
    arrays["obs"], arrays["rewards"] = arrays["obs"].astype(np.float32), arrays["rewards"].astype(np.float32)
    return arrays, steps


ends = st.lists(st.sampled_from(["", "", "", "terminated", "truncated"]), min_size=1, max_size=12)


@settings(max_examples=200)
@given(fragments=st.lists(ends, min_size=1, max_size=4), n_step=st.integers(1, 5), capacity=st.integers(30, 80))
def test_n_step_looks_ahead_as_a_walk_along_the_episode(fragments, n_step, capacity):
    gamma, replay, number = 0.9, ColumnarReplay(capacity, seed=0), 0
    expected: dict[int, tuple] = {}
    for fragment_ends in fragments:
        arrays, steps = trajectory(number, fragment_ends)
        replay.add(arrays)
        number += len(arrays["obs"])
        for i, start in enumerate(steps):
            total, length, last = 0.0, 0, start
            for step in steps[i : i + n_step]:
                total += gamma**length * step["reward"]
                length, last = length + 1, step
                if step["end"]:
                    break
            expected[start["obs"]] = (last["obs"] + 1, total, last["end"] == "terminated", length)
    drawn = replay.sample_indices(1, 50)[0]
    batch = replay.gather(drawn, ("obs",)) | {"ahead": replay.gather_transitions(drawn, n_step=n_step, gamma=gamma)}
    ahead = batch["ahead"]
    for i, obs in enumerate(batch["obs"].tolist()):
        new_obs, total, terminated, length = expected[int(obs)]
        assert ahead["new_obs"][i].item() == new_obs
        assert ahead["rewards"][i].item() == pytest.approx(total, rel=1e-5)
        assert bool(ahead["terminateds"][i]) == terminated
        assert ahead["n_step"][i].item() == length
