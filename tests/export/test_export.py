"""Every network in every format equals PyTorch, or is refused."""

import logging
import os
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from ray.rllib.algorithms.dqn.default_dqn_rl_module import QF_PREDS
from ray.rllib.algorithms.dqn.torch.default_dqn_torch_rl_module import DefaultDQNTorchRLModule
from safetensors.torch import save
from torch import nn

from rllib_kd.evaluation.played_environment import PlayedEnvironment
from rllib_kd.export.artifact import artifact_format_of, deployment_cost, q_function
from rllib_kd.export.deployment import deploy
from rllib_kd.export.export import TOLERANCE, export
from rllib_kd.export.formats import describe
from rllib_kd.export.web.publish import publish
from rllib_kd.teachers.base import Teacher
from rllib_kd.teachers.function import QNetwork
from tests.conftest import CARTPOLE_ACTIONS, CARTPOLE_OBS, states
from tests.export.students import (
    LINEAR,
    MLPS,
    NETWORK_FORMATS,
    ONE_FILE,
    OTHERS,
    ROOT,
    THREE_ACTIONS,
    linear_student,
    network,
)

#: Every layer is in these; a format that traces PyTorch sees no difference in the others.
TRACED = ("linear in pixels", "layer norm, elu", "silu, sigmoid", "dueling C51", "cnn with padding")


@pytest.mark.parametrize(
    ("name", "artifact_format"),
    [
        (name, each)
        for each in ONE_FILE
        for name in ((*LINEAR, *MLPS, *OTHERS) if each in ("onnx", "safetensors") else TRACED)
    ],
)
def test_every_network_in_every_format_equals_pytorch(name, artifact_format, tmp_path):
    student = linear_student(LINEAR[name]) if name in LINEAR else network(**(MLPS | OTHERS)[name])
    obs = states(40, student.observation_space)
    result = export(student, tmp_path / "student", format=artifact_format, obs=obs)
    artifact = q_function(tmp_path / "student")
    expected = student.q_values(torch.as_tensor(obs)).numpy()
    difference = np.abs(artifact(obs) - expected).max()
    assert difference <= TOLERANCE / 10
    assert result.max_difference == pytest.approx(difference, abs=1e-6)
    assert result.agreement == 1.0
    assert result.num_observations == 40
    assert result.max_difference_allowed == TOLERANCE
    # Any batch, and observations of any number type.
    assert artifact(obs[:1].astype(np.float64)) == pytest.approx(expected[:1], abs=1e-5)
    assert artifact_format_of(tmp_path / "student") == artifact_format
    assert np.ptp(expected, axis=0).min() > 0.01  # a constant would be no test


def test_the_onnx_graph_is_what_a_device_wants(tmp_path):
    import onnx

    for name, operators in {
        "one relu layer": ["Gemm", "Relu", "Gemm"],
        "dueling": ["Gemm", "Relu", "Gemm", "Relu", *["Gemm", "Relu", "Gemm"] * 2, "ReduceMean", "Sub", "Add"],
    }.items():
        path = tmp_path / f"{name}.onnx"
        export(network(**MLPS[name]), path, format="onnx", obs=states(2))
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        assert sorted(node.op_type for node in model.graph.node) == sorted(operators)
        (obs,), (q_values,) = model.graph.input, model.graph.output
        assert (obs.name, q_values.name) == ("obs", "q_values")
        shapes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (obs, q_values)]
        assert shapes == [["batch", 4], ["batch", 3]]


@pytest.mark.parametrize("artifact_format", NETWORK_FORMATS)
def test_exporting_is_silent_changes_nothing_else_and_knows_no_paths(artifact_format, tmp_path, capfd, caplog):
    student, obs, file = network(dueling=True), states(4), tmp_path / "new" / "s"
    before = student.q_values(torch.as_tensor(obs))
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if artifact_format == "onnx":
            export(student, file, format=artifact_format, obs=obs, int8=True)
        export(network(fcnet_hiddens=[3]), file, format="safetensors", obs=obs)
        export(student, file, format=artifact_format, obs=obs)  # it takes another one's place
    assert sorted(os.listdir(file.parent)) == (["s", "s_main.c"] if artifact_format == "c" else ["s"])
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []

    assert torch.equal(student.q_values(torch.as_tensor(obs)), before)
    assert not any(parameter.requires_grad for parameter in student.module.parameters())

    contents = [file.read_bytes()]
    if artifact_format in ("pt2", "torchscript"):
        with zipfile.ZipFile(file) as archive:
            contents = [archive.read(name) for name in archive.namelist()]
    for path in (str(ROOT), str(Path(torch.__file__).parent), str(tmp_path), "site-packages", "export.py"):
        assert not any(path.encode() in content for content in contents)


@pytest.mark.parametrize(
    ("error", "artifact_format"), [(1.1e-4, "c"), (1.1e-4, "onnx"), (1.1e-4, "safetensors"), (np.nan, "safetensors")]
)
def test_an_artifact_that_differs_is_refused(error, artifact_format, tmp_path, monkeypatch):
    (tmp_path / "s").write_text("older")
    load = q_function

    def wrong(path):
        artifact = load(path)

        def q_values(obs):
            values = artifact(obs).copy()
            values[-1, -1] += error  # one Q-value of one observation is enough
            return values

        return q_values

    monkeypatch.setattr("rllib_kd.export.export.q_function", wrong)
    shown = "nan" if np.isnan(error) else "0.00011"
    with pytest.raises(ValueError, match=rf"differs from PyTorch by {shown}.*on 300 observations.*allowed is 0.0001 "):
        export(network(), tmp_path / "s", format=artifact_format, obs=states(300))
    assert os.listdir(tmp_path) == ["s"]
    assert (tmp_path / "s").read_text() == "older"
    if error == error:
        assert export(network(), tmp_path / "s", format=artifact_format, obs=states(300), tolerance=2e-4).agreement > 0


@pytest.mark.slow
@pytest.mark.parametrize("artifact_format", NETWORK_FORMATS)
def test_large_q_values_may_differ_by_their_rounding_and_no_more(artifact_format, tmp_path, monkeypatch):
    student, obs = network(fcnet_hiddens=[64, 64]), states(300)
    with torch.no_grad():
        student.module.af.net.mlp[-1].weight.mul_(4000.0)
    size = np.abs(student.q_values(torch.as_tensor(obs)).numpy()).max()
    assert size > 500
    result = export(student, tmp_path / "s", format=artifact_format, obs=obs)
    assert result.max_difference_allowed == 16 * np.spacing(size) > TOLERANCE
    load = q_function
    monkeypatch.setattr(
        "rllib_kd.export.export.q_function", lambda path: lambda obs: load(path)(obs) + 32 * np.spacing(size)
    )
    with pytest.raises(ValueError, match=r"differs from PyTorch by .* \(Q-values reach"):
        export(student, tmp_path / "s", format=artifact_format, obs=obs)


def test_a_wrong_weight_in_the_file_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "rllib_kd.export.formats.save",
        lambda tensors, metadata: save({k: v + 1e-3 for k, v in tensors.items()}, metadata),
    )
    with pytest.raises(ValueError, match="differs from PyTorch"):
        export(network(), tmp_path / "s", format="safetensors", obs=states(5))


def with_weights(number: float) -> Teacher:
    student = network()
    with torch.no_grad():
        for parameter in student.module.parameters():
            parameter.fill_(number)
    return student


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"format": "tflite"}, "Unknown format 'tflite'. Known are c, onnx, pt2, python, safetensors, torchscript"),
        ({"format": "safetensors", "int8": True}, "int8 is for format='c' or 'onnx' only"),
        ({"prefix": "mine"}, "A prefix is for format='c' only"),
        ({"obs": states(3)[:, :3]}, r"the shape \[3, 3\], expected \[N, 4\]"),
        ({"obs": states(3)[:0]}, r"the shape \[0, 4\], expected \[N, 4\]"),
        ({"obs": states(3)[0]}, r"the shape \[4\], expected \[N, 4\]"),
        ({"obs": 1.0}, r"the shape \[\], expected \[N, 4\]"),
        ({"obs": np.full((3, 4), np.nan)}, "NaN, infinite, or too large for 32-bit floats"),
        ({"obs": np.full((3, 4), 1e39)}, "NaN, infinite, or too large for 32-bit floats"),
        ({"student": with_weights(np.nan)}, "weights that are NaN or infinite: its training diverged"),
        ({"student": with_weights(np.nan), "int8": True}, "weights that are NaN or infinite: its training diverged"),
        ({"student": with_weights(1e30)}, "own Q-values are infinite or NaN in PyTorch"),
    ],
)
def test_bad_input(kwargs, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export(**{"student": network(), "out": tmp_path / "s", "format": "onnx", "obs": states(3)} | kwargs)
    assert os.listdir(tmp_path) == []


def test_the_largest_q_values_may_be_far_below_zero(tmp_path):
    student = with_weights(-1e35)
    with torch.no_grad():
        next(student.module.parameters()).zero_()
    result = export(student, tmp_path / "s", format="safetensors", obs=states(3), action_masks=np.eye(3))
    assert result.max_difference_allowed > 1e27
    assert result.agreement == 1.0


def test_a_folder_is_no_place_for_a_file(tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        export(network(), tmp_path, format="safetensors", obs=states(3))
    (tmp_path / "s_main.c").mkdir()
    with pytest.raises(ValueError, match=r"s_main\.c' is a folder"):
        export(network(), tmp_path / "s.h", format="c", obs=states(3))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is a device or a pipe, which cannot be replaced"):
        export(network(), tmp_path / "pipe", format="safetensors", obs=states(3))
    with pytest.raises(ValueError, match="is a device or a pipe, which cannot be replaced"):
        publish(network(), tmp_path / "pipe", PlayedEnvironment("CartPole-v1", {}))
    assert (tmp_path / "pipe").is_fifo()


def test_a_header_that_cannot_be_included_is_refused_before_the_episodes(tmp_path):
    with pytest.raises(ValueError, match="cannot be included by every C compiler"):
        deploy(network(), tmp_path / "a student.h", lambda config: pytest.fail("it plays"), format="c")


def test_missing_packages_say_what_to_install(tmp_path, monkeypatch):
    export(network(), tmp_path / "s", format="onnx", obs=states(3))
    for package, student in (("onnx", network()), ("onnxscript", OwnNetwork()), ("onnxruntime", network())):
        message = rf"'{package}', which is not installed. pip install 'rllib-kd\[onnx\]'"
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(ValueError, match=message):
                export(student, tmp_path / "s", format="onnx", obs=states(3))
            export(network(), tmp_path / "other", format="safetensors", obs=states(3))  # needs none of them
            if package == "onnxruntime":
                for function in (q_function, deployment_cost):
                    with pytest.raises(ValueError, match=message):
                        function(tmp_path / "s")


def test_safetensors_names_the_layers_that_it_cannot_describe(tmp_path):
    student = network(fcnet_activation="Softplus")
    with pytest.raises(ValueError, match=r"cannot hold the layer Softplus.*Known are linear, conv2d.*'onnx'"):
        export(student, tmp_path / "s", format="safetensors", obs=states(3))
    export(student, tmp_path / "s", format="torchscript", obs=states(3))


def test_recurrent_students_are_refused(tmp_path):
    student = network(use_lstm=True, lstm_cell_size=8, max_seq_len=5)
    with pytest.raises(ValueError, match="recurrent"):
        export(student, tmp_path / "s", format="torchscript", obs=states(3))


class OwnNetwork:
    """The least that an RLModule of the user's own has."""

    pipeline = None

    def __init__(self):
        torch.manual_seed(0)
        self.module = OwnModule()
        self.observation_space, self.action_space = CARTPOLE_OBS, CARTPOLE_ACTIONS

    def q_values(self, obs):
        with torch.inference_mode():
            return self.module.compute_q_values({"obs": obs})["qf_preds"]


class OwnModule(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Softplus(), nn.Linear(8, 2))

    def is_stateful(self):
        return False

    def compute_q_values(self, batch):
        return {"qf_preds": 2.0 * self.layers(batch["obs"]).cumsum(-1)}


def test_modules_of_the_users_own(tmp_path):
    student = OwnNetwork()
    for artifact_format in ("onnx", "pt2", "torchscript"):
        assert export(student, tmp_path / "s", format=artifact_format, obs=states(9)).max_difference < 1e-5
    with pytest.raises(ValueError, match="got a OwnModule"):
        export(student, tmp_path / "s", format="safetensors", obs=states(9))


def test_a_subclass_of_rllibs_module_is_exported_as_it_computes(tmp_path):
    class Doubled(DefaultDQNTorchRLModule):
        def compute_q_values(self, batch):
            return {QF_PREDS: 2.0 * super().compute_q_values(batch)[QF_PREDS]}

    module = network().module
    module.__class__ = Doubled
    student = Teacher(module)
    plain = network().q_values(torch.as_tensor(states(9))).numpy()
    export(student, tmp_path / "s", format="onnx", obs=states(9))
    assert q_function(tmp_path / "s")(states(9)) == pytest.approx(2 * plain, abs=1e-5)


class Careful(DefaultDQNTorchRLModule):
    """Adds a rule of the user's own: far from 0, where a parity check has no states, the first action is best."""

    def compute_q_values(self, batch):
        q = super().compute_q_values(batch)[QF_PREDS]
        return {QF_PREDS: q + 1e3 * (batch["obs"][:, :1] > 100.0) * torch.eye(3)[0]}


def careful(**model_config):
    module = network(**model_config).module
    module.__class__ = Careful
    return Teacher(module)


@pytest.mark.parametrize("artifact_format", ["onnx", "torchscript"])
def test_a_rule_of_the_users_own_is_in_the_file_of_a_dueling_student(tmp_path, artifact_format):
    export(careful(dueling=True), tmp_path / "s", format=artifact_format, obs=states(9))
    assert q_function(tmp_path / "s")(states(9) + 200)[:, 0] == pytest.approx(1e3, abs=200)


def test_what_a_description_would_lack_is_refused(tmp_path):
    hooked, other_sum = network(), network()
    hooked.module.af.register_forward_hook(lambda module, inputs, q_values: 2.0 * q_values)
    other_sum.module.compute_q_values = lambda batch: {}
    for student, message in (
        (careful(), "got a Careful with a TorchMLPEncoder"),
        (other_sum, r"compute_q_values\(\) of their own"),
        (hooked, "cannot hold af's TorchMLPHead, which has hooks"),
    ):
        for artifact_format, name in (("safetensors", "s"), ("c", "s.h")):
            with pytest.raises(ValueError, match=message):
                export(student, tmp_path / name, format=artifact_format, obs=states(3))
    remembering = careful(use_lstm=True, lstm_cell_size=8, max_seq_len=5)
    with pytest.raises(ValueError, match="got a Careful"):
        export(remembering, tmp_path / "s", format="onnx", obs=states(3))


def test_hooks_of_the_users_own_are_in_the_file(tmp_path):
    student = network()
    plain = student.q_values(torch.as_tensor(states(9))).numpy()
    student.module.af.register_forward_hook(lambda module, inputs, q_values: 2.0 * q_values)
    export(student, tmp_path / "s", format="onnx", obs=states(9))
    assert q_function(tmp_path / "s")(states(9)) == pytest.approx(2 * plain, abs=1e-5)


class Deciding(nn.Module):
    """Python decides by the shape of its inputs, by a constant, or by the numbers of its inputs."""

    def __init__(self, by):
        super().__init__()
        self.layer, self.by = nn.Linear(4, 3), by
        self.register_buffer("gain", torch.tensor(2.0))

    def forward(self, obs):
        seen = {"shape": lambda: obs.shape[1], "a constant": lambda: self.gain, "numbers": lambda: obs.max()}[self.by]()
        return -self.layer(obs) if seen > 5 else self.layer(obs) / float(seen)


@pytest.mark.parametrize("artifact_format", [pytest.param("onnx", marks=pytest.mark.slow), "pt2", "torchscript"])
def test_networks_that_decide_in_python_are_refused(tmp_path, capsys, artifact_format):
    student = Teacher(QNetwork(Deciding("numbers"), CARTPOLE_OBS, THREE_ACTIONS))
    with pytest.raises(ValueError, match=r"decides in Python by the numbers.*torch\.where"):
        export(student, tmp_path / "s", format=artifact_format, obs=states(9))
    assert not list(tmp_path.iterdir())
    assert "forward" not in capsys.readouterr().err


@pytest.mark.parametrize("by", ["shape", "a constant"])
def test_networks_that_decide_once_for_all_are_exported(tmp_path, by):
    student = Teacher(QNetwork(Deciding(by), CARTPOLE_OBS, THREE_ACTIONS))
    assert export(student, tmp_path / "s", format="torchscript", obs=states(9)).max_difference < 1e-5


def test_onnx_of_a_distribution_takes_an_empty_batch_and_has_integers(tmp_path):
    student, obs = network(**OTHERS["C51"]), states(200)
    done = export(student, tmp_path / "s", format="onnx", obs=obs)
    assert q_function(tmp_path / "s")(obs[:0]).shape == (0, 3)
    assert done.max_difference < 1e-5
    assert export(student, tmp_path / "small", format="onnx", obs=obs, int8=True).agreement > 0.9


def test_the_description_holds_what_acts_and_no_more():
    student = network(dueling=True)
    layers, tensors = describe(student)
    assert [layer["op"] for layer in layers] == ["linear", "relu", "linear", "relu", "dueling"]
    assert sum(tensor.numel() for tensor in tensors.values()) == student.num_parameters
