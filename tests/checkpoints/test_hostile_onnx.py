"""What is checked of an ONNX model is what runs, and what cannot be checked is refused."""

import pickle
import struct

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from rllib_kd import load_teacher
from rllib_kd.checkpoints.pickles import CheckpointError
from tests.checkpoints.hostile import refused
from tests.checkpoints.onnx_models import LOOKS_SMALL, MATMUL, integers, node, onnx_model


def in_ort_format(model, folder):
    """As onnxruntime stores a model for itself."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "model.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return (folder / "model.ort").read_bytes()


def two_models_in_one(shown, hidden):
    """Bytes that onnx reads as the one model, and onnxruntime as the other one, in its own format (a flatbuffer).

    The first bytes are protobuf's `ir_version`, and a text of four letters, `ORTM`. To onnxruntime they are the place
    of a table, and the name of its format.
    """
    head = b"\x08\x09\x12\x04ORTM"
    (root,) = struct.unpack("<I", head[:4])
    (own_root,) = struct.unpack("<I", hidden[:4])
    place = root + 64 + -root % 16  # of what is hidden, aligned
    fields = own_root - struct.unpack("<i", hidden[own_root : own_root + 4])[0]
    fields_size, size = struct.unpack("<HH", hidden[fields : fields + 4])
    table = bytearray(hidden[own_root : own_root + size])
    table[:4] = struct.pack("<i", root - (place + fields))
    for i in range(fields + 4, fields + fields_size, 2):
        (field,) = struct.unpack("<H", hidden[i : i + 2])
        if field:
            (offset,) = struct.unpack("<I", hidden[own_root + field : own_root + field + 4])
            table[field : field + 4] = struct.pack("<I", place + own_root + offset - root)
    body = shown.SerializeToString()
    assert body.startswith(b"\x08\x09")
    start = head + body[2:] + b"\xa2\x06"  # a field that is not known, with all the rest
    length = place + len(hidden) - len(start) - 5
    varint = bytes([length >> 7 * i & 127 | (128 if i < 4 else 0) for i in range(5)])
    content = start + varint
    content += bytes(root - len(content)) + bytes(table)
    return content + bytes(place - len(content)) + hidden


def test_what_runs_is_what_was_checked(tmp_path):
    hidden = onnx_model([MATMUL])
    hidden.graph.initializer[0].CopyFrom(helper.make_tensor("w", TensorProto.FLOAT, [4, 2], -np.ones(8)))
    content = two_models_in_one(onnx_model([MATMUL]), in_ort_format(hidden, tmp_path))
    ones = np.ones((1, 4), np.float32)
    for run in (onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run,):
        assert run(None, {"obs": ones})[0].tolist() == [[-4.0, -4.0]]  # or this test would show nothing
    (tmp_path / "a").write_bytes(content)
    teacher = load_teacher(tmp_path / "a")
    assert teacher.q_values(torch.ones(1, 4)).tolist() == [[4.0, 4.0]]
    again = pickle.loads(pickle.dumps(teacher))
    assert again.q_values(torch.ones(1, 4)).tolist() == [[4.0, 4.0]]
    assert len(again.module.function.__reduce__()[1][0]) < 1_000  # nothing else goes along


def test_what_no_one_checks_is_left_out(tmp_path):
    model = onnx_model([MATMUL])
    model.metadata_props.add(key="ort_config", value="{}")
    model.training_info.add().algorithm.node.add(op_type="Loop")
    model.graph.node[0].metadata_props.add(key="a", value="b")
    model.graph.value_info.add(name="q").type.tensor_type.elem_type = TensorProto.STRING
    (tmp_path / "a").write_bytes(model.SerializeToString())
    teacher = load_teacher(tmp_path / "a")
    kept = onnx.load_model_from_string(teacher.module.function.__reduce__()[1][0])
    for left_out in (kept.metadata_props, kept.training_info, kept.graph.value_info, kept.graph.node[0].metadata_props):
        assert not left_out


@pytest.mark.parametrize("domain", ["", "ai.onnx"])
def test_two_versions_of_the_same_operators(tmp_path, domain):
    model = onnx_model([MATMUL])
    model.opset_import.add(domain=domain, version=9)
    (tmp_path / "a").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="several versions of the same operators"):
        load_teacher(tmp_path / "a")


@pytest.mark.parametrize("changes", [{"ir_version": 2**40}, {"opset": 10_000}, {"opset": 0}, {"opset": -1}])
def test_versions_that_are_none(tmp_path, changes):
    model = onnx_model([MATMUL], opset=changes.get("opset", 18))
    model.ir_version = changes.get("ir_version", 9)
    (tmp_path / "a").write_bytes(model.SerializeToString())
    refused(lambda: load_teacher(tmp_path / "a"))


def test_a_fixed_number_of_observations(tmp_path):
    model = onnx_model([MATMUL])
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    (tmp_path / "a").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match=r"takes 2 observations at once\. Expected any number"):
        load_teacher(tmp_path / "a")


@pytest.mark.parametrize("kind", ["sparse", "of one name"])
def test_weights_that_hide_behind_others(tmp_path, kind):
    model = onnx_model([node("ConstantOfShape", "n"), *LOOKS_SMALL], [integers("n", 1)])
    if kind == "sparse":
        parts = integers("n", 250_000_000), integers("places", 0)
        model.graph.sparse_initializer.append(helper.make_sparse_tensor(*parts, [1]))
    else:
        model.graph.initializer.append(integers("n", 2))
    (tmp_path / "a").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="sparse weights" if kind == "sparse" else "have the same name"):
        load_teacher(tmp_path / "a")


@pytest.mark.parametrize("shape", [(1, 300), (3_000, 10)])
def test_operators_of_many_tensors(tmp_path, shape):
    count, width = shape
    nodes = [node("Sum", *["obs"] * width, to=f"s{i}") for i in range(count - 1)]
    (tmp_path / "a").write_bytes(onnx_model([*nodes, node("Sum", *["obs"] * width), MATMUL]).SerializeToString())
    with pytest.raises(CheckpointError, match="take and make more tensors"):
        load_teacher(tmp_path / "a")


def test_integers_of_one_byte_each(tmp_path):
    model = onnx_model([MATMUL], [helper.make_tensor("i", TensorProto.INT64, [2**21], np.zeros(2**21, int))])
    (tmp_path / "a").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="more parts than any model"):
        load_teacher(tmp_path / "a")


def test_a_fixed_number_of_answers(tmp_path):
    nodes = [node("MatMul", "obs", "w", to="y"), node("Slice", "y", "0", "2", "0", to="q")]
    model = onnx_model(nodes, [integers("0", 0), integers("2", 2)])
    (tmp_path / "a").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match=r"of 1000 observations it makes Q-values of the shape \[2, 2\]"):
        load_teacher(tmp_path / "a")


#: Fields without content, each in two or three bytes: graphs, versions, and unknown ones.
EMPTY = {"graphs": b"\x3a\0", "versions": b"\x42\0", "unknown": b"\xa2\x06\0"}


@pytest.mark.parametrize("field", EMPTY)
def test_parts_of_two_bytes_each_are_counted(tmp_path, monkeypatch, field):
    monkeypatch.setattr("rllib_kd.limits.MAX_ONNX_FIELDS", 1_000)
    (tmp_path / "a").write_bytes(onnx_model([MATMUL]).SerializeToString() + EMPTY[field] * 1_000)
    with pytest.raises(CheckpointError, match="more parts than any model"):
        load_teacher(tmp_path / "a")


@pytest.mark.slow
def test_as_many_nodes_of_two_bytes_each_as_a_file_can_hold(tmp_path):
    nodes = b"\x0a\0" * 5_000_000  # in a graph
    length = bytes([len(nodes) >> 7 * i & 127 | (128 if i < 4 else 0) for i in range(5)])
    (tmp_path / "a").write_bytes(onnx_model([MATMUL]).SerializeToString() + b"\x3a" + length + nodes)
    refused(lambda: load_teacher(tmp_path / "a"))


def test_shapes_that_are_computed_are_known(tmp_path):
    """As PyTorch's exporters write a flattened batch."""
    nodes = [
        node("Shape", "obs", to="shape"),
        node("Gather", "shape", "zero", to="n", axis=0),
        node("Unsqueeze", "n", "axes", to="n1"),
        node("Slice", "shape", "from", "to", "axes", to="rest"),
        node("ReduceProd", "rest", to="size", keepdims=1),
        node("Concat", "n1", "size", to="flat", axis=0),
        node("Reshape", "obs", "flat", to="x"),
        node("MatMul", "x", "w", to="q"),
    ]
    weights = [helper.make_tensor("zero", TensorProto.INT64, [], [0]), integers("axes", 0)]
    weights += [integers("from", 1), integers("to", 2**62)]
    (tmp_path / "a").write_bytes(onnx_model(nodes, weights, shape=(2, 2)).SerializeToString())
    assert load_teacher(tmp_path / "a").q_values(torch.ones(3, 2, 2)).tolist() == [[4.0, 4.0]] * 3


@pytest.mark.parametrize("operator", ["Div", "Mod"])
@pytest.mark.parametrize("divisor", [0, -1])
def test_onnx_integers_are_not_divided_by_what_ends_the_process(tmp_path, operator, divisor):
    """ONNX Runtime would fold the constants, and the processor would stop at −2⁶³ / −1."""
    helper, kinds = onnx.helper, onnx.TensorProto
    nodes = [
        helper.make_node(operator, ["dividend", "divisor"], ["whole"]),
        helper.make_node("Cast", ["whole"], ["number"], to=kinds.FLOAT),
        helper.make_node("Add", ["x", "number"], ["q"]),
    ]
    constants = {"dividend": -(2**63), "divisor": divisor}
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", kinds.FLOAT, ("N", 4))],
        [helper.make_tensor_value_info("q", kinds.FLOAT, None)],
        [onnx.numpy_helper.from_array(np.array([value]), name) for name, value in constants.items()],
    )
    path = tmp_path / "model.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match=f"'{operator}' divides integers"):
        load_teacher(str(path))
