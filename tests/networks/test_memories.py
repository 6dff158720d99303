"""States of several recurrent students: each one's is what it would be alone."""

import pickle

import numpy as np
import pytest
import torch

from rllib_kd.networks.memories import FamilyMemory, PlayingSideBySide, StateLayout
from rllib_kd.networks.recurrent import Memory
from tests.networks.test_recurrent import recurrent

STUDENTS = {
    "long": recurrent(seed=1, lstm_cell_size=4),
    "gru": recurrent(seed=2, recurrent_layer_type="gru", lstm_cell_size=3),
    "short": recurrent(seed=3, lstm_cell_size=2, fcnet_hiddens=[]),
}
FIRST = [np.array(first, dtype=bool) for first in ([1, 1, 1], [0, 0, 0], [0, 1, 0], [0, 0, 1])]


def alone(module, obs, envs=slice(None)):
    """Q-values `[T, N, A]`, and the states before the last step."""
    memory, q = Memory(), []
    for first, own in zip(FIRST, obs, strict=True):
        memory.begin(module, first[envs])
        before = memory.arrays()
        q.append(memory.step(module, own[envs]))
    return torch.stack(q), before


def test_each_student_of_a_family_has_the_states_that_it_would_have_alone():
    obs, memory, layout = torch.randn(4, 3, 2), FamilyMemory(), StateLayout(STUDENTS)
    q = []
    for first, own in zip(FIRST, obs, strict=True):
        memory = pickle.loads(pickle.dumps(memory))
        memory.begin(STUDENTS, first)
        joined = layout.join(memory.arrays())
        q.append(memory.step(STUDENTS, own))
    assert {part: value.shape for part, value in joined.items()} == {"h": (3, 1, 9), "c": (3, 1, 6)}
    for i, (name, module) in enumerate(STUDENTS.items()):
        expected, before = alone(module, obs)
        torch.testing.assert_close(torch.stack(q)[:, i], expected)
        own = layout.of(name, {part: torch.from_numpy(value) for part, value in joined.items()})
        assert own.keys() == before.keys()
        for part, value in before.items():
            np.testing.assert_allclose(own[part].numpy(), value, atol=1e-6)
            assert own[part].is_contiguous()  # as some devices demand


def test_the_order_of_students_does_not_matter():
    states = {name: {"h": np.full((1, 1, 1), i)} for i, name in enumerate("ab")}
    grus = {name: recurrent(recurrent_layer_type="gru", lstm_cell_size=1) for name in "ba"}
    joined = [StateLayout({name: grus[name] for name in order}).join(states) for order in ("ab", "ba")]
    np.testing.assert_array_equal(joined[0]["h"], joined[1]["h"])
    assert joined[0].keys() == {"h"}


@pytest.mark.parametrize("acting", [[0, 1, 2], [2, 0, 2], [1, 1, 1]])
def test_students_that_play_side_by_side_play_as_alone(acting):
    obs, modules = torch.randn(4, 3, 2), list(STUDENTS.values())
    players = PlayingSideBySide(modules, np.array(acting))
    got = torch.stack([players(own, first) for own, first in zip(obs, FIRST, strict=True)])
    for env, place in enumerate(acting):
        torch.testing.assert_close(got[:, env], alone(modules[place], obs)[0][:, env])
