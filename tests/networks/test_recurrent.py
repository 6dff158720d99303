"""Recurrent Q-networks: built by RLlib's words, over sequences as step by step."""

import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch

from rllib_kd import DistillDQNConfig, load_teacher
from rllib_kd.learner.observation_scale import ObservationScale, take_normalized, take_raw
from rllib_kd.learner.student import unless_frozen
from rllib_kd.networks.dqn_module import student_module_spec
from rllib_kd.networks.recurrent import Memory, PlainPass, first_layers, initial_state, run_sequences

SHAPES = {
    "LSTM behind an MLP": ({"fcnet_hiddens": [6]}, (2,)),
    "LSTM alone": ({"fcnet_hiddens": []}, (2,)),
    "GRU behind an MLP": ({"fcnet_hiddens": [6], "recurrent_layer_type": "gru"}, (2,)),
    "GRU alone": ({"fcnet_hiddens": [], "recurrent_layer_type": "gru"}, (2,)),
    "LSTM behind a CNN": ({"conv_filters": [[4, 3, 2]]}, (12, 12, 1)),
    "dueling": ({"fcnet_hiddens": [6], "dueling": True}, (2,)),
}


def recurrent(shape=(2,), *, seed=0, num_actions=3, **model_config):
    torch.manual_seed(seed)
    given = {"use_lstm": True, "lstm_cell_size": 5, "fcnet_hiddens": [6], **model_config}
    spec = student_module_spec({**DistillDQNConfig().model_config, **given})
    spec.observation_space, spec.action_space = (
        gym.spaces.Box(-1, 1, shape, np.float32),
        gym.spaces.Discrete(num_actions),
    )
    return spec.build()


@pytest.mark.parametrize("name", SHAPES)
def test_steps_with_a_memory_equal_a_sequence(name, tmp_path):
    model_config, shape = SHAPES[name]
    module = recurrent(shape, **model_config)
    obs = torch.randn(2, 4, *shape)
    expected, _ = run_sequences(module, obs, initial_state(module, 2))
    memory, first = Memory(), np.ones(2, dtype=bool)
    for step in range(4):
        memory.begin(module, first)
        torch.testing.assert_close(memory.step(module, obs[:, step]), expected[:, step].detach())
        memory, first = pickle.loads(pickle.dumps(memory)), np.zeros(2, dtype=bool)
    module.save_to_path(str(tmp_path))
    loaded = load_teacher(tmp_path)  # read as data
    torch.testing.assert_close(loaded.first_q_values(obs[:, 0]), expected[:, 0].detach())


def test_episodes_begin_with_the_initial_state_and_broken_states_begin_anew():
    module, obs = recurrent(), torch.randn(3, 2)
    memory = Memory()
    memory.begin(module, np.zeros(3, dtype=bool))
    beginning = memory.step(module, obs)
    memory.begin(module, np.array([True, False, False]))
    memory.state["h"][1] = torch.nan
    memory.begin(module, np.zeros(3, dtype=bool))
    again = memory.step(module, obs)
    torch.testing.assert_close(again[1], beginning[1])
    memory.begin(module, np.array([True, False, False]))
    third = memory.step(module, obs)
    torch.testing.assert_close(third[0], beginning[0])
    assert not torch.allclose(third[2], beginning[2])


@pytest.mark.parametrize("name", [name for name in SHAPES if "CNN" not in name])
def test_a_scale_of_observations_is_folded_into_what_takes_them(name):
    model_config, shape = SHAPES[name]
    module, obs = recurrent(shape, **model_config), torch.randn(2, 4, *shape)
    scale = ObservationScale.of(torch.tensor([1.0, -2.0]), torch.tensor([3.0, 0.1]))
    expected, _ = run_sequences(module, obs, initial_state(module, 2))
    take_normalized(first_layers(module), scale)
    normalized, _ = run_sequences(module, scale.normalize(obs), initial_state(module, 2))
    torch.testing.assert_close(normalized, expected, atol=1e-5, rtol=1e-4)
    take_raw(first_layers(module), scale)
    torch.testing.assert_close(run_sequences(module, obs, initial_state(module, 2))[0], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", SHAPES)
def test_the_plain_pass_equals_the_module(name):
    model_config, shape = SHAPES[name]
    module, obs = recurrent(shape, **model_config), torch.randn(2, 4, *shape)
    plain = PlainPass.of(module)
    assert (plain is None) == (name in ("LSTM behind a CNN", "dueling"))
    if plain is None:
        return
    state = {part: torch.randn(2, 1, 5) for part in initial_state(module, 2)}
    expected = run_sequences(module, obs, state)[0].flatten(0, 1)
    for places in (torch.arange(8), torch.tensor([1, 2, 6])):
        torch.testing.assert_close(plain(obs, state, places), expected[places])


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"])
def test_a_module_with_hooks_has_no_plain_pass(kind):
    module = recurrent()
    assert PlainPass.of(module) is not None
    getattr(module.encoder, f"register_{kind}")(lambda *_: None)
    assert PlainPass.of(module) is None


def test_images_have_no_layer_for_a_scale():
    assert first_layers(recurrent((12, 12, 1), conv_filters=[[4, 3, 2]])) == []


@pytest.mark.parametrize("hiddens", [[], [8]])
def test_first_layers_that_are_frozen_are_not_rewritten(hiddens):
    module = recurrent(fcnet_hiddens=hiddens)
    assert unless_frozen(first_layers(module)) != []
    module.encoder.requires_grad_(False)
    assert unless_frozen(first_layers(module)) == []
