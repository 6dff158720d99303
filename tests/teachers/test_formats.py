"""Teachers of other libraries: each says what its original says."""

import json
import pickle
import re
import shutil
import warnings
import zipfile

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.dqn.torch.default_dqn_torch_rl_module import DefaultDQNTorchRLModule
from safetensors.torch import save
from torch import nn

from rllib_kd import load_teacher
from rllib_kd.checkpoints.pickles import CheckpointError
from rllib_kd.evaluation.comparing import evaluate
from rllib_kd.export.export import export
from rllib_kd.observations.pipeline import Normalize, ObservationPipeline
from rllib_kd.teachers.base import Teacher
from rllib_kd.teachers.function import QNetwork
from tests.conftest import CARTPOLE_ACTIONS, CARTPOLE_OBS, make_q_module, shared_teacher, states
from tests.formats import (
    CHECKPOINTS,
    actor_critic_weights,
    frames,
    mlp,
    nature_cnn,
    q_values,
    say,
    sb3_weights,
    sb3_zip,
    serialized,
)

# --- Stable-Baselines3 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gym_era", [True, False])
@pytest.mark.parametrize("widths", [(4, 16, 8, 2), (4, 32, 2), (4, 2)])
def test_sb3_mlps(tmp_path, widths, gym_era):
    network = mlp(*widths)
    path = sb3_zip(tmp_path / "a.zip", sb3_weights(network), CARTPOLE_OBS, 2, gym_era=gym_era)
    teacher = load_teacher(path)
    assert q_values(teacher, states(50)) == pytest.approx(say(network, states(50)), abs=1e-6)
    assert isinstance(teacher.module, DefaultDQNTorchRLModule)
    assert teacher.model_config["fcnet_hiddens"] == list(widths[1:-1])
    assert teacher.num_parameters == sum(parameter.numel() for parameter in network.parameters())
    assert (teacher.observation_space.shape, teacher.action_space) == ((4,), CARTPOLE_ACTIONS)


def test_sb3_activations_are_read_as_names(tmp_path):
    network = mlp(4, 16, 2, activation=nn.Tanh)
    policy_kwargs = {"activation_fn": nn.Tanh, "net_arch": [16], "optimizer_class": torch.optim.Adam}
    path = sb3_zip(tmp_path / "a", sb3_weights(network), CARTPOLE_OBS, 2, policy_kwargs=serialized(policy_kwargs))
    assert q_values(load_teacher(path), states(50)) == pytest.approx(say(network, states(50)), abs=1e-6)
    policy_kwargs["activation_fn"] = nn.LeakyReLU
    path = sb3_zip(tmp_path / "b", sb3_weights(network), CARTPOLE_OBS, 2, policy_kwargs=serialized(policy_kwargs))
    with pytest.raises(ValueError, match=r"activation_fn is torch\.nn\..*\.LeakyReLU, expected one of ReLU"):
        load_teacher(path)


class ReLU(nn.Module):
    """Somebody's own, of a known name."""


def test_sb3_activations_of_others_with_a_known_name_are_refused(tmp_path):
    policy_kwargs = serialized({"activation_fn": ReLU})
    sb3_zip(tmp_path / "a", sb3_weights(mlp(4, 16, 2)), CARTPOLE_OBS, 2, policy_kwargs=policy_kwargs)
    with pytest.raises(ValueError, match=r"activation_fn is .*test_formats\.ReLU, expected one of ReLU"):
        load_teacher(tmp_path / "a")


def test_qr_dqn_is_the_mean_over_quantiles(tmp_path):
    network = mlp(4, 16, 5 * 2)
    path = sb3_zip(tmp_path / "a.zip", sb3_weights(network, kind="quantile_net"), CARTPOLE_OBS, 2)
    expected = say(network, states(50)).reshape(-1, 5, 2).mean(1)
    assert q_values(load_teacher(path), states(50)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("shown", ["bytes, channels first", "bytes, channels last", "floats, channels last"])
def test_sb3_images_whatever_their_channel_order(tmp_path, shown):
    network, obs = nature_cnn(4, 3), frames(4)
    space = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    teacher = load_teacher(sb3_zip(tmp_path / "a.zip", sb3_weights(network, has_images=True), space, 3))
    expected = say(network, obs / np.float32(255))
    last = np.moveaxis(obs, 1, -1)
    obs = {"bytes, channels first": obs, "bytes, channels last": last}.get(shown, last / np.float32(255))
    assert q_values(teacher, obs) == pytest.approx(expected, abs=1e-5)
    high = 255 if obs.dtype == np.uint8 else 1
    assert teacher.takes(gym.spaces.Box(0, high, obs.shape[1:], obs.dtype))
    assert isinstance(teacher.module, DefaultDQNTorchRLModule)
    assert teacher.model_config["conv_filters"] == [[32, 8, 4, "valid"], [64, 4, 2, "valid"], [64, 3, 1, "valid"]]


def test_images_that_it_does_not_take(tmp_path):
    space = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    teacher = load_teacher(sb3_zip(tmp_path / "a.zip", sb3_weights(nature_cnn(4, 3), has_images=True), space, 3))
    assert not teacher.takes(gym.spaces.Box(0, 255, (84, 84, 4), np.float32))  # nobody knows whether to divide
    assert not teacher.takes(gym.spaces.Box(0, 255, (84, 84, 3), np.uint8))


@pytest.mark.parametrize(
    ("space", "divisor"),
    [
        (gym.spaces.Box(0, 255, (3, 84, 84), np.uint8), 1),
        (gym.spaces.Box(0, 1, (3, 84, 84), np.float32), 255),
        (gym.spaces.Box(-1, 1, (3, 84, 84), np.float32), None),
    ],
    ids=["bytes", "floats in [0, 1]", "other floats"],
)
def test_sb3_images_that_are_not_divided(tmp_path, space, divisor):
    network, obs = nature_cnn(3, 2), frames(2, channels=3)
    weights = sb3_weights(network, has_images=True)
    teacher = load_teacher(sb3_zip(tmp_path / "a", weights, space, 2, policy_kwargs={"normalize_images": False}))
    floats = obs / np.float32(255)
    if divisor is None:
        assert q_values(teacher, 2 * floats - 1) == pytest.approx(say(network, 2 * floats - 1), rel=1e-4, abs=1e-4)
        return
    expected = say(network, obs / np.float32(divisor))
    for shown in (obs, floats):  # in the form of training, and in the other one
        for seen in (shown, np.moveaxis(shown, 1, -1)):
            assert teacher.takes(gym.spaces.Box(0, 255 if shown is obs else 1, seen.shape[1:], seen.dtype))
            assert q_values(teacher, seen) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_what_rllib_has_no_module_for_loads_too(tmp_path):
    network, obs = nature_cnn(4, 3, activation=nn.Tanh), frames(2)  # ReLU and Tanh in one network
    space = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    weights = sb3_weights(network, has_images=True)
    # Stable-Baselines3's own has ReLU there always: the hidden layer moves to where activation_fn counts.
    weights = {name.replace("q_net.0.", "q_net.2."): value for name, value in weights.items()}
    hidden = nn.Linear(512, 512)
    weights |= {f"q_net.q_net.0.{name}": value for name, value in hidden.state_dict().items()}
    policy_kwargs = serialized({"activation_fn": nn.Tanh})
    teacher = load_teacher(sb3_zip(tmp_path / "a", weights, space, 3, policy_kwargs=policy_kwargs))
    assert isinstance(teacher.module, QNetwork)
    assert teacher.model_config is None
    whole = nn.Sequential(*network[:8], nn.ReLU(), hidden, nn.Tanh(), network[9])
    assert q_values(teacher, obs) == pytest.approx(say(whole, obs / np.float32(255)), abs=1e-5)
    copy = pickle.loads(pickle.dumps(teacher))
    assert np.array_equal(q_values(copy, obs), q_values(teacher, obs))
    assert copy.num_parameters == teacher.num_parameters == sum(p.numel() for p in whole.parameters())


def test_sb3_discrete_observations_are_one_hot(tmp_path):
    network = mlp(5, 8, 2)
    teacher = load_teacher(sb3_zip(tmp_path / "a.zip", sb3_weights(network), gym.spaces.Discrete(5), 2))
    assert teacher.takes(gym.spaces.Discrete(5))
    assert q_values(teacher, np.arange(5)) == pytest.approx(say(network, np.eye(5)), abs=1e-6)


@pytest.mark.parametrize("folder", ["", "a"], ids=["beside", "zoo"])
def test_what_sb3_itself_wrote_with_its_vec_normalize(tmp_path, folder):
    """Stable-Baselines3 2.9: a DQN, its VecNormalize, and what both make of some observations."""
    source = CHECKPOINTS / "sb3-2.9"
    shutil.copy(source / "dqn.zip", tmp_path / "a.zip")
    expected = json.loads((source / "expected.json").read_text())
    obs = np.array(expected["obs"], np.float32)
    bare = load_teacher(tmp_path / "a.zip")
    assert bare.pipeline is None
    assert q_values(bare, obs) != pytest.approx(np.array(expected["q"]), abs=1e-3)
    (tmp_path / folder).mkdir(exist_ok=True)
    shutil.copy(source / "vecnormalize.pkl", tmp_path / folder)
    assert q_values(load_teacher(tmp_path / "a.zip"), obs) == pytest.approx(np.array(expected["q"]), abs=1e-5)


@pytest.mark.parametrize(
    "weights",
    [sb3_weights(mlp(4, 8, 2)), actor_critic_weights(mlp(4, 8, 2, activation=nn.Tanh))],
    ids=["DQN", "actor-critic"],
)
def test_an_unpacked_zip_of_sb3_is_recognised(tmp_path, weights):
    with zipfile.ZipFile(sb3_zip(tmp_path / "a.zip", weights, CARTPOLE_OBS, 2)) as archive:
        archive.extractall(tmp_path / "a")
    for path, what in ((tmp_path / "a", "holds the files"), (tmp_path / "a/policy.pth", "is the policy")):
        with pytest.raises(ValueError, match=rf"{what} of a zip of Stable-Baselines3.*Name the zip itself"):
            load_teacher(path)


def test_sb3_without_a_q_network_says_so(tmp_path):
    path = sb3_zip(tmp_path / "a.zip", {"mlp_extractor.policy_net.0.weight": torch.ones(2, 4)}, CARTPOLE_OBS, 2)
    with pytest.raises(ValueError, match=r"without a Q-network or a policy.*Expected a DQN"):
        load_teacher(path)
    weights = sb3_weights(mlp(4, 8, 2)) | {"q_net.features_extractor.own.weight": torch.ones(2)}
    with pytest.raises(ValueError, match=r"unknown layers: q_net\.features_extractor\.own\.weight"):
        load_teacher(sb3_zip(tmp_path / "b.zip", weights, CARTPOLE_OBS, 2))
    with pytest.raises(ValueError, match="it has 2 outputs, but there are 3 actions"):
        load_teacher(sb3_zip(tmp_path / "c.zip", sb3_weights(mlp(4, 8, 2)), CARTPOLE_OBS, 3))


RETURNS = {  # greedy, 50 episodes from seed 0, as the folder's README has them
    "dqn-CartPole-v1": ("CartPole-v1", 500.0, 0.0),
    "dqn-Acrobot-v1": ("Acrobot-v1", -79.0, 21.7),
    "dqn-MountainCar-v0": ("MountainCar-v0", -100.4, 9.5),
    "qrdqn-Acrobot-v1": ("Acrobot-v1", -67.5, 8.4),
}


@pytest.mark.parametrize("name", RETURNS)
def test_teachers_of_others_score_what_they_should(name):
    path = shared_teacher(f"sb3/{name}.zip")
    env, mean, std = RETURNS[name]
    with zipfile.ZipFile(path) as archive, archive.open("policy.pth") as file:
        weights = {name: value.double() for name, value in torch.load(file, weights_only=True).items()}
    kind = "quantile_net" if name.startswith("qr") else "q_net"
    obs = np.random.default_rng(0).normal(size=(200, *gym.make(env).observation_space.shape)).astype(np.float32)
    x = torch.from_numpy(obs).double()
    for i in (0, 2, 4):
        x = nn.functional.linear(x, weights[f"{kind}.{kind}.{i}.weight"], weights[f"{kind}.{kind}.{i}.bias"])
        x = x.relu() if i < 4 else x
    teacher = load_teacher(path)
    expected = x.unflatten(1, (-1, int(teacher.action_space.n))).mean(1).numpy()
    # In 64 bits: in 32 the original itself is off by 2e-5 where Q-values are near 50.
    teacher.module.double()
    assert teacher.q_values(torch.from_numpy(obs).double()).numpy() == pytest.approx(expected, abs=1e-5)
    returns = evaluate(path, env, num_episodes=50).returns
    assert np.mean(returns) == pytest.approx(mean, abs=max(0.06, 2 * std / 50**0.5))


# --- Files of any origin ----------------------------------------------------------------------------------------------

STUDENTS = {
    "plain": {},
    "linear": {"fcnet_hiddens": []},
    "head": {"fcnet_hiddens": [8], "fcnet_activation": "tanh", "head_fcnet_hiddens": [6]},
    "dueling": {"dueling": True, "head_fcnet_hiddens": [5]},
    "C51": {"num_atoms": 7},
    "layer norm": {"fcnet_use_layernorm": True},
}


@pytest.mark.parametrize(
    ("kind", "format"),
    [*((kind, "safetensors") for kind in STUDENTS), *(("dueling", each) for each in ("onnx", "pt2", "torchscript"))],
)
def test_an_exported_student_is_a_teacher_again(tmp_path, kind, format):
    if kind == "linear":
        from rllib_kd.networks.dqn_module import student_module_spec

        spec = student_module_spec({**make_q_module().model_config, "fcnet_hiddens": []})
        spec.observation_space, spec.action_space = CARTPOLE_OBS, CARTPOLE_ACTIONS
        module = spec.build()
    else:
        module = make_q_module(**STUDENTS[kind])
    pipeline = ObservationPipeline(CARTPOLE_OBS, (Normalize(np.full(4, 0.5), np.full(4, 2.0), 1.5),))
    student = Teacher(module, pipeline=pipeline)
    export(student, tmp_path / "a", format=format, obs=states(20))
    teacher = load_teacher(tmp_path / "a", trust_checkpoint=format in ("pt2", "torchscript"))
    assert q_values(teacher, states(50)) == pytest.approx(q_values(student, states(50)), abs=1e-5)
    assert teacher.takes(CARTPOLE_OBS)
    assert teacher.action_space == CARTPOLE_ACTIONS
    assert teacher.num_parameters == pytest.approx(student.num_parameters, abs=15)  # statistics are constants there
    if format == "safetensors":
        assert (teacher.model_config is None) == (kind == "layer norm")
        assert teacher.num_parameters == student.num_parameters
    copy = pickle.loads(pickle.dumps(teacher))
    assert np.array_equal(q_values(copy, states(5)), q_values(teacher, states(5)))


def test_images_with_padding(tmp_path):
    space = gym.spaces.Box(0, 1, (12, 12, 2), np.float32)
    module = make_q_module(space, conv_filters=[[4, 4, 2], [8, 3, 1]], conv_activation="silu", head_fcnet_hiddens=[6])
    obs = np.random.default_rng(0).random((5, 12, 12, 2), dtype=np.float32)
    export(Teacher(module), tmp_path / "a", format="safetensors", obs=obs)
    teacher = load_teacher(tmp_path / "a")
    assert teacher.model_config["conv_filters"] == [[4, 4, 2, "same"], [8, 3, 1, "same"]]
    assert q_values(teacher, obs) == pytest.approx(q_values(Teacher(module), obs), abs=1e-5)


def test_safetensors_with_a_description_beside_it(tmp_path):
    import safetensors.torch

    network = mlp(4, 8, 2, activation=nn.Sigmoid)
    (tmp_path / "a.safetensors").write_bytes(safetensors.torch.save(network.state_dict()))
    with pytest.raises(ValueError, match=r"does not describe its layers. Put a file 'a\.json' beside it"):
        load_teacher(tmp_path / "a.safetensors")
    linear = [{"op": "linear", "weight": f"{i}.weight", "bias": f"{i}.bias"} for i in (0, 2)]
    description = {"layers": [linear[0], {"op": "sigmoid"}, linear[1]], "observation_shape": [4]}
    (tmp_path / "a.json").write_text(json.dumps(description))
    teacher = load_teacher(tmp_path / "a.safetensors")
    assert isinstance(teacher.module, QNetwork)  # RLlib knows no sigmoid
    assert q_values(teacher, states(20)) == pytest.approx(say(network, states(20)), abs=1e-6)
    (tmp_path / "a.json").write_text(json.dumps(description | {"observation_shape": [5]}))
    with pytest.raises(ValueError, match="layers do not fit each other"):
        load_teacher(tmp_path / "a.safetensors")


def test_torchscript_is_a_program_that_needs_trust(tmp_path):
    network = mlp(4, 8, 2)
    torch.jit.save(torch.jit.script(network), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"TorchScript program.*trust_checkpoint=True"):
        load_teacher(tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"does not record the shape of its observations.*a\.json"):
        load_teacher(tmp_path / "a.pt", trust_checkpoint=True)
    (tmp_path / "a.json").write_text('{"observation_shape": [4]}')
    teacher = load_teacher(tmp_path / "a.pt", trust_checkpoint=True)
    assert q_values(teacher, states(20)) == pytest.approx(say(network, states(20)), abs=1e-6)
    assert teacher.num_parameters == 58


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("is_frozen", [False, True])
def test_parameters_of_torchscript_are_counted_whatever_their_type(tmp_path, dtype, is_frozen):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = mlp(4, 8, 2).to(dtype)
            self.order = torch.arange(4)

        def forward(self, obs):
            return self.layers(obs[:, self.order].to(self.layers[0].weight.dtype)).float()

    script = torch.jit.script(Network().eval())
    torch.jit.save(torch.jit.freeze(script) if is_frozen else script, tmp_path / "a.pt")
    (tmp_path / "a.json").write_text('{"observation_shape": [4]}')
    assert load_teacher(tmp_path / "a.pt", trust_checkpoint=True).num_parameters == 58


def test_pt2_is_a_program_that_needs_trust(tmp_path):
    network = mlp(4, 8, 2)
    dynamic = {"input": {0: torch.export.Dim("batch")}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(
            torch.export.export(network, (torch.zeros(2, 4),), dynamic_shapes=dynamic), tmp_path / "a.pt2"
        )
    with pytest.raises(ValueError, match=r"program of torch\.export.*pickles.*trust_checkpoint=True"):
        load_teacher(tmp_path / "a.pt2")
    with pytest.raises(ValueError, match=r"does not record the shape of its observations.*a\.json"):
        load_teacher(tmp_path / "a.pt2", trust_checkpoint=True)
    (tmp_path / "a.json").write_text('{"observation_shape": [4]}')
    teacher = pickle.loads(pickle.dumps(load_teacher(tmp_path / "a.pt2", trust_checkpoint=True)))
    assert q_values(teacher, states(20)) == pytest.approx(say(network, states(20)), abs=1e-6)
    assert teacher.num_parameters == 58


def test_programs_of_batches_of_two_alone_are_refused(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(mlp(4, 8, 2), (torch.zeros(2, 4),)), tmp_path / "a.pt2")
    (tmp_path / "a.json").write_text('{"observation_shape": [4]}')
    with pytest.raises(ValueError, match=r"fails on observations of the shape .*a function of batches of any"):
        load_teacher(tmp_path / "a.pt2", trust_checkpoint=True)


class WithHiddenState(nn.Module):
    """A network that needs more than observations."""

    def forward(self, obs: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Return Q-values of observations and a hidden state."""
        return obs[:, :2] + hidden


@pytest.mark.parametrize("format", ["torchscript", "pt2"])
def test_only_a_mask_may_stand_beside_observations(tmp_path, format):
    """Ones took the place of any second input, without a word."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if format == "torchscript":
            torch.jit.save(torch.jit.script(WithHiddenState()), tmp_path / "a.pt")
        else:
            examples = torch.zeros(3, 4), torch.zeros(3, 2)
            torch.export.save(torch.export.export(WithHiddenState(), examples), tmp_path / "a.pt")
    (tmp_path / "a.json").write_text('{"observation_shape": [4]}')
    with pytest.raises(ValueError, match=r"it has the inputs obs, hidden; one was expected: observations"):
        load_teacher(tmp_path / "a.pt", trust_checkpoint=True)


def test_an_error_in_torchscript_has_its_reason(tmp_path):
    torch.jit.save(torch.jit.script(mlp(4, 2).double()), tmp_path / "a.pt")
    (tmp_path / "a.json").write_text('{"observation_shape": [4]}')
    with pytest.raises(
        ValueError,
        match=r"RuntimeError: .*dtype.* Double\. Expected a function of batches of any size, of 32-bit floats",
    ):
        load_teacher(tmp_path / "a.pt", trust_checkpoint=True)


SHAPES = [
    '"4"',
    '"[4]"',
    "4",
    "[4.5]",
    "[4.0]",
    '["4"]',
    "[[4]]",
    "[-4]",
    "[0]",
    "[true]",
    "[null]",
    "null",
    '{"0": 4}',
]
SHAPES += ["[100000, 100000]", f"[1{300 * '0'}]", f"[{','.join(100_000 * '2')}]", f"[1{9000 * '0'}]", 100_000 * "["]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape[:20])
@pytest.mark.parametrize("format", ["torchscript", "safetensors"])
def test_an_observation_shape_that_is_none(tmp_path, format, shape):
    network = mlp(4, 8, 2)
    if format == "torchscript":
        torch.jit.save(torch.jit.script(network), tmp_path / "a.pt")
        (tmp_path / "a.json").write_text(f'{{"observation_shape": {shape}}}')
    else:
        tensors, layers = network.state_dict(), []
        for i in (0, 2):
            layers += [{"op": "linear", "weight": f"{i}.weight", "bias": f"{i}.bias"}, {"op": "relu"}]
        (tmp_path / "a.pt").write_bytes(save(tensors, {"layers": json.dumps(layers[:-1]), "observation_shape": shape}))
    with pytest.raises(CheckpointError) as refusal:
        load_teacher(tmp_path / "a.pt", trust_checkpoint=True)
    # Each time for its shape, which was read.
    assert re.search(r"observation_shape|cannot be read as", str(refusal.value))
    assert len(str(refusal.value)) < 500 + len(str(tmp_path))
    assert "\n" not in str(refusal.value)


def test_the_description_of_a_file_without_an_ending(tmp_path):
    torch.jit.save(torch.jit.script(mlp(4, 2)), tmp_path / "a")
    with pytest.raises(ValueError, match=r"Put a file 'a\.json' beside it"):
        load_teacher(tmp_path / "a", trust_checkpoint=True)
    (tmp_path / "a.json").write_text('{"observation_shape": [4]}')
    assert load_teacher(tmp_path / "a", trust_checkpoint=True).num_parameters == 10


def test_the_shape_in_the_script_itself_is_checked_too(tmp_path):
    for shape, message in (('"x"', "expected a list of positive integers"), ("[5]", "fails on observations")):
        torch.jit.save(torch.jit.script(mlp(4, 2)), tmp_path / "a.pt", _extra_files={"observation_shape.json": shape})
        with pytest.raises(CheckpointError, match=message):
            load_teacher(tmp_path / "a.pt", trust_checkpoint=True)


def test_what_can_be_exported_again(tmp_path):
    network, obs = nature_cnn(4, 3), frames(2)
    space = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    teacher = load_teacher(sb3_zip(tmp_path / "a.zip", sb3_weights(network, has_images=True), space, 3))
    export(teacher, tmp_path / "a.onnx", format="onnx", obs=obs)  # with its channels first, and its division
    again = load_teacher(tmp_path / "a.onnx")
    assert q_values(again, obs) == pytest.approx(say(network, obs / np.float32(255)), abs=1e-5)
    with pytest.raises(ValueError, match="function of another library, which cannot be exported"):
        export(again, tmp_path / "b.onnx", format="onnx", obs=obs)


def test_weights_that_are_not_finite(tmp_path):
    network = mlp(4, 8, 2)
    network[0].bias.data[:] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        load_teacher(sb3_zip(tmp_path / "a.zip", sb3_weights(network), CARTPOLE_OBS, 2))
