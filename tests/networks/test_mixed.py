"""Q-networks for images beside other numbers, and their layers in files."""

import dataclasses
import json

import gymnasium as gym
import numpy as np
import pytest
import safetensors.torch
import torch
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from torch.nn import functional as F

from rllib_kd import DistillDQNConfig, Teacher, load_teacher
from rllib_kd.checkpoints.pickles import CheckpointError
from rllib_kd.export.export import export
from rllib_kd.export.formats import describe
from rllib_kd.export.runners.numpy_runner import load, run
from rllib_kd.networks.dqn_module import student_module_spec
from rllib_kd.networks.layers import build_layers, count_layers
from rllib_kd.networks.mixed import MixedDQNCatalog, default_filters
from rllib_kd.networks.mixed_space import MixedBox
from rllib_kd.observations.flattening import Flattener
from rllib_kd.observations.spaces import input_space
from tests.checkpoints.hostile import write_rllib

ACTIONS = gym.spaces.Discrete(3)
SPACE = gym.spaces.Dict(
    a=gym.spaces.Box(-1.0, 1.0, (2,), np.float32),
    eye=gym.spaces.Box(0, 255, (2, 16, 18), np.uint8),  # channels first
    far=gym.spaces.Box(0.0, 1.0, (17, 16, 1), np.float32),
    gear=gym.spaces.Discrete(4),
)
SHAPES = {
    "of its own size": {"fcnet_hiddens": [5]},
    "without an MLP": {"conv_filters": [[3, 4, 3, "valid"]], "fcnet_hiddens": []},
    "dueling": {"conv_filters": [[3, 4, 3]], "fcnet_hiddens": [6, 5], "dueling": True},
    "return distributions": {"conv_filters": [[3, 4, 3]], "fcnet_hiddens": [6], "num_atoms": 5},
    "linear": {"fcnet_hiddens": []},
}


def mixed(space=SPACE, **model_config):
    torch.manual_seed(0)
    given = {"fcnet_activation": "relu", **DistillDQNConfig().model_config, **model_config}
    return student_module_spec(given, input_space(space), ACTIONS).build().eval()


def seen(count=10, space=SPACE):
    space.seed(0)
    observations = [space.sample() for _ in range(count)]
    return observations, torch.from_numpy(np.concatenate([Flattener(space)(obs, 1) for obs in observations]))


@torch.no_grad()
def test_each_image_passes_its_own_convolutions():
    """Computed here from the observations themselves, part by part."""
    module = mixed(conv_filters=[[3, 5, 4, "valid"]], fcnet_hiddens=[6])
    weights = dict(module.named_parameters())
    observations, vectors = seen()
    for obs, vector in zip(observations, vectors, strict=True):
        eye = torch.from_numpy(obs["eye"][None].astype(np.float32)) / 255
        far = torch.from_numpy(obs["far"][None]).permute(0, 3, 1, 2)
        maps = [
            F.conv2d(
                image, weights[f"encoder.images.{i}.0.cnn.0.weight"], weights[f"encoder.images.{i}.0.cnn.0.bias"], 4
            )
            for i, image in enumerate((eye, far))
        ]
        first, second = (F.relu(own).permute(0, 2, 3, 1).flatten() for own in maps)
        gear = F.one_hot(torch.tensor(obs["gear"]), 4).float()
        features = torch.cat([torch.from_numpy(obs["a"]), first, second, gear])
        hidden = F.relu(F.linear(features, weights["encoder.mlp.mlp.0.weight"], weights["encoder.mlp.mlp.0.bias"]))
        expected = F.linear(hidden, weights["af.net.mlp.0.weight"], weights["af.net.mlp.0.bias"])
        torch.testing.assert_close(module.compute_q_values({"obs": vector[None]})["qf_preds"][0], expected)


@torch.no_grad()
@pytest.mark.parametrize("name", SHAPES)
def test_files_hold_them(name, tmp_path):
    module, (_, vectors) = mixed(**SHAPES[name]), seen()
    expected = module.compute_q_values({"obs": vectors})["qf_preds"]
    layers, tensors = describe(Teacher(module))
    assert (layers[0]["op"] == "branches") == (name != "linear")
    torch.testing.assert_close(build_layers(layers, tensors)(vectors), expected, rtol=1e-4, atol=1e-5)
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    np.testing.assert_allclose(run(layers, arrays, vectors.numpy()), expected, rtol=1e-4, atol=1e-5)
    out = tmp_path / "student.safetensors"
    export(Teacher(module), out, format="safetensors", obs=vectors.numpy())
    np.testing.assert_allclose(load(str(out))(vectors.numpy()), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(load_teacher(out).q_values(vectors), expected, rtol=1e-4, atol=1e-5)
    module.save_to_path(str(tmp_path / "module"))
    assert torch.equal(load_teacher(tmp_path / "module").q_values(vectors), expected)  # read as data
    assert np.ptp(expected.numpy(), axis=0).min() > 5e-3


def test_spaces_with_images_at_other_places_are_not_equal():
    assert MixedBox(257, [(0, 16, 16, 1)]) == MixedBox(257, [(0, 16, 16, 1)])
    assert MixedBox(257, [(0, 16, 16, 1)]) != MixedBox(257, [(1, 16, 16, 1)])
    assert MixedBox(257, [(0, 16, 16, 1)]) != gym.spaces.Box(-np.inf, np.inf, (257,))


@pytest.mark.parametrize("shape", [(16, 16, 1), (20, 17, 3), (84, 84, 4), (160, 210, 3)])
def test_any_size_has_convolutions(shape):
    space = MixedBox(int(np.prod(shape)) + 1, [(1, *shape)])
    with torch.device("meta"):
        config = MixedDQNCatalog._get_encoder_config(space, dataclasses.asdict(DefaultModelConfig()))
        features = config.build().images[0](torch.zeros(1, *shape))
    assert config.num_features == 1 + features.shape[1]
    assert 4 * 16 <= features.shape[1] <= 36 * 128
    assert len(default_filters(space)) >= 2


@pytest.mark.parametrize("shape", [(7, 7, 3), (40, 40, 3), (84, 84, 4), (90, 160, 3)])
def test_images_alone_have_convolutions_of_rllib_or_ours(shape):
    module = student_module_spec(
        {**DistillDQNConfig().model_config, "head_fcnet_hiddens": [5]}, gym.spaces.Box(0.0, 1.0, shape), ACTIONS
    ).build()
    assert module.compute_q_values({"obs": torch.zeros(2, *shape)})["qf_preds"].shape == (2, 3)
    is_of_rllib = shape[0] == 84
    assert (module.model_config["conv_filters"][0] == [16, 4, 2]) != is_of_rllib
    given = {**DistillDQNConfig().model_config, "conv_filters": [[3, 4, 3]], "head_fcnet_hiddens": [5]}
    module = student_module_spec(given, gym.spaces.Box(0.0, 1.0, shape), ACTIONS).build()
    assert module.model_config["conv_filters"] == [[3, 4, 3]]


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_students_of_images_that_remember_have_them_too(kind):
    memory = {"use_lstm": True, "recurrent_layer_type": kind, "lstm_cell_size": 4, "max_seq_len": 5}
    given = {**DistillDQNConfig().model_config, **memory}
    module = student_module_spec(given, gym.spaces.Box(0.0, 1.0, (20, 20, 3)), ACTIONS).build()
    assert module.model_config["conv_filters"] == [[16, 4, 2], [32, 4, 2]]


def test_rllibs_own_module_stays_its_own_elsewhere():
    spec = student_module_spec({}, gym.spaces.Box(-1.0, 1.0, (4,)), ACTIONS)
    assert spec.catalog_class is None


# --- Hostile files ----------------------------------------------------------------------------------------------------


def branch(start, shape, *layers):
    return {"start": start, "shape": shape, "layers": list(layers)}


RELU, FLATTEN = {"op": "relu"}, {"op": "flatten"}
LINEAR = {"op": "linear", "weight": "w", "bias": "b"}
WRONG = {
    "none": [],
    "not a list": 3,
    "no branch": [3],
    "beyond the vector": [branch(0, [5])],
    "before the vector": [branch(-1, [4])],
    "an empty shape": [branch(0, [])],
    "an empty axis": [branch(0, [0, 4])],
    "a negative axis": [branch(0, [-2, -2])],
    "a huge axis": [branch(0, [10**400])],
    "many axes": [branch(0, [1] * 1000)],
    "parts of numbers": [branch(0.5, [4])],
    "truth values": [branch(True, [3])],
    "branches within": [branch(0, [4], {"op": "branches", "branches": [branch(0, [4])]})],
    "dueling within": [branch(0, [4], {"op": "dueling", "value": [], "advantage": []})],
    "an unknown layer": [branch(0, [4], {"op": "exec"})],
    "no op": [branch(0, [4], {})],
    "layers that are a text": [{"start": 0, "shape": [4], "layers": "relu"}],
    "no layers": [{"start": 0, "shape": [4]}],
    "weights of another branch": [branch(0, [4], LINEAR), branch(0, [4], LINEAR)],
    "an image that is none": [branch(0, [2, 2], {"op": "conv2d", "weight": "w", "bias": "b", "stride": [1, 1]})],
    "many branches": [branch(0, [4])] * 100_000,
    "many layers": [branch(0, [4], *[RELU] * 100_000)],
    "other widths": [branch(0, [4]), branch(0, [4])],
}


@pytest.mark.parametrize("name", WRONG)
def test_hostile_branches_are_refused_in_one_line(name, tmp_path):
    layers = [{"op": "branches", "branches": WRONG[name]}, LINEAR]
    with pytest.raises(CheckpointError) as caught:
        load_teacher(written(tmp_path, layers))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1_000


def written(folder, layers):
    torch.manual_seed(0)
    tensors = {"w": torch.randn(2, 4), "b": torch.zeros(2)}
    metadata = {"layers": json.dumps(layers), "observation_shape": "[4]"}
    (folder / "a.safetensors").write_bytes(safetensors.torch.save(tensors, metadata))
    return folder / "a.safetensors"


def test_the_right_branches_are_not(tmp_path):
    layers = [{"op": "branches", "branches": [branch(2, [2]), branch(0, [1, 2, 1], RELU, FLATTEN)]}, LINEAR]
    assert count_layers(layers) == 6
    teacher, obs = load_teacher(written(tmp_path, layers)), torch.randn(5, 4)
    torch.manual_seed(0)
    expected = torch.cat([obs[:, 2:], obs[:, :2].relu()], 1) @ torch.randn(2, 4).T
    torch.testing.assert_close(teacher.q_values(obs), expected)


@pytest.mark.parametrize(
    "images", [[(0, 10**9, 1, 1)], [(-1, 2, 2, 1)], [(0, 2, 0, 1)], [(0, 2, 2, 1), (3, 1, 1, 1)], [(0, 2)], "text", 3]
)
def test_images_that_do_not_lie_in_their_vector_are_refused(tmp_path, images):
    space = MixedBox(8, [(0, 2, 2, 1)])
    space.images = images
    write_rllib(tmp_path, space=space)
    with pytest.raises(CheckpointError, match=r"has a broken rllib_kd\.networks.mixed_space\.MixedBox"):
        load_teacher(tmp_path)
