"""Small JSON and safetensors files that would take much are refused: in 2 s of processor time, and 300 MB."""

import json
import struct

import pytest
import safetensors.torch
import torch

from rllib_kd import limits, load_teacher
from rllib_kd.checkpoints.pickles import CheckpointError
from rllib_kd.teachers.base import Teacher
from tests.checkpoints.hostile import refused
from tests.conftest import CARTPOLE_OBS, make_q_module, states
from tests.formats import mlp, sb3_weights, sb3_zip

JSONS = {
    "empty lists": lambda: "[" + "[]," * 4_000_000 + "[]]",
    "too deep": lambda: "[" * 100_000 + "]" * 100_000,
    "many keys": lambda: "{" + ",".join(f'"{i}":0' for i in range(600_000)) + "}",
    "a million digits": lambda: '{"a": ' + "9" * 10**6 + "}",
}


@pytest.mark.parametrize("kind", JSONS)
def test_json_that_takes_much(tmp_path, kind):
    text = JSONS[kind]()
    (tmp_path / "a.safetensors").write_bytes(safetensors.torch.save({"w": torch.zeros(2, 4)}))
    (tmp_path / "a.json").write_text(text)
    refused(lambda: load_teacher(tmp_path / "a.safetensors"))
    path = sb3_zip(tmp_path / "a.zip", sb3_weights(mlp(4, 8, 2)), CARTPOLE_OBS, 2, files={"data": text.encode()})
    refused(lambda: load_teacher(path))


@pytest.mark.parametrize(
    "changes",
    [
        {"observation_shape": [10**400]},
        {"observation_shape": [2] * 100_000},
        pytest.param({"observation_shape": [int("9" * 4_000)] * 10_000}, marks=pytest.mark.slow),
        {"num_actions": 10**400},
        {"no one reads it": "a" * 10**7},
        {"layers": [{"op": "dueling", "value": [{"op": "relu"}] * 100_000, "advantage": []}]},
        {"layers": [{"op": "one_hot", "lengths": [1] * 400_000}]},
        {"layers": [{"op": "expectation", "num_atoms": 10**400, "v_min": 0, "v_max": 1}]},
    ],
)
def test_descriptions_that_take_much(tmp_path, changes):
    layers = [{"op": "linear", "weight": "w", "bias": "b"}]
    tensors = {"w": torch.zeros(2, 4), "b": torch.zeros(2)}
    (tmp_path / "a.safetensors").write_bytes(safetensors.torch.save(tensors))
    (tmp_path / "a.json").write_text(json.dumps({"layers": layers, "observation_shape": [4]} | changes))
    refused(lambda: load_teacher(tmp_path / "a.safetensors"))


def test_a_thousand_times_a_thousand_pixels(tmp_path):
    """64 filters of 400 × 400 over a million pixels: 10 billions of steps a filter."""
    tensors = {"k": torch.zeros(8, 1, 400, 400), "c": torch.zeros(8), "w": torch.zeros(2, 8), "b": torch.zeros(2)}
    layers = [{"op": "conv2d", "weight": "k", "bias": "c", "stride": [1, 1]}, {"op": "flatten"}]
    (tmp_path / "a.safetensors").write_bytes(safetensors.torch.save(tensors))
    (tmp_path / "a.json").write_text(json.dumps({"layers": layers, "observation_shape": [1_000, 1_000, 1]}))
    refused(lambda: load_teacher(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("layer", ["tanh", "layer_norm"])
def test_many_layers_of_millions_of_numbers(tmp_path, layer):
    tensors = {"k": torch.zeros(1, 1, 1, 1), "c": torch.zeros(1), "w": torch.zeros(2, 4), "b": torch.zeros(2)}
    tensors |= {f"{name}{i}": torch.ones(1) for name in "vd" for i in range(100)}
    layers = [{"op": layer, "weight": f"v{i}", "bias": f"d{i}", "eps": 1e-5} for i in range(100)]
    layers += [{"op": "conv2d", "weight": "k", "bias": "c", "stride": [1_400, 1_400]}, {"op": "flatten"}]
    layers += [{"op": "linear", "weight": "w", "bias": "b"}]
    (tmp_path / "a.safetensors").write_bytes(safetensors.torch.save(tensors))
    (tmp_path / "a.json").write_text(json.dumps({"layers": layers, "observation_shape": [1_448, 1_448, 1]}))
    refused(lambda: load_teacher(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("kind", ["safetensors", "cleanrl"])
def test_weights_of_one_byte_each(tmp_path, kind):
    tensors = {"0.weight": torch.zeros(2, 4, dtype=torch.bool), "0.bias": torch.zeros(2)}
    if kind == "cleanrl":
        torch.save(tensors, tmp_path / "a")
    else:
        (tmp_path / "a").write_bytes(safetensors.torch.save(tensors))
    with pytest.raises(CheckpointError, match="has numbers of one byte"):
        load_teacher(tmp_path / "a")


@pytest.mark.parametrize(
    "header",
    [
        pytest.param("a huge length", marks=pytest.mark.slow),
        "many tensors",
        "overlapping offsets",
        "a length of all ones",
    ],
)
def test_headers_of_safetensors(tmp_path, header):
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    text = {
        "a huge length": "{" + " " * 2**25 + "}",
        "many tensors": json.dumps({str(i): entry for i in range(50_000)}),
        "overlapping offsets": json.dumps({"a": entry, "b": entry}),
        "a length of all ones": "{}",
    }[header].encode()
    length = 2**64 - 1 if header == "a length of all ones" else len(text)
    (tmp_path / "a").write_bytes(struct.pack("<Q", length) + text + bytes(4))
    refused(lambda: load_teacher(tmp_path / "a"))


@pytest.mark.parametrize("kind", ["safetensors", "onnx", "rllib"])
def test_wide_networks_answer_in_parts(tmp_path, kind, monkeypatch):
    """A thousand observations of what is just accepted would take 4 GB at once."""
    monkeypatch.setattr(limits, "MAX_IN_FLIGHT", 1_000)
    obs = torch.as_tensor(states(50))
    module = make_q_module(fcnet_hiddens=[64], dueling=True)
    path = tmp_path / "a"
    if kind == "rllib":
        module.save_to_path(str(path))
    else:
        from rllib_kd.export.export import export

        export(Teacher(module), path, format=kind, obs=states(5))
    sizes = []
    teacher = load_teacher(path)
    holder, name = (teacher._mlp, "q_values") if kind != "onnx" else (teacher.module.function, "_run")
    own = getattr(holder, name)

    def watched(batch):
        sizes.append(len(batch))
        return own(batch)

    monkeypatch.setattr(holder, name, watched)
    q = teacher.q_values(obs)
    assert q.numpy() == pytest.approx(Teacher(module).q_values(obs).numpy(), abs=1e-5)
    assert len(sizes) > 1
    assert sum(sizes) == 50
    labels = teacher.labels(obs, ("teacher_q",))["teacher_q"]
    assert labels.numpy() == pytest.approx(q.numpy(), abs=1e-6)
