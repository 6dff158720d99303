"""The C of recurrent students equals PyTorch over episodes, without undefined behaviour, and keeps no state itself."""

from pathlib import Path

import numpy as np
import pytest
import torch

from rllib_kd.export.c.write import c_network, main_program_of
from rllib_kd.export.export import export
from rllib_kd.export.formats import describe, input_shape
from rllib_kd.export.runners import c_runner
from rllib_kd.networks.recurrent import Memory
from rllib_kd.observations.pipeline import Normalize, ObservationPipeline
from rllib_kd.teachers.base import Teacher
from tests.export.c.legal import legal_actions
from tests.export.c.networks import HOSTILE, SANITIZERS, Together, has_sanitizers
from tests.export.c.test_layers import NUM_REFUSED, extremes
from tests.networks.test_recurrent import SHAPES, recurrent

#: The largest difference from PyTorch in a Q-value, a tenth of what the export allows.
BOUND = 1e-5
STEPS = 200
#: Before these steps come observations that are refused.
REFUSED_BEFORE = (0, 1, 50, 199)
CASES = SHAPES | {
    "a filter before it": ({"fcnet_hiddens": [6]}, (2,)),
    "one unit": ({"fcnet_hiddens": [], "lstm_cell_size": 1}, (1,)),
    "GRU of 33 units": ({"fcnet_hiddens": [7], "lstm_cell_size": 33, "recurrent_layer_type": "gru"}, (3,)),
}


def student_of(name: str) -> Teacher:
    model_config, shape = CASES[name]
    module = recurrent(shape, **model_config)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter *= 2.0  # far from 0, so that gates saturate
    stages = (Normalize(np.full(2, 0.3), np.full(2, 0.5), 1.5),) if name == "a filter before it" else ()
    return Teacher(module, pipeline=ObservationPipeline(module.observation_space, stages) if stages else None)


def over_an_episode(student: Teacher, obs: np.ndarray) -> np.ndarray:
    """Q-values `[T, A]` in PyTorch."""
    network = student.module
    if student.pipeline is not None:
        (stage,) = student.pipeline.stages
        obs = np.clip((obs - stage.mean) / stage.std, -stage.clip, stage.clip)
    memory, q_values = Memory(), []
    for t, one in enumerate(torch.as_tensor(obs, dtype=torch.float32)):
        memory.begin(network, np.array([t == 0]))
        q_values.append(memory.step(network, one[None])[0].numpy())
    return np.stack(q_values)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("c")


@pytest.fixture(scope="module")
def episode():
    """Observations by name, with refused ones between, then extreme ones, and usual ones again."""

    def of(shape):
        usual = np.random.default_rng(0).normal(size=(STEPS, *shape)).astype(np.float32)
        bad = extremes(int(np.prod(shape)))[-NUM_REFUSED:].reshape(NUM_REFUSED, *shape)
        disturbed = np.concatenate(
            [np.concatenate([bad, usual[[t]]]) if t in REFUSED_BEFORE else usual[[t]] for t in range(STEPS)]
        )
        extreme = extremes(int(np.prod(shape))).reshape(-1, *shape)
        return usual, np.concatenate([disturbed, extreme, usual[:5]])

    return of


@pytest.fixture(scope="module")
def played(folder, episode):
    """All students in one program with sanitizers."""
    students = [student_of(name) for name in CASES]
    texts = [c_network(*describe(one), input_shape(one), prefix=f"n{i}").header for i, one in enumerate(students)]
    given = [episode(input_shape(student)) for student in students]
    options = SANITIZERS if has_sanitizers(folder) else ()
    return students, texts, given, Together(folder, texts, *options).run([disturbed for _, disturbed in given])


def test_they_equal_pytorch_over_an_episode_as_if_refused_observations_had_not_been(played):
    students, _, given, results = played
    for student, (usual, _), (actions, codes, q_values) in zip(students, given, results, strict=True):
        count = STEPS + NUM_REFUSED * len(REFUSED_BEFORE)
        accepted = codes[:count] == 0
        assert accepted.sum() == STEPS
        assert (codes[:count][~accepted] == -1).all()
        assert (actions[:count][~accepted] == -1).all()
        expected = over_an_episode(student, usual)
        np.testing.assert_allclose(q_values[:count][accepted], expected, rtol=0, atol=BOUND)
        np.testing.assert_array_equal(actions[:count][accepted], q_values[:count][accepted].argmax(-1))
        chosen = np.take_along_axis(expected, actions[:count][accepted][:, None], -1)[:, 0]
        assert (chosen >= expected.max(-1) - 2 * BOUND).all()
        first_steps = np.concatenate([over_an_episode(student, one[None]) for one in usual[:20]])
        assert np.abs(expected[:20] - first_steps).max() > 100 * BOUND  # a state that stays zero would be no test


def test_no_observation_spoils_a_state(played):
    overflows = 0
    for _, codes, q_values in played[3]:
        after = slice(STEPS + NUM_REFUSED * len(REFUSED_BEFORE), None)
        assert np.isin(codes[after], (0, -1, -2)).all()
        overflows += (codes[after] == -2).sum()
        assert not codes[-5:].any()
        assert np.isfinite(q_values[-5:]).all()
    assert overflows >= 3


def test_the_header_has_no_state_but_buffers_that_it_overwrites(played):
    students, texts, *_ = played
    for name, student, text in zip(CASES, students, texts, strict=True):
        statics = [line for line in text.splitlines() if line.startswith("static ") and "(" not in line]
        assert [line.split()[1] for line in statics if "const" not in line] == ["float"], name  # p_work
        assert set(c_runner.state_sizes(text)) == ({"state_h"} if "GRU" in name else {"state_h", "state_c"})
        assert f"STATE_SIZE {sum(c_runner.state_sizes(text).values())}\n" in text
        assert "malloc" not in text
        assert student.num_parameters * 4 >= int(text.split("_WEIGHT_BYTES ")[1].split()[0]) - 4 * 4  # a filter


@pytest.fixture(scope="module")
def exported(folder) -> tuple[Path, np.ndarray, np.ndarray]:
    """A header, and observations with legal actions."""
    student, rng = student_of("LSTM behind an MLP"), np.random.default_rng(1)
    obs = rng.normal(size=(250, 2)).astype(np.float32)
    masks = rng.random((250, 3)) < 0.6
    masks[:, 0] |= ~masks.any(-1)
    done = export(student, folder / "s.h", format="c", obs=obs, action_masks=masks, prefix="net")
    assert done.max_difference < BOUND
    return folder / "s.h", obs, masks


@pytest.fixture(scope="module")
def compiled(exported) -> c_runner.CNetwork:
    return c_runner.CNetwork(str(exported[0]))


def test_masks_that_allow_nothing_leave_the_state(exported, compiled):
    _, obs, masks = exported
    state = compiled.first_states()
    _, q_values = compiled.run(obs[:20], state)
    expected = np.where(masks[:20], q_values, -np.inf).argmax(-1)
    # Between two steps, one without a legal action, and one with an observation that is refused.
    given, legal = np.repeat(obs[:20], 3, 0), np.repeat(masks[:20], 3, 0)
    legal[0::3] = False
    given[1::3, 1] = np.inf
    own = compiled.first_states()
    actions = legal_actions(compiled, given, legal, own)
    np.testing.assert_array_equal(actions.reshape(20, 3), np.stack([0 * expected - 3, 0 * expected - 1, expected], -1))
    np.testing.assert_array_equal(own, state)


def test_the_program_begins_episodes_and_takes_masks(exported, compiled, folder):
    path, obs, masks = exported
    obs, masks = obs[:12].copy(), masks[:12].copy()
    first = np.isin(np.arange(12), (0, 5, 6))
    obs[2, 0], masks[3] = np.nan, False
    parts = [compiled.run(obs[part], compiled.first_states()) for part in (slice(0, 5), slice(5, 6), slice(6, 12))]
    actions, q_values = map(np.concatenate, zip(*parts, strict=True))
    options = SANITIZERS if has_sanitizers(folder) else ()
    with main_program_of(path, *options) as printed:
        records = np.concatenate([first[:, None], obs], -1)
        lines = [line.split() for line in printed("-q", records=records)]
        assert [int(line[0]) for line in lines] == actions.tolist()
        for line, values in zip(lines, q_values, strict=True):
            assert np.array_equal(np.array(line[1:], np.float32), values[~np.isnan(values)])
        assert [line.split() for line in printed(records=records)] == [line[:1] for line in lines]
        chosen = [int(line) for line in printed("-m", records=np.concatenate([records, masks], -1))]
    assert (chosen[2], chosen[3]) == (-1, -3)
    np.testing.assert_array_equal(chosen[:2], np.where(masks, q_values, -np.inf).argmax(-1)[:2])
    np.testing.assert_array_equal(chosen[5:], np.where(masks, q_values, -np.inf).argmax(-1)[5:])


@pytest.mark.parametrize("states", [None, np.zeros((2, 10), np.float32), np.zeros((3, 10)), np.zeros(9, np.float32)])
def test_states_of_another_shape_or_type_do_not_get_into_c(exported, compiled, states):
    with pytest.raises(ValueError, match=r"expected None of a network without memory, or of 3 observations"):
        compiled.run(exported[1][:3], states)


def test_int8_is_refused_with_a_sentence(folder):
    student, obs = student_of("GRU alone"), np.zeros((4, 2), np.float32)
    with pytest.raises(ValueError, match="int8 is for feed-forward students, but this one is recurrent"):
        export(student, folder / "int8.h", format="c", obs=obs, int8=True)


def test_a_program_that_does_not_begin_episodes_is_noticed(exported, tmp_path, monkeypatch):
    from rllib_kd.export.c import write

    real = write.main_program
    monkeypatch.setattr(write, "main_program", lambda **given: real(**given).replace("record[0] != 0.0f", "0"))
    with pytest.raises(ValueError, match=r"The C program prints '.*', expected .* Nothing was written"):
        export(student_of("LSTM behind an MLP"), tmp_path / "s.h", format="c", obs=exported[1])
    assert list(tmp_path.iterdir()) == []


def test_names_of_recurrent_weights_are_not_in_the_header():
    layers, tensors = describe(student_of("GRU alone"))
    expected = c_network(layers, tensors, (2,)).header
    hostile = {name: f"{HOSTILE}.{i}" for i, name in enumerate(tensors)}
    renamed = [{key: hostile.get(value, value) for key, value in layer.items()} for layer in layers]
    got = c_network(renamed, {hostile[name]: tensor for name, tensor in tensors.items()}, (2,)).header
    assert got == expected


def test_two_recurrent_layers_are_refused():
    layers, tensors = describe(student_of("GRU alone"))
    with pytest.raises(ValueError, match="C takes one recurrent layer, got two"):
        c_network([layers[0], *layers], tensors, (2,))
