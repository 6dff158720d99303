"""Sequences cut from what environments go through: each state is learned from once, none follows another episode's."""

import numpy as np
import pytest

from rllib_kd.env_runner.sequences import OpenSequences


def fragment(first, valid=None, start=0):
    """Columns whose numbers tell the environment (hundreds) and the step."""
    first = np.array(first, dtype=bool)
    numbers = 100.0 * np.arange(len(first))[:, None] + start + np.arange(first.shape[1])
    valid = np.ones_like(first) if valid is None else np.array(valid, dtype=bool)
    return {
        "obs": numbers[..., None].astype(np.float32),
        "teacher_q": np.stack([numbers, -numbers], -1).astype(np.float32),
        "first": first,
        "valid": valid,
        "state_h": numbers[..., None, None].astype(np.float32),
    }


def cut(fragments, *, length, burn_in=0, num_shards=1, with_next=False):
    sequences = OpenSequences(length, burn_in, with_next)
    return [sequences.add(part, num_shards) for part in fragments]


def learned_numbers(shards):
    return sorted(n for shard in shards for n in shard["teacher_q"][..., 0][shard["learned"]].tolist())


@pytest.mark.parametrize("burn_in", [0, 2])
@pytest.mark.parametrize("num_shards", [1, 3])
def test_each_state_is_learned_from_once(burn_in, num_shards):
    first = np.zeros((3, 7), dtype=bool)
    first[:, 0], first[1, 3] = True, True
    later = np.zeros((3, 7), dtype=bool)
    later[0, 1] = True
    shards = [
        shard
        for call in cut([fragment(first), fragment(later, start=7)], length=4, burn_in=burn_in, num_shards=num_shards)
        for shard in call
    ]
    steps = 14 if burn_in else 12  # of 14, in windows of 4 states; with burn-in each has 2 new ones
    expected = sorted(100.0 * env + step for env in range(3) for step in range(steps))
    assert learned_numbers(shards) == expected
    assert {shard["obs"].shape[1:] for shard in shards} == {(4, 1)}


def test_a_sequence_begins_with_its_state_and_ends_with_its_episode():
    ((shard,),) = cut([fragment([[1, 0, 0, 1, 0]])], length=5)
    assert shard["obs"][..., 0].tolist() == [[0, 1, 2, 0, 0], [3, 4, 0, 0, 0]]
    assert shard["learned"].tolist() == [[True, True, True, False, False], [True, True, False, False, False]]
    assert shard["state_h"].ravel().tolist() == [0.0, 3.0]
    assert not {"first", "valid"} & shard.keys()


def test_burn_in_is_run_through_and_not_learned_from():
    _, (shard,) = cut([fragment([[1, 0, 0, 0]]), fragment([[0, 0]], start=4)], length=4, burn_in=2)
    assert shard["obs"][..., 0].tolist() == [[2, 3, 4, 5]]
    assert shard["learned"].tolist() == [[False, False, True, True]]
    assert shard["state_h"].ravel().tolist() == [2.0]


def test_dropped_states_end_a_sequence_and_leave_no_number():
    columns = fragment([[1, 0, 0, 0]], valid=[[1, 0, 1, 1]])
    columns["obs"][0, 1] = columns["teacher_q"][0, 1] = np.nan
    ((shard,),) = cut([columns], length=4)
    assert np.isfinite(shard["obs"]).all()
    assert np.isfinite(shard["teacher_q"]).all()
    assert learned_numbers([shard]) == [0.0, 2.0, 3.0]
    assert shard["state_h"].ravel().tolist() == [0.0, 2.0]  # the state that the student had there


def test_nothing_is_returned_until_a_window_is_complete():
    (none,), (some,) = cut([fragment([[1, 0]]), fragment([[0, 0]], start=2)], length=3)
    assert (none["obs"].shape, none["state_h"].shape) == ((0, 3, 1), (0, 1, 1))
    assert some["obs"].shape == (1, 3, 1)


def test_td_has_the_next_state_of_each():
    first, final = [[1, 0, 0, 1, 0, 0]], [[1, 1, 0, 1, 1, 1]]  # the third state is the last one of an episode
    _, (shard,) = cut([fragment(first, final), fragment([[0]], start=6)], length=6, with_next=True)
    assert shard["obs"][..., 0].tolist() == [[0, 1, 2, 0, 0, 0, 0], [3, 4, 5, 6, 0, 0, 0]]
    assert shard["learned"].tolist() == [[True] * 2 + [False] * 4, [True] * 3 + [False] * 3]
    assert shard["teacher_q"][..., 0].tolist() == [[0, 1, 0, 0, 0, 0], [3, 4, 5, 0, 0, 0]]
    assert shard["state_h"].ravel().tolist() == [0.0, 3.0]
    assert shard["next_state_h"].ravel().tolist() == [1.0, 4.0]


@pytest.mark.parametrize("with_next", [False, True])
def test_td_leaves_out_a_state_before_a_new_environment(with_next):
    """Where an environment was replaced, a state is followed by one of another episode."""
    _, (shard,) = cut([fragment([[1, 0]]), fragment([[1, 0, 0]], start=2)], length=4, with_next=with_next)
    assert learned_numbers([shard]) == [0.0, 2.0, 3.0] if with_next else [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize("burn_in", [0, 3])
def test_td_learns_from_each_state_once(burn_in):
    fragments = [fragment(np.eye(1, 5)), *(fragment(np.zeros((1, 5)), start=start) for start in (5, 10))]
    shards = [shard for (shard,) in cut(fragments, length=4, burn_in=burn_in, with_next=True)]
    assert learned_numbers(shards) == [float(n) for n in range(14 if burn_in else 12)]
    for shard in shards:
        steps = np.diff(shard["obs"][..., 0], axis=1)[shard["learned"]]
        assert (steps == 1.0).all()
