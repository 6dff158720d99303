"""The C of every kind of layer equals PyTorch, without undefined behaviour, also for the largest inputs."""

from pathlib import Path

import numpy as np
import pytest

from rllib_kd.export.c.program import lower, place
from rllib_kd.networks import layers as layers_module
from rllib_kd.networks.layers import ELEMENTWISE
from tests.export.c.networks import (
    HOSTILE,
    SANITIZERS,
    Together,
    has_sanitizers,
    headers,
    random_networks,
    students,
    tied,
)

#: A quarter of what the export allows.
BOUND = 2.5e-5


def extremes(size: int) -> np.ndarray:
    """Denormals, the largest numbers with either sign, zeros; then NaN and infinities, first, last and everywhere."""
    info = np.finfo(np.float32)
    finite = [1e-45, -1e-45, info.smallest_normal, info.max, -info.max, 0.0, -0.0, 3e38, 1e19]
    rows = [np.full(size, number, np.float32) for number in finite]
    mixed = np.resize(np.array([info.max, -info.max, 1.0, 1e-45], np.float32), size)
    refused = []
    for number in (np.nan, np.inf, -np.inf):
        for where in (0, -1, slice(None)):
            row = np.zeros(size, np.float32)
            row[where] = number
            refused.append(row)
    return np.stack([*rows, mixed, *refused])


NUM_REFUSED = 9
NUM_NETWORKS = 28  # as few as have every layer; test_many_networks.py has more


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("c")


@pytest.fixture(scope="module")
def played(folder):
    """All networks in one program: on usual observations, then on extreme ones."""
    networks = [*random_networks(NUM_NETWORKS), *students(), tied()]
    options = SANITIZERS if has_sanitizers(folder) else ()
    obs = [np.concatenate([each.obs.reshape(len(each.obs), -1), extremes(each.obs[0].size)]) for each in networks]
    return networks, Together(folder, headers(networks), *options).run(obs)


def test_there_is_every_kind_of_layer():
    ops = set().union(*(each.ops() for each in random_networks(NUM_NETWORKS)))
    # Of trees: tests/export/test_trees.py. Branches, of images beside other numbers, are refused.
    assert ops | {"tree", "branches"} == {*ELEMENTWISE, *layers_module._BUILDERS}


def test_every_layer_equals_pytorch(played):
    for each, (actions, codes, q_values) in zip(*played, strict=True):
        count = len(each.obs)
        expected = each.q_values(each.obs)
        assert not codes[:count].any()
        np.testing.assert_allclose(q_values[:count], expected, rtol=0, atol=BOUND, err_msg=str(each.layers))
        np.testing.assert_array_equal(actions[:count], q_values[:count].argmax(-1))
        chosen = np.take_along_axis(expected, actions[:count, None], -1)[:, 0]
        assert (chosen >= expected.max(-1) - 2 * BOUND).all()  # the same action, but for ties within the bound
        assert np.ptp(expected) > 1e-3  # a constant would be no test


def test_of_equal_q_values_the_first_is_taken(played):
    assert (played[1][-1][0][:-NUM_REFUSED] == 1).all()


def test_nan_and_infinity_are_refused(played):
    for actions, codes, _ in played[1]:
        assert (actions[-NUM_REFUSED:] == -1).all()
        assert (codes[-NUM_REFUSED:] == -1).all()


def test_the_largest_and_smallest_numbers_give_an_action_or_an_overflow(played):
    overflows = 0
    for each, (actions, codes, q_values) in zip(*played, strict=True):
        rows = slice(len(each.obs), -NUM_REFUSED)
        assert np.isin(codes[rows], (0, -2)).all()
        assert ((actions[rows] >= 0) == (codes[rows] == 0)).all()
        assert (np.isfinite(q_values[rows]).all(-1) == (codes[rows] == 0)).all()
        small = slice(len(each.obs), len(each.obs) + 3)
        tiny = extremes(each.obs[0].size)[:3].reshape(3, *each.shape)
        np.testing.assert_allclose(q_values[small], each.q_values(tiny), atol=BOUND)
        overflows += (codes[rows] == -2).sum()
    assert overflows > 20


def test_sanitizers_find_nothing(played, folder):
    """The program of all tests above was compiled with them, and ends at what they find."""
    if not has_sanitizers(folder):
        pytest.skip("this compiler has no -fsanitize=undefined,address")


def test_sanitizers_would_find_something(folder):
    if not has_sanitizers(folder):
        pytest.skip("this compiler has no -fsanitize=undefined,address")
    (network,) = random_networks(1)
    text = headers([network])[0].replace("N0_OBSERVATION_SIZE)", "N0_OBSERVATION_SIZE + 1)", 1)
    with pytest.raises(AssertionError, match="stack-buffer-overflow"):
        Together(folder, [text], *SANITIZERS).run([network.obs])


def test_names_of_layers_are_not_in_the_header():
    for network in random_networks(3):
        assert any(HOSTILE in name for name in network.tensors)
        for line in headers([network])[0].splitlines():
            assert not any(part in line for part in ("evil", "#error", "return 7"))


def test_buffers_that_are_read_later_are_not_overwritten():
    """A picture of the memory after each step: what a step reads is what the step that made it wrote."""
    for network in [*random_networks(NUM_NETWORKS), *students()]:
        program = lower(network.layers, network.tensors, network.shape)
        buffers = {step.target.buffer for step in program.steps} - {program.output.buffer}
        offsets, length = place(program.steps, buffers)
        memory = np.zeros(length, int)
        for step in program.steps:
            for source in step.sources:
                if source.buffer in offsets:
                    first = offsets[source.buffer]
                    assert (memory[first : first + source.size] == source.buffer).all()
            if step.target.buffer in offsets:
                first = offsets[step.target.buffer]
                if len(step.sources) > 1 or step.op in ("linear", "conv2d", "zero_pad", "one_hot", "expectation"):
                    for source in step.sources:  # not in place
                        if source.buffer in offsets:
                            begin, end = offsets[source.buffer], offsets[source.buffer] + source.size
                            assert end <= first or first + step.target.size <= begin
                memory[first : first + step.target.size] = step.target.buffer
