"""Packed stacks against the stacks that were packed, whatever the environment shows."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rllib_kd.learner.replay import ColumnarReplay, PrioritizedReplay
from rllib_kd.observations.frames import CONTEXT, OBS, VALID, observations, pack, unpack

SIZE, NUM_FRAMES = 2, 4  # pixels a side; frames in a stack
SHAPE = (SIZE, SIZE, NUM_FRAMES)


def episode(rng: np.random.Generator, length: int, padding: str, num_colours: int) -> list[np.ndarray]:
    """Stacks `[k, H, W]` of one episode. With few colours, frames are often equal by chance."""
    frames = list(rng.integers(num_colours, size=(length, SIZE, SIZE)).astype(np.uint8))
    before = {"zero": [np.zeros_like(frames[0])], "repeat": [frames[0]]}[padding] * (NUM_FRAMES - 1)
    return [np.stack((before + frames)[t : t + NUM_FRAMES]) for t in range(length)]


@st.composite
def fragments(draw: st.DrawFn, max_count: int = 5):
    """Columns of several environments one after the other, as EnvRunners send them; `number` tells rows apart."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    padding, num_colours = draw(st.sampled_from(["zero", "repeat"])), draw(st.sampled_from([1, 2, 200]))
    channels_last = draw(st.booleans())
    result, number = [], 0
    for _ in range(draw(st.integers(1, max_count))):
        lengths = draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
        rows = [stack for length in lengths for stack in episode(rng, length, padding, num_colours)]
        if draw(st.booleans()):  # an environment that shows anything
            rows = [rng.integers(num_colours, size=(NUM_FRAMES, SIZE, SIZE)).astype(np.uint8) for _ in rows]
        stacks = np.stack(rows)
        stacks = np.moveaxis(stacks, 1, -1) if channels_last else stacks
        result.append({OBS: stacks, "number": np.arange(number, number + len(rows))})
        number += len(rows)
    return result


def channels_last(stacks: np.ndarray) -> np.ndarray:
    return stacks if stacks.shape[1:] == SHAPE else np.moveaxis(stacks, 1, -1)


@given(fragments=fragments(max_count=1), always=st.booleans())
def test_what_is_packed_can_be_unpacked(fragments, always):
    (columns,) = fragments
    packed = pack(columns, SHAPE, always=always)
    assert CONTEXT in packed or not always
    rows = np.flatnonzero(~packed[CONTEXT]) if CONTEXT in packed else np.arange(len(columns[OBS]))
    np.testing.assert_array_equal(channels_last(observations(packed, rows)), channels_last(columns[OBS]))
    if CONTEXT in packed:
        assert not packed[VALID][packed[CONTEXT]].any()
        unpacked = unpack(packed)
        np.testing.assert_array_equal(unpacked[OBS], channels_last(columns[OBS]))
        np.testing.assert_array_equal(unpacked["number"], columns["number"])
        assert unpacked[VALID].all()


@pytest.mark.parametrize("padding", ["zero", "repeat"])
def test_a_trajectory_takes_a_frame_a_state_and_one_stack(padding):
    stacks = np.stack(episode(np.random.default_rng(0), 20, padding, 200))
    packed = pack({OBS: stacks}, SHAPE)
    assert len(packed[OBS]) == 20 + NUM_FRAMES - 1
    assert packed[OBS].shape[1:] == (SIZE, SIZE)
    later = pack({OBS: stacks[5:]}, SHAPE)  # a fragment that begins in the middle
    assert len(later[OBS]) == 15 + NUM_FRAMES - 1


def test_what_is_no_stack_stays_as_it_is():
    colours = np.random.default_rng(0).integers(256, size=(30, *SHAPE)).astype(np.uint8)
    assert set(pack({OBS: colours}, SHAPE)) == {OBS}
    single = np.zeros((30, SIZE, SIZE, 1), np.uint8)  # one frame is no stack
    assert set(pack({OBS: single}, (SIZE, SIZE, 1))) == {OBS}
    assert set(pack({OBS: colours[:0]}, SHAPE)) == {OBS}


@given(
    fragments=fragments(),
    forms=st.lists(st.booleans(), min_size=5, max_size=5),
    capacity=st.integers(1, 60),
    prioritized=st.booleans(),
)
def test_the_replay_gives_back_what_was_added(fragments, forms, capacity, prioritized):
    """Also around the end of the ring, and where some fragments are packed and others are not."""
    make = {"device": "cpu", "seed": 0} | ({"alpha": 0.5, "beta": 0.4} if prioritized else {})
    replay = (PrioritizedReplay if prioritized else ColumnarReplay)(capacity, **make)
    stacks = np.concatenate([channels_last(columns[OBS]) for columns in fragments])
    for columns, is_packed in zip(fragments, forms, strict=False):
        # `always`, or not at all: what is smaller does not matter here.
        valid = {VALID: np.ones(len(columns[OBS]), dtype=bool)}
        replay.add(pack(columns | valid, SHAPE, always=True) if is_packed else columns | valid)
        assert len(replay) <= capacity
    copy = type(replay)(capacity, **make)
    copy.set_state(replay.get_state())
    for held in (replay, copy):
        if len(held) == 0:
            continue
        batch = held.gather(held._drawable, (OBS, "number"))
        np.testing.assert_array_equal(channels_last(batch[OBS].numpy()), stacks[batch["number"].numpy()])
        newest = min(len(stacks), capacity - (NUM_FRAMES - 1) * len(stacks))
        assert set(range(len(stacks) - newest, len(stacks))) <= set(batch["number"].tolist())
    assert sorted(copy.gather(copy._drawable, ("number",))["number"].tolist()) == sorted(
        replay.gather(replay._drawable, ("number",))["number"].tolist()
    )


@given(fragments=fragments(), n_step=st.integers(1, 3), capacity=st.integers(20, 80))
def test_next_states_of_packed_stacks(fragments, n_step, capacity):
    """Each fragment is a trajectory whose last state is not acted in; the bootstrap state is n rows on, or that one."""
    replay, ends = ColumnarReplay(capacity, seed=0), []
    for columns in fragments:
        count = len(columns[OBS])
        zeros, valid = np.zeros(count, dtype=bool), np.arange(count) < count - 1
        replay.add(
            pack(
                columns
                | {VALID: valid, "rewards": np.ones(count, np.float32), "terminateds": zeros, "truncateds": zeros},
                SHAPE,
                always=True,
            )
        )
        ends += [columns["number"][-1]] * count
    stacks = np.concatenate([channels_last(columns[OBS]) for columns in fragments])
    if len(replay) == 0:
        return
    rows = replay._drawable
    numbers = replay.gather(rows, ("number",))["number"].numpy()
    ahead = replay.gather_transitions(rows, n_step=n_step, gamma=1.0)
    expected = np.minimum(numbers + n_step, np.array(ends)[numbers])
    np.testing.assert_array_equal(ahead["new_obs"], stacks[expected])
    np.testing.assert_array_equal(ahead["n_step"], expected - numbers)


def test_memory_is_that_of_single_frames():
    replay = ColumnarReplay(100)
    stacks = np.stack(episode(np.random.default_rng(0), 200, "zero", 200))
    replay.add(pack({OBS: stacks, "teacher_q": np.zeros((200, 3), np.float32)}, SHAPE))
    assert replay.nbytes == 100 * (SIZE * SIZE + 3 * 4 + 2)
    assert len(replay) == 100 - (NUM_FRAMES - 1)  # the oldest ones have lost a part of their stacks


def test_gathers_bytes_where_bytes_were_added():
    replay = ColumnarReplay(10)
    replay.add(pack({OBS: np.stack(episode(np.random.default_rng(0), 8, "zero", 200))}, SHAPE))
    batch = replay.gather(torch.tensor([5, 6]), (OBS,))
    assert batch[OBS].dtype == torch.uint8
    assert batch[OBS].shape == (2, *SHAPE)
