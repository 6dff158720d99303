"""ONNX files of others: only operators whose costs are known, within limits."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from rllib_kd import load_teacher
from rllib_kd.export.export import export
from rllib_kd.teachers.base import Teacher
from tests.conftest import make_q_module, states
from tests.teachers.refusals import MATMUL, onnx_model, refuse


def test_a_plain_onnx_model_loads(tmp_path):
    (tmp_path / "a").write_bytes(onnx_model([MATMUL]))
    teacher = load_teacher(tmp_path / "a")
    assert teacher.q_values(torch.ones(1, 4)).tolist() == [[4.0, 4.0]]
    assert teacher.num_parameters == 8


def test_scales_and_zero_points_are_no_parameters(tmp_path):
    student = Teacher(make_q_module(fcnet_hiddens=[6]))
    export(student, tmp_path / "a.onnx", format="onnx", obs=states(50), int8=True)
    assert load_teacher(tmp_path / "a.onnx").num_parameters == student.num_parameters


def test_operators_of_a_library_are_refused(tmp_path):
    node = helper.make_node("Evil", ["obs"], ["q"], domain="my.library")
    (tmp_path / "a").write_bytes(onnx_model([node], domains=("", "my.library")))
    refuse(tmp_path / "a", r"refused: its operator 'my\.library\.Evil'")
    node = helper.make_node("Gelu", ["obs"], ["q"], domain="com.microsoft")
    (tmp_path / "b").write_bytes(onnx_model([node], domains=("", "com.microsoft")))
    refuse(tmp_path / "b", r"refused: its operator 'com\.microsoft\.Gelu'")


def test_weights_in_another_file_are_refused(tmp_path):
    (tmp_path / "secret").write_bytes(np.ones(8, np.float32).tobytes())
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 2], np.ones(8))
    weight.ClearField("float_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "secret"), ("offset", "0"), ("length", "32")):
        weight.external_data.add(key=key, value=value)
    (tmp_path / "a").write_bytes(onnx_model([MATMUL], weight=weight))
    refuse(tmp_path / "a", "its weight 'w' lies in another file")
    constant = helper.make_node("Constant", [], ["w2"], value=weight)
    matmul = helper.make_node("MatMul", ["obs", "w2"], ["q"])
    (tmp_path / "b").write_bytes(onnx_model([constant, matmul]))
    refuse(
        tmp_path / "b", r"its weight 'w' lies in another file. .* torch\.onnx\.export\(\.\.\., external_data=False\)"
    )


def test_endless_loops_are_refused(tmp_path):
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["still"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("still", TensorProto.BOOL, [])],
    )
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    nodes = [helper.make_node("Constant", [], ["go"], value=yes), helper.make_node("Loop", ["", "go"], [], body=body)]
    (tmp_path / "a").write_bytes(onnx_model([*nodes, MATMUL]))
    refuse(tmp_path / "a", "'Loop' is control flow")


@pytest.mark.parametrize("kind", ["zeros", "a large matrix", "doubled and doubled", "as many as a value says"])
def test_a_few_bytes_make_no_gigabytes(tmp_path, kind):
    large = [helper.make_tensor(name, TensorProto.FLOAT, shape, [0] * 50_000) for name, shape in LARGE.items()]
    lengths = helper.make_tensor("lengths", TensorProto.INT64, [1], [2**31])
    makes = {
        "zeros": [helper.make_node("ConstantOfShape", ["lengths"], ["x"])],
        "a large matrix": [helper.make_node("MatMul", ["column", "row"], ["x"])],
        "doubled and doubled": [
            helper.make_node("Concat", [f"x{i}" if i else "obs"] * 2, [f"x{i + 1}" if i < 29 else "x"], axis=0)
            for i in range(30)
        ],
        "as many as a value says": [
            helper.make_node("ReduceSum", ["obs"], ["sum"], keepdims=0),
            helper.make_node("Cast", ["sum"], ["number"], to=TensorProto.INT64),
            helper.make_node("Reshape", ["number", "one"], ["numbers"]),
            helper.make_node("ConstantOfShape", ["numbers"], ["x"]),
        ],
    }[kind]
    ends = [
        helper.make_node("ReduceSum", ["x"], ["x sum"], keepdims=0),
        helper.make_node("MatMul", ["obs", "w"], ["y"]),
        helper.make_node("Add", ["x sum", "y"], ["q"]),
    ]
    one = helper.make_tensor("one", TensorProto.INT64, [1], [1])
    (tmp_path / "a").write_bytes(onnx_model([*makes, *ends], weights=[*large, lengths, one]))
    refuse(tmp_path / "a", r"was refused: of 1 observations its operator '\w+' makes numbers of the shape \[")


LARGE = {"column": [50_000, 1], "row": [1, 50_000]}


def test_functions_of_functions_are_refused(tmp_path):
    opsets = [helper.make_opsetid("", 18)]
    function = helper.make_function("own", "F", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])], opsets)
    (tmp_path / "a").write_bytes(onnx_model([MATMUL], functions=[function], domains=("", "own")))
    refuse(tmp_path / "a", "it defines functions")


def test_onnx_of_other_inputs(tmp_path):
    model = onnx.load_model_from_string(onnx_model([MATMUL]))
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "any"
    (tmp_path / "a").write_bytes(model.SerializeToString())
    refuse(tmp_path / "a", "Expected fixed lengths")
