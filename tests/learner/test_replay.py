"""The ring against a plain list, the n-step look-ahead against a walk along episodes, the draw against its law."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.replay_buffers import PrioritizedEpisodeReplayBuffer

from rllib_kd.learner.replay import BATCHES_AT_ONCE, ColumnarReplay, PrioritizedReplay, make_replay, spread_over
from rllib_kd.observations.frames import CONTEXT, pack, unpack


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


def test_a_state_of_another_device_restores_contents_alone(caplog):
    """Generators of a GPU have states of 16 bytes."""
    replay, copy, other = (ColumnarReplay(16, seed=seed) for seed in (3, 4, 4))
    replay.add(rows(0, 21))
    copy.set_state(replay.get_state() | {"generator": np.zeros(16, dtype=np.uint8)})
    assert contents(copy)["action"].tolist() == contents(replay)["action"].tolist()
    assert "saved on another kind of device than 'cpu'" in caplog.text
    other.add(rows(0, 21))
    assert torch.equal(copy.sample_indices(1, 50), other.sample_indices(1, 50))


@pytest.mark.parametrize(("capacity", "kept"), [(10, 10), (7, 7), (20, 10)])
def test_a_ring_of_any_capacity_takes_the_newest_rows(capacity, kept):
    full = ColumnarReplay(10, seed=0)
    full.add(rows(0, 13))  # it has wrapped around
    replay = ColumnarReplay(capacity, seed=0)
    replay.add(rows(90, 3))
    replay.set_state(full.get_state())
    np.testing.assert_array_equal(contents(replay)["action"], range(13 - kept, 13))
    same_places = torch.equal(replay._columns["action"], full._columns["action"])
    assert same_places == (capacity == 10)
    replay.add(rows(13, 1))
    assert contents(replay)["action"][-1] == 13


def test_the_state_of_an_empty_replay_empties_another():
    replay = ColumnarReplay(6, seed=0)
    replay.add(rows(0, 5))
    replay.set_state(ColumnarReplay(6).get_state())
    assert len(replay) == 0
    replay.add(rows(7, 2))
    assert replay.gather(torch.arange(2), ("action",))["action"].tolist() == [7, 8]


def test_keeps_the_type_of_a_column():
    replay = ColumnarReplay(4)
    replay.add({"obs": np.full((2, 3), 255, dtype=np.uint8)})
    assert replay.gather(torch.tensor([0]), ("obs",))["obs"].dtype == torch.uint8


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"obs": np.zeros((2, 2), np.float32), "action": np.zeros(3)}, "the same length"),
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


# --- Priorities -------------------------------------------------------------------------------------------------------


def prioritized(capacity=100, *, alpha=0.6, beta=0.4, seed=0):
    return PrioritizedReplay(capacity, alpha=alpha, beta=beta, seed=seed)


def drawn(replay, num_batches, batch_size):
    """Actions and weights of every row that is drawn."""
    rows, weights = (torch.cat(parts) for parts in zip(*replay.draw(num_batches, batch_size), strict=True))
    return replay.gather(rows, ("action",))["action"], weights


def test_uniform_unless_there_is_an_alpha():
    assert type(make_replay({"capacity": 4, "alpha": 0.0, "beta": 0.4})) is ColumnarReplay
    assert type(make_replay({"capacity": 4})) is ColumnarReplay
    assert type(make_replay({"capacity": 4, "alpha": 0.1, "beta": 0.4})) is PrioritizedReplay


def test_uniform_batches_have_no_weights():
    replay = ColumnarReplay(10, seed=0)
    replay.add(rows(0, 10))
    batches = list(replay.draw(3, 5))
    assert [(len(drawn), weights) for drawn, weights in batches] == [(5, None)] * 3


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_draws_in_proportion_to_the_priorities(alpha):
    replay = prioritized(alpha=alpha)
    valid = np.array([True, True, False, True, True])
    replay.add(rows(0, 5) | {"valid": valid})
    errors = torch.tensor([1.0, -4.0, 9.0, 0.25, 0.0])  # of any sign; the invalid row is never drawn
    replay.update_priorities(torch.arange(5), errors)
    actions, _ = drawn(replay, 200, 200)
    shares = np.bincount(actions.numpy(), minlength=5) / len(actions)
    expected = errors.abs().numpy() ** alpha * valid
    np.testing.assert_allclose(shares, expected / expected.sum(), atol=5 * 0.5 / np.sqrt(40_000))


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_weights_are_rllibs(beta):
    """The same priorities in RLlib's own buffer."""
    errors = np.array([0.5, 3.0, 0.01, 1.0, 7.0, 0.2])
    theirs = PrioritizedEpisodeReplayBuffer(100, alpha=0.6)
    observations = [np.array([float(i)], np.float32) for i in range(7)]
    theirs.add(SingleAgentEpisode(observations=observations, actions=[0] * 6, rewards=[0.0] * 6, len_lookback_buffer=0))
    seen = {}
    first = theirs.sample(200, beta=beta)  # every row once, at least: it gets its priority
    theirs.update_priorities(errors[[int(episode.get_observations(0)[0]) for episode in first]])
    for episode in theirs.sample(2_000, beta=beta):
        seen[int(episode.get_observations(0)[0])] = episode.get_extra_model_outputs("weights", 0)
    assert set(seen) == set(range(6))

    ours = prioritized(beta=beta)
    ours.add(rows(0, 6))
    ours.update_priorities(torch.arange(6), torch.tensor(errors).float())
    actions, weights = drawn(ours, 20, 50)
    for action, weight in zip(actions.tolist(), weights.tolist(), strict=True):
        assert weight == pytest.approx(seen[action], rel=1e-4)
    assert set(actions.tolist()) == set(range(6))


@pytest.mark.parametrize("without_error", [1, 50])
def test_rows_without_an_error_leave_others_their_weights(without_error):
    replay = prioritized(1_000, alpha=1.0, beta=1.0)
    replay.add(rows(0, 1_000))
    errors = torch.full((1_000,), 1e-3)
    errors[:without_error] = 0.0
    replay.update_priorities(torch.arange(1_000), errors)
    actions, weights = drawn(replay, 20, 100)
    assert (actions >= without_error).all()
    np.testing.assert_allclose(weights.numpy(), 1e-4 * (1 - without_error / 1_000), rtol=1e-4)


def test_a_full_correction_gives_the_uniform_mean_back():
    replay = prioritized(beta=1.0)
    replay.add(rows(0, 10))
    replay.update_priorities(torch.arange(10), torch.linspace(0.1, 3.0, 10))
    actions, weights = drawn(replay, 100, 500)
    assert (weights * actions).sum() / weights.sum() == pytest.approx(np.mean(range(10)), rel=0.02)
    assert weights.max() == 1.0


def test_new_rows_come_first():
    replay = prioritized(alpha=1.0)
    replay.add(rows(0, 10))
    replay.update_priorities(torch.arange(10), torch.tensor([20.0] + [1e-9] * 9))
    replay.add(rows(10, 1))
    actions, _ = drawn(replay, 10, 200)
    shares = np.bincount(actions.numpy(), minlength=11) / len(actions)
    np.testing.assert_allclose(shares[[0, 10]], 0.5, atol=0.06)  # as high as the highest


def test_every_batch_that_is_asked_for_is_drawn():
    replay = prioritized()
    replay.add(rows(0, 10))
    count = 2 * BATCHES_AT_ONCE + 3
    assert [len(batch_rows) for batch_rows, _ in replay.draw(count, 7)] == [7] * count


@pytest.mark.parametrize("config", [{"capacity": 10}, {"capacity": 10, "alpha": 0.6, "beta": 0.4}])
def test_a_seed_sets_the_order(config):
    def order(seed):
        replay = make_replay(config, seed=seed)
        replay.add(rows(0, 10))
        return torch.cat([batch_rows for batch_rows, _ in replay.draw(5, 20)]).tolist()

    assert order(1) == order(1) != order(2)


def test_the_config_sets_both_exponents():
    replay = make_replay({"capacity": 4, "alpha": 0.5, "beta": 0.25}, seed=0)
    replay.add(rows(0, 2))
    replay.update_priorities(torch.arange(2), torch.tensor([1.0, 16.0]))
    actions, weights = drawn(replay, 50, 200)
    # Probabilities 1 : 16^0.5, weights (1 / 4)^0.25.
    assert (actions == 1).float().mean() == pytest.approx(0.8, abs=0.02)
    torch.testing.assert_close(weights[actions == 1].unique(), torch.tensor([0.25**0.25]))
    # A new row has the highest priority, to the same exponent.
    replay.add(rows(2, 1))
    actions, _ = drawn(replay, 50, 200)
    np.testing.assert_allclose(np.bincount(actions) / len(actions), [1 / 9, 4 / 9, 4 / 9], atol=0.02)


def test_a_prioritized_replay_takes_the_state_of_a_uniform_one():
    uniform = ColumnarReplay(6, seed=0)
    uniform.add(rows(0, 5))
    replay = prioritized(6)
    replay.add(rows(0, 1))
    replay.update_priorities(torch.arange(1), torch.tensor([50.0]))
    replay.set_state(uniform.get_state())
    assert replay.get_state()["highest_priority"] == 1.0
    actions, _ = drawn(replay, 20, 100)
    assert set(actions.tolist()) == set(range(5))


def test_the_last_rows_of_the_ring_can_be_drawn():
    """The sums of priorities are exact enough that rounding prefers no row."""
    replay = prioritized(100_000, alpha=1.0)
    replay.add(rows(0, 100_000))
    replay.update_priorities(torch.arange(100_000), torch.full((100_000,), 1e-3))
    actions, _ = drawn(replay, 200, 1_000)
    counts = np.bincount(actions.numpy() // 10_000, minlength=10)
    np.testing.assert_allclose(counts, 20_000, atol=5 * np.sqrt(20_000))


def test_priorities_change_between_batches_of_one_call():
    replay = prioritized(alpha=1.0)
    replay.add(rows(0, 4))
    batches = []
    for batch_rows, _ in replay.draw(2 * BATCHES_AT_ONCE, 50):
        batches.append(set(batch_rows.tolist()))
        replay.update_priorities(torch.arange(4), torch.tensor([0.0, 0.0, 0.0, 1.0]))
    assert batches[0] == {0, 1, 2, 3}
    assert batches[-1] == {3}


@given(capacity=st.integers(1, 20), counts=st.lists(st.integers(0, 30), min_size=1, max_size=8))
def test_a_priority_stays_with_its_row(capacity, counts):
    replay, written = prioritized(capacity, alpha=1.0), 0
    for count in counts:
        replay.add(rows(written, count))
        written += count
        if len(replay):
            held = replay._columns["action"][: len(replay)]
            replay.update_priorities(torch.arange(len(replay)), held + 1.0)
    if len(replay):
        state = contents(replay)
        np.testing.assert_array_equal(state["priority"], state["action"] + 1.0)
        copy = prioritized(capacity)
        copy.set_state(replay.get_state())
        assert copy.get_state()["highest_priority"] == max(1.0, written)
        np.testing.assert_array_equal(contents(copy)["priority"], state["priority"])


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


@pytest.mark.parametrize(
    "kind",
    [ColumnarReplay, lambda capacity, seed: PrioritizedReplay(capacity, alpha=0.7, beta=0.4, seed=seed)],
    ids=["uniform", "prioritized"],
)
@pytest.mark.parametrize("num_rows", [9, 16, 23])
@pytest.mark.parametrize("packed", [False, True])
def test_a_restored_replay_draws_the_very_rows_before_and_after_it_wraps_around(kind, num_rows, packed):
    def fragment(first, count):
        columns = {"obs": np.arange(first, first + count, dtype=np.float32)[:, None], "valid": np.ones(count, bool)}
        if packed:
            frames = np.arange(first, first + count + 2, dtype=np.uint8)
            stacks = np.stack([frames[i : i + count] for i in range(3)], axis=-1)
            columns = pack({**columns, "obs": stacks[:, None, None, :] * np.ones((1, 2, 2, 1), np.uint8)}, (2, 2, 3))
            assert CONTEXT in columns
        return columns

    replay, copy = kind(16, seed=3), kind(16, seed=4)
    replay.add(fragment(0, num_rows))
    if isinstance(replay, PrioritizedReplay):
        replay.update_priorities(replay.sample_indices(1, 4)[0], torch.arange(4.0))
    copy.set_state(replay.get_state())
    for first in (50, 60):
        drawn = [[each.gather(rows, ("obs",))["obs"] for rows, _ in each.draw(3, 8)] for each in (replay, copy)]
        assert torch.equal(*map(torch.stack, drawn))
        for each in (replay, copy):
            each.add(fragment(first, 6))


def packed_stacks(first: int, count: int) -> dict[str, np.ndarray]:
    """Stacks of three consecutive numbers, from `first` on, as frames of 2 × 2 pixels."""
    frames = np.arange(first, first + count + 2, dtype=np.uint8)
    stacks = np.stack([frames[i : i + count] for i in range(3)], axis=-1)[:, None, None, :]
    return pack({"obs": stacks * np.ones((1, 2, 2, 1), np.uint8)}, (2, 2, 3))


@pytest.mark.parametrize("first", ["empty", "packed", "unpacked"])
@pytest.mark.parametrize("num_rows", [5, 13, 14, 15, 16])  # with their context, up to two rows more than the ring has
def test_no_stack_of_a_joined_ring_has_frames_of_another_one(first, num_rows):
    joined, other = ColumnarReplay(64, seed=0), ColumnarReplay(16, seed=0)
    if first != "empty":
        columns = packed_stacks(100, 10)
        joined.add(columns if first == "packed" else unpack(columns))
    num_before = len(joined)
    other.add(packed_stacks(0, 5))  # of which a part is overwritten
    other.add(packed_stacks(0, num_rows))
    joined.add_contents(other.get_state())
    stacks = joined.gather(joined.spread(64), ("obs",))["obs"][:, 0, 0].int()
    assert (stacks.diff(dim=-1) == 1).all()
    assert len(joined) == num_before + len(other)
    own = other.gather(other.spread(64), ("obs",))["obs"][:, 0, 0]
    assert sorted(stacks[num_before:].tolist()) == sorted(own.tolist())


def transitions(first: int, count: int, *, masks: bool) -> dict[str, np.ndarray]:
    """Rows whose mask tells their own number; the last one is stored for its predecessor only."""
    numbers = np.arange(first, first + count)
    ends = np.zeros(count, dtype=bool)
    columns = rows(first, count) | {"rewards": numbers.astype(np.float32), "terminateds": ends, "truncateds": ends}
    columns["valid"] = numbers < first + count - 1
    return columns | ({"action_mask": np.stack([numbers % 2 == 0, numbers % 3 == 0], 1)} if masks else {})


@pytest.mark.parametrize("n_step", [1, 3])
def test_the_mask_is_that_of_the_bootstrap_state(n_step):
    replay = ColumnarReplay(20, seed=0)
    replay.add(transitions(0, 10, masks=True))
    drawn = torch.arange(9)
    gathered = replay.gather_transitions(drawn, n_step=n_step, gamma=0.9)
    numbers = gathered["new_obs"][:, 0].long()
    assert numbers.tolist() == [min(number + n_step, 9) for number in range(9)]
    assert gathered["new_action_mask"].tolist() == [[n % 2 == 0, n % 3 == 0] for n in numbers.tolist()]


def test_spread_rows_are_even_and_all_if_there_are_few():
    replay = ColumnarReplay(20, seed=0)
    replay.add(rows(0, 12))
    assert replay.spread(100).tolist() == replay.spread(12).tolist() == list(range(12))
    assert [row // 2 for row in replay.spread(6).tolist()] == [0, 1, 2, 3, 4, 5]
    assert replay.spread(5).tolist() == replay.spread(5).tolist()
    assert ColumnarReplay(20).spread(5).tolist() == []


@pytest.mark.parametrize(("count", "most"), [(4_096, 2_048), (5_000, 2_048), (8_192, 2_048), (2_049, 2_048)])
def test_spread_rows_are_of_all_phases(count, most):
    some = spread_over(count, most)
    assert len(np.unique(some)) == most
    assert 0 <= some.min() <= some.max() < count
    assert some.tolist() == spread_over(count, most).tolist()
    for period in (2, 3, 4):
        assert (np.bincount(some % period, minlength=period) > 0.8 * most / period).all()


@pytest.mark.parametrize("first", [False, True])
def test_without_a_mask_all_actions_are_legal(first):
    replay = ColumnarReplay(20, seed=0)  # as if a replay of a version without masks were continued
    replay.add(transitions(0, 5, masks=first))
    replay.add(transitions(5, 5, masks=not first))
    masks = contents(replay)["action_mask"]
    with_masks = slice(0, 5) if first else slice(5, 10)
    expected = np.ones((10, 2), dtype=bool)
    expected[with_masks] = transitions(with_masks.start, 5, masks=True)["action_mask"]
    np.testing.assert_array_equal(masks, expected)
    assert masks.dtype == bool
    plain = ColumnarReplay(20, seed=0)
    plain.add(transitions(0, 5, masks=False))
    assert "new_action_mask" not in plain.gather_transitions(torch.arange(4), n_step=1, gamma=0.9)
