"""Weights of CleanRL: of its networks, and of others with the same names."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from rllib_kd import load_teacher
from rllib_kd.checkpoints.pickles import CheckpointError
from tests.conftest import states
from tests.formats import frames, mlp, nature_cnn, q_values, say, to_bytes


def save_cleanrl(path, network, **more):
    path.write_bytes(to_bytes({f"network.{name}": value for name, value in network.state_dict().items()} | more))
    return path


def test_cleanrl_mlp(tmp_path):
    network = mlp(4, 120, 84, 2)
    teacher = load_teacher(save_cleanrl(tmp_path / "dqn.cleanrl_model", network))
    assert q_values(teacher, states(50)) == pytest.approx(say(network, states(50)), abs=1e-6)
    assert teacher.model_config["fcnet_hiddens"] == [120, 84]


@pytest.mark.parametrize(("widths", "warns"), [((120, 84), False), ((64, 64), True)])
def test_an_activation_that_cleanrl_might_not_have_is_named(tmp_path, caplog, widths, warns):
    load_teacher(save_cleanrl(tmp_path / "dqn.pth", mlp(4, *widths, 2, activation=nn.Tanh)))
    assert ("with relu between its layers" in caplog.text) == warns
    assert ('in \'dqn.json\' beside it: {"activation": "..."}' in caplog.text) == warns


@pytest.mark.parametrize(
    "network",
    [
        nn.ModuleList([nn.Linear(4, 8), nn.Linear(8, 2)]),
        nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)),
    ],
    ids=["a list of layers", "two layers without an activation"],
)
def test_layers_that_do_not_alternate_with_activations_are_not_cleanrls(tmp_path, network):
    with pytest.raises(CheckpointError, match=r"has the layers network\.0, network\.1.*, expected every other number"):
        load_teacher(save_cleanrl(tmp_path / "a.pth", network))


@pytest.mark.parametrize(
    ("network", "named"),
    [
        (nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2)), r"network\.1"),
        (nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 2, bias=False)), r"network\.0, network\.2"),
    ],
    ids=["a LayerNorm", "without biases"],
)
def test_layers_that_are_not_linear_ones_with_a_bias_are_not_cleanrls(tmp_path, network, named):
    path = save_cleanrl(tmp_path / "a.pth", network)
    with pytest.raises(
        CheckpointError, match=rf"layers that CleanRL's .* have: {named}\. .*'a\.json' beside it: .*from_callable"
    ):
        load_teacher(path)
    (tmp_path / "a.json").write_text('{"activation": "relu"}')  # as the message says
    if "0" in named:
        assert q_values(load_teacher(path), states(50)) == pytest.approx(say(network, states(50)), abs=1e-6)
    else:
        with pytest.raises(CheckpointError, match="only chains of linear layers can be read"):
            load_teacher(path)


def test_cleanrl_atari(tmp_path):
    network, obs = nature_cnn(4, 6), frames(3)
    teacher = load_teacher(save_cleanrl(tmp_path / "dqn_atari.cleanrl_model", network))
    assert teacher.observation_space == gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    assert q_values(teacher, obs) == pytest.approx(say(network, obs / 255.0), abs=1e-5)


def test_other_convolutions_are_not_cleanrls(tmp_path, caplog):
    others = [nn.Conv2d(4, 32, 8, 4), nn.Conv2d(32, 64, 4, 2), nn.Conv2d(64, 64, 3), nn.Flatten(), nn.Linear(3136, 6)]
    with pytest.raises(CheckpointError, match=r"expected the numbers \[0, 2, 4, 7\], with ReLU.*from_callable"):
        load_teacher(save_cleanrl(tmp_path / "a.pth", nn.Sequential(*others)))
    load_teacher(save_cleanrl(tmp_path / "b.pth", nature_cnn(4, 6)))
    assert "widths" not in caplog.text
    wider = nn.Sequential(*nature_cnn(4, 6)[:7], nn.Linear(3136, 256), nn.ELU(), nn.Linear(256, 6))
    load_teacher(save_cleanrl(tmp_path / "c.pth", wider))
    assert "with bytes divided by 255, and ReLU between layers of the widths [32, 64, 64, 256]" in caplog.text


def test_cleanrl_c51(tmp_path):
    network, atoms = mlp(4, 16, 2 * 11), torch.linspace(-5, 7, 11)
    weights = {f"network.{name}": value for name, value in network.state_dict().items()} | {"atoms": atoms}
    (tmp_path / "a").write_bytes(to_bytes({"model_weights": weights, "args": {"n_atoms": 11, "seed": 1}}))
    teacher = load_teacher(tmp_path / "a")
    probabilities = torch.softmax(torch.as_tensor(say(network, states(20))).reshape(20, 2, 11), -1)
    assert q_values(teacher, states(20)) == pytest.approx((probabilities * atoms).sum(-1).numpy(), abs=1e-5)
    assert teacher.model_config["num_atoms"] == 11


@pytest.mark.parametrize(
    "more",
    [
        {"network.8.weight": torch.ones(512), "network.8.bias": torch.ones(512)},  # a LayerNorm
        {"network.99.bias": torch.ones(7)},
        {"network.99.weight": torch.ones(7, 3, 2)},
    ],
    ids=["LayerNorm", "a bias", "a weight of another kind"],
)
@pytest.mark.parametrize("network", [nature_cnn(4, 3), mlp(4, 8, 2)], ids=["images", "vectors"])
def test_weights_that_no_layer_of_cleanrl_takes_are_refused(tmp_path, network, more):
    expected = r"does not fit|of layers that CleanRL's networks do not have|another network|expected the numbers"
    with pytest.raises(ValueError, match=expected):
        load_teacher(save_cleanrl(tmp_path / "a.cleanrl_model", network, **more))


def test_atoms_at_different_distances_are_refused(tmp_path):
    atoms = torch.tensor([-1.0, 0.0, 50.0, 60.0, 1.0])
    network = {f"network.{name}": value for name, value in mlp(4, 8, 10).state_dict().items()}
    (tmp_path / "a.cleanrl_model").write_bytes(to_bytes({**network, "atoms": atoms}))
    with pytest.raises(ValueError, match="atoms at different distances"):
        load_teacher(tmp_path / "a.cleanrl_model")


def test_weights_of_another_network_say_so(tmp_path):
    (tmp_path / "a").write_bytes(to_bytes({"conv.weight": torch.ones(2, 2, 2, 2)}))
    with pytest.raises(ValueError, match=r"conv\.weight, and only chains of linear layers.*from_callable"):
        load_teacher(tmp_path / "a")
    network = nn.Sequential(nn.Conv2d(4, 8, 5), nn.ReLU(), nn.Flatten(), nn.Linear(10, 2))
    with pytest.raises(ValueError, match="convolutions of the sizes"):
        load_teacher(save_cleanrl(tmp_path / "b", network))
