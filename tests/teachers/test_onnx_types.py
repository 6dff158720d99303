"""ONNX models whose observations are no 32-bit floats: they get what they take, or are refused by the type's name."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from rllib_kd import load_teacher
from rllib_kd.observations.pipeline import ObservationPipeline
from tests.conftest import states
from tests.formats import mlp, q_values, say


def test_onnx_of_other_input_types(tmp_path):
    network = mlp(4, 8, 3).double()
    names = {"input_names": ["state"], "output_names": ["values"], "dynamic_axes": {"state": {0: "n"}}}
    torch.onnx.export(network, (torch.zeros(1, 4).double(),), tmp_path / "a", dynamo=False, **names)
    teacher = load_teacher(tmp_path / "a")
    assert q_values(teacher, states(20)) == pytest.approx(say(network.float(), states(20)), abs=1e-5)


def table(path, *, index=TensorProto.INT64, values=TensorProto.FLOAT):
    """An ONNX model whose Q-values of state i are [i, -i]."""
    weights = helper.make_tensor("w", TensorProto.FLOAT, [16, 2], [sign * i for i in range(16) for sign in (1, -1)])
    ends = [("obs", index, ["n"]), ("q", values, ["n", 2])]
    nodes = [
        helper.make_node("Cast", ["obs"], ["i"], to=TensorProto.INT64),
        helper.make_node("Gather", ["w", "i"], ["row"]),
        helper.make_node("Cast", ["row"], ["q"], to=values),
    ]
    obs, q = (helper.make_tensor_value_info(*end) for end in ends)
    model = helper.make_model(
        helper.make_graph(nodes, "g", [obs], [q], [weights]), opset_imports=[helper.make_opsetid("", 18)], ir_version=9
    )
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("index", [TensorProto.INT64, TensorProto.INT32, TensorProto.UINT16])
def test_onnx_of_integers_gets_integers(tmp_path, index):
    teacher = load_teacher(table(tmp_path / "a", index=index), pipeline=ObservationPipeline(gym.spaces.Discrete(16)))
    assert teacher.takes(gym.spaces.Discrete(16))
    assert q_values(teacher, np.array([3, 15])).tolist() == [[3, -3], [15, -15]]
    with pytest.raises(ValueError, match=r"takes u?int\d\d, integers from -?\d+ to \d+, and got 0\.5"):
        teacher.q_values(torch.tensor([0.5]))


@pytest.mark.parametrize(
    ("values", "expected"), [(TensorProto.BOOL, [1, 1]), (TensorProto.INT32, [3, -3]), (TensorProto.FLOAT16, [3, -3])]
)
def test_outputs_of_onnx_are_numbers_of_other_types_too(tmp_path, values, expected):
    path = table(tmp_path / "a", values=values)
    teacher = load_teacher(path, pipeline=ObservationPipeline(gym.spaces.Discrete(16)))
    assert q_values(teacher, np.array([0, 3])).tolist() == [[0, 0], expected]


@pytest.mark.parametrize(
    ("types", "message"),
    [
        ({"index": TensorProto.BOOL}, r"observations of the type tensor\(bool\), expected floats"),
        ({"index": TensorProto.BFLOAT16}, r"observations of the type tensor\(bfloat16\), expected"),
        ({"values": TensorProto.BFLOAT16}, r"outputs of the type tensor\(bfloat16\), expected .* by a Cast"),
    ],
)
def test_other_types_of_onnx_are_refused_by_their_names(tmp_path, types, message):
    with pytest.raises(ValueError, match=message):
        load_teacher(table(tmp_path / "a", **types))


@pytest.mark.parametrize(
    ("shape", "own"), [((4, 20, 20), (20, 20, 4)), ((20, 20, 4), (20, 20, 4)), ((4, 20, 20), (4, 20, 20))]
)
def test_onnx_of_bytes_gets_bytes(tmp_path, shape, own):
    class Mean(nn.Module):
        def forward(self, obs):
            return obs.float().flatten(1)[:, :2]

    names = {"input_names": ["state"], "output_names": ["values"], "dynamic_axes": {"state": {0: "n"}}}
    torch.onnx.export(Mean(), (torch.zeros(1, *own).byte(),), tmp_path / "a", dynamo=False, **names)
    teacher = load_teacher(tmp_path / "a")
    assert teacher.takes(gym.spaces.Box(0, 255, shape, np.uint8))
    obs = np.full((2, *shape), 200, np.uint8)
    assert q_values(teacher, obs).tolist() == [[200, 200]] * 2
    with pytest.raises(ValueError, match=r"takes bytes, integers from 0 to 255, and got 0\.5"):
        q_values(teacher, obs * np.float32(0.0025))
