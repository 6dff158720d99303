"""Plain weights as teachers: linear layers whose order their shapes and numbers give."""

import json
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import nn
from torch.nn import functional as F

from rllib_kd import compare, limits, load_teacher
from rllib_kd.checkpoints.pickles import CheckpointError
from rllib_kd.export.export import export
from rllib_kd.observations.pipeline import Normalize, ObservationPipeline
from rllib_kd.teachers.base import Teacher
from tests.conftest import CARTPOLE_OBS, make_q_module, states
from tests.formats import actor_critic_weights, mlp, q_values, sb3_zip, to_bytes
from tests.teachers.refusals import refuse

RELU = {"activation": "relu"}


class Net(nn.Module):
    """A network with layers of these names and sizes, ReLU between them."""

    def __init__(self, **layers):
        super().__init__()
        self.order = list(layers)
        for name, (inputs, outputs) in layers.items():
            setattr(self, name, nn.Linear(inputs, outputs))

    def forward(self, x):
        for name in self.order[:-1]:
            x = F.relu(getattr(self, name)(x))
        return getattr(self, self.order[-1])(x)


class Dueling(nn.Module):
    def __init__(self, value="value", advantage="advantage"):
        super().__init__()
        self.fc1 = nn.Linear(4, 8)
        self.names = value, advantage
        setattr(self, value, nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 1)))
        setattr(self, advantage, nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)))

    def forward(self, x):
        x = F.relu(self.fc1(x))
        value, advantage = (getattr(self, name)(x) for name in self.names)
        return value + advantage - advantage.mean(-1, keepdim=True)


@torch.no_grad()
def say(network, obs):
    return network(torch.as_tensor(obs)).numpy()


def saved(path, network, wrap=lambda weights: weights):
    weights = network.state_dict() if isinstance(network, nn.Module) else network
    path.write_bytes(to_bytes(wrap(weights)))
    return path


def load(path, **network):
    return load_teacher({"path": path, "network": RELU | network})


TUTORIAL = Net(layer1=(4, 128), layer2=(128, 128), layer3=(128, 2))  # PyTorch's DQN tutorial


@pytest.mark.parametrize(
    "network",
    [
        TUTORIAL,
        Net(fc1=(4, 8), fc2=(8, 8), fc3=(8, 2)),
        Net(fc1=(4, 8), fc2=(8, 6), out=(6, 2)),
        Net(fc1=(4, 8), fc2=(8, 8), fc10=(8, 8), head=(8, 2)),
        Net(inner=(4, 8), head=(8, 2)),
        Net(only=(4, 2)),
        nn.ModuleDict({"net": mlp(4, 8, 8, 2)}),
        Dueling(),
        Dueling("value_stream", "advantage_stream"),
        Dueling("fcVal", "fcAdv"),
    ],
    ids=["tutorial", "fc", "fc-out", "fc-10", "unnumbered", "one layer", "net.0", "dueling", "streams", "camel case"],
)
def test_chains(tmp_path, network):
    teacher = load(saved(tmp_path / "net.pth", network))
    original = network["net"] if isinstance(network, nn.ModuleDict) else network
    assert q_values(teacher, states(50)) == pytest.approx(say(original, states(50)), abs=1e-5)
    assert teacher.outputs == "q_values"
    assert teacher.model_config is not None  # RLlib's DQN module has these layers, too
    assert teacher.num_parameters == sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("entry", ["state_dict", "model_state_dict", "q_network_state_dict", "policy_net"])
def test_weights_among_other_entries(tmp_path, entry):
    optimizer = torch.optim.Adam(TUTORIAL.parameters()).state_dict()

    def wrap(weights):
        return {entry: OrderedDict(weights), "target": dict(weights), "optimizer": optimizer, "epoch": 3}

    path = saved(tmp_path / "checkpoint.pth", TUTORIAL, wrap)
    assert q_values(load(path), states(5)) == pytest.approx(say(TUTORIAL, states(5)), abs=1e-5)
    assert q_values(load(path, entry="target"), states(5)) == pytest.approx(say(TUTORIAL, states(5)), abs=1e-5)


STATISTICS = {"mean": torch.zeros(4), "var": torch.ones(4)}


@pytest.mark.parametrize(
    ("wrap", "named"),
    [
        (lambda weights: {"state_dict": weights, "obs_rms": STATISTICS, "epoch": 3}, "obs_rms"),
        (lambda weights: {"state_dict": weights | {"obs_mean": torch.zeros(4)}}, "obs_mean"),
        (lambda weights: {"state_dict": weights, "ret_rms": STATISTICS, "normalizes": True}, None),
    ],
    ids=["an entry", "a buffer", "none"],
)
def test_statistics_beside_the_weights_are_named(tmp_path, caplog, wrap, named):
    path = saved(tmp_path / "checkpoint.pth", TUTORIAL, wrap)
    load(path, order=TUTORIAL.order)
    assert (f"has {named} beside the weights" in caplog.text) == (named is not None)
    assert ("(Normalize(mean, std, clip=None),)" in caplog.text) == (named is not None)
    caplog.clear()
    pipeline = ObservationPipeline(CARTPOLE_OBS, (Normalize(np.zeros(4), np.ones(4), clip=None),))
    load_teacher({"path": path, "network": RELU | {"order": TUTORIAL.order}}, pipeline=pipeline)
    assert "beside the weights" not in caplog.text


def test_a_file_that_describes_its_layers_keeps_the_outputs_that_it_names(tmp_path):
    layers = [{"op": "linear", "weight": "weight", "bias": "bias"}]
    described = {"layers": json.dumps(layers), "observation_shape": "[4]", "outputs": "logits"}
    path = tmp_path / "net.safetensors"
    path.write_bytes(save(nn.Linear(4, 2).state_dict(), described))
    assert load_teacher(str(path)).outputs == "log_probs"
    assert load_teacher({"path": str(path), "network": RELU}).outputs == "log_probs"
    assert load_teacher({"path": str(path), "network": {"outputs": "q_values"}}).outputs == "q_values"


def test_the_json_beside_it_names_the_activation(tmp_path):
    path = saved(tmp_path / "net.pth", nn.ModuleDict({"fc": mlp(4, 8, 2, activation=nn.Tanh)}))
    (tmp_path / "net.json").write_text(json.dumps({"activation": "tanh", "outputs": "logits", "trained_by": "me"}))
    teacher = load_teacher(path)
    network = mlp(4, 8, 2, activation=nn.Tanh)
    network.load_state_dict({k.removeprefix("fc."): v for k, v in torch.load(path, weights_only=True).items()})
    expected = torch.log_softmax(torch.as_tensor(say(network, states(20))), -1).numpy()
    assert q_values(teacher, states(20)) == pytest.approx(expected, abs=1e-5)
    assert teacher.outputs == "log_probs"
    # What a config says comes first.
    assert load_teacher({"path": path, "network": {"activation": "relu"}}).outputs == "q_values"
    (tmp_path / "net.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"'net\.json' beside '.*' cannot be read"):
        load_teacher(path)


def test_safetensors(tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_bytes(save(TUTORIAL.state_dict()))
    assert q_values(load(path), states(5)) == pytest.approx(say(TUTORIAL, states(5)), abs=1e-5)
    with pytest.raises(CheckpointError, match=r'or with \{"activation": "relu"\}, if they are a chain'):
        load_teacher(path)


def test_a_described_teacher_is_compared(tmp_path):
    path = saved(tmp_path / "net.pth", TUTORIAL)
    student = make_q_module(fcnet_hiddens=[4])
    comparison = compare({"path": path, "network": RELU}, student, "CartPole-v1", num_episodes=2)
    assert comparison.teacher.num_parameters == load(path).num_parameters


def test_a_sequential_may_have_another_activation(tmp_path):
    network = mlp(4, 8, 2, activation=nn.Tanh)
    path = saved(tmp_path / "a.pth", network)
    assert q_values(load(path, activation="tanh"), states(5)) == pytest.approx(say(network, states(5)), abs=1e-5)
    assert q_values(load_teacher(path), states(5)) != pytest.approx(say(network, states(5)), abs=1e-5)  # CleanRL's ReLU


def test_layers_without_biases(tmp_path):
    network = nn.ModuleDict({"q": nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 2))})
    teacher = load(saved(tmp_path / "a.pth", network))
    assert q_values(teacher, states(5)) == pytest.approx(say(network["q"], states(5)), abs=1e-5)


def test_a_part_of_the_weights(tmp_path):
    both = nn.ModuleDict({"local": TUTORIAL, "target": Net(layer1=(4, 6), layer2=(6, 2))})
    path = saved(tmp_path / "a.pth", both)
    with pytest.raises(CheckpointError, match=r"do not form one chain: local\.layer1 4→128, .*'prefix'"):
        load(path)
    assert q_values(load(path, prefix="local."), states(5)) == pytest.approx(say(TUTORIAL, states(5)), abs=1e-5)


def test_an_actor_critic_with_a_shared_layer(tmp_path):
    actor, critic = Net(fc1=(4, 8), pi=(8, 2)), {"v.weight": torch.ones(1, 8), "v.bias": torch.ones(1)}
    path = saved(tmp_path / "a.pth", dict(actor.state_dict()) | critic)
    with pytest.raises(CheckpointError, match="do not form one chain"):
        load(path)
    teacher = load(path, order=["fc1", "pi"], outputs="logits")
    expected = torch.log_softmax(torch.as_tensor(say(actor, states(5))), -1).numpy()
    assert q_values(teacher, states(5)) == pytest.approx(expected, abs=1e-5)


class Both(nn.Module):
    """Two networks side by side, whose layers would also form one chain."""

    def __init__(self, one, other, num_outputs=4):
        super().__init__()
        setattr(self, one, mlp(4, 16, 4))
        setattr(self, other, mlp(4, 16, num_outputs))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (Both("net1", "net2"), r"may be one network, or another one from net2\.0 on: net1\.0 4→16, .*'prefix'"),
        (Both("policy", "target"), r"may be one network, or another one from target\.0 on"),
        (Net(a1=(4, 16), a2=(16, 4), b1=(4, 16), b2=(16, 4)), "or another one from b1 on"),
        (Both("actor", "critic", 1), r"ends in one output, that of critic\.2, expected one for each action"),
    ],
    ids=["twins", "a target network", "flat names", "a critic"],
)
def test_two_networks_with_as_many_outputs_as_inputs_are_not_one(tmp_path, weights, message):
    path = saved(tmp_path / "a.pth", weights)
    with pytest.raises(CheckpointError, match=message):
        load(path)
    names = [name.removesuffix(".weight") for name in weights.state_dict() if name.endswith(".weight")]
    assert load(path, order=names[:2]).action_space.n == 4


def test_weights_that_are_not_named_may_be_anything(tmp_path):
    body = nn.Linear(4, 8)
    network = nn.ModuleDict({name: nn.Sequential(body, nn.ReLU(), nn.Linear(8, 2)) for name in ("actor", "critic")})
    weights = network.state_dict() | {"seen": torch.ones(3, dtype=torch.bool)}
    path = saved(tmp_path / "a.pth", weights)
    with pytest.raises(CheckpointError, match=r"its weight 'critic\.0\.weight' .* shares those of another weight"):
        load(path)
    for named in ({"prefix": "actor."}, {"order": ["actor.0", "actor.2"]}):
        assert q_values(load(path, **named), states(5)) == pytest.approx(say(network["actor"], states(5)), abs=1e-5)


def test_a_module_that_was_saved_whole_is_told_how_to_be_saved(tmp_path):
    path = saved(tmp_path / "a.pth", TUTORIAL, lambda weights: TUTORIAL)
    with pytest.raises(CheckpointError, match=r"Save the weights .* torch\.save\(module\.state_dict\(\), path\)"):
        load(path)


@pytest.mark.parametrize("value", [np.float64(3.2), np.arange(3)], ids=["number", "array"])
def test_numbers_of_numpy_beside_weights_are_named(tmp_path, value):
    weights = {"state_dict": mlp(4, 8, 2).state_dict(), "best": value}
    with pytest.raises(CheckpointError, match=r"numbers or arrays of numpy, .*float\(x\) or x\.tolist\(\)"):
        load(saved(tmp_path / "a.pth", weights))
    weights["best"] = value.tolist()  # as the message says
    assert load(saved(tmp_path / "b.pth", weights)).action_space.n == 2


def test_weights_in_the_former_format_are_told_how_to_be_saved(tmp_path):
    path = tmp_path / "a.pth"
    torch.save(mlp(4, 8, 2).state_dict(), path, _use_new_zipfile_serialization=False)
    with pytest.raises(
        CheckpointError, match=r"before 1\.6, .* torch\.save\(torch\.load\(path, weights_only=True\), path"
    ):
        load(path)
    torch.save(torch.load(path, weights_only=True), path)  # as the message says
    assert load(path).action_space.n == 2


def test_an_ambiguous_order_is_asked_for(tmp_path):
    network = Net(enter=(4, 8), one=(8, 8), other=(8, 8), leave=(8, 2))
    path = saved(tmp_path / "a.pth", network)
    with pytest.raises(CheckpointError, match=r"is ambiguous: enter 4→8, one 8→8, other 8→8, leave 8→2.*'order': \["):
        load(path)
    teacher = load(path, order=["enter", "one", "other", "leave"])
    assert q_values(teacher, states(5)) == pytest.approx(say(network, states(5)), abs=1e-5)


@pytest.mark.parametrize(
    ("weights", "network", "message"),
    [
        (TUTORIAL, {"activation": "gelu"}, r"layer1 4→128, .*has activation='gelu'. Expected one of relu, tanh"),
        (TUTORIAL, {"activation": ""}, "does not name the activation between its layers"),
        (TUTORIAL, {"activations": "relu"}, "has the key 'activations', expected one of activation"),
        (TUTORIAL, {"outputs": "probabilities"}, "must be 'q_values', or 'logits'"),
        (TUTORIAL, {"outputs": ["logits"]}, "expected a text"),
        (TUTORIAL, {"order": "layer1"}, "expected a list of names"),
        (TUTORIAL, {"order": ["layer1", "layer9"]}, "there is no linear layer 'layer9' in it: it has layer1 4→128"),
        (TUTORIAL, {"order": ["layer1", "layer1"]}, "names a layer twice"),
        (TUTORIAL, {"order": ["layer1", "layer3", "layer2"]}, "layers do not fit each other"),
        (TUTORIAL, {"prefix": "q."}, r"no weight's name begins with the prefix 'q\.'"),
        (TUTORIAL, {"entry": "policy_net"}, "it has no entries, but weights"),
        (
            {"net": {"fc.weight": torch.ones(2, 4)}, "step": 1},
            {},
            r"its entries are net; name the one .*'entry': 'net'",
        ),
        (Net(fc1=(4, 8), fc2=(6, 2)), {}, "do not form one chain: fc1 4→8, fc2 6→2"),
        (Net(fc2=(4, 8), fc1=(8, 2)), {}, "do not form one chain"),  # the numbers descend
        (nn.ModuleDict({"a": mlp(4, 8, 2), "norm": nn.LayerNorm(4)}), {}, r"it has norm\.weight, norm\.bias, and only"),
        (nn.ModuleDict({"c": nn.Conv2d(1, 2, 3), "fc": nn.Linear(8, 2)}), {}, r"it has c\.weight, c\.bias, and only"),
        ({"fc1.bias": torch.ones(2)}, {}, r"it has fc1\.bias, and only chains"),
    ],
)
def test_what_is_not_clear_is_asked_for(tmp_path, weights, network, message):
    path = saved(tmp_path / "a.pth", weights)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(path, **network)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("teacher", [{}, {"network": {"activation": "relu"}}])
def test_a_description_needs_a_path(teacher):
    with pytest.raises(ValueError, match="needs a path and a dict as its network, got"):
        load_teacher(teacher)


@pytest.mark.parametrize("trust", ["False", "", None, [0]])
def test_trust_is_a_truth_value(trust):
    with pytest.raises(ValueError, match="`trust_checkpoint` must be True or False, got "):
        load_teacher("cartpole", trust_checkpoint=trust)


def test_without_a_description_it_says_what_it_needs(tmp_path):
    path = saved(tmp_path / "a.pth", TUTORIAL)
    refuse(path, "has the linear layers layer1 4→128, layer2 128→128, layer3 128→2, but its description does not name")


def test_files_that_describe_themselves_need_no_description(tmp_path):
    path = sb3_zip(tmp_path / "a.zip", actor_critic_weights(mlp(4, 8, 2)), states_space(), 2)
    for described in (path, make_q_module().save_to_path(str(tmp_path / "module"))):
        with pytest.raises(CheckpointError, match="has the key 'activation', expected none: the file itself"):
            load_teacher({"path": described, "network": RELU})


def states_space():
    return make_q_module().observation_space


def test_onnx_with_logits(tmp_path):
    teacher, path = Teacher(make_q_module()), tmp_path / "a.onnx"
    export(teacher, path, format="onnx", obs=states(5))
    loaded = load_teacher({"path": path, "network": {"outputs": "logits"}})
    expected = torch.log_softmax(torch.as_tensor(q_values(teacher, states(5))), -1).numpy()
    assert loaded.outputs == "log_probs"
    assert q_values(loaded, states(5)) == pytest.approx(expected, abs=1e-5)
    assert load_teacher(path).outputs == "q_values"


# --- Hostile files ----------------------------------------------------------------------------------------------------


def test_a_search_without_end_is_refused(tmp_path):
    weights = {f"{chr(97 + i)}x.weight": torch.ones(4, 4) for i in range(20)} | {"z.weight": torch.ones(3, 5)}
    with pytest.raises(CheckpointError, match="is ambiguous"):
        load(saved(tmp_path / "a.pth", weights))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            {f"fc{i}.weight": torch.ones(2, 2) for i in range(limits.MAX_PLAIN_LAYERS + 1)},
            f"has {limits.MAX_PLAIN_LAYERS + 1} linear layers, expected 1 to {limits.MAX_PLAIN_LAYERS}",
        ),
        ({"fc.weight": torch.ones(1, 1).expand(2**20, 2**20)}, "claims more numbers than there are"),
        ({"fc.weight": torch.full((2, 4), np.nan)}, "not finite"),
        ({"fc.weight": torch.ones(2, 0)}, "observation_shape"),
        ({"fc.weight": torch.ones(0, 4)}, "no network that can be read"),
        ({"fc.weight": torch.ones(2, 4), "fc.bias": torch.ones(3)}, "no network that can be read"),
        ({"fc.weight": torch.ones(2, 4), "note": "hello"}, "its entries are none; name the one of the weights"),
        ({"state_dict": {"fc.weight": 3.0}, "epoch": 1}, "is not a plain tensor"),
        ({"state_dict": {}, "epoch": 1}, "Expected the weights of a module by name"),
        ({f"fc{'9' * 5000}.weight": torch.ones(2, 4)}, None),
        ({"\x1b[2Jfc1.weight": torch.ones(2, 4), "b.weight": torch.ones(2, 4)}, "do not form one chain"),
    ],
    ids=["layers", "strides", "nan", "no inputs", "no outputs", "bias", "text", "number", "empty", "digits", "control"],
)
def test_hostile_weights_are_refused(tmp_path, weights, message):
    path = saved(tmp_path / "a.pth", weights)
    if message is None:
        assert load(path).action_space.n == 2
        return
    with pytest.raises(ValueError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_entries_that_contain_themselves_are_refused(tmp_path):
    weights: dict = {"epoch": 1}
    weights["state_dict"] = weights
    with pytest.raises(CheckpointError):
        load(saved(tmp_path / "a.pth", weights))
