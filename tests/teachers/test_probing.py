"""What is said of teachers whose outputs for an observation depend on the others in its batch."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

from rllib_kd import Teacher, load_teacher
from rllib_kd.teachers.probing import probes
from tests.conftest import make_q_module

IMAGES, VECTORS = Box(0, 255, (12, 12, 3), np.uint8), Box(-np.inf, np.inf, (2,))
SAID = "depend on the others in its batch"
WEIGHTS = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0]])


def convolutions(*, is_in_training_mode):
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 8, 3, 2), torch.nn.BatchNorm2d(8), torch.nn.Flatten(), torch.nn.Linear(200, 3)]
    return torch.nn.Sequential(*layers).train(is_in_training_mode)


class Remembering:
    """Its outputs change from call to call."""

    calls = 0

    def __call__(self, obs):
        self.calls += 1
        return obs @ WEIGHTS * self.calls


@pytest.mark.parametrize("is_in_training_mode", [True, False])
def test_a_batch_norm_in_training_mode_is_reported(caplog, is_in_training_mode):
    network = convolutions(is_in_training_mode=is_in_training_mode)  # whoever has only a function cannot change it
    Teacher.from_callable(
        lambda obs: network(obs.permute(0, 3, 1, 2)), observation_space=IMAGES, action_space=Discrete(3)
    )
    assert (SAID in caplog.text) == is_in_training_mode


@pytest.mark.parametrize(
    ("function", "is_reported"),
    [
        (lambda obs: (obs - obs.mean(0)) / (obs.std(0, correction=0) + 1e-6) @ WEIGHTS, True),
        (lambda obs: (obs - 0.3) @ WEIGHTS, False),
        (Remembering(), False),
        (lambda obs: WEIGHTS[(obs != 0).long().sum(1)], False),  # takes zeros alone
    ],
)
def test_functions_that_normalize_by_their_batch_are_reported(caplog, function, is_reported):
    numpys, torchs = np.random.get_state()[1].copy(), torch.get_rng_state()
    Teacher.from_callable(function, observation_space=VECTORS, action_space=Discrete(3))
    assert (SAID in caplog.text) == is_reported
    assert np.array_equal(np.random.get_state()[1], numpys)
    assert torch.equal(torch.get_rng_state(), torchs)


def test_files_of_such_networks_are_reported(tmp_path, caplog):
    (tmp_path / "a.json").write_text('{"observation_shape": [3, 12, 12]}')
    batch = {"input": {0: torch.export.Dim("batch")}}
    for is_in_training_mode in (True, False):
        caplog.clear()
        network = convolutions(is_in_training_mode=is_in_training_mode)
        program = torch.export.export(network, (torch.zeros(2, 3, 12, 12),), dynamic_shapes=batch)
        torch.export.save(program, tmp_path / "a.pt2")
        load_teacher(str(tmp_path / "a.pt2"), trust_checkpoint=True)
        assert (SAID in caplog.text) == is_in_training_mode


def test_a_recurrent_teacher_is_steady(tmp_path, caplog):
    make_q_module(use_lstm=True, lstm_cell_size=4, max_seq_len=5).save_to_path(tmp_path)
    load_teacher(str(tmp_path))
    assert SAID not in caplog.text


@pytest.mark.parametrize(
    "space",
    [
        IMAGES,
        VECTORS,
        Box(-1.0, 2.0, (3, 2)),
        Box(np.array([2, -np.inf, -1], np.float32), np.array([np.inf, 5, 1], np.float32)),
        Box(-np.finfo(np.float32).max, np.finfo(np.float32).max, (2,)),
        Box(0, 1, (4,), np.bool_),
        Discrete(3, start=4),
        MultiDiscrete([2, 9]),
        MultiBinary(5),
    ],
    ids=str,
)
def test_probes_are_different_observations_of_the_space(space):
    drawn = probes(space)
    assert drawn.shape == (4, *space.shape)
    assert np.isfinite(drawn).all()
    assert np.abs(drawn).max() < 1e6
    assert len(np.unique(drawn.reshape(4, -1), axis=0)) > 1
    dtype = space.dtype
    for row in drawn:
        as_shown = row.astype(dtype) if isinstance(space, gym.spaces.Box) or space.shape else dtype.type(row)
        assert space.contains(as_shown)
        assert np.array_equal(as_shown.astype(np.float32), row)
    assert np.array_equal(drawn, probes(space))
